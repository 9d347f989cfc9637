// A browser that is told what to do by lines of JSON on its standard input, and answers each with one: {"ok": …} or
// {"error": …}. Who tells it is xtask/tests/browser.rs; `node driver.mjs generated DIRECTORY` makes pictures by itself.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { generated } from "./world.mjs";

// Milliseconds, on a machine with much else to do.
const PATIENCE = 60_000;
const PROGRAMS = process.env.NODEMESH_CHROMIUM ?? "/usr/bin/chromium";
const DIST = join(dirname(fileURLToPath(import.meta.url)), "../dist");

const browser = await chromium.launch({ executablePath: PROGRAMS, args: ["--no-sandbox", "--disable-gpu"], timeout: 2 * PATIENCE });
let page;
let problems = [];

const SHAPES = {
  desktop: { viewport: { width: 1440, height: 900 } },
  phone: { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
};

const actions = {
  /** A new page, with nothing of the one before. */
  async open({ url, shape = "desktop", colours = "light", headers }) {
    await page?.context().close();
    problems = [];
    const context = await browser.newContext({ ...SHAPES[shape], colorScheme: colours, extraHTTPHeaders: headers });
    page = await context.newPage();
    page.setDefaultTimeout(PATIENCE);
    // What the page's own policy forbids is told here too.
    page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
    page.on("pageerror", (error) => problems.push(String(error)));
    await page.goto(url);
  },
  /** Waits until something is there; the answer is its text. */
  async see({ selector, within = PATIENCE }) {
    const found = page.locator(selector).first();
    await found.waitFor({ state: "attached", timeout: within });
    return await found.textContent();
  },
  async count({ selector }) {
    return await page.locator(selector).count();
  },
  async attribute({ selector, name }) {
    return await page.locator(selector).first().getAttribute(name);
  },
  async click({ selector }) {
    await page.locator(selector).first().click({ force: true });
  },
  /** As a click, where lines cross and another one lies above. */
  async choose({ selector }) {
    await page.locator(selector).first().dispatchEvent("click");
  },
  async focus({ selector }) {
    await page.locator(selector).first().focus();
  },
  /** The key alone: whoever has the focus gets it. */
  async press({ key }) {
    await page.keyboard.press(key);
  },
  async focused() {
    return await page.evaluate(() => document.activeElement?.outerHTML.slice(0, 200) ?? "");
  },
  async fill({ selector, text }) {
    await page.locator(selector).first().fill(text);
  },
  async select({ selector, value }) {
    await page.locator(selector).first().selectOption(value);
  },
  async screenshot({ file }) {
    await page.waitForTimeout(400);
    await page.screenshot({ path: file });
  },
  /** Every control has a name, no id is twice there, and nothing is wider than the window. */
  async accessible() {
    return await page.evaluate(() => {
      const faults = [];
      for (const one of document.querySelectorAll("button, select, input, [role=button], [role=tab], svg[role]")) {
        const name = one.getAttribute("aria-label") ?? one.textContent?.trim();
        const isLabelled = one.labels?.length > 0;
        if (!name && !isLabelled) faults.push(`no name: ${one.outerHTML.slice(0, 120)}`);
      }
      const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
      ids.filter((id, at) => ids.indexOf(id) !== at).forEach((id) => faults.push(`twice there: #${id}`));
      if (document.documentElement.scrollWidth > innerWidth + 1) faults.push(`wider than the window: ${document.documentElement.scrollWidth}`);
      return faults;
    });
  },
  /** What the browser complained of since the page was opened. */
  async problems() {
    return problems;
  },
  /** A world that is made up, with the page as it is committed; the answer is where it is served. */
  async generated({ workloads }) {
    return await serveGenerated(workloads);
  },
};

async function serveGenerated(workloads) {
  const kinds = { html: "text/html", js: "text/javascript", css: "text/css", svg: "image/svg+xml" };
  let round = 0;
  const server = createServer(async (request, response) => {
    const url = new URL(request.url, "http://localhost");
    const picture = () => generated(workloads, round++);
    if (url.pathname === "/api/events") {
      response.writeHead(200, { "content-type": "text/event-stream" });
      const tell = () => response.write(`data: ${JSON.stringify(picture())}\n\n`);
      tell();
      const timer = setInterval(tell, 2000);
      response.on("close", () => clearInterval(timer));
    } else if (url.pathname.startsWith("/api/")) {
      response.writeHead(404).end("{}");
    } else {
      const file = url.pathname === "/" ? "index.html" : url.pathname.slice(1).replaceAll("..", "");
      const text = await readFile(join(DIST, file)).catch(() => "");
      response.writeHead(text ? 200 : 404, { "content-type": kinds[file.split(".").pop()] ?? "text/plain" }).end(text);
    }
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  server.unref();
  return `http://127.0.0.1:${server.address().port}/`;
}

if (process.argv[2] === "generated") {
  const all = [[200, "light", "desktop", "light"], [200, "dark", "desktop", "dark"], [200, "phone", "phone", "light"], [2000, "light", "desktop", "light"]];
  for (const [workloads, kind, shape, colours] of all) {
    const [url, name] = [await serveGenerated(workloads), `${workloads}-${kind}`];
    const began = Date.now();
    await actions.open({ url: shape === "phone" ? `${url}#map` : url, shape, colours });
    await actions.see({ selector: "[data-workload]" });
    console.log(name, Date.now() - began, "ms", await actions.accessible(), problems);
    await actions.screenshot({ file: join(process.argv[3], `${name}.png`) });
  }
} else {
  for await (const line of createInterface({ input: process.stdin })) {
    let answer;
    try {
      const { do: name, ...rest } = JSON.parse(line);
      answer = { ok: (await actions[name](rest)) ?? null };
    } catch (error) {
      answer = { error: String(error) };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
}
await browser.close();
process.exit(0);
