// How calls were shared among the backends over the last ten minutes.
import { clock, h, keyed, number, percent, say, svg } from "./dom.js";
import { chartHeight, chartWidth, stack } from "./chart.js";

const most = 60; // bands; more could not be told apart
const colors = 9;
const named = 10; // bands that the legend and the sentence name
const other = "others";

export class Picture {
  #model;
  #colors = new Map(); // address -> color; a backend keeps its color for as long as the service is open
  #mode = "share";
  #drawn = null;
  #at = -1; // the moment that is read; -1 = now

  constructor(model) {
    this.#model = model;
    this.box = svg("svg", { class: "stack", viewBox: `0 0 ${chartWidth} ${chartHeight}`, preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" });
    this.marks = svg("svg", { class: "marks", viewBox: `0 0 ${chartWidth} 10`, preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" });
    this.cursor = h("span", { class: "cursor", hidden: true });
    this.top = h("span", {});
    this.half = h("span", {});
    this.readout = h("p", { class: "readout", id: "readout" });
    this.slider = h("input", { type: "range", min: "0", step: "1", "aria-label": "Moment to read" });
    this.legend = h("ul", { class: "legend" });
    this.note = h("p", { class: "dim", hidden: true });
    const modes = ["share", "calls"].map((m) => {
      const b = h("button", { type: "button", "aria-pressed": String(m === this.#mode) }, m === "share" ? "Shares" : "Calls a second");
      b.addEventListener("click", () => {
        this.#mode = m;
        for (const [i, one] of ["share", "calls"].entries()) modes[i].setAttribute("aria-pressed", String(one === m));
        this.#paint();
      });
      return b;
    });
    const plot = h("div", { class: "plot" }, h("div", { class: "scale", "aria-hidden": "true" }, this.top, this.half, h("span", {}, "0")), h("div", { class: "canvas" }, this.box, this.cursor, this.marks));
    this.element = h("section", { class: "picture", "aria-labelledby": "picture-title" },
      h("div", { class: "bar" }, h("h2", { id: "picture-title" }, "Who got the calls, last 10 minutes"), h("div", { class: "modes", role: "group", "aria-label": "What the picture shows" }, modes)),
      plot, this.slider, h("div", { class: "axis", "aria-hidden": "true" }, (this.left = h("span", {})), h("span", {}, "now")), this.readout, this.legend, this.note);
    plot.lastChild.addEventListener("pointermove", (e) => {
      const r = this.box.getBoundingClientRect();
      this.#read(this.#drawn?.at((e.clientX - r.left) / r.width) ?? -1);
    });
    plot.lastChild.addEventListener("pointerleave", () => this.#read(-1));
    this.slider.addEventListener("input", () => this.#read(Number(this.slider.value)));
    this.slider.addEventListener("focus", () => this.#read(Number(this.slider.value)));
    this.slider.addEventListener("blur", () => this.#read(-1));
  }

  // color of a backend's band, null if it has none of its own.
  color(address) {
    return this.#colors.get(address) ?? null;
  }

  draw(d, events) {
    const of = d.shares?.of ?? {}, times = d.shares?.times ?? [];
    const sums = Object.entries(of).map(([address, values]) => [address, values.reduce((a, b) => a + b, 0)]).sort((a, b) => b[1] - a[1]);
    for (const [address] of sums.slice(0, most)) this.#give(address, of);
    const bands = [...this.#colors].filter(([address]) => of[address]).map(([address, color]) => ({ key: address, color, values: of[address] }));
    const own = new Set(bands.map((b) => b.key));
    const rest = new Array(times.length).fill(0);
    let many = d.folded ?? 0;
    (d.others ?? []).forEach((n, i) => (rest[i] += n));
    for (const [address] of sums) {
      if (own.has(address)) continue;
      of[address].forEach((n, i) => (rest[i] += n));
      many++;
    }
    if (many) bands.push({ key: other, color: "x", values: rest, many });
    const there = new Set((d.explain.backends ?? []).map((b) => b.backend.address));
    const lengths = times.map((t, i) => Math.max(1, (t - (times[i - 1] ?? t - 2000 * this.#model.slot)) / 1000));
    this.#data = { bands, times, lengths, events, partial: d.matching > there.size || d.matching < d.total, there };
    this.note.hidden = !d.shares?.over;
    say(this.note, d.shares?.over ? `${d.shares.over} backends have no past here: the agent keeps that of a bounded number.` : "");
    this.#paint();
  }

  #data = null;

  // #give gives a color to a backend, one that few others have. Those that have left the picture make room.
  #give(address, of) {
    if (this.#colors.has(address)) return;
    const used = new Array(colors).fill(0);
    for (const [a, c] of this.#colors) {
      if (of[a]) used[c]++;
      else this.#colors.delete(a);
    }
    if (this.#colors.size < most) this.#colors.set(address, used.indexOf(Math.min(...used)));
  }

  #paint() {
    if (!this.#data) return;
    const { bands, times, lengths, events } = this.#data;
    const any = bands.some((b) => b.values.some((n) => n > 0));
    this.element.classList.toggle("empty", !any);
    this.#drawn = stack(this.box, bands, times, lengths, this.#mode === "share");
    say(this.top, this.#mode === "share" ? "100 %" : `${number(this.#drawn.top)}/s`);
    say(this.half, this.#mode === "share" ? "50 %" : `${number(this.#drawn.top / 2)}/s`);
    say(this.left, times.length ? clock(times[0]) : "");
    this.slider.max = String(Math.max(0, times.length - 1));
    this.#marks(times, events);
    this.#legend(any);
    this.#read(this.#at);
  }

  // #marks shows when a verdict moved: what the shares did then has its reason there.
  #marks(times, events) {
    const from = times[0], to = times.at(-1);
    const lines = !(to > from) ? [] : events.filter((e) => e.time >= from && e.time <= to && ["verdict", "list", "panic", "mute"].includes(e.kind)).slice(0, 60).map((e) => {
      const x = ((e.time - from) / (to - from)) * chartWidth;
      return svg("path", { class: `tick ${e.kind} ${/now up\b|ended/.test(e.detail) ? "good" : "out"}`, d: `M${x} 0V10` });
    });
    this.marks.replaceChildren(...lines);
  }

  #legend(any) {
    const { bands, there, partial } = this.#data;
    const sum = (b) => b.values.reduce((a, c) => a + c, 0);
    const total = bands.reduce((all, b) => all + sum(b), 0);
    const rows = [...bands].filter((b) => b.key !== other).sort((a, b) => sum(b) - sum(a)).slice(0, named).map((b) => ({ ...b, sum: sum(b), words: b.key }));
    const left = bands.reduce((n, b) => n + (b.many ?? 1), 0) - rows.length;
    if (left > 0) rows.push({ key: other, color: "x", sum: total - rows.reduce((all, r) => all + r.sum, 0), words: `${left} more` });
    keyed(this.legend, any ? rows : [], (r) => r.key, () => h("li", {}, h("span", { class: "swatch", "aria-hidden": "true" }), h("span", { class: "mono" }), " ", h("span", { class: "dim" })), (li, r) => {
      li.firstChild.className = r.key === other ? "swatch" : `swatch c${r.color}`;
      say(li.children[1], r.words);
      say(li.children[2], `${percent(total ? r.sum / total : 0)}${r.key !== other && !partial && !there.has(r.key) ? ", left the list" : ""}`);
    });
  }

  #read(at) {
    this.#at = at;
    if (!this.#data || !this.#drawn) return;
    const { bands, times } = this.#data, { totals, rates } = this.#drawn;
    const i = at < 0 ? times.length - 1 : Math.min(at, times.length - 1);
    this.cursor.hidden = at < 0 || times.length < 2;
    this.cursor.style.left = `${(100 * i) / Math.max(1, times.length - 1)}%`;
    if (i < 0 || bands.length === 0) {
      say(this.readout, "No calls in the last ten minutes: none through the agent, and none that programs which ask have reported.");
      return;
    }
    const parts = bands.map((b) => [b.key === other ? `${b.many} others` : b.key, totals[i] ? b.values[i] / totals[i] : 0]).filter((one) => one[1] > 0).sort((a, b) => b[1] - a[1]);
    const text = `${clock(times[i])}  ${number(rates[i])} calls/s${parts.length ? ": " : ""}${parts.slice(0, named).map(([name, part]) => `${name} ${percent(part)}`).join(", ")}${parts.length > named ? ", ..." : ""}`;
    say(this.readout, text);
    if (this.slider.value !== String(i) && document.activeElement !== this.slider) this.slider.value = String(i);
    this.slider.setAttribute("aria-valuetext", text);
  }
}
