// The first page: what is wrong, then every service.
import { $, h, keyed, mark, micros, number, percent, plural, say } from "./dom.js";
import { spark } from "./chart.js";
import { link } from "./route.js";

const perPage = 50;
const ranks = { bad: 0, warn: 1, note: 2, ok: 3 };

export class Overview {
  #model;
  #page = 0;
  #order = []; // names, as they stand
  #sparks = new WeakMap();

  constructor(model) {
    this.#model = model;
    $("search").addEventListener("input", () => this.#restart());
    $("order").addEventListener("change", () => this.#restart());
    $("prev").addEventListener("click", () => this.#turn(-1));
    $("next").addEventListener("click", () => this.#turn(1));
  }

  #restart() {
    this.#page = 0;
    this.draw(true);
  }

  #turn(by) {
    this.#page += by;
    this.draw(true);
    $("services").scrollIntoView({ block: "start" });
  }

  draw(sort) {
    if (!this.#model.agent) return;
    this.#now();
    this.#table(sort);
  }

  #now() {
    const { problems, services, agent } = this.#model;
    const real = problems.filter((p) => p.level !== "note");
    let backends = 0, usable = 0;
    for (const s of services.values()) {
      backends += s.backends;
      usable += s.usable;
    }
    const worst = real[0]?.level ?? "ok";
    $("now").dataset.level = worst;
    const title = real.length ? `${plural(real.length, "thing")} need${real.length === 1 ? "s" : ""} attention` : problems.length ? "Nothing urgent" : "All is well";
    say($("now-title"), services.size || real.length ? title : "No services");
    say($("now-words"), services.size
      ? `${plural(services.size, "service")}, ${usable} of ${plural(backends, "backend")} usable` + (agent.etcd?.configured ? `, etcd ${agent.etcd.connected ? "connected" : "not reachable"}` : "")
      : "Services are named under services: in the configuration, or followed when a program asks for one.");
    keyed($("problems"), problems, (p) => `${p.level}|${p.service ?? ""}|${p.service ? "" : p.text.slice(0, 60)}`, () => h("li", {}), (li, p) => {
      const shape = JSON.stringify(p);
      if (li.dataset.shape === shape) return;
      li.dataset.shape = shape;
      const had = li.contains(document.activeElement);
      li.className = p.level;
      li.replaceChildren(mark(p.level), h("p", {},
        p.service ? [h("a", { href: link(p.service) }, p.service), ": "] : null, p.text,
        p.try ? [" ", h("code", { class: "try" }, p.try)] : null));
      if (had) li.querySelector("a")?.focus();
    });
  }

  // #sorted are the names that are to be seen, in order.
  #sorted() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = [...this.#model.services.values()].filter((s) => {
      const text = `${s.name} ${s.listeners ?? ""} ${s.words ?? ""} ${s.protocol ?? ""} ${s.source ?? ""} ${s.origin ?? ""}`.toLowerCase();
      return words.every((w) => text.includes(w));
    });
    const rate = (f) => (s) => -(f(this.#model.rates(s.name)) ?? -1);
    const by = {
      trouble: (s) => ranks[s.level],
      name: () => 0,
      calls: rate((r) => r?.perSecond),
      failed: rate((r) => r?.part),
      latency: rate((r) => r?.p99),
    }[$("order").value];
    return all.map((s) => [by(s), s.name]).sort((a, b) => a[0] - b[0] || (a[1] < b[1] ? -1 : 1)).map((one) => one[1]);
  }

  #table(sort) {
    const table = $("services");
    const names = this.#sorted();
    // What a person points at or stands on doesn't move away from under them.
    if (sort || !(table.matches(":hover") || table.contains(document.activeElement))) this.#order = names;
    else {
      const there = new Set(names), kept = this.#order.filter((n) => there.delete(n));
      this.#order = [...kept, ...there];
    }
    const pages = Math.max(1, Math.ceil(this.#order.length / perPage));
    this.#page = Math.max(0, Math.min(this.#page, pages - 1));
    const from = this.#page * perPage, shown = this.#order.slice(from, from + perPage);
    keyed($("rows"), shown, (n) => n, (n) => this.#row(n), (tr, n) => this.#update(tr, n));
    table.hidden = shown.length === 0;
    $("none").hidden = shown.length > 0;
    say($("none"), $("search").value ? `No service matches “${$("search").value}”. Backends are searched in their service, and among the events.` : "There are none.");
    $("pages").hidden = pages === 1;
    $("prev").disabled = this.#page === 0;
    $("next").disabled = this.#page === pages - 1;
    say($("where"), `${from + 1}–${from + shown.length} of ${this.#order.length}`);
  }

  #row(name) {
    const calls = spark(this.#model.slots), failed = spark(this.#model.slots), latency = spark(this.#model.slots);
    const figure = () => h("span", { class: "figure" });
    const cells = { sign: h("span", {}), words: h("span", { class: "words" }), usable: figure(), calls: figure(), failed: figure(), latency: figure() };
    const meter = h("span", { class: "meter", "aria-hidden": "true" }, h("span", {}));
    // The roles hold when a narrow window lays the table out as cards.
    const tr = h("tr", { role: "row" },
      h("th", { role: "rowheader", scope: "row" }, h("div", { class: "who" }, cells.sign, h("span", { class: "name" }, h("a", { href: link(name) }, name), cells.words))),
      h("td", { role: "cell", class: "n", "data-label": "usable" }, cells.usable, meter),
      h("td", { role: "cell", class: "n", "data-label": "calls/s" }, cells.calls, calls.element),
      h("td", { role: "cell", class: "n", "data-label": "failed" }, cells.failed, failed.element),
      h("td", { role: "cell", class: "n", "data-label": "p50 / p99" }, cells.latency, latency.element));
    this.#sparks.set(tr, { cells, meter, calls, failed, latency });
    return tr;
  }

  #update(tr, name) {
    const s = this.#model.services.get(name), past = this.#model.past.get(name), rates = this.#model.rates(name);
    const { cells, meter, calls, failed, latency } = this.#sparks.get(tr);
    if (tr.dataset.level !== s.level) {
      tr.dataset.level = s.level;
      cells.sign.replaceChildren(mark(s.level));
    }
    // While etcd is away all lists are old, and the top of the page says so.
    const old = s.stale && !(this.#model.agent.etcd?.configured && !this.#model.agent.etcd.connected) ? `list from ${s.source} is ${Math.floor((this.#model.now / 1000 - s.stale) / 60)} min old` : "";
    say(cells.words, [s.words, old].filter(Boolean).join("; "));
    say(cells.usable, `${s.usable} of ${s.backends}`);
    meter.firstChild.style.width = `${s.backends ? (100 * s.usable) / s.backends : 0}%`;
    say(cells.calls, rates ? number(rates.perSecond) : "–");
    say(cells.failed, rates?.calls ? percent(rates.part) : "–");
    cells.failed.dataset.hot = rates?.part >= 0.01 ? "yes" : "no";
    meter.hidden = s.backends === 0;
    say(cells.latency, rates?.p99 ? `${micros(rates.p50)} / ${micros(rates.p99)}` : "–");
    calls.draw([{ values: past?.calls ?? [], class: "calls", area: true }], 5);
    failed.draw([{ values: past?.failed ?? [], class: "failed", area: true }], 1);
    latency.draw([{ values: gaps(past?.p99 ?? []), class: "p99" }, { values: gaps(past?.p50 ?? []), class: "p50" }], 1);
  }
}

// gaps are latencies without those of slots that had no call.
const gaps = (values) => values.map((v) => (v > 0 ? v : -1));
