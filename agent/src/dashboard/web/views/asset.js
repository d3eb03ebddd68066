// One machine: its state, each channel against what was learned, its score, and its past.

import { get, part, post, put, del, query } from "../api.js";
import { chart } from "../chart.js";
import { ask, attempt, problem } from "../dialog.js";
import { el, fill, text } from "../dom.js";
import { about, count, duration, moment, number, since, time, withUnit } from "../format.js";
import * as live from "../live.js";
import { icon, levelOf, signal, sinceUs, stateWord } from "../shape.js";
import { plant, watch } from "../store.js";
import { silenceForm } from "./silence.js";

// Rows of the live charts: what the gateway has in memory.
const LIVE_ROWS = 180;
const POINTS = 600;
// The machine's own facts (expected band, counts) are asked for again this often.
const REFRESH_MS = 10_000;
const SPANS = [
  ["Live", null],
  ["1 h", 3600],
  ["24 h", 86_400],
  ["7 days", 7 * 86_400],
];

export function assetView(place, { parts, parameters, who }) {
  const name = parts[1] ?? "";
  const shown = { span: null, fromUs: null, toUs: null };
  const from = Number(parameters.get("from"));
  const to = Number(parameters.get("to"));
  if (from > 0 && to > from) Object.assign(shown, { span: "zoom", fromUs: from, toUs: to });

  const head = heading(name);
  const trouble = el("div");
  const spans = el("div.segments", { role: "group", "aria-label": "Time shown" });
  const range = el("p.range");
  const reset = el("button.quiet", { type: "button", hidden: true, onclick: () => choose(null, null) }, "Back to live");
  // The same as dragging, for keyboard and touch.
  const move = (shift, scale) => () => {
    const [middle, half] = [(shown.fromUs + shown.toUs) / 2, (shown.toUs - shown.fromUs) / 2];
    zoom(Math.round(middle + half * (shift - scale)), Math.round(middle + half * (shift + scale)));
  };
  const moves = el(
    "div.segments",
    { role: "group", "aria-label": "Move in time", hidden: true },
    el("button", { type: "button", onclick: move(-1, 1) }, "Earlier"),
    el("button", { type: "button", onclick: move(1, 1) }, "Later"),
    el("button", { type: "button", onclick: move(0, 0.5) }, "Closer"),
    el("button", { type: "button", onclick: move(0, 2) }, "Wider"),
  );
  const charts = el("div.charts");
  const side = el("div.side");
  fill(
    place,
    head.node,
    trouble,
    el("div.asset", null, el("section", { "aria-label": "Charts" }, el("div.chart-bar", null, spans, moves, reset, range), charts), side),
  );

  let detail = null;
  let drawn = new Map();
  let scoreChart = null;
  let buffer = null;
  let newestUs = null;
  let request = null;
  let gone = false;

  const buttons = SPANS.map(([word, span]) => {
    const button = el("button", { type: "button", onclick: () => choose(span, null) }, word);
    spans.append(button);
    return [button, span];
  });

  function zoom(fromUs, toUs) {
    choose("zoom", [fromUs, toUs]);
  }

  function choose(span, bounds) {
    shown.span = span;
    if (span === null) {
      [shown.fromUs, shown.toUs] = [null, null];
    } else {
      // Charts are in the machine's time, which need not be the gateway's.
      const end = newestUs ?? detail?.last_us ?? Date.now() * 1000;
      [shown.fromUs, shown.toUs] = bounds ?? [end - span * 1e6, end];
    }
    const zoomed = span === "zoom" ? query({ from: shown.fromUs, to: shown.toUs }) : "";
    history.replaceState(null, "", `#/asset/${part(name)}${zoomed}`);
    mark();
    draw();
  }

  function mark() {
    for (const [button, span] of buttons) button.setAttribute("aria-pressed", String(span === shown.span));
    reset.hidden = shown.span !== "zoom";
    moves.hidden = shown.span === null;
    range.classList.toggle("drag", shown.span === null);
    if (shown.span === null) text(range, "Drag over a chart to look closer");
  }

  // One chart for each channel, kept while the channels stay the same.
  function ensure(channels) {
    const names = channels.map((channel) => channel.name);
    if (scoreChart && names.join("\n") === [...drawn.keys()].join("\n")) return;
    destroy();
    scoreChart = chart({ title: "Score", limit: 1, floor: 0, zoom, height: 160 });
    drawn = new Map(channels.map(({ name: channel, unit }) => {
      const known = detail?.channels.find((one) => one.name === channel);
      return [channel, chart({ title: channel, unit: unit ?? known?.unit ?? null, expected: known?.expected ?? null, zoom })];
    }));
    fill(charts, scoreChart.node, [...drawn.values()].map((one) => one.node));
  }

  function destroy() {
    scoreChart?.destroy();
    for (const one of drawn.values()) one.destroy();
  }

  async function draw() {
    request?.abort();
    const mine = (request = new AbortController());
    try {
      if (shown.span === null) {
        const rows = await get(`/assets/${part(name)}/rows${query({ rows: LIVE_ROWS })}`, { signal: mine.signal });
        if (mine.signal.aborted) return;
        buffer = rows;
        drawLive();
      } else {
        const past = await get(
          `/assets/${part(name)}/history${query({ from_us: Math.round(shown.fromUs), to_us: Math.round(shown.toUs), points: POINTS })}`,
          { signal: mine.signal },
        );
        if (mine.signal.aborted) return;
        drawPast(past);
      }
      fill(trouble);
    } catch (error) {
      if (error.name !== "AbortError" && !gone) fill(trouble, problem(error));
    }
  }

  function drawLive() {
    if (!buffer || shown.span !== null) return;
    ensure(buffer.channels);
    const marks = alertMarks();
    const timesUs = buffer.times_us;
    newestUs = timesUs.at(-1) ?? newestUs;
    for (const channel of buffer.channels) drawn.get(channel.name)?.update({ timesUs, values: channel.values }, marks);
    scoreChart.node.hidden = !buffer.scores?.some((score) => score !== null);
    if (!scoreChart.node.hidden) scoreChart.update({ timesUs, values: buffer.scores }, marks);
  }

  function alertMarks() {
    const alert = plant.assets.get(name)?.alert;
    return alert ? [{ atUs: alert.raised_us, severity: alert.severity }] : [];
  }

  function drawPast(past) {
    ensure(past.channels);
    const kept = { raw: "every row", "10s": "10 s, peaks kept", "5m": "5 min, peaks kept" }[past.source] ?? past.source;
    text(range, `${time(past.from_us)} to ${time(past.to_us)}, from ${kept}`);
    const marks = past.alerts.map((alert) => ({ atUs: alert.raised_us, severity: alert.severity }));
    const timesUs = past.times_us;
    for (const channel of past.channels) drawn.get(channel.name)?.update({ timesUs, min: channel.min, max: channel.max, mean: channel.mean }, marks);
    scoreChart.node.hidden = !past.score?.mean?.some((score) => score !== null);
    if (!scoreChart.node.hidden) scoreChart.update({ timesUs, ...past.score }, marks);
  }

  // A message of new rows is put behind those that are there; a hundred messages a second are one redraw.
  let due = false;
  function take(rows) {
    if (!buffer || rows.asset !== name || shown.span !== null) return;
    if (rows.channels.map((one) => one.name).join("\n") !== buffer.channels.map((one) => one.name).join("\n")) return void draw();
    const last = buffer.times_us.at(-1) ?? 0;
    const fresh = rows.times_us.findIndex((us) => us > last);
    if (fresh < 0) return;
    const join = (old, more) => [...old, ...more.slice(fresh)].slice(-LIVE_ROWS);
    buffer.times_us = join(buffer.times_us, rows.times_us);
    buffer.scores = join(buffer.scores, rows.scores);
    buffer.channels = buffer.channels.map((channel, at) => ({ ...channel, values: join(channel.values, rows.channels[at].values) }));
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      if (!gone) drawLive();
    });
  }

  async function refresh() {
    try {
      detail = await get(`/assets/${part(name)}`);
      if (gone) return;
      for (const channel of detail.channels) drawn.get(channel.name)?.expect(channel.expected);
      head.update(plant.assets.get(name) ?? detail);
      sidebar();
    } catch (error) {
      if (!gone && !detail) fill(trouble, problem(error));
    }
  }

  const summary = channelTable();
  const facts = el("dl.facts");
  const past = el("div");
  const told = el("div");
  const acting = el("div.stack");
  const silence = who.can("engineer") ? silenceForm(told, (body) => put(`/assets/${part(name)}/silence`, body).then(changed), () => del(`/assets/${part(name)}/silence`).then(changed)) : null;
  const learn = el("button", { type: "button", onclick: relearn }, "Learn anew");
  async function relearn() {
    const sure = await ask({
      title: `Learn ${name} anew?`,
      text: "What was learned as normal is forgotten. Do this after a repair or a change, and only while the machine runs well.",
      confirm: "Learn anew",
    });
    if (sure === null) return;
    await attempt(learn, told, () => post(`/assets/${part(name)}/commission`).then(changed));
  }
  function changed() {
    return refresh();
  }
  if (silence) fill(acting, silence.node, el("div.actions", null, learn), told);
  fill(
    side,
    el("section.panel", null, el("h2", null, "Now against learned"), summary.node),
    el("section.panel", { "aria-label": "Facts" }, el("h2", null, "Facts"), facts),
    el("section.panel", null, el("h2", null, "Alerts"), past),
    silence ? el("section.panel", null, el("h2", null, "Actions"), acting) : null,
  );

  function sidebar() {
    summary.update(detail.channels);
    fill(facts, factRows(detail));
    silence?.update(plant.assets.get(name)?.silenced_until_us ?? detail.silenced_until_us);
  }

  async function alerts() {
    try {
      const list = await get(`/alerts${query({ asset: name, limit: 5 })}`);
      if (gone) return;
      fill(past, list.items.length
        ? el("ol.lines", null, list.items.map((alert) => el("li", null, el("a", { href: `#/alert/${alert.number}` }, about(name, alert.message)), el("span.soft", null, `${time(alert.raised_us)}${alert.cleared_us ? `, for ${duration((alert.cleared_us - alert.raised_us) / 1e6)}` : ", up now"}`))))
        : el("p.soft", null, "None so far."));
    } catch {
      // The list is asked for again with the next alert.
    }
  }

  live.follow([name]);
  const stops = [
    live.on("rows", take),
    live.on("reset", () => shown.span === null && draw()),
    live.on("alert", (alert) => alert?.asset === name && alerts()),
    watch((names) => {
      const asset = plant.assets.get(name);
      if (asset && (!names || names.has(name))) head.update(asset);
    }),
  ];
  const back = () => {
    refresh();
    draw();
    alerts();
  };
  window.addEventListener("reconnected", back);
  const timer = setInterval(refresh, REFRESH_MS);
  mark();
  if (plant.assets.has(name)) head.update(plant.assets.get(name));
  refresh().then(() => !gone && draw());
  alerts();
  return () => {
    gone = true;
    request?.abort();
    clearInterval(timer);
    window.removeEventListener("reconnected", back);
    for (const stop of stops) stop();
    destroy();
  };
}

