// What is known of the plant now: filled once from /plant, then kept up to date by the live stream.

import { get } from "./api.js";

export const plant = { gateway: null, counts: null, assets: new Map(), atMs: 0 };

const watchers = new Set();

// Calls back after every change until the returned function is called.
export function watch(callback) {
  watchers.add(callback);
  return () => watchers.delete(callback);
}

function changed(names) {
  plant.atMs = Date.now();
  for (const callback of watchers) callback(names);
}

export async function load() {
  const now = await get("/plant");
  plant.gateway = now.gateway;
  plant.counts = now.counts;
  plant.assets = new Map(now.assets.map((asset) => [asset.asset, asset]));
  changed(null);
}

// A `plant` event. If assets have come or gone beyond what it names, everything is asked for again.
export function apply(event) {
  if (event.gateway) plant.gateway = event.gateway;
  if (event.counts) plant.counts = event.counts;
  for (const asset of event.changed ?? []) plant.assets.set(asset.asset, asset);
  if (plant.counts && plant.counts.total !== plant.assets.size) return load().catch(() => {});
  changed(new Set((event.changed ?? []).map((asset) => asset.asset)));
}

// How much a machine needs somebody: the higher the sooner.
export function urgency(asset) {
  const state = { alarm: 4, recovering: 3, silent: 2, learning: 1, ok: 0 }[asset.state] ?? 0;
  const alert = asset.alert ? (asset.alert.severity === "critical" ? 8 : 6) : 0;
  const quiet = asset.silenced_until_us || asset.alert?.acknowledged ? 1 : 0;
  return Math.max(state, alert - quiet);
}

// Whether it belongs with those that need a visit.
export function troubled(asset) {
  return Boolean(asset.alert) || asset.state === "alarm" || asset.state === "recovering" || asset.state === "silent";
}

// Scores in steps of a factor of 1.4: rows that are about as bad do not change places every second.
function step(score) {
  return score > 0 ? Math.round(2 * Math.log2(score)) : -Infinity;
}

const compare = (a, b) => (a === b ? 0 : a - b);

export function worstFirst(assets) {
  return [...assets].sort(
    (a, b) =>
      urgency(b) - urgency(a) ||
      (troubled(a) ? compare(step(b.score), step(a.score)) : 0) ||
      a.asset.localeCompare(b.asset, "en", { numeric: true }),
  );
}
