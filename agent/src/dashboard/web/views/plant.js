// The plant: every machine, the worst first, and the gateway's own figures.

import { el, fill, keyed, text } from "../dom.js";
import { about, bytes, clock, count, duration, moment, number, plural, since } from "../format.js";
import { STATES, STATE_WORDS, icon, levelOf, meter, sign, signal, sinceUs, stateWord, wordOf } from "../shape.js";
import { plant, troubled, watch, worstFirst } from "../store.js";

// What was chosen stays while other views are open.
const chosen = { state: null, q: "" };

export function plantView(place) {
  const heading = el("h1");
  const lead = el("p.lead");
  const strip = gatewayStrip();
  const filters = stateFilters(() => draw());
  const search = el("input", { type: "search", "aria-label": "Find a machine", placeholder: "Find a machine", value: chosen.q, oninput: () => {
    chosen.q = search.value;
    draw();
  } });
  const visits = el("ol.visits", { "aria-label": "Machines that need a visit" });
  const calm = el("ol.tiles", { "aria-label": "Machines that run" });
  const calmTitle = el("h2.section");
  const none = el("p.empty", { hidden: true });
  const knownVisits = new Map();
  const knownTiles = new Map();

  fill(
    place,
    el(
      "div.plant",
      null,
      el("div.plant-head", null, el("div", null, heading, lead), el("div.plant-filter", { role: "search" }, search, filters.node)),
      visits,
      calmTitle,
      calm,
      none,
      strip.node,
    ),
  );

  function draw() {
    if (!plant.counts) return;
    const all = worstFirst(plant.assets.values());
    const needle = chosen.q.trim().toLowerCase();
    const shown = all.filter((asset) => matches(asset, needle));
    const bad = shown.filter(troubled);
    const good = shown.filter((asset) => !troubled(asset));
    headline(heading, lead, all);
    filters.update();
    keyed(visits, knownVisits, bad, (asset) => asset.asset, visitRow);
    keyed(calm, knownTiles, good, (asset) => asset.asset, tile);
    visits.hidden = !bad.length;
    calm.hidden = calmTitle.hidden = !good.length;
    text(calmTitle, bad.length ? "Running" : "All machines");
    none.hidden = shown.length > 0;
    text(none, all.length ? "No machine matches." : "No machine has sent telemetry yet. Publish to mw/v1/telemetry/… or map a topic with a [[source]] in the configuration.");
    strip.update();
  }
  draw();
  // When the machines were on the screen for the first time, for who measures it.
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("plant-painted")));
  const unwatch = watch(draw);
  const ticking = setInterval(draw, 10_000);
  return () => {
    unwatch();
    clearInterval(ticking);
  };
}

function matches(asset, needle) {
  if (chosen.state === "silenced") {
    if (!asset.silenced_until_us) return false;
  } else if (chosen.state && asset.state !== chosen.state) {
    return false;
  }
  return !needle || asset.asset.toLowerCase().includes(needle) || (asset.alert?.message.toLowerCase().includes(needle) ?? false);
}

function headline(heading, lead, assets) {
  const visits = assets.filter((asset) => asset.alert || asset.state === "alarm").length;
  const learning = assets.filter((asset) => asset.state === "learning").length;
  if (!assets.length) text(heading, "Waiting for machines");
  else if (visits) text(heading, `${plural(visits, "machine")} ${visits === 1 ? "needs" : "need"} a visit`);
  else if (learning === assets.length) text(heading, "Learning what is normal");
  else text(heading, "No machine needs a visit");
  const rest = learning && learning !== assets.length ? `, ${learning} still learning` : "";
  text(lead, assets.length ? `${plural(assets.length, "machine")}, worst first${rest}` : "");
}

