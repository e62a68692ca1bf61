// A browser on a line: reads {id, tab, code, args} per line of stdin, runs code as the body of an async function with page, args and axe() at hand, and writes {id, value} or
// {id, error}. A tab that is new is opened with args as its options. What a tab complains about (errors, refusals of its policy, failed scripts) is kept for complaints().
"use strict";
const fs = require("node:fs");
const readline = require("node:readline");
const { chromium } = require("playwright-core");

const Async = (async () => {}).constructor;
const axeSource = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const tabs = new Map();

async function open(browser, options) {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(20000);
  const page = await context.newPage();
  const said = [];
  page.on("console", (m) => {
    // An agent that is stopped on purpose refuses connections; the page says so itself.
    if (["error", "warning"].includes(m.type()) && !/ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE/.test(m.text())) said.push(`${m.type()}: ${m.text()}`);
  });
  page.on("pageerror", (e) => said.push(`error: ${e.message}`));
  page.on("dialog", (d) => {
    said.push(`dialog: ${d.message()}`);
    d.dismiss();
  });
  page.on("request", (r) => {
    const host = new URL(r.url()).hostname;
    if (host !== "127.0.0.1" && host !== "localhost") said.push(`asked ${r.url()}`);
  });
  const axe = async () => {
    await page.evaluate(axeSource);
    const found = await page.evaluate(() => window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
    return found.violations.map((v) => `${v.id} (${v.impact}): ${v.help}: ${v.nodes.slice(0, 3).map((n) => `${n.target} ${n.any.concat(n.all).map((c) => c.message).join(", ")}`).join(" | ")}`);
  };
  return { page, said, axe };
}

(async () => {
  const browser = await chromium.launch({ executablePath: process.argv[2], args: ["--no-sandbox", "--no-proxy-server", "--disable-dev-shm-usage"] });
  const say = (o) => process.stdout.write(JSON.stringify(o) + "\n");
  say({ version: browser.version() });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { id, tab, code, args } = JSON.parse(line);
    try {
      if (!tabs.has(tab)) tabs.set(tab, await open(browser, args));
      const { page, said, axe } = tabs.get(tab);
      say({ id, value: (await new Async("page", "args", "axe", "complaints", code)(page, args, axe, () => said.splice(0))) ?? null });
    } catch (e) {
      say({ id, error: String(e.message ?? e) });
    }
  }
  await browser.close();
})();
