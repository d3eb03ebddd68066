// What people do with the dashboard. Each scenario is played against a gateway of its own.
"use strict";

const { SIZES, ask, expect, go, open, openAs, signIn, sound, until } = require("./page.js");

const VIEWS = ["#/", "#/asset/pump-1", "#/alerts", "#/learning", "#/models", "#/devices", "#/audit", "#/wall"];

// A wrong password is refused, and says so; the right one lets in; signing out lets nobody in again.
async function signs_in({ browser, url, logins }) {
  const page = await open(browser, url);
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
  expect((await page.locator("#views a").count()) === 0, "the views are there before anybody has signed in");
  await signIn(page, logins.engineer.user, "not the password");
  await page.getByRole("alert").waitFor();
  expect(await page.getByLabel("Password").isVisible(), "a wrong password lets in");
  await signIn(page, logins.engineer.user, logins.engineer.password);
  await page.getByRole("heading", { level: 1, name: /machine|learn/i }).waitFor();
  const cookies = await page.context().cookies();
  const cookie = cookies.find((one) => one.name === "mw_session");
  expect(cookie?.httpOnly && cookie.sameSite === "Strict", `the session's cookie can be stolen: ${JSON.stringify(cookie)}`);
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Password").waitFor();
  await page.reload();
  await page.getByLabel("Password").waitFor();
  sound(page);
}

// A fault appears by itself while the page is open, leads to its evidence, and takes what the engineer has to say.
async function a_fault_appears_live({ browser, url, logins }) {
  const page = await openAs(browser, url, logins.engineer);
  await page.getByRole("heading", { name: "No machine needs a visit" }).waitFor();
  await page.locator(".tile", { hasText: "pump-1" }).waitFor();
  await ask("begin the fault");
  const row = page.locator(".visit", { hasText: "pump-1" });
  await row.waitFor();
  await until(page, () => /needs? a visit/.test(document.querySelector("h1").textContent) && document.querySelector(".visit[href^='#/alert/']"));
  const sign = await row.locator(".word").textContent();
  expect(/Critical|Warning/.test(sign), `the state is not told in words: ${sign}`);
  await until(page, () => document.getElementById("announce").textContent.includes("pump-1"));
  await row.click();
  await page.getByRole("heading", { name: "Which channels" }).waitFor();
  const channels = await page.locator(".sensors tbody th").allTextContents();
  expect(channels.some((name) => name.startsWith("vibration")), `the evidence does not name the vibration: ${channels}`);
  await page.locator(".evidence canvas").first().waitFor();
  await page.getByRole("button", { name: "Acknowledge" }).click();
  await page.locator(".head-state", { hasText: "acknowledged by" }).waitFor();
  await page.getByLabel("Comment").fill("The bearing is loud. <b>Spare part</b> ordered.");
  await page.getByRole("button", { name: "True fault" }).click();
  await page.locator('.verdicts button[aria-pressed="true"]', { hasText: "True fault" }).waitFor();
  await page.locator(".notes-list").getByText("The bearing is loud. <b>Spare part</b> ordered.").waitFor();
  await page.getByText("Silence this machine").click();
  await page.getByLabel("Reason").fill("Bearing is changed");
  await page.getByRole("button", { name: "Silence", exact: true }).click();
  await page.getByText(/Silenced until/).first().waitFor();
  await go(page, "#/audit");
  await page.locator("tbody tr", { hasText: "silence" }).first().waitFor();
  const told = await page.locator("tbody").textContent();
  for (const word of [logins.engineer.user, "acknowledge", "feedback", "silence"]) expect(told.includes(word), `the audit does not tell of ${word}`);
  sound(page);
}

// The live chart moves; dragging over it shows the stored history of just that time.
async function a_chart_is_looked_into({ browser, url, logins }) {
  const page = await openAs(browser, url, logins.viewer, { at: "#/asset/pump-1" });
  await page.locator(".chart canvas").nth(1).waitFor();
  const shown = () => page.locator(".chart-now").nth(1).textContent();
  const before = await shown();
  await until(page, (was) => document.querySelectorAll(".chart-now")[1]?.textContent !== was, before);
  const box = await page.locator(".chart .u-over").nth(1).boundingBox();
  await page.mouse.move(box.x + box.width * 0.3, box.y + box.height / 2);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.7, box.y + box.height / 2, { steps: 5 });
  await page.mouse.up();
  await page.getByRole("button", { name: "Back to live" }).waitFor();
  await until(page, () => /from=\d+&to=\d+/.test(location.hash) && / to /.test(document.querySelector(".range").textContent));
  const from = await page.evaluate(() => Number(location.hash.match(/from=(\d+)/)[1]));
  await page.getByRole("button", { name: "Earlier" }).click();
  await until(page, (was) => Number(location.hash.match(/from=(\d+)/)?.[1]) < was, from);
  await page.getByRole("button", { name: "Back to live" }).click();
  await until(page, () => !location.hash.includes("from="));
  sound(page);
}

