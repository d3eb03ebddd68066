// Charts over time with uPlot: a line, what was expected of it, the spread that was kept, and alerts as marks.
//
// uPlot is loaded with the first chart. A chart is a figure: a title, what it shows in words, and a canvas that is hidden
// from screen readers.

import { el, text } from "./dom.js";
import { clock, number, time, withUnit } from "./format.js";

const HEIGHT_PX = 150;
// A chart that is dragged over less than this many pixels was only clicked on.
const DRAG_PX_MIN = 6;

let loading = null;

export function ready() {
  loading ??= new Promise((resolve, reject) => {
    const style = el("link", { rel: "stylesheet", href: "/web/vendor/uplot/uPlot.min.css" });
    const script = el("script", { src: "/web/vendor/uplot/uPlot.iife.min.js" });
    script.addEventListener("load", () => resolve(globalThis.uPlot));
    script.addEventListener("error", () => {
      loading = null;
      reject(new Error("The chart library could not be loaded. Check the connection, and open the view again."));
    });
    document.head.append(style, script);
  });
  return loading;
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    font: `12px ${style.fontFamily}`,
    ink: read("--ink-3"),
    line: read("--line"),
    trace: read("--trace"),
    spread: read("--accent-soft"),
    band: read("--band"),
    mean: read("--ok"),
    limit: read("--critical"),
    critical: read("--critical"),
    warning: read("--warning"),
  };
}

