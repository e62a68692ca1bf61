// What is open stands in the fragment, so that it can be handed on: #service=user&q=ejected.

export function read() {
  const p = new URLSearchParams(location.hash.slice(1));
  return { service: p.get("service"), q: p.get("q") ?? "", from: Math.max(0, parseInt(p.get("from") ?? "0", 10) || 0) };
}

export function link(service, q = "", from = 0) {
  const p = new URLSearchParams({ service });
  if (q) p.set("q", q);
  if (from) p.set("from", from);
  return `#${p}`;
}