function stateFilters(changed) {
  const node = el("div.filters", { role: "group", "aria-label": "Show only" });
  const buttons = [...STATES, "silenced"].map((state) => {
    const figure = el("b");
    const button = el(
      "button.filter",
      { type: "button", "aria-pressed": "false", onclick: () => {
        chosen.state = chosen.state === state ? null : state;
        changed();
      } },
      state === "silenced" ? icon("quiet") : sign(state),
      figure,
      el("span", null, state === "silenced" ? "Silenced" : STATE_WORDS[state]),
    );
    node.append(button);
    return { state, button, figure };
  });
  return {
    node,
    update() {
      for (const { state, button, figure } of buttons) {
        const value = plant.counts[state] ?? 0;
        text(figure, count(value));
        button.hidden = !value && chosen.state !== state;
        button.setAttribute("aria-pressed", String(chosen.state === state));
      }
    },
  };
}

// What is said about a machine in one line.
export function story(asset) {
  if (asset.alert) return about(asset.asset, asset.alert.message);
  if (asset.state === "silent") return "Nothing comes from it. Check its power and its network.";
  if (asset.state === "alarm") return asset.top_channel ? `Above its threshold, mostly ${asset.top_channel}` : "Above its threshold";
  if (asset.state === "recovering") return "Coming back to what was learned";
  return "";
}

function visitRow() {
  const lamp = el("span.lamp");
  const name = el("span.name");
  const word = el("span.word");
  const message = el("span.message");
  const notes = el("span.notes");
  const gauge = meter();
  const score = el("span.figure");
  const scoreBox = el("span.visit-score", { title: "1 is the threshold, where the mark is" }, el("span.visit-figure", null, el("span.label", null, "Score"), score), gauge.node);
  const age = el("span.age");
  const link = el("a.visit", null, lamp, el("span.visit-main", null, el("span.visit-title", null, name, word), message, notes), scoreBox, age);
  const node = el("li", null, link);
  const show = signal(lamp);
  return {
    node,
    update(asset) {
      const look = show(asset);
      link.className = `visit ${levelOf(look)}${asset.alert?.acknowledged ? " known" : ""}`;
      link.href = asset.alert ? `#/alert/${asset.alert.number}` : `#/asset/${encodeURIComponent(asset.asset)}`;
      text(name, asset.asset);
      text(word, stateWord(asset));
      text(message, story(asset));
      text(notes, remarks(asset).join(" · "));
      notes.hidden = !notes.textContent;
      text(score, asset.score === null || asset.score === undefined ? "" : number(asset.score));
      scoreBox.hidden = !score.textContent;
      gauge.update(asset.score, look);
      text(age, since(sinceUs(asset)));
    },
  };
}

export function remarks(asset) {
  const said = [];
  if (asset.silenced_until_us) said.push(`Silenced until ${moment(asset.silenced_until_us)}`);
  if (asset.alert?.acknowledged) said.push("Acknowledged");
  if (asset.missing_channels?.length) said.push(`No value from ${asset.missing_channels.join(", ")}`);
  if (asset.alerts_24h > 1) said.push(`${plural(asset.alerts_24h, "alert")} in 24 h`);
  return said;
}

function tile() {
  const lamp = el("span.lamp");
  const name = el("span.name");
  const figure = el("span.figure");
  const label = el("span.label");
  const detail = el("span.detail");
  const gauge = meter();
  const link = el("a.tile", null, lamp, name, el("span.tile-figure", null, label, figure), detail, gauge.node);
  const node = el("li", null, link);
  const show = signal(lamp);
  return {
    node,
    update(asset) {
      const look = show(asset);
      link.className = `tile ${levelOf(look)}`;
      link.href = `#/asset/${encodeURIComponent(asset.asset)}`;
      text(name, asset.asset);
      if (asset.learning) {
        const share = asset.learning.of ? asset.learning.rows / asset.learning.of : 0;
        text(figure, `${Math.floor(share * 100)} %`);
        text(label, "");
        text(detail, `Learning, ${count(asset.learning.rows)} of ${count(asset.learning.of)} rows`);
        gauge.node.hidden = true;
      } else {
        text(figure, asset.health === null || asset.health === undefined ? "" : Math.round(asset.health));
        text(label, figure.textContent && "Health");
        text(detail, [wordOf(look), ...remarks(asset)].join(" · "));
        gauge.update(asset.score, look);
      }
    },
  };
}