// title, unit; expected: { low, mean, high }; limit: a value that is drawn as the threshold; zoom(fromUs, toUs).
// `update({ timesUs, values } or { timesUs, min, max, mean }, marks)` draws; times are UTC microseconds.
export function chart({ title, unit = null, expected = null, limit = null, floor = null, zoom = null, height = HEIGHT_PX, sync = "asset", onsetUs = null }) {
  const now = el("span.chart-now");
  const place = el("div.chart-canvas", { "aria-hidden": "true" });
  const said = el("span.visually-hidden");
  const node = el("figure.chart", null, el("figcaption", null, el("span.chart-title", null, title), unit ? el("span.chart-unit", null, unit) : null, now, said), place);
  let plot = null;
  let data = null;
  let marks = [];
  let ink = colours();
  let spread = false;

  const x = (at) => plot.valToPos(at, "x", true);
  const y = (value) => plot.valToPos(value, "y", true);

  function under() {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    if (expected && expected.low !== null && expected.high !== null) {
      ctx.fillStyle = ink.band;
      ctx.fillRect(bbox.left, y(expected.high), bbox.width, y(expected.low) - y(expected.high));
      line(ctx, bbox, y(expected.mean), ink.mean, 1, [2, 4]);
    }
    if (limit !== null) line(ctx, bbox, y(limit), ink.limit, 1.5, [7, 4]);
    ctx.restore();
  }

  function over() {
    const { ctx, bbox } = plot;
    ctx.save();
    const dot = devicePixelRatio;
    for (const mark of marks) {
      const at = x(mark.atUs / 1e6);
      if (at < bbox.left || at > bbox.left + bbox.width) continue;
      ctx.fillStyle = ctx.strokeStyle = mark.severity === "critical" ? ink.critical : mark.severity ? ink.warning : ink.ink;
      ctx.lineWidth = dot;
      ctx.setLineDash(mark.severity ? [] : [3 * dot, 3 * dot]);
      ctx.beginPath();
      ctx.moveTo(at, bbox.top);
      ctx.lineTo(at, bbox.top + bbox.height);
      ctx.stroke();
      if (!mark.severity) continue;
      ctx.beginPath();
      ctx.moveTo(at - 5 * dot, bbox.top - 1 * dot);
      ctx.lineTo(at + 5 * dot, bbox.top - 1 * dot);
      ctx.lineTo(at, bbox.top + 8 * dot);
      ctx.fill();
    }
    ctx.restore();
  }

  // What is expected belongs to what is seen, unless that would flatten the line.
  function range(_, low, high) {
    let from = low ?? 0;
    let to = high ?? 1;
    const extra = [limit, expected?.low, expected?.high, floor].filter((value) => value !== null && value !== undefined);
    const span = Math.max(to - from, Math.abs(to) * 1e-3, 1e-9);
    for (const value of extra) {
      if (value === floor || value === limit || (value > from - 4 * span && value < to + 4 * span)) {
        from = Math.min(from, value);
        to = Math.max(to, value);
      }
    }
    const room = Math.max((to - from) * 0.08, 1e-9);
    return [floor !== null && from >= floor ? floor : from - room, to + room];
  }

  function build(UPlot) {
    const trace = { stroke: ink.trace, width: 1.6, points: { show: false }, spanGaps: false };
    const edge = { ...trace, stroke: null, width: 0 };
    plot = new UPlot(
      {
        width: Math.max(place.clientWidth, 120),
        height,
        padding: [10, 18, 0, 0],
        legend: { show: false },
        cursor: { sync: sync ? { key: sync } : undefined, drag: { x: Boolean(zoom), y: false, dist: DRAG_PX_MIN, setScale: false }, points: { size: 7 } },
        scales: { x: { time: true }, y: { range } },
        axes: [
          { stroke: ink.ink, font: ink.font, grid: { show: false }, ticks: { stroke: ink.line, width: 1, size: 4 }, size: 26, gap: 3, space: 80, values: axisTimes },
          { stroke: ink.ink, font: ink.font, grid: { stroke: ink.line, width: 1 }, ticks: { show: false }, size: 48, gap: 6, space: 34, values: (_, ticks) => ticks.map(number) },
        ],
        series: spread ? [{}, edge, edge, trace] : [{}, trace],
        bands: spread ? [{ series: [1, 2], fill: ink.spread }] : [],
        hooks: {
          drawClear: [under],
          draw: [over],
          setCursor: [() => tell()],
          setSelect: [
            () => {
              const { left, width } = plot.select;
              if (!zoom || width < DRAG_PX_MIN) return;
              const from = plot.posToVal(left, "x") * 1e6;
              const to = plot.posToVal(left + width, "x") * 1e6;
              plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              zoom(Math.round(from), Math.round(to));
            },
          ],
        },
      },
      data,
      place,
    );
  }

  function rows() {
    return data?.[data.length - 1] ?? [];
  }

  // The value under the cursor, otherwise the last one.
  function tell() {
    const values = rows();
    const index = plot?.cursor.idx;
    if (index !== null && index !== undefined && values[index] !== null && values[index] !== undefined) {
      text(now, `${withUnit(values[index], unit)} at ${clock(data[0][index] * 1e6)}`);
      return;
    }
    let last = values.length - 1;
    while (last > 0 && (values[last] === null || values[last] === undefined)) last -= 1;
    text(now, values.length ? withUnit(values[last], unit) : "");
  }

  // In words, for who does not see the canvas.
  function describe() {
    const known = rows().filter((value) => value !== null && value !== undefined);
    if (!known.length) return text(said, "No values in this time.");
    let low = Infinity;
    let high = -Infinity;
    for (const value of known) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const band = expected && expected.low !== null ? `, expected between ${number(expected.low)} and ${number(expected.high)}` : "";
    const alarm = limit !== null ? `, threshold ${number(limit)}` : "";
    const alerts = marks.filter((mark) => mark.severity).length;
    text(
      said,
      ` between ${number(low)} and ${withUnit(high, unit)} from ${time(data[0][0] * 1e6)} to ${time(data[0].at(-1) * 1e6)}${band}${alarm}${alerts ? `, ${alerts} alerts marked` : ""}`,
    );
  }

  async function update(series, nextMarks = []) {
    const times = series.timesUs.map((us) => us / 1e6);
    const wide = Boolean(series.mean);
    data = wide ? [times, series.max, series.min, series.mean] : [times, series.values];
    marks = onsetUs === null ? nextMarks : [...nextMarks, { atUs: onsetUs }];
    const UPlot = await ready();
    if (!place.isConnected) return;
    if (plot && wide !== spread) destroyPlot();
    spread = wide;
    if (plot) plot.setData(data);
    else build(UPlot);
    tell();
    describe();
  }

  function destroyPlot() {
    plot?.destroy();
    plot = null;
  }

  const resize = new ResizeObserver(() => {
    const width = place.clientWidth;
    if (plot && width && Math.abs(width - plot.width) > 1) plot.setSize({ width, height });
  });
  resize.observe(place);

  const recolour = () => {
    ink = colours();
    if (!plot) return;
    destroyPlot();
    build(globalThis.uPlot);
  };
  window.addEventListener("themechange", recolour);

  return {
    node,
    update,
    expect(band) {
      expected = band;
      plot?.redraw(false);
    },
    destroy() {
      resize.disconnect();
      window.removeEventListener("themechange", recolour);
      destroyPlot();
    },
  };
}

function line(ctx, bbox, at, colour, width, dash) {
  ctx.strokeStyle = colour;
  ctx.lineWidth = width * devicePixelRatio;
  ctx.setLineDash(dash.map((part) => part * devicePixelRatio));
  ctx.beginPath();
  ctx.moveTo(bbox.left, at);
  ctx.lineTo(bbox.left + bbox.width, at);
  ctx.stroke();
}

const minute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const second = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

function axisTimes(_, ticks) {
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : 60;
  return ticks.map((at) => {
    const date = new Date(at * 1000);
    if (step >= 86_400) return day.format(date);
    const midnight = step >= 3600 && date.getHours() === 0 && date.getMinutes() === 0;
    return midnight ? day.format(date) : (step < 60 ? second : minute).format(date);
  });
}
