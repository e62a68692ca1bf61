// One service: how its calls went, who got them, and each backend with the reason why it is in or out.
import { $, h, keyed, mark, micros, number, percent, plural, say, span } from "./dom.js";
import { spark } from "./chart.js";
import { Picture } from "./picture.js";
import { Backend } from "./backend.js";
import { link } from "./route.js";

const atMost = 1000; // ms between two questions

export class Detail {
  #model;
  #to = null; // what is open: {service, q, from}
  #parts = null;
  #asking = null;
  #timer = 0;
  #asked = 0;
  #last = null; // the answer that is shown
  #backends = new WeakMap();

  constructor(model) {
    this.#model = model;
    // Ages and reasons move although nothing happens.
    setInterval(() => this.changed(), 5000);
  }

  open(to) {
    const same = this.#to?.service === to.service;
    const moved = !same || this.#to.q !== to.q || this.#to.from !== to.from;
    this.#to = to;
    if (!same) this.#build();
    if (this.#parts.search.value !== to.q && document.activeElement !== this.#parts.search) this.#parts.search.value = to.q;
    if (moved) this.#ask();
  }

  close() {
    this.#to = this.#parts = this.#last = null;
    this.#asking?.abort();
    clearTimeout(this.#timer);
    this.#timer = 0;
    $("detail").replaceChildren();
  }

  // changed asks again, soon, and not more often than is of use.
  changed() {
    if (!this.#to || this.#timer || this.#model.lostSince) return;
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      if (this.#asking) this.changed(); // an answer that is on its way is waited for
      else this.#ask();
    }, Math.max(50, this.#asked + atMost - Date.now()));
  }

  async #ask() {
    this.#asking?.abort();
    const asking = (this.#asking = new AbortController()), to = this.#to;
    this.#asked = Date.now();
    try {
      const answer = await fetch(`/ui/service?${new URLSearchParams({ name: to.service, q: to.q, from: to.from })}`, { signal: asking.signal });
      const body = await answer.json();
      if (asking.signal.aborted) return;
      if (answer.ok) this.#draw(body);
      else this.#missing(body.error);
    } catch (e) {
      if (e.name !== "AbortError" && !this.#last && this.#parts) say(this.#parts.summary, "The agent does not answer.");
    } finally {
      if (this.#asking === asking) this.#asking = null;
    }
  }

  #missing(error) {
    this.#parts.body.hidden = true;
    say(this.#parts.summary, error);
  }

  #build() {
    const name = this.#to.service;
    const p = (this.#parts = {
      sign: h("span", {}),
      facts: h("p", { class: "dim" }),
      words: h("p", { class: "trouble", hidden: true }),
      summary: h("p", { class: "summary" }, "Asking the agent …"),
      hints: h("ul", { class: "hints" }),
      tiles: h("div", { class: "tiles" }),
      search: h("input", { id: "backend-search", type: "search", placeholder: "Search address, zone, reason", autocomplete: "off", spellcheck: "false", maxlength: "60" }),
      count: h("p", { class: "dim", "aria-live": "polite" }),
      list: h("ol", { class: "backends" }),
      bad: h("details", { class: "records", hidden: true }, h("summary", {}), h("ul", {})),
      pages: h("nav", { class: "pages", "aria-label": "Pages of backends", hidden: true }),
      body: h("div", { hidden: true }),
    });
    this.#last = null;
    p.calls = this.#tile("Calls a second");
    p.failed = this.#tile("Failed");
    p.latency = this.#tile("Latency, p50 / p99");
    p.tiles.append(p.calls.element, p.failed.element, p.latency.element);
    p.picture = new Picture(this.#model);
    p.body.append(p.tiles, p.picture.element,
      h("section", { "aria-labelledby": "backends-title" },
        h("div", { class: "bar" }, h("h2", { id: "backends-title" }, "Backends"), h("label", { class: "search" }, h("span", { class: "hidden" }, "Search backends"), p.search)),
        p.count, p.list, p.pages, p.bad));
    let wait = 0;
    p.search.addEventListener("input", () => {
      clearTimeout(wait);
      wait = setTimeout(() => location.replace(link(name, p.search.value.trim())), 200);
    });
    $("detail").replaceChildren(
      h("p", { class: "back" }, h("a", { href: "#" }, "← All services")),
      h("h2", { class: "service" }, p.sign, name), p.facts, p.words, p.summary, p.hints, p.body);
  }

  #tile(title) {
    const figure = h("span", { class: "figure" }), picture = spark(this.#model.slots), more = h("span", { class: "dim" });
    return { element: h("div", { class: "tile" }, h("h3", {}, title), figure, more, picture.element), figure, more, picture };
  }

  #draw(d) {
    const p = this.#parts, e = d.explain, s = e.service ?? {}, from = s.provenance ?? {};
    this.#last = d;
    p.body.hidden = false;
    const row = this.#model.services.get(s.name);
    const level = row?.level ?? "ok";
    if (p.sign.dataset.level !== level) {
      p.sign.dataset.level = level;
      p.sign.replaceChildren(mark(level));
    }
    p.words.hidden = !row?.words || level === "ok" || level === "note"; // a note says no more than the summary
    p.words.className = `trouble ${level}`;
    say(p.words, row?.words ?? "");
    say(p.facts, [
      s.listeners?.length ? `listens on ${s.listeners.join(", ")}` : "no listener",
      `protocol ${s.protocol}`, `policy ${s.policy}`, s.origin,
      s.ready ? `list from ${from.source}${from.revision ? ` at revision ${from.revision}` : ""}, confirmed ${span(parseFloat(from.age ?? "0") * 1000)} ago` : "no list yet",
    ].filter(Boolean).join(" · "));
    say(p.summary, e.summary ?? "");
    keyed(p.hints, e.hints ?? [], (hint) => hint, (hint) => h("li", {}, hint));
    this.#tiles(d);
    p.picture.draw(d, this.#model.events.filter((one) => one.service === s.name));
    this.#list(d);
  }

  #tiles(d) {
    const p = this.#parts, l = d.lines ?? { calls: [], failed: [], p50: [], p99: [] };
    const rates = this.#model.rates(this.#to.service), ten = l.calls.reduce((a, b) => a + Math.max(0, b), 0), bad = l.failed.reduce((a, b) => a + Math.max(0, b), 0);
    say(p.calls.figure, rates ? number(rates.perSecond) : "–");
    say(p.calls.more, `${number(ten)} in ten minutes`);
    say(p.failed.figure, rates?.calls ? percent(rates.part) : "–");
    p.failed.figure.dataset.hot = rates?.part >= 0.01 ? "yes" : "no";
    say(p.failed.more, `${number(bad)} in ten minutes`);
    say(p.latency.figure, rates?.p99 ? `${micros(rates.p50)} / ${micros(rates.p99)}` : "–");
    say(p.latency.more, "of whole calls through the proxy");
    const gaps = (v) => v.map((n) => (n > 0 ? n : -1));
    p.calls.picture.draw([{ values: l.calls, class: "calls", area: true }], 5);
    p.failed.picture.draw([{ values: l.failed, class: "failed", area: true }], 1);
    p.latency.picture.draw([{ values: gaps(l.p99), class: "p99" }, { values: gaps(l.p50), class: "p50" }], 1);
  }

  #list(d) {
    const p = this.#parts, all = d.explain.backends ?? [], to = this.#to;
    const shares = lastMinute(d);
    const top = 1.1 * Math.max(...Object.values(d.weights), ...Object.values(shares.part), 0.0001);
    keyed(p.list, all, (b) => b.backend.address, (b) => {
      const one = new Backend(b.backend.address, this.#model);
      this.#backends.set(one.element, one);
      return one.element;
    }, (li, b) => {
      const address = b.backend.address;
      this.#backends.get(li).draw(b, {
        color: p.picture.color(address), share: shares.part[address] ?? (shares.total ? 0 : null), weight: d.weights[address] ?? null, top,
        line: d.shares?.of[address] ?? [], from: to.service,
      });
    });
    say(p.count, to.q ? `${d.matching} of ${plural(d.total, "backend")} match “${to.q}”.` : d.total === 0 ? "The list has no backend." : "What is out comes first. Share: of the last minute's calls; the tick is what the weight stands for.");
    const pages = d.matching > d.limit;
    p.pages.hidden = !pages;
    if (pages) {
      const move = (text, at) => (at < 0 || at >= d.matching ? null : h("a", { href: link(to.service, to.q, at) }, text));
      p.pages.replaceChildren(...[move("Previous", d.from - d.limit), h("span", {}, `${d.from + 1}–${d.from + all.length} of ${d.matching}`), move("Next", d.from + d.limit)].filter(Boolean));
    }
    const records = d.explain.bad_records ?? [];
    p.bad.hidden = !d.explain.bad_record_count;
    say(p.bad.firstChild, `${plural(d.explain.bad_record_count ?? 0, "record")} could not be read`);
    keyed(p.bad.lastChild, records, (r) => r.key, (r) => h("li", {}, h("code", {}, r.key), `: ${r.reason}`));
  }
}

// lastMinute is the part of the last minute's calls that each backend got.
function lastMinute(d) {
  const part = {};
  if (!d.shares) return { part, total: 0 };
  const sum = (values) => values.slice(-7).reduce((a, b) => a + b, 0);
  let total = sum(d.others ?? []);
  for (const values of Object.values(d.shares.of)) total += sum(values);
  for (const [address, values] of Object.entries(d.shares.of)) part[address] = total ? sum(values) / total : 0;
  return { part, total };
}
