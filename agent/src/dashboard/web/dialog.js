// Short conversations: a question before something is done, and a word about what was done.

import { el, fill } from "./dom.js";

const TOAST_MS = 6000;

// Asks before an action; resolves with what was written, or null. `reason`: "required", "optional" or null for no field.
export function ask({ title, text, confirm, danger = false, reason = null, label = "Reason" }) {
  return new Promise((resolve) => {
    const field = reason
      ? el("textarea", { id: "dialog-reason", rows: "3", maxlength: "1000", required: reason === "required" })
      : null;
    const form = el(
      "form",
      { method: "dialog" },
      el("h2", { id: "dialog-title" }, title),
      text ? el("p", null, text) : null,
      field ? el("div.field", null, el("label", { for: "dialog-reason" }, reason === "optional" ? `${label} (optional)` : label), field) : null,
      el(
        "div.actions",
        null,
        el("button.quiet", { type: "button", onclick: () => dialog.close("") }, "Cancel"),
        el(danger ? "button.danger" : "button.primary", { type: "submit", value: "yes" }, confirm),
      ),
    );
    const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, form);
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? (field?.value.trim() ?? "") : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// Says something in the corner for a while.
export function toast(message, level = "note", link = null) {
  const corner = document.getElementById("toasts");
  const node = el(`div.toast.${level}`, null, el("p", null, message), link);
  const close = el("button.quiet.toast-close", { type: "button", "aria-label": "Dismiss", onclick: () => node.remove() }, "×");
  node.append(close);
  corner.append(node);
  while (corner.children.length > 3) corner.firstElementChild.remove();
  setTimeout(() => node.remove(), TOAST_MS);
}

// An error where it happened: what is wrong, and what to do.
export function problem(error) {
  return el("div.problem", { role: "alert" }, el("p", null, sentence(error.message)), error.remedy ? el("p.remedy", null, sentence(error.remedy)) : null);
}

// What the gateway says in an answer begins in lower case and ends without a stop.
function sentence(said) {
  const text = String(said).trim();
  return text && `${text[0].toUpperCase()}${text.slice(1)}${/[.!?…:]$/.test(text) ? "" : "."}`;
}

// Runs `action` with the button out of reach meanwhile; an error is shown in `place`.
export async function attempt(button, place, action) {
  if (button) button.disabled = true;
  if (place) fill(place);
  try {
    return await action();
  } catch (error) {
    if (place) fill(place, problem(error));
    else toast(`${sentence(error.message)} ${error.remedy ? sentence(error.remedy) : ""}`, "bad");
    return undefined;
  } finally {
    if (button) button.disabled = false;
  }
}
