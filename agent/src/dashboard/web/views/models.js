// Pushed models: which version stands where, how it did beside the others, and who lets it score.

import { get, part, post, query, upload } from "../api.js";
import { ask, attempt, problem, toast } from "../dialog.js";
import { el, fill, text } from "../dom.js";
import { count, number, percent, shortHash, since, time } from "../format.js";
import * as live from "../live.js";
import { chip } from "../shape.js";

const TEST_DAYS = 7;
const JOB_MS = 1000;

export function modelsView(place, { who }) {
  const list = el("div.stack.wide-gap");
  const trouble = el("div");
  let gone = false;
  const refresh = async () => {
    try {
      const page = await get("/models");
      if (gone) return;
      fill(list, groups(page.items).map((group) => modelPanel(group, page.audit ?? [], who, refresh)));
      if (!page.items.length) {
        fill(list, el("p.empty", null, "No model has been pushed. Each machine is scored by what the gateway learned from it; a model of your own comes in with ", el("code", null, "millwright model push"), "."));
      }
      fill(trouble);
    } catch (error) {
      if (!gone) fill(trouble, problem(error));
    }
  };
  fill(place, el("div.view-head", null, el("h1", null, "Models")), trouble, list, who.can("admin") ? uploadPanel(refresh) : null);
  refresh();
  const stop = live.on("models", refresh);
  window.addEventListener("reconnected", refresh);
  return () => {
    gone = true;
    stop();
    window.removeEventListener("reconnected", refresh);
  };
}

// Versions by model, the newest first.
function groups(items) {
  const byName = new Map();
  for (const item of items) {
    if (!byName.has(item.name)) byName.set(item.name, []);
    byName.get(item.name).push(item);
  }
  for (const versions of byName.values()) versions.sort((a, b) => b.version - a.version || b.since_us - a.since_us);
  return [...byName.values()];
}

function modelPanel(versions, audit, who, refresh) {
  const told = el("div");
  const assets = [...new Set(versions[0].assets)].join(", ");
  const compared = versions.filter((version) => version.figures);
  return el(
    "section.panel.model",
    null,
    el("div.model-head", null, el("h2", null, versions[0].name), el("span.soft", null, assets ? `for ${assets}` : "")),
    compared.map(comparison),
    el(
      "div.table-scroll",
      null,
      el(
        "table",
        null,
        el("thead", null, el("tr", null, ["Version", "State", "Since", "Signed by", "File"].map((word, at) => el(at > 2 ? "th.wide-only" : "th", { scope: "col" }, word)), el("th", { scope: "col" }, el("span.visually-hidden", null, "Actions")))),
        el("tbody", null, versions.map((version) => versionRow(version, versions, who, refresh, told))),
      ),
    ),
    told,
    steps(audit.filter((step) => step.model === versions[0].name)),
  );
}

// What became of its versions, newest first.
function steps(audit) {
  if (!audit.length) return null;
  return el(
    "details.more",
    null,
    el("summary", null, "Steps"),
    el("ol.lines", null, audit.map((step) => el("li", null, el("b", null, `Version ${step.version} ${step.state}`), step.reason ? `: ${step.reason}` : "", el("span.soft", null, ` ${time(step.time_us)}`)))),
  );
}

function versionRow(version, versions, who, refresh, told) {
  return el(
    "tr",
    null,
    el("th", { scope: "row" }, String(version.version)),
    el("td", null, chip(version.state), version.reason ? el("p.soft.reason", null, version.reason) : null),
    el("td.nowrap", null, time(version.since_us)),
    el("td.nowrap.wide-only", null, version.signed_by ? el("code", { title: version.signed_by }, shortHash(version.signed_by)) : el("span.soft", null, "nobody")),
    el("td.wide-only", null, el("code", { title: version.sha256 }, shortHash(version.sha256))),
    el("td", null, el("div.actions.end", null, actionsFor(version, versions, who, refresh, told))),
  );
}

function actionsFor(version, versions, who, refresh, told) {
  if (!who.can("engineer")) return [];
  const path = `/models/${part(version.name)}/${version.version}`;
  const named = `${version.name}, version ${version.version}`;
  const buttons = [];
  if (version.state === "shadow") {
    const promote = el("button.primary", { type: "button", "aria-label": `Promote ${named}` }, "Promote");
    promote.addEventListener("click", async () => {
      const reason = await ask({
        title: `Promote ${named}?`,
        text: `It scores ${version.assets.join(", ") || "its machines"} from now on, first on trial. What it saw in shadow so far: ${version.figures ? figureText(version.figures) : "nothing yet"}.`,
        confirm: "Promote",
        reason: "required",
      });
      if (reason === null) return;
      await attempt(promote, told, async () => {
        await post(`${path}/promote`, { reason });
        toast(`${named} is being promoted.`);
        await refresh();
      });
    });
    buttons.push(promote);
  }
  if (version.state === "active" || version.state === "trial") {
    const back = el("button", { type: "button", "aria-label": `Roll back ${named}` }, "Roll back");
    back.addEventListener("click", async () => {
      const before = versions.find((other) => other.version < version.version && (other.state === "retired" || other.state === "active"));
      const reason = await ask({
        title: `Roll back ${named}?`,
        text: before ? `Version ${before.version} scores again.` : "Its machines go back to what the gateway has learned from them.",
        confirm: "Roll back",
        danger: true,
        reason: "required",
      });
      if (reason === null) return;
      await attempt(back, told, async () => {
        await post(`${path}/rollback`, { reason });
        toast(`${named} is being rolled back.`);
        await refresh();
      });
    });
    buttons.push(back);
  }
  if (version.state !== "rejected") {
    const test = el("button.quiet", { type: "button", "aria-label": `Test ${named} over the past` }, "Test");
    test.addEventListener("click", () => attempt(test, told, () => rehearse(path, named, told)));
    buttons.push(test);
  }
  return buttons;
}

