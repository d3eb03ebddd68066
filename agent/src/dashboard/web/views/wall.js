// The plant on a screen on the wall: read from the other side of the hall, touched by nobody.

import { el, fill, keyed, text } from "../dom.js";
import { plural, since } from "../format.js";
import { STATES, STATE_WORDS, levelOf, sign, signal, sinceUs, stateWord } from "../shape.js";
import { plant, troubled, watch, worstFirst } from "../store.js";
import { story } from "./plant.js";

// Lamps that are lit large; more are counted.
const LIT_MAX = 6;
// Others that are named: what fits below six lamps; the rest is in the counts.
const UNLIT_MAX = 60;

export function wallView(place) {
  const lit = el("ol.wall-lit", { "aria-label": "Machines that need a visit" });
  const unlit = el("ol.wall-unlit", { "aria-label": "Other machines" });
  const more = el("p.wall-more", { hidden: true });
  const heading = el("h1");
  const counts = el("div.wall-counts");
  const time = el("p.wall-time");
  const knownLit = new Map();
  const knownUnlit = new Map();
  const knownCounts = new Map();
  fill(
    place,
    el("div.wall", null, el("div.wall-head", null, el("a.wall-back", { href: "#/" }, plant.gateway?.id ?? "Back"), heading, time), lit, more, unlit, counts),
  );
  const timeFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

  function draw() {
    if (!plant.counts) return;
    const all = worstFirst(plant.assets.values());
    const bad = all.filter(troubled);
    const good = all.filter((asset) => !troubled(asset));
    text(heading, bad.length ? `${plural(bad.length, "machine")} to look at` : "All machines run as learned");
    text(time, timeFormat.format(new Date()));
    keyed(lit, knownLit, bad.slice(0, LIT_MAX), (asset) => asset.asset, lamp);
    lit.dataset.count = String(Math.min(bad.length, LIT_MAX));
    lit.hidden = !bad.length;
    more.hidden = bad.length <= LIT_MAX;
    text(more, `and ${plural(bad.length - LIT_MAX, "more machine")}: ${bad.slice(LIT_MAX, LIT_MAX + 8).map((asset) => asset.asset).join(", ")}`);
    const named = good.slice(0, UNLIT_MAX);
    keyed(unlit, knownUnlit, named, (asset) => asset.asset, window);
    unlit.classList.toggle("many", named.length > 12);
    unlit.classList.toggle("crowd", named.length > 24);
    keyed(counts, knownCounts, STATES.filter((state) => plant.counts[state]), (state) => state, counter);
  }
  draw();
  const unwatch = watch(draw);
  const ticking = setInterval(draw, 5000);
  return () => {
    unwatch();
    clearInterval(ticking);
  };
}

function lamp() {
  const shape = el("span.wall-sign");
  const name = el("span.name");
  const word = el("span.word");
  const message = el("span.message");
  const node = el("li", null, shape, name, word, message);
  const show = signal(shape);
  return {
    node,
    update(asset) {
      const look = show(asset);
      node.className = `wall-lamp ${levelOf(look)}${asset.alert?.acknowledged ? " known" : ""}`;
      text(name, asset.asset);
      text(word, `${stateWord(asset)} ${since(sinceUs(asset))}${asset.alert?.acknowledged ? ", acknowledged" : ""}`);
      text(message, story(asset));
    },
  };
}

function window() {
  const shape = el("span.wall-sign");
  const name = el("span.name");
  const figure = el("span.figure");
  const node = el("li", null, shape, name, figure);
  const show = signal(shape);
  return {
    node,
    update(asset) {
      const look = show(asset);
      node.className = `wall-window ${levelOf(look)}`;
      text(name, asset.asset);
      const learned = asset.learning?.of ? `${Math.floor((asset.learning.rows / asset.learning.of) * 100)} %` : "";
      text(figure, learned || (asset.health === null || asset.health === undefined ? "" : Math.round(asset.health)));
    },
  };
}

function counter(state) {
  const figure = el("b");
  return {
    node: el("span.wall-count", null, sign(state), figure, el("span", null, STATE_WORDS[state])),
    update: () => text(figure, plant.counts[state]),
  };
}