function heading(name) {
  const lamp = el("span.head-lamp");
  const state = el("p.head-state");
  const health = el("span.head-figure");
  const score = el("span.head-figure");
  const alert = el("a.head-alert", { hidden: true });
  const node = el(
    "header.head",
    null,
    el("a.back", { href: "#/" }, icon("back"), "Plant"),
    el("div.head-main", null, lamp, el("div", null, el("h1", null, name), state), el("dl.head-figures", null, el("div", null, el("dt", null, "Health"), el("dd", null, health)), el("div", null, el("dt", null, "Score"), el("dd", null, score)))),
    alert,
  );
  const show = signal(lamp);
  return {
    node,
    update(asset) {
      const look = show(asset);
      const quiet = asset.silenced_until_us ? `, silenced until ${moment(asset.silenced_until_us)}` : "";
      const learning = asset.learning ? `, ${count(asset.learning.rows)} of ${count(asset.learning.of)} rows` : "";
      text(state, `${stateWord(asset)} ${since(sinceUs(asset))}${learning}${quiet}`);
      text(health, asset.health === null || asset.health === undefined ? "–" : Math.round(asset.health));
      text(score, number(asset.score));
      alert.hidden = !asset.alert;
      if (asset.alert) {
        alert.className = `head-alert ${levelOf(asset.alert.severity)}`;
        alert.href = `#/alert/${asset.alert.number}`;
        text(alert, about(asset.asset, asset.alert.message));
      }
    },
  };
}

