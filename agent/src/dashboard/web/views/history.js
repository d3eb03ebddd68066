// What was: all alerts, and what people and the gateway did.

import { get, query } from "../api.js";
import { problem } from "../dialog.js";
import { el, fill } from "../dom.js";
import { about, duration, number, time } from "../format.js";
import * as live from "../live.js";
import { badge } from "../shape.js";
import { VERDICTS } from "./alert.js";

const PAGE = 50;

// Rows of a paged list: the first page now, the others with a button.
function paged(path, row, body, more, none) {
  let cursor = null;
  let turn = 0;
  async function load(first) {
    const mine = ++turn;
    const page = await get(`${path()}${path().includes("?") ? "&" : "?"}${new URLSearchParams({ limit: PAGE, ...(first ? {} : { cursor }) })}`);
    if (mine !== turn) return;
    cursor = page.next;
    if (first) fill(body, page.items.map(row));
    else body.append(...page.items.map(row));
    more.hidden = !cursor;
    none.hidden = body.childElementCount > 0;
    body.closest(".table-wrap").hidden = !none.hidden;
  }
  return load;
}

function table(columns, body) {
  return el("div.table-wrap", null, el("table", null, el("thead", null, el("tr", null, columns.map(([word, kind]) => el(kind ? `th.${kind}` : "th", { scope: "col" }, word)))), body));
}

export function alertsView(place, { parameters }) {
  let state = parameters.get("state") ?? "all";
  const asset = parameters.get("asset");
  const body = el("tbody");
  const trouble = el("div");
  const none = el("p.empty", { hidden: true }, "No alert.");
  const more = el("button", { type: "button", hidden: true, onclick: () => load(false).catch(show) }, "Older");
  const segments = el("div.segments", { role: "group", "aria-label": "Show" });
  const buttons = [["all", "All"], ["open", "Up now"], ["closed", "Cleared"]].map(([value, word]) => {
    const button = el("button", { type: "button", onclick: () => {
      state = value;
      begin();
    } }, word);
    segments.append(button);
    return [value, button];
  });
  const load = paged(() => `/alerts${query({ state, asset })}`, alertRow, body, more, none);
  const show = (error) => fill(trouble, problem(error));
  const begin = () => {
    for (const [value, button] of buttons) button.setAttribute("aria-pressed", String(value === state));
    load(true).then(() => fill(trouble), show);
  };
  fill(
    place,
    el("div.view-head", null, el("h1", null, asset ? `Alerts of ${asset}` : "Alerts"), segments),
    trouble,
    table([["Severity", "severity"], ["Machine", "wide-only"], ["What"], ["Raised"], ["Lasted", "wide-only"], ["Peak", "num.wide-only"], ["Finding", "wide-only"]], body),
    none,
    el("div.actions.after", null, more),
  );
  begin();
  const stop = live.on("alert", begin);
  window.addEventListener("reconnected", begin);
  return () => {
    stop();
    window.removeEventListener("reconnected", begin);
  };
}

function alertRow(alert) {
  return el(
    "tr",
    null,
    el("td.severity", null, badge(alert.severity)),
    el("td.nowrap.wide-only", null, el("a", { href: `#/asset/${encodeURIComponent(alert.asset)}` }, alert.asset)),
    el("td.wide", null, el("span.phone-only", null, alert.asset), el("a.strong", { href: `#/alert/${alert.number}` }, about(alert.asset, alert.message)), alert.notes ? el("span.soft", null, `${alert.notes} ${alert.notes === 1 ? "note" : "notes"}`) : null),
    el("td.nowrap", null, time(alert.raised_us)),
    el("td.nowrap.wide-only", null, alert.cleared_us ? duration((alert.cleared_us - alert.raised_us) / 1e6) : el("b", null, "up now")),
    el("td.num.wide-only", null, number(alert.peak_score)),
    el("td.wide-only", null, alert.verdict ? (VERDICTS[alert.verdict] ?? alert.verdict) : alert.acknowledged ? "Acknowledged" : el("span.soft", null, "–")),
  );
}

export function auditView(place) {
  const body = el("tbody");
  const trouble = el("div");
  const none = el("p.empty", { hidden: true }, "Nothing has been done yet.");
  const more = el("button", { type: "button", hidden: true, onclick: () => load(false).catch(show) }, "Older");
  const load = paged(
    () => "/audit",
    (row) =>
      el("tr", null, el("td.nowrap", null, time(row.at_us)), el("td.nowrap", null, row.by ?? el("span.soft", null, "gateway")), el("td.nowrap", null, row.action), el("td", null, row.subject), el("td.wide", null, row.text ?? "")),
    body,
    more,
    none,
  );
  const show = (error) => fill(trouble, problem(error));
  fill(place, el("div.view-head", null, el("h1", null, "Audit")), trouble, table([["When"], ["Who"], ["Did"], ["To"], ["In words"]], body), none, el("div.actions.after", null, more));
  load(true).catch(show);
}
