// Elements and words. Text becomes text nodes only: nothing here, and nothing elsewhere on the page, reads HTML from a string.

const svgNS = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

// h makes an element. Children are elements, strings, or null for none; arrays are flattened.
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(svgNS, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((c) => c !== null && c !== undefined && c !== ""));
  return element;
}

// say sets a text, and leaves an equal one alone, which spares screen readers and selections.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// keyed makes parent's children those of items: it keeps an element for as long as its key is there, so that focus, selection and open details stay.
export function keyed(parent, items, keyOf, make, update) {
  const old = new Map();
  for (const e of parent.children) old.set(e.dataset.key, e);
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let e = old.get(key);
    if (e) old.delete(key);
    else {
      e = make(item);
      e.dataset.key = key;
    }
    update?.(e, item);
    if (e === at) at = at.nextElementSibling;
    else parent.insertBefore(e, at);
  }
  for (const e of old.values()) e.remove();
}

const marks = { bad: ["✕", "Problem:"], warn: ["!", "Warning:"], note: ["i", "Note:"], ok: ["✓", "Well:"] };

// mark is the sign of a level; its meaning is never in the colour alone.
export function mark(level) {
  return h("span", { class: `mark ${level}` }, h("span", { "aria-hidden": "true" }, marks[level][0]), h("span", { class: "hidden" }, marks[level][1]));
}

export function number(n) {
  if (n >= 1e6) return `${round(n / 1e6)} M`;
  if (n >= 1e4) return `${round(n / 1e3)} k`;
  return round(n);
}

function round(n) {
  if (Number.isInteger(n) && n < 10) return String(n);
  if (n < 0.1) return "<0.1";
  return n < 9.95 ? n.toFixed(1) : String(Math.round(n));
}

export function percent(part) {
  const p = part * 100;
  if (p === 0 || p === 100) return `${p} %`;
  if (p < 0.1) return "<0.1 %";
  if (p > 99.9) return ">99.9 %";
  return `${p < 9.95 ? p.toFixed(1) : Math.round(p)} %`;
}

// micros is a time in µs, for a person.
export function micros(us) {
  if (!(us > 0)) return "–";
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${us < 9950 ? (us / 1e3).toFixed(1) : Math.round(us / 1e3)} ms`;
  return `${us < 9.95e6 ? (us / 1e6).toFixed(1) : Math.round(us / 1e6)} s`;
}

// span is how long something lasts, in ms, as the verbs say it.
export function span(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

const two = (n) => String(n).padStart(2, "0");

export function clock(ms) {
  const d = new Date(ms);
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
}

// when is a point in time, in the reader's own zone, with the date if it isn't today.
export function when(ms, now) {
  const d = new Date(ms);
  const day = `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;
  const same = new Date(now).toDateString() === d.toDateString();
  return h("time", { datetime: d.toISOString(), title: `${day} ${clock(ms)}` }, same ? clock(ms) : `${day} ${clock(ms)}`);
}

export const plural = (n, one, many = one + "s") => `${n} ${n === 1 ? one : many}`;
