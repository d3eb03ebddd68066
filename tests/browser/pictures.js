// Takes the pictures of docs/screenshots from a demonstration that has just begun:
// `millwright demo --for 300s` and `node pictures.js http://127.0.0.1:8080 ../../docs/screenshots`.
"use strict";

const path = require("node:path");
const { go, launch, open, until } = require("./page.js");

async function main([url, folder, executablePath = "/usr/bin/chromium"]) {
  const { browser, close } = await launch(executablePath);
  const shoot = (page, name, options = {}) => page.screenshot({ path: path.join(folder, `${name}.png`), ...options });
  const sized = async (page, width, height) => page.setViewportSize({ width, height });

  const desk = await open(browser, url, { at: "#/learning" });
  await sized(desk, 1280, 640);
  await until(desk, () => document.querySelectorAll(".learnings progress").length >= 3 && document.querySelector(".learn-figure").textContent !== "0 %");
  await shoot(desk, "learning");

  await go(desk, "#/");
  await sized(desk, 1280, 800);
  await until(desk, () => document.querySelectorAll(".visit[href^='#/alert/']").length >= 4);
  await desk.locator(".toast").first().waitFor({ state: "detached" });
  await shoot(desk, "plant");

  await desk.locator(".visit").first().click();
  await desk.getByRole("heading", { name: "Which channels" }).waitFor();
  await desk.locator(".evidence canvas").first().waitFor();
  await desk.getByLabel("Comment").fill("Fan is loud, the belt is changed on Thursday.");
  await desk.getByRole("button", { name: "Acknowledge" }).click();
  await desk.locator(".notes-list", { hasText: "belt" }).waitFor();
  await sized(desk, 1280, 1180);
  await shoot(desk, "alert");

  const name = await desk.locator(".head-kicker a").textContent();
  await go(desk, `#/asset/${name}`);
  await sized(desk, 1280, 900);
  await desk.locator(".chart canvas").nth(2).waitFor();
  await desk.getByRole("button", { name: "1 h", exact: true }).click();
  await until(desk, () => / to /.test(document.querySelector(".range").textContent));
  await desk.waitForTimeout(500);
  await shoot(desk, "machine");

  await go(desk, "#/models");
  await sized(desk, 1280, 640);
  await desk.locator(".comparison").waitFor();
  await shoot(desk, "models");

  const phone = await open(browser, url, { size: "phone", theme: "dark" });
  await phone.locator(".visit").first().waitFor();
  await shoot(phone, "phone", { scale: "css" });
  const wall = await open(browser, url, { size: "wall", theme: "dark", at: "#/wall" });
  await sized(wall, 1600, 900);
  await wall.locator(".wall-lamp").first().waitFor();
  await shoot(wall, "wall");
  await close();
}

main(process.argv.slice(2));
