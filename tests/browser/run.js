// Plays one scenario: `node run.js SCENARIO JSON`; prints lines of JSON, the last says how it went.
"use strict";

async function main() {
  if (process.argv[2] === "--version") {
    process.stdout.write(`playwright-core ${require("playwright-core/package.json").version}, axe-core ${require("axe-core/package.json").version}\n`);
    return;
  }
  const { launch } = require("./page.js");
  const scenario = require("./scenarios.js")[process.argv[2]];
  if (!scenario) throw new Error(`there is no scenario ${process.argv[2]}`);
  const given = JSON.parse(process.argv[3]);
  const chromium = await launch(given.chromium);
  try {
    const figures = await scenario({ ...given, browser: chromium.browser });
    process.stdout.write(`${JSON.stringify({ ok: true, figures: figures ?? null })}\n`);
  } catch (error) {
    if (given.failed) await shoot(chromium.browser, given.failed);
    throw error;
  } finally {
    await chromium.close();
  }
}

// What the pages showed when it went wrong.
async function shoot(browser, folder) {
  let number = 0;
  for (const context of browser.contexts()) {
    for (const page of context.pages()) {
      number += 1;
      await page.screenshot({ path: `${folder}/${process.argv[2]}-${number}.png`, timeout: 5000 }).catch(() => {});
    }
  }
}

main().then(
  () => process.exit(0),
  (error) => {
    process.stdout.write(`${JSON.stringify({ ok: false, error: `${error.message}\n${error.stack}` })}\n`);
    process.exit(1);
  },
);