// A model in shadow is promoted with a reason, by keyboard, and the page follows it.
async function a_model_is_promoted({ browser, url, logins }) {
  const page = await openAs(browser, url, logins.engineer, { at: "#/models" });
  await ask("push a model");
  const promote = page.getByRole("button", { name: /^Promote/ });
  await promote.waitFor();
  await promote.focus();
  await page.keyboard.press("Enter");
  const dialog = page.getByRole("dialog");
  await dialog.waitFor();
  await page.keyboard.press("Escape");
  await dialog.waitFor({ state: "hidden" });
  await promote.click();
  await dialog.getByRole("button", { name: "Promote" }).click();
  expect(await dialog.isVisible(), "a model is promoted without a reason");
  await dialog.getByLabel("Reason").fill("Quieter than the one before");
  await dialog.getByRole("button", { name: "Promote" }).click();
  await page.locator(".chip", { hasText: /On trial|Active/ }).first().waitFor();
  await page.getByRole("button", { name: /^Roll back/ }).first().waitFor();
  sound(page);
}

// A model is uploaded from the browser, and tested over what the gateway has stored.
async function a_model_is_uploaded({ browser, url, logins, model }) {
  const page = await openAs(browser, url, logins.admin, { at: "#/models" });
  await ask("make a model");
  await page.getByLabel("Model (ONNX)").setInputFiles(model);
  await page.getByLabel("For the machines").fill("pump-1");
  await page.getByRole("button", { name: "Upload" }).click();
  await page.locator(".chip", { hasText: "In shadow" }).waitFor();
  await page.getByRole("button", { name: /^Test/ }).click();
  await page.locator(".rehearsal tbody th", { hasText: "pump-1" }).waitFor();
  await page.getByLabel("Model (ONNX)").setInputFiles({ name: "wrong.onnx", mimeType: "application/octet-stream", buffer: Buffer.from("no model") });
  await page.getByRole("button", { name: "Upload" }).click();
  await page.getByRole("alert").waitFor();
  sound(page);
}

// A model that scores is rolled back with a reason: the machine is judged by what was learned again, and what happened is told.
async function a_model_is_rolled_back({ browser, url, logins }) {
  const page = await openAs(browser, url, logins.engineer, { at: "#/models" });
  const dialog = page.getByRole("dialog");
  await ask("push a model");
  await page.getByRole("button", { name: /^Promote/ }).click();
  await dialog.getByLabel("Reason").fill("Quieter than the one before");
  await dialog.getByRole("button", { name: "Promote" }).click();
  const back = page.getByRole("button", { name: /^Roll back/ });
  await back.click();
  await dialog.getByText("go back to what the gateway has learned").waitFor();
  await dialog.getByRole("button", { name: "Roll back" }).click();
  expect(await dialog.isVisible(), "a model is rolled back without a reason");
  await dialog.getByLabel("Reason").fill("Too quiet <b>by far</b>");
  await dialog.getByRole("button", { name: "Roll back" }).click();
  const row = page.locator(".model tbody tr", { hasText: "Rolled back" });
  await row.getByText("Too quiet <b>by far</b>").waitFor();
  await back.waitFor({ state: "detached" });
  await page.getByText("Steps").click();
  await page.locator(".model .lines li", { hasText: "rolled-back" }).first().waitFor();
  await go(page, "#/audit");
  await page.locator("tbody tr", { hasText: "Too quiet" }).first().waitFor();
  sound(page);
}

