// One backend in the list of a service.
import { h, number, percent, plural, say, span, when } from "./dom.js";
import { spark } from "./chart.js";

const out = new Set(["down", "unreachable", "ejected"]);

export class Backend {
  #model;
  #p;
  #facts = "";

  constructor(address, model) {
    this.#model = model;
    const p = (this.#p = {
      swatch: h("span", { class: "swatch", "aria-hidden": "true" }), place: h("span", { class: "dim" }), verdict: h("span", { class: "verdict" }),
      share: h("span", { class: "share" }), bar: h("span", { class: "sharebar", "aria-hidden": "true" }, h("span", {}), h("i", {})), line: spark(60),
      sentence: h("p", { class: "sentence" }), factors: h("p", { class: "factors" }), more: h("dl", { class: "facts" }),
    });
    p.details = h("details", {}, h("summary", {}, "more", h("span", { class: "hidden" }, ` of ${address}`)), p.more);
    p.details.addEventListener("toggle", () => this.#draw());
    this.element = h("li", {},
      h("div", { class: "head" }, p.swatch, h("h3", { class: "mono" }, address), p.verdict, p.place, h("span", { class: "traffic" }, p.share, p.bar, p.line.element)),
      h("div", { class: "rest" }, p.sentence, p.factors, p.details));
  }

  #b = null;

  draw(b, { color, share, weight, top, line }) {
    const p = this.#p, k = b.backend;
    this.#b = b;
    p.swatch.className = `swatch ${color === null ? "" : `c${color}`}`;
    say(p.place, [k.host, k.zone && `zone ${k.zone}`, k.region].filter(Boolean).join(" · "));
    p.verdict.className = `verdict ${k.verdict} ${out.has(k.verdict) ? "out" : k.usable ? "in" : "aside"}`;
    say(p.verdict, k.verdict);
    this.element.className = out.has(k.verdict) ? "out" : k.usable ? "in" : "aside";
    const should = weight === null ? "" : ` (${percent(weight)} by weight)`;
    say(p.share, share === null ? `no calls${should}` : `${percent(share)} of calls${should}`);
    p.bar.firstChild.style.width = `${(100 * (share ?? 0)) / top}%`;
    p.bar.lastChild.style.left = `${(100 * (weight ?? 0)) / top}%`;
    p.bar.lastChild.hidden = weight === null;
    p.line.element.setAttribute("class", `spark own ${color === null ? "" : `b${color}`}`);
    p.bar.className = `sharebar own ${color === null ? "" : `b${color}`}`;
    p.line.draw([{ values: line, class: "calls", area: true }], 5);
    say(p.sentence, b.sentence ?? "");
    say(p.factors, factors(b));
    p.factors.hidden = !p.factors.textContent;
    this.#draw();
  }

  // #draw makes the facts, for those who have them open.
  #draw() {
    const p = this.#p, b = this.#b;
    if (!b || !p.details.open) return;
    const rows = facts(b, this.#model.now);
    const key = rows.map((r) => `${r[0]}\t${r.slice(1).map((c) => c?.textContent ?? c).join("")}`).join("\n");
    if (key === this.#facts) return;
    this.#facts = key;
    p.more.replaceChildren(...rows.flatMap(([name, ...value]) => [h("dt", {}, name), h("dd", {}, ...value)]));
  }
}

// factors are those that change the weight.
function factors(b) {
  const f = b.weight_factors ?? {};
  const moved = [["dynamic", f.dynamic], ["slow start", f.slow_start], ["zone", f.zone], ["load", f.load]].filter(([, v]) => v !== undefined && v !== 1);
  const parts = [];
  if (moved.length) parts.push(`Weight ${trim(b.backend.weight ?? 0)} = ${b.static_weight ?? 0} ${moved.map(([n, v]) => `× ${n} ${trim(v)}`).join(" ")}`);
  if ((b.latency_factor ?? 1) > 1) parts.push(`picked ${trim(b.latency_factor)} times less for being slow`);
  if (b.penalty > 0.5) parts.push(`penalty ${trim(b.penalty)}`);
  return parts.join("; ");
}

const trim = (n) => String(Number(n.toPrecision(3)));
const ms = (duration) => {
  const v = parseFloat(duration) * 1000;
  return `${v < 10 ? v.toFixed(1) : Math.round(v)} ms`;
};

function facts(b, now) {
  const k = b.backend, f = b.weight_factors ?? {}, rows = [];
  const at = (stamp) => when(Date.parse(stamp), now);
  const fact = (name, ...value) => rows.push([name, ...value]);
  fact("Weight", `${trim(k.weight ?? 0)}: ${b.static_weight ?? 0} × dynamic ${trim(f.dynamic ?? 1)} × slow start ${trim(f.slow_start ?? 1)} × zone ${trim(f.zone ?? 1)} × load ${trim(f.load ?? 1)}`);
  for (const part of b.parts ?? []) fact("Verdict", part.words, part.since ? [", since ", at(part.since)] : "");
  if (b.outlook?.words) fact("Next", b.outlook.words);
  fact("Now", `${plural(b.outstanding ?? 0, "open call")}, latency ${b.latency ? ms(b.latency) : "not known"}${(b.latency_factor ?? 1) > 1 ? ` (counts ${trim(b.latency_factor)} times)` : ""}`);
  if (b.recent_calls) fact("Last 10 s", `${number(b.recent_calls)} calls, ${percent((b.success_percent ?? 0) / 100)} good`);
  fact("Since known", `${Number(b.successes ?? 0).toLocaleString("en")} good, ${Number(b.failures ?? 0).toLocaleString("en")} hard failures${b.streak ? `, ${b.streak} in a row now` : ""}`);
  if (b.last_success_at) fact("Last success", at(b.last_success_at), `, ${span(now - Date.parse(b.last_success_at))} ago`);
  if (b.last_outcomes?.length) {
    fact("Went wrong", h("ul", {}, b.last_outcomes.map((o) => h("li", {}, at(o.at), ` ${o.result.replaceAll("_", " ")}`, o.cause ? `: ${o.cause}` : "",
      o.latency ? ` after ${ms(o.latency)}` : "", o.count > 1 ? `, ${o.count} calls` : "", o.reported ? ", reported by a program" : ""))));
  }
  if (b.subset_reason) fact("Subset", b.subset_reason);
  if (b.tier) fact("Tier", String(b.tier));
  if (b.key) fact("Key in etcd", h("code", {}, b.key), b.revision ? ` revision ${b.revision}` : "", b.created_revision ? `, created at ${b.created_revision}` : "");
  const metadata = Object.entries(k.metadata ?? {}).sort();
  if (metadata.length) fact("Metadata", h("ul", {}, metadata.map(([key, value]) => h("li", {}, h("code", {}, key), " = ", h("code", {}, value)))));
  return rows;
}
