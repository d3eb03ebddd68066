// Silencing a machine for a while: work is done on it, or its fault is known.

import { attempt } from "../dialog.js";
import { el, text } from "../dom.js";
import { localInput, time } from "../format.js";

const HOUR_US = 3600e6;

function choices() {
  const now = Date.now() * 1000;
  const morning = new Date();
  morning.setDate(morning.getDate() + 1);
  morning.setHours(6, 0, 0, 0);
  return [
    ["1", "1 hour", now + HOUR_US],
    ["8", "8 hours, a shift", now + 8 * HOUR_US],
    ["morning", "tomorrow, 6:00", morning.getTime() * 1000],
    ["week", "7 days", now + 168 * HOUR_US],
    ["other", "another time…", null],
  ];
}

// `silence({ until_us, reason })` and `end()` do it; `update(untilUs)` shows what holds now.
export function silenceForm(told, silence, end) {
  const until = el("select", { id: "silence-until" }, choices().map(([value, word]) => el("option", { value }, word)));
  const other = el("input", { type: "datetime-local", "aria-label": "Silence until", hidden: true });
  const reason = el("input", { id: "silence-reason", type: "text", required: true, maxlength: "500", placeholder: "What is being done" });
  const button = el("button", { type: "submit" }, "Silence");
  const state = el("p");
  const stop = el("button", { type: "button", onclick: () => attempt(stop, told, end) }, "End the silence");
  const now = el("div.stack", { hidden: true }, state, el("div.actions", null, stop));
  until.addEventListener("change", () => {
    other.hidden = until.value !== "other";
    other.required = !other.hidden;
    if (!other.hidden && !other.value) other.value = localInput(Date.now() * 1000 + 4 * HOUR_US);
  });
  const form = el(
    "form.stack",
    {
      onsubmit: (event) => {
        event.preventDefault();
        const at = choices().find(([value]) => value === until.value)?.[2] ?? new Date(other.value).getTime() * 1000;
        attempt(button, told, () => silence({ until_us: Math.round(at), reason: reason.value.trim() }).then(() => (reason.value = "")));
      },
    },
    el("div.field", null, el("label", { for: "silence-until" }, "Silence for"), until, other),
    el("div.field", null, el("label", { for: "silence-reason" }, "Reason"), reason),
    el("div.actions", null, button),
  );
  return {
    node: el("div.stack", null, now, form),
    update(untilUs) {
      now.hidden = !untilUs;
      form.hidden = Boolean(untilUs);
      if (untilUs) text(state, `Silenced until ${time(untilUs)}. Alerts are stored and say so.`);
    },
  };
}
