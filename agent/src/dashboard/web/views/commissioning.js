// Machines whose normal is being learned: how far, from what data, and the way to begin again.

import { get, part, post } from "../api.js";
import { ask, attempt, problem } from "../dialog.js";
import { el, fill, keyed, text } from "../dom.js";
import { count, duration, number } from "../format.js";
import { watch } from "../store.js";

const REFRESH_MS = 3000;

export function commissioningView(place, { who }) {
  const trouble = el("div");
  const list = el("div.learnings");
  const none = el("p.empty", { hidden: true }, "No machine is being learned. A machine that reports for the first time is learned by itself; one that was repaired or changed can be learned anew from its own page.");
  const known = new Map();
  let gone = false;
  fill(place, el("div.view-head", null, el("div", null, el("h1", null, "Learning"), el("p.lead", null, "The gateway learns from each machine what is normal. Let it run as it usually does meanwhile."))), trouble, list, none);
  async function refresh() {
    try {
      const page = await get("/commissioning");
      if (gone) return;
      keyed(list, known, page.items, (item) => item.asset, () => card(who, refresh));
      none.hidden = page.items.length > 0;
      fill(trouble);
    } catch (error) {
      if (!gone) fill(trouble, problem(error));
    }
  }
  refresh();
  const timer = setInterval(refresh, REFRESH_MS);
  const unwatch = watch((names) => !names && refresh());
  return () => {
    gone = true;
    clearInterval(timer);
    unwatch();
  };
}

function card(who, refresh) {
  const name = el("a");
  const progress = el("progress", { max: "1" });
  const percentage = el("span.learn-figure");
  const eta = el("p.soft");
  const quality = el("dl.figures");
  const channels = el("p.soft");
  const told = el("div");
  let asset = "";
  const again = el("button", { type: "button", onclick: async () => {
    const sure = await ask({ title: `Begin again with ${asset}?`, text: "The rows collected so far are forgotten.", confirm: "Begin again" });
    if (sure !== null) await attempt(again, told, () => post(`/assets/${part(asset)}/commission`).then(refresh));
  } }, "Begin again");
  const node = el("section.panel.stack", null, el("div.learn-head", null, el("h2", null, name), percentage), progress, eta, quality, channels, told, who.can("engineer") ? el("div.actions", null, again) : null);
  return {
    node,
    update(item) {
      asset = item.asset;
      text(name, item.asset);
      name.href = `#/asset/${part(item.asset)}`;
      const share = item.of ? item.rows / item.of : 0;
      progress.value = share;
      progress.setAttribute("aria-label", `${item.asset}: ${Math.floor(share * 100)} percent learned`);
      text(percentage, `${Math.floor(share * 100)} %`);
      text(eta, `${count(item.rows)} of ${count(item.of)} rows${item.eta_s === null || item.eta_s === undefined ? "" : `, about ${duration(item.eta_s)} to go`}`);
      fill(quality, qualityRows(item.quality ?? {}));
      const names = item.channels.map((channel) => (typeof channel === "string" ? channel : channel.name));
      text(channels, names.length ? `From ${names.join(", ")}` : "");
    },
  };
}

function qualityRows(quality) {
  const interval = quality.interval_us;
  const rows = [
    ["A row every", interval ? (interval < 1e6 ? `${number(interval / 1000)} ms` : duration(interval / 1e6)) : null],
    ["Missing values", quality.missing_values],
    ["Gaps", quality.gaps],
    ["Duplicates", quality.duplicates],
    ["Late", quality.late],
  ];
  return rows
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, typeof value === "number" ? count(value) : value)));
}