// Where keys are trusted, a manifest that one of them signed lets a model in, and says whose it is; another's key does not, and says why.
async function a_signed_model_is_uploaded({ browser, url, logins, packages }) {
  const page = await openAs(browser, url, logins.admin, { at: "#/models" });
  await ask("sign a model");
  const send = async ({ model, manifest }) => {
    await page.getByLabel("Model (ONNX)").setInputFiles(model);
    await page.getByLabel("Or with the manifest").setInputFiles(manifest);
    expect(await page.getByLabel("For the machines").isDisabled(), "the manifest names the machines, and the form asks for them too");
    await page.getByRole("button", { name: "Upload" }).click();
  };
  await send(packages.theirs);
  await page.getByRole("alert").filter({ hasText: "not among `trusted_keys`" }).waitFor();
  expect((await page.locator(".chip", { hasText: /In shadow|On trial|Active/ }).count()) === 0, "a stranger's model is let in");
  await send(packages.ours);
  const row = page.locator(".model tbody tr", { hasText: "In shadow" });
  await row.waitFor();
  const signed = await row.locator("td:nth-of-type(3) code").getAttribute("title");
  const { items } = await page.evaluate(async () => (await fetch("/api/v1/models")).json());
  expect(signed && items.some((item) => item.state === "shadow" && item.signed_by === signed), `it is signed by ${signed}, says the page`);
  sound(page);
}

// A machine is learned anew from its page, and once more from the view of what is learned: it begins at nothing, and progress is seen.
async function a_machine_is_learned_anew({ browser, url, logins }) {
  const page = await openAs(browser, url, logins.engineer, { at: "#/learning" });
  await page.getByText("No machine is being learned").waitFor();
  await go(page, "#/asset/pump-1");
  const dialog = page.getByRole("dialog");
  await page.getByRole("button", { name: "Learn anew" }).click();
  await dialog.getByText("What was learned as normal is forgotten").waitFor();
  await dialog.getByRole("button", { name: "Learn anew" }).click();
  await dialog.waitFor({ state: "hidden" });
  await go(page, "#/learning");
  const card = page.locator(".learnings section", { hasText: "pump-1" });
  await card.waitFor();
  const rows = async () => Number((await card.getByText(/ rows/).first().textContent()).match(/^\S+/)[0]);
  const progressed = (least) => until(page, (enough) => document.querySelector(".learnings progress")?.value >= enough, least);
  await progressed(0.1);
  expect((await rows()) >= 40, `${await rows()} rows are a tenth of 400`);
  await card.getByRole("button", { name: "Begin again" }).click();
  await dialog.getByRole("button", { name: "Begin again" }).click();
  await until(page, () => document.querySelector(".learnings progress")?.value < 0.1);
  await progressed(0.05);
  await go(page, "#/audit");
  await until(page, () => [...document.querySelectorAll("tbody tr")].filter((row) => /learn|commission/i.test(row.textContent)).length >= 2);
  sound(page);
}

// A viewer sees everything and is offered nothing that would be refused; who asks all the same is refused.
async function a_viewer_changes_nothing({ browser, url, logins }) {
  const page = await openAs(browser, url, logins.viewer, { at: "#/models" });
  await ask("push a model");
  await page.locator(".chip", { hasText: "In shadow" }).waitFor();
  expect((await page.getByRole("button", { name: /Promote|Roll back|Test|Upload/ }).count()) === 0, "a viewer is offered to promote");
  const refused = await page.evaluate(async () => {
    const { csrf } = await (await fetch("/api/v1/session")).json();
    const { items } = await (await fetch("/api/v1/models")).json();
    const path = `/api/v1/models/${items[0].name}/${items[0].version}/promote`;
    const ask = (token) => fetch(path, { method: "POST", headers: { "X-CSRF-Token": token, "Content-Type": "application/json" }, body: JSON.stringify({ reason: "mine" }) });
    const [asViewer, forged] = [await ask(csrf), await ask("forged")];
    return { status: asViewer.status, error: (await asViewer.json()).error, forged: forged.status };
  });
  expect(refused.status === 403 && refused.error?.remedy, `a viewer's promotion is answered ${JSON.stringify(refused)}`);
  expect(refused.forged === 403, `a forged token is answered ${refused.forged}`);
  await go(page, "#/asset/pump-1");
  await page.getByRole("heading", { name: "Facts" }).waitFor();
  expect((await page.getByRole("button", { name: /Silence|Learn anew/ }).count()) === 0, "a viewer is offered to silence");
  sound(page);
}

