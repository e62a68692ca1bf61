// The page: one model, three views of it, and the fragment that says which.
import { $, clock, say, span } from "./dom.js";
import { Model } from "./live.js";
import { Overview } from "./overview.js";
import { Detail } from "./detail.js";
import { Events } from "./events.js";
import { About } from "./about.js";
import { read } from "./route.js";

const model = new Model();
const overview = new Overview(model);
const detail = new Detail(model);
const events = new Events(model);
const about = new About(model);

let open; // the service that is open, null for none; undefined before the first

function route() {
  const to = read();
  const moved = open !== to.service;
  const first = open === undefined;
  open = events.service = to.service;
  $("overview").hidden = to.service !== null || !model.agent;
  $("detail").hidden = to.service === null;
  if (to.service === null) {
    detail.close();
    overview.draw(true);
  } else detail.open(to);
  events.draw();
  about.draw(open !== null);
  head();
  if (moved && !first) {
    scrollTo(0, 0);
    $("main").focus({ preventScroll: true }); // a screen reader begins with the new page
  }
}

// head is what the top of the page and the browser's tab say: how much is wrong, and whether this is still true.
function head() {
  const real = model.problems.filter((p) => p.level !== "note");
  const pill = $("pill");
  pill.hidden = !model.agent;
  const level = real[0]?.level ?? "ok";
  if (pill.dataset.level !== level) pill.dataset.level = level;
  say(pill, real.length ? `${real.length} to look at` : model.problems.length ? "nothing urgent" : "all is well");
  const link = $("link");
  link.dataset.state = model.lostSince ? "lost" : model.agent ? "live" : "wait";
  say(link, model.lostSince ? "not reachable" : model.agent ? "live" : "connecting");
  lost();
  const node = model.agent?.node ? ` · ${model.agent.node}` : "";
  const what = open ? `${open} · ` : "";
  document.title = `${model.lostSince ? "✕ not reachable · " : real.length ? `(${real.length}) ` : ""}${what}lbagent${node}`;
}

function lost() {
  $("lost").hidden = !model.lostSince;
  document.body.classList.toggle("stale", !!model.lostSince);
  if (!model.lostSince) return;
  // The sentence itself doesn't move: it is read out once.
  say($("lost"), `The agent is not reachable since ${clock(model.lostSince)}.` + (model.agent ? " What you see is from then; it is tried again every few seconds. Ports and lists may go on: lbagent status says more." : ""));
}

model.addEventListener("all", () => {
  route();
  if (open !== null) detail.changed();
});
model.addEventListener("change", () => {
  if (open === null) overview.draw();
  else detail.changed();
  about.draw(open !== null);
  head();
});
model.addEventListener("slot", () => {
  if (open === null) overview.draw();
  else detail.changed();
  about.draw(open !== null);
});
model.addEventListener("events", () => {
  events.draw();
  if (open !== null) detail.changed();
});
model.addEventListener("lost", head);
model.addEventListener("found", head);
addEventListener("hashchange", route);

$("skip").addEventListener("click", (e) => {
  e.preventDefault();
  $("main").focus();
});

addEventListener("keydown", (e) => {
  // No key of a character alone: what is spoken to a computer types those anywhere (WCAG 2.1.4).
  if ((e.ctrlKey || e.metaKey) && !e.altKey && !e.shiftKey && e.key.toLowerCase() === "k") {
    e.preventDefault();
    (open === null ? $("search") : $("backend-search") ?? $("event-search")).focus();
    return;
  }
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const typing = e.target instanceof HTMLInputElement && e.target.type === "search";
  if (e.key === "Escape") {
    if (typing && e.target.value) {
      e.target.value = "";
      e.target.dispatchEvent(new Event("input"));
    } else if (typing) e.target.blur();
    else if (open !== null) location.hash = "";
  }
});

setInterval(() => {
  if (model.lostSince) say($("link"), `not reachable, ${span(Date.now() - model.lostSince)}`);
}, 1000);

model.open();
route();