// The numbers behind the charts, and their alternative.
function channelTable() {
  const body = el("tbody");
  const node = el(
    "table.channels",
    null,
    el("thead", null, el("tr", null, el("th", { scope: "col" }, "Channel"), el("th.num", { scope: "col" }, "Now"), el("th.num", { scope: "col" }, "Learned"))),
    body,
  );
  return {
    node,
    update(channels) {
      fill(
        body,
        channels.map(({ name, unit, last, expected }) => {
          const out = expected && last !== null && (last < expected.low || last > expected.high);
          return el(
            out ? "tr.out" : "tr",
            null,
            el("th", { scope: "row" }, name),
            el("td.num", null, withUnit(last, unit), out ? el("span.out-word", null, last > expected.high ? "high" : "low") : null),
            el("td.num.soft", null, expected ? `${number(expected.low)} to ${number(expected.high)}` : "–"),
          );
        }),
      );
    },
  };
}

function factRows(detail) {
  const rows = [];
  if (detail.model) {
    rows.push(["Model", detail.model.commissioned ? `learned here, version ${detail.model.version}` : `${detail.model.name}, version ${detail.model.version}`]);
  }
  if (detail.interval_us) rows.push(["A row every", detail.interval_us < 1e6 ? `${number(detail.interval_us / 1000)} ms` : duration(detail.interval_us / 1e6)]);
  if (detail.devices?.length) rows.push([detail.devices.length > 1 ? "Devices" : "Device", detail.devices.map((device) => (typeof device === "string" ? device : device.device)).join(", ")]);
  if (detail.last_us) rows.push(["Last row", time(detail.last_us)]);
  const counters = detail.counters ?? {};
  for (const [key, word] of [["samples", "Rows"], ["gaps", "Gaps"], ["duplicates", "Duplicates"], ["late", "Late"], ["missing_values", "Missing values"], ["score_errors", "Not scored"]]) {
    if (counters[key] || key === "samples") rows.push([word, count(counters[key])]);
  }
  return rows.map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, value)));
}
