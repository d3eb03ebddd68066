// Signing in.

import { signIn } from "../api.js";
import { attempt } from "../dialog.js";
import { el, fill } from "../dom.js";

export function signInView(place, session, done) {
  const user = el("input", { id: "user", name: "username", type: "text", autocomplete: "username", autocapitalize: "none", spellcheck: "false", required: true, maxlength: "64" });
  const password = el("input", { id: "password", name: "password", type: "password", autocomplete: "current-password", required: true, maxlength: "256" });
  const button = el("button.primary", { type: "submit" }, "Sign in");
  const trouble = el("div", { id: "sign-in-trouble" });
  const form = el(
    "form.sign-in",
    {
      onsubmit: async (event) => {
        event.preventDefault();
        const signed = await attempt(button, trouble, () => signIn(user.value, password.value));
        if (signed) return done();
        password.value = "";
        password.focus();
      },
    },
    el("h1", null, "Sign in"),
    el("p.hint", null, `Gateway ${session?.gateway ?? ""}`),
    el("div.field", null, el("label", { for: "user" }, "User"), user),
    el("div.field", null, el("label", { for: "password" }, "Password"), password),
    trouble,
    button,
  );
  fill(place, el("div.sign-in-page", null, form));
  user.focus();
}