function figureText(figures) {
  return `${count(figures.compared)} rows compared, the same judgement on ${percent(figures.agreement)}, in alarm on ${percent(figures.alarm_rate)} where the model in use was on ${percent(figures.active_alarm_rate)}, ${count(figures.alerts)} alerts`;
}

// In shadow or on trial: beside the model that scores, or scored before.
function comparison(version) {
  const { figures } = version;
  const full = Math.max(figures.alarm_rate, figures.active_alarm_rate, 0.01);
  const rate = (name, share, tone) =>
    el("div.rate", null, el("span", null, name), el("span.rate-track", { "aria-hidden": "true" }, el(`span.rate-bar.${tone}`, { vars: { "--share": (share / full).toFixed(3) } })), el("b.num", null, percent(share)));
  const other = version.state === "trial" ? "the one before it" : "the one in use";
  return el(
    "div.comparison",
    null,
    el("h3", null, `Version ${version.version}, ${version.state === "trial" ? "on trial" : "in shadow"} ${since(version.since_us)}`),
    el("div.rates", { "aria-label": "Share of rows in alarm" }, rate(`In alarm, version ${version.version}`, figures.alarm_rate, "mine"), rate(`In alarm, ${other}`, figures.active_alarm_rate, "theirs")),
    el(
      "dl.figures",
      null,
      [["Agreement", percent(figures.agreement)], ["Rows compared", count(figures.compared)], ["Alerts", count(figures.alerts)], ["Rows without a score", percent(figures.error_rate)], ["A window takes, p99", `${number(figures.latency_p99_ms)} ms`]].map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, value))),
      version.missed_readings ? el("div", null, el("dt", null, "Readings not shown"), el("dd", null, count(version.missed_readings))) : null,
    ),
  );
}

async function rehearse(path, named, told) {
  const state = el("p.soft", { role: "status" }, `Testing ${named} over the last ${TEST_DAYS} days of the log…`);
  fill(told, state);
  const { job } = await post(`${path}/test`, { days: TEST_DAYS });
  for (;;) {
    const now = await get(`/jobs/${part(job)}`);
    if (!told.isConnected) return;
    if (now.state === "done") return fill(told, rehearsal(now.result, named));
    if (now.state === "failed") {
      const result = now.result ?? {};
      return fill(told, problem({ message: result.message ?? (typeof result === "string" ? result : "The test failed."), remedy: result.remedy ?? "" }));
    }
    await new Promise((resolve) => setTimeout(resolve, JOB_MS));
  }
}

function rehearsal(result, named) {
  const span = result.span_us ? `${time(result.span_us[0])} to ${time(result.span_us[1])}` : "the log holds nothing for its machines";
  return el(
    "div.rehearsal",
    { role: "status" },
    el("h3", null, `${named} over the past`),
    el("p.soft", null, `${span}, ${count(result.messages)} messages`),
    el(
      "div.table-scroll",
      null,
      el(
        "table",
        null,
        el("thead", null, el("tr", null, el("th", { scope: "col" }, "Machine"), el("th.num", { scope: "col" }, "Rows scored"), el("th.num", { scope: "col" }, "Peak score"), el("th.num", { scope: "col" }, "Alerts it would raise"), el("th.num", { scope: "col" }, "Alerts that were raised"))),
        el("tbody", null, (result.assets ?? []).map((one) => el("tr", null, el("th", { scope: "row" }, one.asset), el("td.num", null, one.missing_channel ? `no channel ${one.missing_channel}` : count(one.scored)), el("td.num", null, number(one.peak_score)), el("td.num", null, count(one.alerts_raised)), el("td.num", null, count(one.stored_alerts))))),
      ),
    ),
  );
}

function uploaded({ name, version, outcome }) {
  const named = `${name}, version ${version}`;
  if (outcome?.reason) return problem({ message: `${named}: ${outcome.state}.`, remedy: outcome.reason });
  return el("p", { role: "status" }, `${named} is with the gateway${outcome?.state ? `, ${outcome.state}` : "; it is being checked"}.`);
}

function uploadPanel(refresh) {
  const told = el("div");
  const file = el("input", { id: "onnx", type: "file", accept: ".onnx", required: true });
  const assets = el("input", { id: "assets", type: "text", placeholder: "pump-*, fan-2", maxlength: "1000" });
  const manifest = el("input", { id: "manifest", type: "file", accept: ".json,application/json" });
  // A manifest names the machines itself.
  manifest.addEventListener("change", () => (assets.disabled = manifest.files.length > 0));
  const button = el("button", { type: "submit" }, "Upload");
  const form = el(
    "form.stack",
    {
      onsubmit: (event) => {
        event.preventDefault();
        attempt(button, told, async () => {
          const head = manifest.files[0] ?? null;
          const path = `/models${query(head ? { manifest_bytes: head.size } : { assets: assets.value.trim() })}`;
          const answer = await upload(path, new Blob([head ?? "", file.files[0]]));
          form.reset();
          assets.disabled = false;
          fill(told, uploaded(answer));
          await refresh();
        });
      },
    },
    el(
      "div.pair",
      null,
      el("div.field", null, el("label", { for: "onnx" }, "Model (ONNX)"), file),
      el("div.field", null, el("label", { for: "assets" }, "For the machines"), assets),
      el("div.field", null, el("label", { for: "manifest" }, "Or with the manifest of ", el("code", null, "model pack")), manifest),
    ),
    told,
    el("div.actions", null, button),
  );
  return el("section.panel.after", null, el("h2", null, "Upload a model"), form);
}
