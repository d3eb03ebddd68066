// Starts the page: who is signed in, which view the address asks for, and what surrounds every view.

import { onSignedOut, session, signOut } from "./api.js";
import { el, fill, text } from "./dom.js";
import { toast } from "./dialog.js";
import { about, clock } from "./format.js";
import * as live from "./live.js";
import { icon } from "./shape.js";
import { apply, load, plant, watch } from "./store.js";
import { plantView } from "./views/plant.js";
import { signInView } from "./views/sign-in.js";

const ROLES = ["viewer", "engineer", "admin"];

// What the views know of who looks: `can("engineer")`. A gateway without users lets everybody on its machine do everything.
const who = {
  session: null,
  can(role) {
    const { user, sign_in_required: required } = who.session ?? {};
    return user ? ROLES.indexOf(user.role) >= ROLES.indexOf(role) : required === false;
  },
};

// The first part of the address after `#/`; views that are not the first are loaded when they are asked for.
const ROUTES = {
  "": { view: plantView, name: "Plant", nav: "plant" },
  wall: { load: () => import("./views/wall.js").then((m) => m.wallView), name: "Wall", bare: true },
  asset: { load: () => import("./views/asset.js").then((m) => m.assetView), name: "Machine", nav: "plant" },
  alerts: { load: () => import("./views/history.js").then((m) => m.alertsView), name: "Alerts", nav: "alerts" },
  alert: { load: () => import("./views/alert.js").then((m) => m.alertView), name: "Alert", nav: "alerts" },
  learning: { load: () => import("./views/commissioning.js").then((m) => m.commissioningView), name: "Commissioning", nav: "learning" },
  models: { load: () => import("./views/models.js").then((m) => m.modelsView), name: "Models", nav: "models" },
  devices: { load: () => import("./views/devices.js").then((m) => m.devicesView), name: "Devices", nav: "devices" },
  audit: { load: () => import("./views/history.js").then((m) => m.auditView), name: "Audit", nav: "audit" },
};

const NAV = [
  ["plant", "#/", "Plant"],
  ["alerts", "#/alerts", "Alerts"],
  ["learning", "#/learning", "Learning"],
  ["models", "#/models", "Models"],
  ["devices", "#/devices", "Devices"],
  ["audit", "#/audit", "Audit", "engineer"],
];

const main = document.getElementById("main");
const banner = document.getElementById("banner");
let leave = null;
let turn = 0;
const alertCount = el("span.count", { hidden: true });

// `#/asset/pump-1?from=1&to=2` → ["asset", "pump-1"] and its parameters.
function address() {
  const [path, search] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").map((segment) => {
    try {
      return decodeURIComponent(segment);
    } catch {
      return segment;
    }
  });
  return { parts, parameters: new URLSearchParams(search ?? "") };
}

async function show() {
  const mine = ++turn;
  const { parts, parameters } = address();
  const route = ROUTES[parts[0]] ?? ROUTES[""];
  let view = route.view;
  if (!view) {
    try {
      view = await route.load();
    } catch {
      toast("This view could not be loaded. Check the connection and try again.", "bad");
      return;
    }
  }
  if (mine !== turn) return;
  leave?.();
  leave = null;
  live.follow([]);
  document.body.classList.toggle("bare", Boolean(route.bare));
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.nav === route.nav) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  title(parts[1] ?? route.name);
  const place = el("div.view");
  fill(main, place);
  window.scrollTo(0, 0);
  leave = view(place, { parts, parameters, who }) ?? null;
  if (mine > 1) main.focus({ preventScroll: true });
}

let titled = "Plant";
function title(name = titled) {
  titled = name;
  const alarms = [...plant.assets.values()].filter((asset) => asset.alert && !asset.alert.acknowledged).length;
  document.title = `${alarms ? `(${alarms}) ` : ""}${name} · ${who.session?.gateway ?? ""} · Millwright`;
  text(alertCount, alarms || "");
  alertCount.hidden = !alarms;
}

