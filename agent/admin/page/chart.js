// Pictures: small lines for a table, and the shares of backends over ten minutes.
import { svg } from "./dom.js";

// path is a line through values in a box; -1 is a gap.
function path(values, width, height, top) {
  const step = width / Math.max(1, values.length - 1);
  let d = "", pen = "M";
  values.forEach((v, i) => {
    if (v < 0) {
      pen = "M";
      return;
    }
    d += `${pen}${(i * step).toFixed(1)} ${(height - (top ? v / top : 0) * height).toFixed(1)}`;
    pen = "L";
  });
  return d;
}

// spark makes a small picture of lines [{values, class}]; all have one scale, at least least. It is decoration: the figure beside it says the same.
export function spark(slots) {
  const width = 96, height = 22;
  const box = svg("svg", { class: "spark", viewBox: `0 -1 ${width} ${height + 2}`, width, height: height + 2, "aria-hidden": "true", focusable: "false", preserveAspectRatio: "none" });
  let before = "";
  return {
    element: box,
    draw(lines, least) {
      const top = Math.max(least, ...lines.map((l) => Math.max(0, ...l.values)));
      box.classList.toggle("flat", lines.every((l) => l.values.every((v) => v <= 0)));
      // All sparks end now and have the same length, those of young services begin later.
      const padded = lines.map((l) => ({ ...l, values: [...new Array(Math.max(0, slots - l.values.length)).fill(-1), ...l.values] }));
      const key = JSON.stringify([top, padded]);
      if (key === before) return;
      before = key;
      const parts = [];
      for (const l of padded) {
        const d = path(l.values, width, height, top);
        if (l.area && d) {
          const from = l.values.findIndex((v) => v >= 0);
          if (from >= 0) parts.push(svg("path", { class: `area ${l.class}`, d: `${d.replaceAll("M", "L").replace(/^L/, "M")}L${width} ${height}L${((from * width) / (l.values.length - 1)).toFixed(1)} ${height}Z` }));
        }
        parts.push(svg("path", { class: `line ${l.class}`, d }));
      }
      box.replaceChildren(...parts);
    },
  };
}

export const chartWidth = 1000, chartHeight = 220;

// stack draws bands [{key, color, values}] over each other, values per second; share = each moment is 100 %. Returns how to find the moment below a pointer.
export function stack(box, bands, times, lengths, share) {
  const n = times.length;
  const totals = times.map((_, i) => bands.reduce((sum, b) => sum + b.values[i], 0));
  const rates = totals.map((t, i) => t / lengths[i]);
  const top = share ? 1 : nice(Math.max(...rates, 0));
  const x = (i) => (n < 2 ? chartWidth : (i * chartWidth) / (n - 1));
  const y = (part) => chartHeight - part * chartHeight;
  let below = new Array(n).fill(0);
  const parts = [];
  for (const b of bands) {
    const above = below.map((low, i) => low + (share ? (totals[i] ? b.values[i] / totals[i] : 0) : b.values[i] / lengths[i] / (top || 1)));
    const up = above.map((v, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("");
    const down = below.map((v, i) => `L${x(i).toFixed(1)} ${y(v).toFixed(1)}`).reverse().join("");
    parts.push(svg("path", { d: `${up}${down}Z`, class: `band c${b.color}`, "data-band": b.key }));
    below = above;
  }
  box.replaceChildren(...parts);
  return { top, totals, rates, at: (part) => Math.max(0, Math.min(n - 1, Math.round(part * (n - 1)))) };
}

// nice is a round number that is not below n.
export function nice(n) {
  if (!(n > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(n));
  for (const step of [1, 1.5, 2, 3, 4, 5, 6, 8, 10]) if (step * power >= n) return step * power;
  return 10 * power;
}
