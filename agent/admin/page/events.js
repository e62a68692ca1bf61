// The timeline of what happened, the newest first.
import { $, h, keyed, say, when } from "./dom.js";
import { link } from "./route.js";

const step = 40;

export class Events {
  #model;
  #shown = step;

  constructor(model) {
    this.#model = model;
    $("event-search").addEventListener("input", () => {
      this.#shown = step;
      this.draw();
    });
    $("more-events").addEventListener("click", () => {
      this.#shown += 4 * step;
      this.draw();
    });
  }

  service = null; // only events of this one; null = all

  draw() {
    const words = $("event-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.#model.events.filter((e) => {
      if (this.service && e.service !== this.service) return false;
      const text = `${e.kind} ${e.service ?? ""} ${e.backend ?? ""} ${e.detail}`.toLowerCase();
      return words.every((w) => text.includes(w));
    });
    keyed($("events"), found.slice(0, this.#shown), (e) => `${this.service ?? ""}|${e.id}`, (e) => this.#event(e));
    $("more-events").hidden = found.length <= this.#shown;
    $("no-events").hidden = found.length > 0;
    say($("no-events"), words.length ? "No event matches." : this.service ? "None of the last events is about this service." : "Nothing has happened since the agent started.");
    say($("events-title"), this.service ? `Events of ${this.service}` : "Events");
  }

  #event(e) {
    return h("li", { class: `event ${tone(e)}` }, when(e.time, this.#model.now), h("span", { class: "kind" }, e.kind),
      h("p", {},
        e.service && !this.service ? [h("a", { href: link(e.service) }, e.service), " "] : null,
        e.backend ? [e.service ? h("a", { href: link(e.service, e.backend), class: "mono" }, e.backend) : h("span", { class: "mono" }, e.backend), " "] : null,
        e.detail));
  }
}

// tone says at a glance whether something went wrong or right, by the words that the agent uses.
export function tone(e) {
  if (/now up\b|is back|ended|again|connected/.test(e.detail) && e.kind !== "suspicion") return "good";
  switch (e.kind) {
    case "verdict":
      return "out";
    case "panic": case "fallback": case "orphan": case "suspicion": case "hang": case "protection": case "retry": case "address": case "name": case "weight":
      return "out";
    default:
      return "plain";
  }
}