function themeButton() {
  const dark = () => document.documentElement.dataset.theme === "dark";
  const button = el("button.quiet.square", { type: "button" });
  const draw = () => {
    fill(button, icon(dark() ? "sun" : "moon"));
    button.setAttribute("aria-label", dark() ? "Light theme" : "Dark theme");
    button.title = dark() ? "Light theme" : "Dark theme";
  };
  button.addEventListener("click", () => {
    const next = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("millwright.theme", next);
    } catch {
      // Without storage the choice lasts as long as the page.
    }
    window.dispatchEvent(new Event("themechange"));
  });
  window.addEventListener("themechange", draw);
  draw();
  return button;
}

function frame() {
  const now = who.session;
  document.getElementById("top").hidden = false;
  text(document.getElementById("gateway-name"), now.gateway);
  fill(
    document.getElementById("views"),
    NAV.filter(([, , , role]) => !role || who.can(role)).map(([name, href, word]) =>
      el("a", { href, "data-nav": name }, icon(name), el("span", null, word), name === "alerts" ? alertCount : null),
    ),
  );
  const signedIn = now.sign_in_required && now.user;
  fill(
    document.getElementById("top-end"),
    el("span.pulse", { id: "pulse", title: "Whether this page is told what happens as it happens" }, "Connecting"),
    el("a.quiet.square.button.wide-only", { href: "#/wall", "aria-label": "Wall view", title: "Wall view" }, icon("wall")),
    themeButton(),
    signedIn ? el("span.who", null, el("span.who-name", null, now.user.name), el("span.who-role", null, now.user.role)) : null,
    signedIn
      ? el("button.quiet.square", { type: "button", "aria-label": "Sign out", title: "Sign out", onclick: () => signOut().finally(() => location.reload()) }, icon("out"))
      : null,
  );
}

let wasLost = false;
function connection(state, lastMs) {
  const pulse = document.getElementById("pulse");
  if (pulse) {
    pulse.className = `pulse ${state}`;
    text(pulse, { live: "Live", lost: "Offline", connecting: "Connecting", polling: "Every few seconds" }[state]);
  }
  banner.hidden = state !== "lost";
  if (state === "lost") {
    text(banner, `The gateway does not answer. What you see was known at ${clock((lastMs || Date.now()) * 1000)}; trying again…`);
  }
  if (state === "lost") wasLost = true;
  if (state === "live" && wasLost) {
    wasLost = false;
    toast("Connected again.");
    load().catch(() => {});
    window.dispatchEvent(new Event("reconnected"));
  }
}

function announce(alert) {
  if (!alert || alert.cleared_us || alert.silenced || announced.has(alert.number)) return;
  announced.add(alert.number);
  if (announced.size > 500) announced.delete(announced.values().next().value);
  text(document.getElementById("announce"), `New alert. ${alert.asset}: ${about(alert.asset, alert.message)}`);
  toast(`${alert.asset}: ${about(alert.asset, alert.message)}`, alert.severity, el("a", { href: `#/alert/${alert.number}` }, "Show the evidence"));
}
const announced = new Set();

async function signedIn() {
  frame();
  watch(() => title());
  live.on("plant", apply);
  live.on("reset", () => load().catch(() => {}));
  live.on("alert", announce);
  // Alerts that were up before are no news.
  await load().catch((error) => toast(error.message, "bad"));
  for (const asset of plant.assets.values()) if (asset.alert) announced.add(asset.alert.number);
  live.onState(connection);
  live.start();
  window.addEventListener("hashchange", show);
  await show();
}

function askWho() {
  live.stop();
  leave?.();
  leave = null;
  document.getElementById("top").hidden = true;
  banner.hidden = true;
  document.title = "Sign in · Millwright";
  const place = el("div.view");
  fill(main, place);
  signInView(place, who.session, () => location.reload());
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

async function start() {
  try {
    who.session = await session();
  } catch (error) {
    fill(main, el("p.loading", null, `${error.message} ${error.remedy}`));
    setTimeout(start, 2000);
    return;
  }
  onSignedOut(askWho);
  if (who.session.sign_in_required && !who.session.user) askWho();
  else await signedIn();
}

start();
