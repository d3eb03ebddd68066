// What sends: when each device was last heard, how regularly, and whether its clock can be believed.

import { get } from "../api.js";
import { problem } from "../dialog.js";
import { el, fill, keyed, text } from "../dom.js";
import { ago, count, duration, number } from "../format.js";

const REFRESH_MS = 2000;
const PAGES_MAX = 10;
// A clock this far off makes records hard to compare.
const SKEW_US_MAX = 2e6;

const COLUMNS = [
  ["asset", "Machine"],
  ["device", "Device"],
  ["last_us", "Last heard"],
  ["rate_hz", "Rows/s", "num"],
  ["gaps", "Gaps", "num"],
  ["duplicates", "Duplicates", "num"],
  ["late", "Late", "num"],
  ["skew_us", "Clock off by", "num"],
  ["seq", "Sequence", "num"],
];

export function devicesView(place) {
  const body = el("tbody");
  const trouble = el("div");
  const none = el("p.empty", { hidden: true }, "No device has sent telemetry yet.");
  const sort = { key: "asset", down: false };
  const known = new Map();
  let items = [];
  let gone = false;
  const heads = COLUMNS.map(([key, word, kind]) => {
    const button = el("button.sort", { type: "button", onclick: () => {
      sort.down = sort.key === key ? !sort.down : kind === "num";
      sort.key = key;
      draw();
    } }, word);
    return [key, el(kind ? `th.${kind}` : "th", { scope: "col" }, button)];
  });
  const wrap = el("div.table-wrap", null, el("table", null, el("thead", null, el("tr", null, heads.map(([, node]) => node))), body));
  fill(place, el("div.view-head", null, el("h1", null, "Devices")), trouble, wrap, none);

  function draw() {
    for (const [key, node] of heads) {
      if (key === sort.key) node.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else node.removeAttribute("aria-sort");
    }
    const sign = sort.down ? -1 : 1;
    const sorted = [...items].sort((a, b) => sign * compare(a[sort.key], b[sort.key]) || compare(a.asset, b.asset));
    keyed(body, known, sorted, (item) => `${item.asset}/${item.device}`, row);
    none.hidden = items.length > 0;
    wrap.hidden = !items.length;
  }

  async function refresh() {
    try {
      let cursor = null;
      let found = [];
      for (let page = 0; page < PAGES_MAX; page += 1) {
        const answer = await get(`/devices?limit=200${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
        found = found.concat(answer.items);
        cursor = answer.next;
        if (!cursor) break;
      }
      if (gone) return;
      items = found;
      draw();
      fill(trouble);
    } catch (error) {
      if (!gone) fill(trouble, problem(error));
    }
  }
  refresh();
  const timer = setInterval(refresh, REFRESH_MS);
  return () => {
    gone = true;
    clearInterval(timer);
  };
}

function compare(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return -1;
  if (b === null || b === undefined) return 1;
  return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
}

function skew(us) {
  if (us === null || us === undefined) return el("span.soft", null, "–");
  const size = Math.abs(us);
  const said = size < 1e6 ? `${number(Math.round(us / 1000))} ms` : `${us < 0 ? "−" : "+"}${duration(size / 1e6)}`;
  return size > SKEW_US_MAX ? el("b", null, said) : said;
}

const bad = (value) => (value ? el("b", null, count(value)) : el("span.soft", null, "0"));

function row() {
  const link = el("a");
  const cells = COLUMNS.slice(1).map(([, , kind]) => el(kind ? `td.${kind}` : "td.nowrap"));
  return {
    node: el("tr", null, el("th", { scope: "row" }, link), cells),
    update(item) {
      text(link, item.asset);
      link.href = `#/asset/${encodeURIComponent(item.asset)}`;
      const shown = [item.device ?? el("span.soft", null, "–"), ago(item.last_us), number(item.rate_hz), bad(item.gaps), bad(item.duplicates), bad(item.late), skew(item.skew_us), count(item.seq)];
      cells.forEach((cell, at) => fill(cell, shown[at]));
    },
  };
}
