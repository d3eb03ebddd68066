// One alert: why the gateway says it, and what people did about it.

import { del, get, part, post, put } from "../api.js";
import { chart } from "../chart.js";
import { attempt, problem } from "../dialog.js";
import { el, fill, text } from "../dom.js";
import { about, duration, number, percent, shortHash, time, withUnit } from "../format.js";
import * as live from "../live.js";
import { icon, levelOf, sign, wordOf } from "../shape.js";
import { plant } from "../store.js";
import { silenceForm } from "./silence.js";

export const VERDICTS = { true: "True fault", false: "False alarm", "known-work": "Known work" };
const KINDS = { raise: "Raised", update: "Changed", clear: "Cleared", acknowledge: "Acknowledged", comment: "Comment", feedback: "Feedback", silence: "Silenced", unsilence: "Silence ended" };

export function alertView(place, { parts, who }) {
  const number_ = parts[1] ?? "";
  const path = `/alerts/${part(number_)}`;
  const top = el("div");
  const evidence = el("div.evidence");
  const side = el("div.side");
  fill(place, top, el("div.asset", null, evidence, side));
  let charts = [];
  let shownEvidence = "";
  let gone = false;
  let actions = null;

  async function refresh() {
    try {
      show(await get(path));
    } catch (error) {
      if (!gone) fill(top, el("a.back", { href: "#/alerts" }, icon("back"), "Alerts"), problem(error));
    }
  }

  function show(alert) {
    if (gone) return;
    fill(top, head(alert));
    // What people do leaves the evidence as it is, and its charts too.
    const key = JSON.stringify([alert.evidence, alert.first_to_deviate, alert.similar]);
    if (key !== shownEvidence) {
      shownEvidence = key;
      for (const one of charts) one.destroy();
      charts = [];
      fill(evidence, sensors(alert), signals(alert, charts), deviation(alert), similar(alert));
      for (const one of charts) one.begin();
    }
    if (!actions) {
      actions = who.can("engineer") ? actionPanel(alert, path, show) : null;
      fill(side, actions?.node, el("section.panel", null, el("h2", null, "What happened"), notes), el("section.panel", null, el("h2", null, "Facts"), facts));
    }
    actions?.update(alert);
    fill(notes, history(alert));
    fill(facts, factRows(alert));
  }
  const notes = el("ol.notes-list");
  const facts = el("dl.facts");

  refresh();
  const mine = (told) => String(told?.number) === number_ && refresh();
  const stop = live.on("alert", mine);
  window.addEventListener("reconnected", refresh);
  return () => {
    gone = true;
    stop();
    window.removeEventListener("reconnected", refresh);
    for (const one of charts) one.destroy();
  };
}

function head(alert) {
  const over = alert.cleared_us;
  const state = over
    ? `Cleared ${time(over)}, after ${duration((over - alert.raised_us) / 1e6)}`
    : `Up since ${time(alert.raised_us)}`;
  return el(
    "header.head",
    null,
    el("a.back", { href: "#/alerts" }, icon("back"), "Alerts"),
    el(
      "div.head-main",
      null,
      el(`span.head-lamp${over ? ".over" : ""}`, null, sign(alert.severity)),
      el(
        "div",
        null,
        el("p.head-kicker", null, el(`span.head-word.${levelOf(alert.severity)}`, null, wordOf(alert.severity)), ` on `, el("a", { href: `#/asset/${part(alert.asset)}` }, alert.asset)),
        el("h1", null, about(alert.asset, alert.message)),
        el("p.head-state", null, [state, alert.acknowledged ? `acknowledged by ${alert.acknowledged.by ?? "somebody"}` : "not acknowledged", alert.verdict ? `found to be: ${VERDICTS[alert.verdict] ?? alert.verdict}` : null, alert.silenced ? "raised while silenced" : null].filter(Boolean).join(" · ")),
      ),
      el("dl.head-figures", null, el("div", null, el("dt", null, "Peak score"), el("dd", null, el("span.head-figure", null, number(alert.peak_score))))),
    ),
  );
}

// Channels by what they add to the score, each with where it is and where it should be.
function sensors(alert) {
  const list = alert.evidence?.sensors ?? [];
  if (!list.length) return null;
  const largest = Math.max(...list.map((one) => one.contribution), 1e-9);
  return el(
    "section.panel",
    null,
    el("h2", null, "Which channels"),
    alert.evidence.finding ? el("p.finding", null, "The model says: ", el("b", null, alert.evidence.finding)) : null,
    el(
      "table.sensors",
      null,
      el("thead", null, el("tr", null, el("th", { scope: "col" }, "Channel"), el("th", { scope: "col" }, "Share", el("span.wide-only", null, " of the score")), el("th.num", { scope: "col" }, "Observed"), el("th.num", { scope: "col" }, "Expected"), el("th.num", { scope: "col" }, "Off by"))),
      el(
        "tbody",
        null,
        list.map((one) => {
          const off = one.expected === null || one.expected === undefined ? null : one.observed - one.expected;
          return el(
            "tr",
            null,
            el("th", { scope: "row" }, one.channel),
            el("td.share", null, el("span.share-bar", { "aria-hidden": "true", vars: { "--share": (one.contribution / largest).toFixed(3) } }), el("span.share-figure", null, percent(one.contribution))),
            el("td.num", null, el("b", null, withUnit(one.observed, one.unit))),
            el("td.num.soft", null, withUnit(one.expected, one.unit)),
            el("td.num", null, off === null ? "–" : `${off > 0 ? "+" : off < 0 ? "−" : ""}${withUnit(Math.abs(off), one.unit)}`),
          );
        }),
      ),
    ),
  );
}

