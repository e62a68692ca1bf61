// Facts about the agent itself, mutes, registrations and the fleet's configuration.
import { $, h, mark, plural, say, span, when } from "./dom.js";
import { link } from "./route.js";

export class About {
  #model;
  #before = "";

  constructor(model) {
    this.#model = model;
  }

  // draw shows them, or keeps them for later while a service is open.
  draw(hidden) {
    const a = this.#model.agent;
    $("agent-section").hidden = !a || hidden;
    if (!a) return;
    say($("node"), a.node ?? "");
    const minute = Math.floor(this.#model.now / 60000);
    const key = JSON.stringify([a, minute]);
    if (key === this.#before) return; // nothing here moves by itself but ages
    this.#before = key;
    const now = this.#model.now, facts = [];
    const fact = (name, ...value) => facts.push(h("dt", {}, name), h("dd", {}, ...value));
    const at = (stamp) => when(Date.parse(stamp), now);
    fact("Version", `${a.version ?? "?"}, process ${a.pid ?? "?"}`);
    if (a.started) fact("Started", at(a.started), `, ${span(now - Date.parse(a.started))} ago`);
    fact("Ready", a.ready ? "yes" : "no", a.missing?.length ? `; no list yet: ${a.missing.join(", ")}` : "");
    fact("Configuration", a.config_ok ? (a.config_files ?? []).join(", ") || "given at the start" : [mark("warn"), " the file at hand is invalid: ", h("code", {}, a.config_error ?? "")]);
    const e = a.etcd ?? {};
    fact("etcd", e.configured ? `${e.connected ? "connected" : "not reachable"}: ${(e.endpoints ?? []).join(", ")}` : "none configured",
      !e.connected && e.last_contact ? ["; last contact ", at(e.last_contact)] : null, !e.connected && e.last_error ? h("div", { class: "dim" }, e.last_error) : null);
    if (a.mutes?.length) {
      fact(`Muted by hand (${a.mutes.length})`, h("ul", {}, a.mutes.slice(0, 100).map((m) =>
        h("li", {}, h("a", { href: link(m.service, m.address) }, `${m.service} ${m.address}`), m.fleet ? " on every host" : " on this host", m.until ? [" until ", at(m.until)] : null,
          m.author ? ` by ${m.author}` : "", m.reason ? `: ${m.reason}` : ""))));
    }
    if (a.registrations?.length) {
      fact(`Services of this host (${a.registrations.length})`, h("ul", {}, a.registrations.slice(0, 100).map((r) =>
        h("li", {}, `${r.service} at ${r.resolved_address || r.address}: `, r.announced ? (r.draining ? "draining" : "announced") : "not announced", r.why ? `, ${r.why}` : "", r.since ? [", since ", at(r.since)] : null))));
    }
    if (a.fleet) {
      const items = a.fleet.items ?? [], odd = items.filter((i) => i.problem);
      fact("Fleet's configuration", `${plural(items.length, "item")} below ${a.fleet.prefix}`, a.fleet.error ? [" ", mark("warn"), ` ${a.fleet.error}`] : null,
        odd.length ? h("ul", {}, odd.slice(0, 100).map((i) => h("li", {}, mark("warn"), ` ${i.key}: ${i.problem}${i.last_good ? " (its last good form is used)" : ""}`))) : null);
    }
    $("agent").replaceChildren(...facts);
  }
}
