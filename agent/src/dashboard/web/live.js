// The live stream: one EventSource for the page, opened again with back-off when it ends, and what is known of its health.

import { get, query } from "./api.js";

const RETRY_MS = [500, 1000, 2000, 4000, 8000];
// The gateway beats every 5 s in comments, which a page cannot see: after so long without an event it asks.
const QUIET_MS = 15_000;
const POLL_MS_MAX = 5_000;
const EVENTS = ["plant", "rows", "alert", "models", "reset"];

const listeners = new Map(EVENTS.map((name) => [name, new Set()]));
const stateListeners = new Set();

let source = null;
let assets = [];
let retries = 0;
let retryTimer = null;
let lastMs = 0;
let state = "connecting";
let wanted = false;

export function on(name, callback) {
  listeners.get(name).add(callback);
  return () => listeners.get(name).delete(callback);
}

// "connecting", "live", "polling" (the gateway answers, but streams to others) or "lost", with the time of the last sign of life.
export function onState(callback) {
  stateListeners.add(callback);
  callback(state, lastMs);
  return () => stateListeners.delete(callback);
}

function turn(next) {
  if (next === state) return;
  state = next;
  for (const callback of stateListeners) callback(state, lastMs);
}

export function start() {
  wanted = true;
  open();
}

export function stop() {
  wanted = false;
  close();
  turn("connecting");
}

// The assets whose rows are wanted, at most four.
export function follow(names) {
  const next = names.slice(0, 4);
  if (next.join("\n") === assets.join("\n")) return;
  assets = next;
  if (wanted) open();
}

function close() {
  clearTimeout(retryTimer);
  source?.close();
  source = null;
}

function open() {
  close();
  const mine = new EventSource(`/api/v1/live${query({ assets: assets.join(",") })}`);
  source = mine;
  mine.onopen = () => {
    retries = 0;
    lastMs = Date.now();
    turn("live");
  };
  mine.onerror = () => {
    if (source !== mine) return;
    if (state === "live") turn("connecting");
    // The browser tries again by itself after a network error, but slowly and not after an answer it does not like.
    close();
    retryTimer = setTimeout(open, RETRY_MS[Math.min(retries, RETRY_MS.length - 1)]);
    retries += 1;
    poll();
  };
  for (const name of EVENTS) {
    mine.addEventListener(name, (event) => {
      lastMs = Date.now();
      let data = null;
      try {
        data = JSON.parse(event.data || "null");
      } catch {
        return;
      }
      for (const callback of listeners.get(name)) callback(data);
    });
  }
}

// Asks instead of being told. A session that has ended shows as 401 here, which signs the page out.
async function poll() {
  try {
    const now = await get("/plant", { signal: AbortSignal.timeout(POLL_MS_MAX) });
    lastMs = Date.now();
    if (state !== "live") turn("polling");
    const event = { gateway: now.gateway, counts: now.counts, changed: now.assets };
    for (const callback of listeners.get("plant")) callback(event);
  } catch {
    if (wanted) turn("lost");
  }
}

setInterval(async () => {
  if (state !== "live" || Date.now() - lastMs < QUIET_MS) return;
  await poll();
  if (state === "lost") open();
}, POLL_MS_MAX);

// A phone that wakes up does not wait for the next try.
document.addEventListener("visibilitychange", () => {
  if (wanted && !document.hidden && state === "lost") open();
});