// When the gateway goes the page says so and keeps what it knew; when it is back on its port the page goes on by itself.
async function the_connection_comes_back({ browser, url, logins }) {
  const page = await openAs(browser, url, logins.engineer);
  await page.locator("#pulse.live").waitFor();
  await page.locator(".tile, .visit").first().waitFor();
  await ask("stop the gateway");
  await page.locator("#banner", { hasText: "does not answer" }).waitFor();
  expect(await page.locator(".tile, .visit").first().isVisible(), "what was known is gone");
  await ask("start the gateway");
  // Sessions are kept in memory: after a restart the page asks who is there.
  await page.locator("#pulse.live").or(page.getByLabel("Password")).first().waitFor();
  if (await page.getByLabel("Password").isVisible()) await signIn(page, logins.engineer.user, logins.engineer.password);
  await page.locator("#pulse.live").waitFor();
  await until(page, () => document.getElementById("banner").hidden && document.querySelector(".tile, .visit"));
  sound(page);
}

// On a phone nothing is wider than the screen and the views are within reach; on the wall names can be read from afar.
async function fits_phone_and_wall({ browser, url, logins }) {
  const phone = await openAs(browser, url, logins.engineer, { size: "phone" });
  for (const at of VIEWS) {
    await go(phone, at);
    await phone.waitForTimeout(300);
    const { wide, most } = await phone.evaluate(() => ({ wide: document.documentElement.scrollWidth, most: innerWidth }));
    expect(wide <= most, `${at} is ${wide} pixels wide on a screen of ${most}`);
  }
  await go(phone, "#/");
  const bar = await phone.locator("#views").boundingBox();
  expect(bar.y + bar.height >= SIZES.phone.viewport.height - 1, "the views are not at the thumb");
  sound(phone);
  const wall = await openAs(browser, url, logins.viewer, { size: "wall", at: "#/wall" });
  await ask("begin the fault");
  const lamp = wall.locator(".wall-lamp", { hasText: "pump-1" });
  await lamp.waitFor();
  const size = await lamp.locator(".name").evaluate((name) => parseFloat(getComputedStyle(name).fontSize));
  expect(size >= 40, `a name on the wall is ${size} pixels high`);
  expect(!(await wall.locator("#top").isVisible()), "the wall shows what nobody touches there");
  const scrolls = await wall.evaluate(() => document.documentElement.scrollHeight > innerHeight + 1);
  expect(!scrolls, "the wall scrolls");
  sound(wall);
}

// A name that is a script is shown as the text that it is, wherever names are shown.
async function a_script_is_only_text({ browser, url, logins, hostile }) {
  const page = await openAs(browser, url, logins.engineer);
  await ask("let a machine with a hostile name report");
  await page.getByText(hostile, { exact: true }).first().waitFor();
  for (const at of ["#/learning", "#/devices", "#/wall", `#/asset/${encodeURIComponent(hostile)}`]) {
    await go(page, at);
    await page.getByText(hostile, { exact: true }).first().waitFor();
  }
  const ran = await page.evaluate(() => globalThis.pwned !== undefined || document.querySelector("main img, main script") !== null);
  expect(!ran, "the name was taken for HTML");
  sound(page);
}

// Every view can be reached and used without a mouse, and has no serious fault that axe-core knows of, light and dark.
async function is_accessible({ browser, url, logins }) {
  const axe = require("node:fs").readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
  await ask("begin the fault");
  for (const theme of ["light", "dark"]) {
    const page = await open(browser, url, { theme });
    const shown = () => page.evaluate(() => document.documentElement.dataset.theme);
    expect((await shown()) === theme, `the page is not ${theme} as the system prefers`);
    await page.getByLabel("Password").waitFor();
    await check(page, axe, `sign-in, ${theme}`);
    await signIn(page, logins.engineer.user, logins.engineer.password);
    await until(page, () => document.querySelector(".visit[href^='#/alert/']"));
    const alert = await page.locator(".visit[href^='#/alert/']").first().getAttribute("href");
    for (const at of [...VIEWS, alert]) {
      await go(page, at);
      await page.waitForTimeout(500);
      await check(page, axe, `${at}, ${theme}`);
    }
    await go(page, "#/");
    await page.reload();
    await page.locator(".visit").first().waitFor();
    await page.keyboard.press("Tab");
    expect((await page.evaluate(() => document.activeElement.id)) === "skip", "the first stop is not the way past the views");
    await page.keyboard.press("Enter");
    expect((await page.evaluate(() => document.activeElement.id)) === "main", "the way past the views leads nowhere");
    for (let stop = 0; stop < 40; stop += 1) {
      await page.keyboard.press("Tab");
      if (await page.evaluate(() => document.activeElement.classList.contains("visit"))) break;
    }
    const seen = await page.evaluate(() => document.activeElement.classList.contains("visit") && getComputedStyle(document.activeElement).outlineStyle !== "none");
    expect(seen, "a machine is not reached by keyboard, or it cannot be seen that it is");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Which channels" }).waitFor();
    sound(page);
    await page.context().close();
  }
}

