// Talks to the gateway: JSON in and out, the anti-forgery token, errors that say what to do.

const BASE = "/api/v1";

let csrf = null;
let signedOut = () => {};

// What the gateway refused, in its own words; `remedy` says what to do.
export class ApiError extends Error {
  constructor(status, code, message, remedy, retryAfterS) {
    super(message);
    this.status = status;
    this.code = code;
    this.remedy = remedy;
    this.retryAfterS = retryAfterS;
  }
}

// Called when the session is over while the page is open.
export function onSignedOut(callback) {
  signedOut = callback;
}

// After a restart the gateway gives out new tokens: the first request that it refuses for that is sent again.
async function request(method, path, options = {}) {
  try {
    return await send(method, path, options);
  } catch (error) {
    if (error.code !== "csrf" || method === "GET") throw error;
    await session();
    return send(method, path, options);
  }
}

async function send(method, path, { body, raw, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") {
    headers["X-CSRF-Token"] = csrf ?? "";
    headers["Content-Type"] = raw ? "application/octet-stream" : "application/json";
  }
  let answer;
  try {
    answer = await fetch(BASE + path, {
      method,
      headers,
      signal,
      credentials: "same-origin",
      body: raw ?? (body === undefined ? undefined : JSON.stringify(body)),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The gateway does not answer.", "Check the network; this page tries again by itself.");
  }
  if (answer.status === 204) return null;
  const json = await answer.json().catch(() => null);
  if (answer.ok) return json;
  const told = json?.error ?? {};
  const error = new ApiError(
    answer.status,
    told.code ?? "unexpected",
    told.message ?? `The gateway answered ${answer.status}.`,
    told.remedy ?? "",
    Number(answer.headers.get("Retry-After")) || null,
  );
  if (answer.status === 401 && path !== "/session") signedOut();
  throw error;
}

export const get = (path, options) => request("GET", path, options);
export const post = (path, body = {}) => request("POST", path, { body });
export const put = (path, body = {}) => request("PUT", path, { body });
export const del = (path) => request("DELETE", path);
export const upload = (path, raw) => request("POST", path, { raw });

// One path segment.
export const part = (name) => encodeURIComponent(name);

// The query of the parameters that are there.
export function query(parameters) {
  const pairs = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return pairs.length ? `?${new URLSearchParams(pairs)}` : "";
}

export async function session() {
  const now = await get("/session");
  csrf = now.csrf;
  return now;
}

export async function signIn(user, password) {
  const now = await post("/session", { user, password });
  csrf = now.csrf;
  return now;
}

export async function signOut() {
  await del("/session");
  csrf = null;
}
