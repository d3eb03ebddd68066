// Pushed models: which version stands where, how it did beside the others, and who lets it score.

import { get, part, post, query, upload } from "../api.js";
import { ask, attempt, problem, toast } from "../dialog.js";
import { el, fill, keyed, text } from "../dom.js";
import { count, number, percent, shortHash, since, time } from "../format.js";
import * as live from "../live.js";
import { chip } from "../shape.js";

const TEST_DAYS = 7;
const JOB_MS = 1000;

export function modelsView(place, { who }) {
  const list = el("div.stack.wide-gap");
  const none = el(
    "p.empty",
    { hidden: true },
    "No model has been pushed. Each machine is scored by what the gateway learned from it; a model of your own comes in with ",
    el("code", null, "millwright model push"),
    ".",
  );
  const trouble = el("div");
  const known = new Map();
  let gone = false;
  const refresh = async () => {
    try {
      const page = await get("/models");
      if (gone) return;
      keyed(list, known, groups(page), (group) => group.name, ({ name }) => modelPanel(name, who, refresh));
      none.hidden = page.items.length > 0;
      fill(trouble);
    } catch (error) {
      if (!gone) fill(trouble, problem(error));
    }
  };
  fill(place, el("div.view-head", null, el("h1", null, "Models")), trouble, none, list, who.can("admin") ? uploadPanel(refresh) : null);
  refresh();
  const stop = live.on("models", refresh);
  window.addEventListener("reconnected", refresh);
  return () => {
    gone = true;
    stop();
    window.removeEventListener("reconnected", refresh);
  };
}

// Versions by model, the newest first, and the steps of each model.
function groups({ items, audit }) {
  const byName = new Map();
  for (const item of items) {
    if (!byName.has(item.name)) byName.set(item.name, []);
    byName.get(item.name).push(item);
  }
  return [...byName].map(([name, versions]) => ({
    name,
    versions: versions.sort((a, b) => b.version - a.version || b.since_us - a.since_us),
    audit: (audit ?? []).filter((step) => step.model === name),
  }));
}

// One model. Figures change every second: what can be pressed or is open stays as it is.
function modelPanel(name, who, refresh) {
  const assets = el("span.soft");
  const compared = el("div.stack");
  const body = el("tbody");
  const told = el("div");
  const audit = el("ol.lines");
  const steps = el("details.more", null, el("summary", null, "Steps"), audit);
  const rows = new Map();
  const node = el(
    "section.panel.model",
    null,
    el("div.model-head", null, el("h2", null, name), assets),
    compared,
    el(
      "div.table-scroll",
      null,
      el(
        "table",
        null,
        el("thead", null, el("tr", null, ["Version", "State", "Since", "Signed by", "File"].map((word, at) => el(at > 2 ? "th.wide-only" : "th", { scope: "col" }, word)), el("th", { scope: "col" }, el("span.visually-hidden", null, "Actions")))),
        body,
      ),
    ),
    told,
    steps,
  );
  return {
    node,
    update(group) {
      const { versions } = group;
      const patterns = [...new Set(versions[0].assets)].join(", ");
      text(assets, patterns && `for ${patterns}`);
      fill(compared, versions.filter((version) => version.figures).map(comparison));
      keyed(body, rows, versions.map((version) => ({ version, versions })), ({ version }) => `${version.version} ${version.sha256}`, () => versionRow(who, refresh, told));
      fill(audit, group.audit.map(step));
      steps.hidden = !group.audit.length;
    },
  };
}

function step({ version, state, reason, time_us: at }) {
  return el("li", null, el("b", null, `Version ${version} ${state}`), reason ? `: ${reason}` : "", el("span.soft", null, ` ${time(at)}`));
}

function versionRow(who, refresh, told) {
  const number_ = el("th", { scope: "row" });
  const state = el("td");
  const at = el("td.nowrap");
  const signed = el("td.nowrap.wide-only");
  const file = el("td.wide-only");
  const actions = el("div.actions.end");
  let offered = "";
  let now = null;
  return {
    node: el("tr", null, number_, state, at, signed, file, el("td", null, actions)),
    update(next) {
      now = next;
      const { version } = next;
      text(number_, version.version);
      text(at, time(version.since_us));
      fill(state, chip(version.state), version.reason ? el("p.soft.reason", null, version.reason) : null);
      fill(signed, version.signed_by ? el("code", { title: version.signed_by }, shortHash(version.signed_by)) : el("span.soft", null, "nobody"));
      fill(file, el("code", { title: version.sha256 }, shortHash(version.sha256)));
      if (offered === version.state) return;
      offered = version.state;
      fill(actions, actionsFor(() => now, who, refresh, told));
    },
  };
}

// What can be done with a version in its state; `now()` gives it with the figures of the moment.
function actionsFor(now, who, refresh, told) {
  if (!who.can("engineer")) return [];
  const { version } = now();
  const path = `/models/${part(version.name)}/${version.version}`;
  const named = `${version.name}, version ${version.version}`;
  const order = (word, label, question, done) => {
    const button = el(word === "promote" ? "button.primary" : "button", { type: "button", "aria-label": `${label} ${named}` }, label);
    button.addEventListener("click", async () => {
      const reason = await ask({ title: `${label} ${named}?`, text: question(), confirm: label, danger: word === "rollback", reason: "required" });
      if (reason === null) return;
      await attempt(button, told, async () => {
        await post(`${path}/${word}`, { reason });
        toast(`${named} is being ${done}.`);
        await refresh();
      });
    });
    return button;
  };
  const buttons = [];
  if (version.state === "shadow") {
    const question = () => {
      const { figures, assets } = now().version;
      return `It scores ${assets.join(", ") || "its machines"} from now on, first on trial. What it saw in shadow so far: ${figures ? figureText(figures) : "nothing yet"}.`;
    };
    buttons.push(order("promote", "Promote", question, "promoted"));
  }
  if (version.state === "active" || version.state === "trial") {
    const question = () => {
      const before = now().versions.find((other) => other.version < version.version && (other.state === "retired" || other.state === "active"));
      return before ? `Version ${before.version} scores again.` : "Its machines go back to what the gateway has learned from them.";
    };
    buttons.push(order("rollback", "Roll back", question, "rolled back"));
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
