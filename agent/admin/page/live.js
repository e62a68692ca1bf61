// What is known of the agent, kept up to date by server-sent events.

const silence = 16000; // three beats and a bit: the agent is gone, or hangs
const again = 2000;

export class Model extends EventTarget {
  agent = null;
  problems = [];
  services = new Map(); // name -> row
  events = []; // the newest first
  times = []; // when each slot ended, ms
  past = new Map(); // name -> {calls, failed, p50, p99}, a number per slot
  slot = 5;
  slots = 120;
  lostSince = 0; // ms by the browser's clock; 0 = connected

  #source = null;
  #heard = Date.now();
  #skew = 0;
  #instance = "";
  #assets = "";
  #timer = 0;

  // now is the agent's clock: this browser's may be another machine's.
  get now() {
    return Date.now() + this.#skew;
  }

  open() {
    this.#source?.close();
    const source = (this.#source = new EventSource("/ui/live"));
    const on = (kind, f) =>
      source.addEventListener(kind, (e) => {
        this.#heard = Date.now();
        f(JSON.parse(e.data));
        if (this.lostSince && kind !== "beat") this.#found();
        this.#tell(kind);
      });
    on("all", (m) => this.#all(m));
    on("change", (m) => this.#change(m));
    on("slot", (m) => this.#slot(m));
    on("events", (m) => this.#events(m));
    on("beat", () => {});
    source.onerror = () => {
      this.#lost();
      if (source.readyState === EventSource.CLOSED) this.#retry();
    };
    if (!this.#timer) {
      this.#timer = setInterval(() => {
        if (Date.now() - this.#heard < silence) return;
        this.#lost();
        this.#heard = Date.now(); // another try of the same length
        this.open();
      }, 1000);
    }
  }

  #tell(kind) {
    this.dispatchEvent(new Event(kind));
  }

  #retry() {
    setTimeout(() => {
      if (this.lostSince) this.open();
    }, again);
  }

  #lost() {
    if (this.lostSince) return;
    this.lostSince = this.agent ? this.#heard : Date.now();
    this.#tell("lost");
  }

  #found() {
    this.lostSince = 0;
    this.#tell("found");
  }

  #all(m) {
    if (this.#assets && this.#assets !== m.assets) {
      location.reload(); // the agent was upgraded, and its page with it
      return;
    }
    this.#assets = m.assets;
    if (this.#instance !== m.instance) this.events = []; // another life counts its events anew
    this.#instance = m.instance;
    this.#skew = m.now - Date.now();
    this.slot = m.slot;
    this.slots = m.slots;
    this.agent = m.agent;
    this.problems = m.problems ?? [];
    this.services = new Map((m.services ?? []).map((s) => [s.name, s]));
    this.times = m.past.times ?? [];
    this.past = new Map(Object.entries(m.past.services ?? {}));
  }

  #change(m) {
    if (m.agent) this.agent = m.agent;
    if ("problems" in m) this.problems = m.problems ?? [];
    for (const s of m.services ?? []) this.services.set(s.name, s);
    for (const name of m.gone ?? []) {
      this.services.delete(name);
      this.past.delete(name);
    }
  }

  #slot(m) {
    this.times.push(m.time);
    for (const name of Object.keys(m.services)) {
      if (!this.past.has(name)) this.past.set(name, this.#nothing(this.times.length - 1));
    }
    for (const [name, p] of this.past) {
      const row = m.services[name] ?? [0, 0, 0, 0];
      ["calls", "failed", "p50", "p99"].forEach((k, i) => p[k].push(row[i]));
    }
    const over = this.times.length - this.slots;
    if (over <= 0) return;
    this.times.splice(0, over);
    for (const p of this.past.values()) for (const k of ["calls", "failed", "p50", "p99"]) p[k].splice(0, over);
  }

  #nothing(n) {
    const zeros = () => new Array(n).fill(0);
    return { calls: zeros(), failed: zeros(), p50: zeros(), p99: zeros() };
  }

  #events(m) {
    const known = this.events[0]?.id ?? 0;
    this.events.unshift(...(m ?? []).filter((e) => e.id > known).reverse());
    this.events.length = Math.min(this.events.length, 2000);
  }

  // rates are the figures of a service in its last slots: calls a second, the part that failed, latencies in µs. Null without calls.
  rates(name, slots = 2) {
    const p = this.past.get(name);
    if (!p) return null;
    let calls = 0, failed = 0, n = 0;
    for (let i = p.calls.length - 1; i >= 0 && n < slots; i--) {
      if (p.calls[i] < 0) continue;
      calls += p.calls[i];
      failed += p.failed[i];
      n++;
    }
    if (n === 0) return null;
    const from = p.p99.length - 6, at = p.p99.findLastIndex((v, i) => v > 0 && i >= from); // few calls leave slots without a latency
    return { perSecond: calls / (n * this.slot), calls, failed, part: calls ? failed / calls : 0, p50: p.p50[at] ?? 0, p99: p.p99[at] ?? 0 };
  }
}