function signals(alert, charts) {
  const list = alert.evidence?.signal ?? [];
  if (!list.length) return null;
  const known = new Map((alert.evidence.sensors ?? []).map((one) => [one.channel, one]));
  const figures = list.map((signal) => {
    const sensor = known.get(signal.channel);
    const drawn = chart({ title: signal.channel, unit: sensor?.unit ?? null, limit: null, expected: band(sensor), onsetUs: alert.onset_us, sync: "alert", height: 140 });
    drawn.begin = () => drawn.update({ timesUs: signal.times_us, values: [...signal.before, ...signal.after] }, [{ atUs: alert.raised_us, severity: alert.severity }]).catch(() => {});
    charts.push(drawn);
    return drawn.node;
  });
  return el("section.panel", null, el("h2", null, "Before and after"), el("p.hint", null, "The broken line is where it began; the mark is where the alert was raised."), el("div.charts", null, figures));
}

// Only the mean is known here: a line, not a band.
function band(sensor) {
  const mean = sensor?.expected;
  return mean === null || mean === undefined ? null : { low: mean, mean, high: mean };
}

function deviation(alert) {
  const list = alert.first_to_deviate ?? [];
  if (!list.length) return null;
  const begin = Math.min(...list.map((one) => one.at_us));
  return el(
    "section.panel",
    null,
    el("h2", null, "First to deviate"),
    el("ol.first", null, list.map((one, at) => el("li", null, el("span.first-at", null, at === 0 ? time(one.at_us) : `+${duration((one.at_us - begin) / 1e6)}`), el("span.first-name", null, one.channel)))),
  );
}

function similar(alert) {
  const list = alert.similar ?? [];
  if (!list.length) return null;
  return el(
    "section.panel",
    null,
    el("h2", null, "Seen before"),
    el("ol.lines", null, list.map((one) => el("li", null, el("a", { href: `#/alert/${one.number}` }, `${one.asset}: ${about(one.asset, one.message)}`), el("span.soft", null, [time(one.raised_us), one.verdict ? VERDICTS[one.verdict] : null].filter(Boolean).join(" · "))))),
  );
}

function factRows(alert) {
  const rows = [["Number", alert.number], ["Began", time(alert.onset_us)], ["Raised", time(alert.raised_us)]];
  if (alert.cleared_us) rows.push(["Cleared", time(alert.cleared_us)]);
  if (alert.model) rows.push(["Model", `${alert.model.name}, version ${alert.model.version}`], ["File", el("code", { title: alert.model.sha256 }, shortHash(alert.model.sha256))]);
  return rows.map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, value)));
}

function history(alert) {
  return (alert.notes ?? []).map((note) =>
    el(
      "li",
      null,
      el("p.note-head", null, el("b", null, note.verdict ? `${KINDS[note.kind] ?? note.kind}: ${VERDICTS[note.verdict] ?? note.verdict}` : (KINDS[note.kind] ?? note.kind)), note.by ? ` by ${note.by}` : ""),
      note.text ? el("p", null, about(alert.asset, note.text)) : null,
      el("p.soft", null, time(note.at_us)),
    ),
  );
}

function actionPanel(first, path, show) {
  const told = el("div");
  const comment = el("textarea", { id: "comment", rows: "2", maxlength: "1000", placeholder: "What you found, what you did" });
  const said = () => comment.value.trim() || null;
  const act = (button, what, body) =>
    attempt(button, told, async () => {
      show(await post(`${path}/${what}`, body));
      comment.value = "";
    });
  const acknowledge = el("button.primary", { type: "button", onclick: () => act(acknowledge, "acknowledge", { comment: said() }) }, "Acknowledge");
  const send = el("button", { type: "button", onclick: () => (said() ? act(send, "comment", { text: said() }) : comment.focus()) }, "Comment");
  const verdicts = Object.entries(VERDICTS).map(([verdict, word]) => {
    const button = el("button", { type: "button", "aria-pressed": "false", onclick: () => act(button, "feedback", { verdict, comment: said() }) }, word);
    return [verdict, button];
  });
  const asset = `/assets/${part(first.asset)}`;
  const until = (us) => silence.update(us);
  const silence = silenceForm(told, (body) => put(`${asset}/silence`, body).then(() => until(body.until_us)), () => del(`${asset}/silence`).then(() => until(null)));
  const node = el(
    "section.panel.stack",
    { "aria-label": "Actions" },
    el("h2", null, "What you do"),
    el("div.field", null, el("label", { for: "comment" }, "Comment"), comment),
    el("div.actions", null, acknowledge, send),
    el("div.field", null, el("h3", { id: "verdict" }, "What was it?"), el("div.verdicts", { role: "group", "aria-labelledby": "verdict" }, verdicts.map(([, button]) => button))),
    told,
    el("details.more", null, el("summary", null, "Silence this machine"), silence.node),
  );
  silence.update(plant.assets.get(first.asset)?.silenced_until_us ?? null);
  return {
    node,
    update(alert) {
      acknowledge.disabled = Boolean(alert.acknowledged);
      text(acknowledge, alert.acknowledged ? "Acknowledged" : "Acknowledge");
      for (const [verdict, button] of verdicts) button.setAttribute("aria-pressed", String(alert.verdict === verdict));
    },
  };
}
