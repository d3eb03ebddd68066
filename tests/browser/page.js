// A browser with a page, what scenarios ask of it, and the line to the test that plays them.
"use strict";

const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const readline = require("node:readline");
const { chromium } = require("playwright-core");

// Longest wait for what a page is to show; the machine may be busy.
const PATIENCE_MS = 60_000;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"];
const SIZES = {
  desk: { viewport: { width: 1440, height: 900 } },
  phone: { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
  wall: { viewport: { width: 1920, height: 1080 } },
};

const answers = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

// Asks the test to do something to the gateway or its machines, and waits until it is done.
async function ask(what) {
  process.stdout.write(`${JSON.stringify({ ask: what })}\n`);
  const { value, done } = await answers.next();
  if (done) throw new Error(`the test has gone while it was asked to ${what}`);
  const answer = JSON.parse(value);
  if (answer.error) throw new Error(answer.error);
  return answer;
}

async function launch(executablePath) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "millwright-browser-"));
  const browser = await chromium.launch({ executablePath, headless: true, args: FLAGS, env: { ...process.env, HOME: folder, XDG_CONFIG_HOME: folder, XDG_CACHE_HOME: folder } });
  return {
    browser,
    async close() {
      await browser.close();
      fs.rmSync(folder, { recursive: true, force: true });
    },
  };
}

// A page of its own, signed out; what goes wrong in it is kept in `page.faults`.
async function open(browser, url, { size = "desk", theme = "light", at = "#/" } = {}) {
  const context = await browser.newContext({ ...SIZES[size], colorScheme: theme, serviceWorkers: "block" });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  page.faults = [];
  page.foreign = [];
  page.on("pageerror", (error) => page.faults.push(`an error in the page: ${error.message}`));
  page.on("console", (message) => {
    // A refused script is told here; that the gateway refused or was away is what some scenarios are about.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) page.faults.push(message.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) page.foreign.push(request.url());
  });
  // Bytes of each file that came with a body, headers too.
  page.loaded = [];
  page.on("requestfinished", async (request) => {
    if (request.url().includes("/api/")) return;
    const sizes = await request.sizes().catch(() => null);
    if (sizes) page.loaded.push(sizes.responseBodySize + sizes.responseHeadersSize);
  });
  page.on("dialog", (dialog) => {
    page.faults.push(`the page shows a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  await page.goto(`${url}/${at}`);
  return page;
}

async function signIn(page, user, password) {
  await page.getByLabel("User").fill(user);
  await page.getByLabel("Password").fill(password);
  await page.getByRole("button", { name: "Sign in" }).click();
}

// A page of somebody who is signed in.
async function openAs(browser, url, login, options = {}) {
  const page = await open(browser, url, options);
  await signIn(page, login.user, login.password);
  await page.locator("#views a").first().waitFor({ state: "attached" });
  if (options.at) await go(page, options.at);
  return page;
}

async function go(page, at) {
  await page.evaluate((hash) => (location.hash = hash), at);
  await page.locator("main h1").first().waitFor();
}

function expect(condition, what) {
  if (!condition) throw new Error(what);
}

// Nothing went wrong in the page that the scenario did not ask for.
function sound(page) {
  expect(page.faults.length === 0, page.faults.join("; "));
  expect(page.foreign.length === 0, `the page asks others: ${page.foreign.join(", ")}`);
}

// Waits until `condition`, run in the page, holds.
function until(page, condition, argument) {
  return page.waitForFunction(condition, argument, { timeout: PATIENCE_MS, polling: 100 });
}

module.exports = { PATIENCE_MS, SIZES, ask, expect, go, launch, open, openAs, signIn, sound, until };