// The gateway's own figures; what it cannot tell is left out.
function gatewayStrip() {
  const list = el("dl.strip-figures");
  const told = el("div.conditions");
  const node = el("section.strip", { "aria-label": "Gateway" }, told, list);
  const known = new Map();
  const knownTold = new Map();
  return {
    node,
    update() {
      const gateway = plant.gateway;
      if (!gateway) return;
      keyed(list, known, figuresOf(gateway), (item) => item.name, figureCell);
      const conditions = gateway.conditions ?? [];
      const lines = conditions.length || !gateway.trouble ? conditions : [{ code: "trouble", severity: "critical", text: gateway.trouble, remedy: "" }];
      keyed(told, knownTold, lines, (line) => line.code, conditionLine);
    },
  };
}

function figuresOf({ queue, disk, clients, upstream, clock: time, uptime_s: uptime, version }) {
  const items = [
    { name: "Gateway up", value: duration(uptime), note: `v${version}` },
    { name: "Arrivals λ", value: `${number(queue?.lambda)}/s`, note: "" },
    { name: "Service μ", value: queue?.mu ? `${number(queue.mu)}/s` : null, note: "at most" },
    {
      name: "Backlog",
      value: count(queue?.backlog),
      note: queue?.backlog ? (queue.drain_s === null || queue.drain_s === undefined ? "it grows" : `drained in ${duration(queue.drain_s)}`) : "up to date",
    },
  ];
  if (disk) {
    const share = disk.log_bytes_max ? disk.log_bytes / disk.log_bytes_max : null;
    items.push({ name: "Log", value: bytes(disk.log_bytes), note: `of ${bytes(disk.log_bytes_max)}`, share });
    const full = disk.hours_to_full;
    if (disk.free_bytes !== null && disk.free_bytes !== undefined) {
      items.push({ name: "Disk free", value: bytes(disk.free_bytes), note: full === null || full === undefined ? "" : `full in ${duration(full * 3600)}` });
    }
    if (disk.written_today_bytes !== null && disk.written_today_bytes !== undefined) {
      items.push({ name: "Written today", value: bytes(disk.written_today_bytes), note: "flash wear" });
    }
  }
  items.push({ name: "MQTT clients", value: count(clients), note: "" });
  for (const sink of upstream ?? []) {
    const away = sink.link !== "connected";
    const behind = sink.backlog ? `${count(sink.backlog)} behind` : "up to date";
    const drained = sink.drain_s === null || sink.drain_s === undefined ? "" : `, drained in ${duration(sink.drain_s)}`;
    items.push({ name: `Upstream ${sink.name}`, value: away ? "away" : "connected", note: `${sink.kind}, ${behind}${drained}`, bad: away });
  }
  if (time) {
    const trust = { true: "trusted", false: "not trusted" }[String(time.trusted)];
    items.push({ name: "Clock", value: clock(time.utc_us), note: trust ?? "", bad: time.trusted === false });
  }
  return items.filter((item) => item.value !== null && !String(item.value).startsWith("–"));
}

function figureCell(item) {
  const value = el("dd.strip-value");
  const note = el("dd.strip-note");
  const bar = el("span.strip-bar", { "aria-hidden": "true" });
  const node = el("div.strip-cell", null, el("dt", null, item.name), value, note, bar);
  return {
    node,
    update({ value: now, note: said, share, bad }) {
      text(value, now);
      text(note, said);
      node.classList.toggle("bad", Boolean(bad));
      bar.hidden = share === undefined || share === null;
      if (!bar.hidden) bar.style.setProperty("--share", share.toFixed(3));
    },
  };
}

function conditionLine(line) {
  const said = el("p");
  const remedy = el("p.remedy");
  const node = el(`div.condition.${line.severity === "critical" ? "critical" : "warning"}`, null, sign(line.severity === "critical" ? "critical" : "warning"), el("div", null, said, remedy));
  return {
    node,
    update(now) {
      text(said, now.text);
      text(remedy, now.remedy);
    },
  };
}
