// Numbers, times and words as people read them. Times come as UTC microseconds and are shown in local time.

const DAY_S = 86_400;

// Three significant digits, without an exponent where that can be avoided.
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e7)) return value.toExponential(1);
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

export function withUnit(value, unit) {
  return unit ? `${number(value)}\u00a0${unit}` : number(value);
}

export function count(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en");
}

export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

export function percent(share) {
  if (share === null || share === undefined || !Number.isFinite(share)) return "–";
  const value = share * 100;
  return `${value !== 0 && Math.abs(value) < 10 ? value.toFixed(1) : Math.round(value)}\u00a0%`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit === 0 || size >= 100 ? Math.round(size) : size.toPrecision(2)}\u00a0${units[unit]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s < 600 && s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.round(s / 60)} min`;
  if (s < DAY_S) {
    const minutes = Math.round((s % 3600) / 60);
    return minutes && minutes < 60 ? `${Math.floor(s / 3600)} h ${minutes} min` : `${Math.round(s / 3600)} h`;
  }
  return plural(Math.round(s / DAY_S), "day");
}

const date = (us) => new Date(us / 1000);
const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const shortFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const dayFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const yearFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

export function clock(us) {
  return us === null || us === undefined ? "–" : clockFormat.format(date(us));
}

// Today only the time, otherwise with the day.
export function time(us) {
  if (us === null || us === undefined) return "–";
  const at = date(us);
  const now = new Date();
  if (at.toDateString() === now.toDateString()) return clockFormat.format(at);
  const day = at.getFullYear() === now.getFullYear() ? dayFormat.format(at) : yearFormat.format(at);
  return `${day}, ${shortFormat.format(at)}`;
}

// To the minute, with the day unless it is today.
export function moment(us) {
  const at = date(us);
  const day = at.toDateString() === new Date().toDateString() ? "" : `${dayFormat.format(at)}, `;
  return day + shortFormat.format(at);
}

// "for 4 min", or the time itself where the clock of the machine runs ahead of this one.
export function since(us, nowUs = Date.now() * 1000) {
  if (us === null || us === undefined) return "";
  const seconds = (nowUs - us) / 1e6;
  if (seconds < -5) return `since ${time(us)}`;
  if (seconds < 2) return "just now";
  return `for ${duration(seconds)}`;
}

// What the gateway says of a machine, where its name stands beside it already.
export function about(asset, message) {
  const said = message.startsWith(`${asset} `) ? message.slice(asset.length + 1) : message;
  return said && (said[0].toUpperCase() + said.slice(1)).replace(/(\d) %/g, "$1\u00a0%");
}

export function ago(us, nowUs = Date.now() * 1000) {
  if (us === null || us === undefined) return "never";
  const seconds = (nowUs - us) / 1e6;
  if (seconds < -5) return time(us);
  if (seconds < 2) return "now";
  return `${duration(seconds)} ago`;
}

// For <time datetime>.
export function iso(us) {
  return new Date(us / 1000).toISOString();
}

// For <input type="datetime-local">, in local time.
export function localInput(us) {
  const at = new Date(us / 1000);
  at.setMinutes(at.getMinutes() - at.getTimezoneOffset());
  return at.toISOString().slice(0, 16);
}

export function shortHash(sha256) {
  return sha256 ? sha256.slice(0, 10) : "–";
}