async function check(page, axe, where) {
  // The page's own policy lets no script in; the tool comes in by the debugger.
  await page.evaluate(`${axe}; undefined`);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const bad = found.violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const told = bad.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(" ; ")}`);
  expect(bad.length === 0, `${where}: ${told.join("\n")}`);
}

// Ten thousand points are drawn again within a frame or two; how long it takes is told.
async function redraws_smoothly({ browser, url, logins }) {
  const page = await openAs(browser, url, logins.viewer);
  const figures = await page.evaluate(async () => {
    const { chart } = await import("/web/chart.js");
    const points = 10_000;
    const drawn = chart({ title: "Ten thousand", expected: { low: -1, mean: 0, high: 1 } });
    document.querySelector("main").prepend(drawn.node);
    const series = (turn) => ({ timesUs: Array.from({ length: points }, (_, at) => (at + turn) * 1e6), values: Array.from({ length: points }, (_, at) => Math.sin((at + turn) / 50) + Math.sin(at * 7.3) / 5) });
    await drawn.update(series(0));
    const times = [];
    for (let turn = 1; turn <= 40; turn += 1) {
      const next = series(turn);
      await new Promise(requestAnimationFrame);
      const begin = performance.now();
      await drawn.update(next);
      // uPlot draws in a microtask.
      await Promise.resolve();
      times.push(performance.now() - begin);
    }
    times.sort((a, b) => a - b);
    return { points, redraw_ms_median: Number(times[20].toFixed(1)), redraw_ms_p90: Number(times[36].toFixed(1)), width: document.querySelector("main canvas").width };
  });
  expect(figures.width > 0, "nothing was drawn");
  sound(page);
  return figures;
}

// With 200 machines the page weighs at most 300 KB, every file of it, and the time to the first meaningful paint is told.
async function is_light({ browser, url, logins }) {
  await ask("let 200 machines report");
  const page = await openAs(browser, url, logins.viewer);
  await until(page, () => document.querySelectorAll(".tile, .visit").length >= 200);
  const loads = [];
  for (let turn = 0; turn < 5; turn += 1) {
    await page.goto("about:blank");
    await page.goto(`${url}/`);
    await until(page, () => document.querySelectorAll(".tile, .visit").length >= 200);
    loads.push(
      await page.evaluate(() => ({
        painted_ms: Math.round(performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0),
        meaningful_ms: Math.round(performance.getEntriesByName("plant-painted")[0]?.startTime ?? -1),
      })),
    );
  }
  loads.sort((a, b) => a.meaningful_ms - b.meaningful_ms);
  // Somebody who was never here signs in, sees the plant and one machine.
  const fresh = await openAs(browser, url, logins.viewer);
  await fresh.locator(".tile, .visit").first().waitFor();
  await go(fresh, "#/asset/pump-1");
  await fresh.locator(".chart canvas").first().waitFor();
  const weight = fresh.loaded.reduce((sum, bytes) => sum + bytes, 0);
  expect(weight > 0 && weight <= 300_000, `the page weighs ${weight} bytes`);
  sound(page);
  return { weight_bytes: weight, machines: 200, first_meaningful_paint_ms: loads[2].meaningful_ms, first_contentful_paint_ms: loads[2].painted_ms };
}

module.exports = {
  signs_in,
  a_fault_appears_live,
  a_chart_is_looked_into,
  a_model_is_promoted,
  a_model_is_uploaded,
  a_model_is_rolled_back,
  a_signed_model_is_uploaded,
  a_machine_is_learned_anew,
  a_viewer_changes_nothing,
  the_connection_comes_back,
  fits_phone_and_wall,
  a_script_is_only_text,
  is_accessible,
  redraws_smoothly,
  is_light,
};
