// The state of a machine as shape, colour and word. No state is told by colour alone.

import { el, fill, svg } from "./dom.js";

// level: the colour; word: how it is called.
const LOOKS = {
  critical: { level: "critical", word: "Critical", paths: ["M8 1.5h8L22.5 8v8L16 22.5H8L1.5 16V8z"], mark: "M12 6.5v7M12 16.4v1.6" },
  warning: { level: "warning", word: "Warning", paths: ["M12 2 23 21.5H1z"], mark: "M12 9v6M12 17.2v1.6" },
  alarm: { level: "warning", word: "Above threshold", paths: ["M12 2 23 21.5H1z"], hollow: true, mark: "M12 9v6M12 17.2v1.6" },
  recovering: { level: "recovering", word: "Recovering", paths: ["M12 1.5 22.5 12 12 22.5 1.5 12z"], hollow: true, mark: "M12 7v8.5M8.5 12.2l3.5 3.5 3.5-3.5" },
  silent: { level: "silent", word: "Silent", paths: ["M2.5 2.5h19v19h-19z"], hollow: true, dashed: true, mark: "M7.5 12h9" },
  learning: { level: "learning", word: "Learning", paths: ["M12 2a10 10 0 1 1-.01 0z"], hollow: true, dashed: true, mark: "M12 7v5.5l3.5 2" },
  ok: { level: "ok", word: "As learned", paths: ["M12 2a10 10 0 1 1-.01 0z"], mark: "M7.3 12.4l3.2 3.2 6.2-6.6" },
};

export const STATES = ["alarm", "recovering", "silent", "learning", "ok"];
export const STATE_WORDS = { alarm: "In alarm", recovering: "Recovering", silent: "Silent", learning: "Learning", ok: "As learned" };

// The look of an asset's summary: the severity of its alert goes before its state, until nothing comes from it any more, or it
// is below its threshold again.
export function lookOf(asset) {
  const back = asset.state === "silent" || (asset.state === "recovering" && (asset.score ?? 0) < (asset.threshold ?? 1));
  if (asset.alert && !back) return asset.alert.severity;
  return asset.state in LOOKS ? asset.state : "ok";
}

// Since when it is so. A machine's own clock may run ahead of the gateway's; then what the gateway saw counts.
export function sinceUs(asset) {
  const raised = asset.alert?.raised_us;
  return raised && raised <= Date.now() * 1000 ? raised : asset.since_us;
}

export const levelOf = (look) => LOOKS[look]?.level ?? "silent";
export const wordOf = (look) => LOOKS[look]?.word ?? look;

// The same for an asset: what is well below the worst of its episode is told so.
export function stateWord(asset) {
  const look = lookOf(asset);
  return asset.state === "recovering" && look !== "recovering" ? `${wordOf(look)}, getting better` : wordOf(look);
}

// The sign alone; the word stands beside it or is given to screen readers by the caller.
export function sign(look, extra = "") {
  const shape = LOOKS[look] ?? LOOKS.silent;
  const outline = { class: `sign-shape${shape.hollow ? " hollow" : ""}${shape.dashed ? " dashed" : ""}` };
  return svg(
    "svg",
    { class: `sign ${shape.level} ${extra}`.trim(), viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
    shape.paths.map((d) => svg("path", { ...outline, d })),
    svg("path", { class: `sign-mark${shape.hollow ? " hollow" : ""}`, d: shape.mark }),
  );
}

// A place for the sign of an asset, drawn anew only when it changes; gives the look.
export function signal(node) {
  let drawn = "";
  return (asset) => {
    const look = lookOf(asset);
    if (drawn !== look) fill(node, sign(look));
    drawn = look;
    return look;
  };
}

// Sign and word.
export function badge(look, word = wordOf(look)) {
  return el(`span.badge.${levelOf(look)}`, null, sign(look), el("span", null, word));
}

const CHIP_LEVELS = { shadow: "learning", trial: "recovering", active: "ok", retired: "silent", rejected: "critical", "rolled-back": "warning", staged: "silent" };
const CHIP_WORDS = { shadow: "In shadow", trial: "On trial", active: "Active", retired: "Retired", rejected: "Rejected", "rolled-back": "Rolled back", staged: "Staged" };

// A model version's state.
export function chip(state) {
  return el(`span.chip.${CHIP_LEVELS[state] ?? "silent"}`, null, CHIP_WORDS[state] ?? state);
}

const ICONS = {
  plant: "M3 21V10l6 4v-4l6 4V4h6v17zM7.5 17.5h1M12 17.5h1M16.5 17.5h1",
  alerts: "M12 3 22 20.5H2zM12 10v5M12 17v1.2",
  learning: "M4 20V13M9.3 20V9M14.6 20v-6M20 20V4",
  models: "M12 2.5 21 7.3v9.4l-9 4.8-9-4.8V7.3zM3.3 7.5 12 12l8.7-4.5M12 12v9",
  devices: "M6.5 6.5h11v11h-11zM9.5 2.5v4M14.5 2.5v4M9.5 17.5v4M14.5 17.5v4M2.5 9.5h4M2.5 14.5h4M17.5 9.5h4M17.5 14.5h4",
  audit: "M6 2.5h9l4 4v15H6zM9.5 11h6M9.5 15h6M9.5 7h2",
  sun: "M12 7.5a4.5 4.5 0 1 1-.01 0zM12 1.5v2.5M12 20v2.5M1.5 12H4M20 12h2.5M4.6 4.6l1.7 1.7M17.7 17.7l1.7 1.7M4.6 19.4l1.7-1.7M17.7 6.3l1.7-1.7",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z",
  wall: "M2.5 4.5h19v12h-19zM8 20.5h8M12 16.5v4",
  out: "M10 4H4v16h6M14.5 7.5 19 12l-4.5 4.5M19 12H9",
  back: "M14.5 5.5 8 12l6.5 6.5",
  quiet: "M6 17V11a6 6 0 0 1 9.6-4.8M18 10.5V17M4 17h16M10 20.5h4M3 3l18 18",
};

export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" }, svg("path", { d: ICONS[name] }));
}

// Where a score stands: the threshold is the middle, whatever the score. `update(score, look)` moves it.
export function meter() {
  const bar = el("span.meter-bar");
  const node = el("span.meter", { "aria-hidden": "true" }, bar, el("span.meter-limit"));
  return {
    node,
    update(score, look) {
      node.hidden = score === null || score === undefined;
      if (node.hidden) return;
      bar.className = `meter-bar ${levelOf(look)}`;
      bar.style.setProperty("--share", (score / (1 + Math.abs(score))).toFixed(3));
    },
  };
}
