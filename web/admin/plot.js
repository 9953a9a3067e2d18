/**
 * A plot of a score over time: a line of steps, as a score stays until the next action. Plain SVG.
 * The arrow keys move along the actions and read each aloud; the page also shows them as a table.
 *
 * @typedef {import("./api.js").HistoryRow} HistoryRow
 */

import { make } from "./elements.js";
import { formatDelta, formatMoment, formatNumber } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const NARROW = "(width < 44rem)";
const TICKS = 5;
/** More dots than this would hide the line. */
const DOTS_MAX = 120;
const MINUTE_MS = 60_000;
const DAY_MS = 86_400_000;
const TIME_STEPS_MS = [
  ...[1, 2, 5, 10, 15, 30].map((seconds) => seconds * 1_000),
  ...[1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720].map((minutes) => minutes * MINUTE_MS),
  ...[1, 2, 4, 7, 14, 30, 60, 90, 180, 365].map((days) => days * DAY_MS),
];
/** Longer numbers do not fit beside the axis. */
const COMPACT_FROM = 1_000_000;
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 3 });

/**
 * Return the plot of at least one action.
 *
 * @param {HistoryRow[]} history  latest first
 */
export function plot(history) {
  const isNarrow = matchMedia(NARROW).matches;
  const [width, height] = isNarrow ? [400, 280] : [960, 320];
  const area = { left: 68, right: width - 20, top: 16, bottom: height - 52 };
  const points = history.toReversed();
  const scores = points.map(({ score }) => score);
  const first = points[0];
  const last = points[points.length - 1];
  // A single moment still needs an extent.
  const padMs = last.at > first.at ? 0 : 30_000;
  const times = { from: first.at - padMs, to: last.at + padMs };
  const ticks = niceTicks(Math.min(...scores), Math.max(...scores));
  const range = { from: ticks[0], to: ticks[ticks.length - 1] };

  /** @param {number} at */
  const x = (at) => scale(at, times, area.left, area.right);
  /** @param {number} score */
  const y = (score) => scale(score, range, area.bottom, area.top);

  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const tick of ticks) {
    svg.append(
      shape("line", { class: "grid", x1: area.left, x2: area.right, y1: y(tick), y2: y(tick) }),
      text(range.to < COMPACT_FROM ? formatNumber(tick) : compact.format(tick), { x: area.left - 8, y: y(tick) + 4, "text-anchor": "end" }),
    );
  }
  for (const { at, label } of timeTicks(times.from, times.to, isNarrow ? 4 : TICKS)) {
    svg.append(
      shape("line", { class: "tick", x1: x(at), x2: x(at), y1: area.bottom, y2: area.bottom + 5 }),
      text(label, { x: x(at), y: area.bottom + 19, "text-anchor": "middle" }),
    );
  }
  const middle = (area.top + area.bottom) / 2;
  svg.append(
    shape("line", { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }),
    text("Score in points", {
      class: "title", x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})`,
    }),
    text(timeTitle(times.from, times.to), {
      class: "title", x: (area.left + area.right) / 2, y: height - 8, "text-anchor": "middle",
    }),
    shape("path", { class: "line", d: steps(points.map(({ at, score }) => [x(at), y(score)])) }),
  );
  if (points.length <= DOTS_MAX) {
    svg.append(...points.map(({ at, score }) =>
      shape("circle", { class: "dot", cx: x(at), cy: y(score), r: 3 })));
  }
  const cursor = shape("circle", { class: "cursor", r: 6, visibility: "hidden" });
  svg.append(cursor);

  const reading = make("output", { class: "reading" }, summaryOf(points));
  const frame = make(
    "div",
    { class: "plot", tabindex: 0, role: "group", "aria-label": "Plot of the score over time. Use the arrow keys." },
    svg,
  );
  let index = points.length;
  /** @param {number} wanted */
  const show = (wanted) => {
    index = Math.min(points.length - 1, Math.max(0, wanted));
    const { actionId, at, delta, score } = points[index];
    cursor.setAttribute("cx", String(x(at)));
    cursor.setAttribute("cy", String(y(score)));
    cursor.setAttribute("visibility", "visible");
    reading.textContent =
      `${formatMoment(at)}: ${formatNumber(score)} points (${formatDelta(delta)}) by ${actionId}`;
  };
  frame.addEventListener("keydown", (event) => {
    /** @type {{[key: string]: number}} */
    const moves = {
      ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: points.length - 1,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(moves[event.key]);
  });
  frame.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    show(nearest(points.map((point) => x(point.at)), at));
  });
  return make("div", {}, frame, make("p", { class: "hint" }, reading));
}

/**
 * Return round numbers at equal distances that include two values.
 *
 * @param {number} least
 * @param {number} most
 */
export function niceTicks(least, most) {
  const rough = Math.max(most - least, 1) / (TICKS - 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  // Scores are whole numbers.
  const step = Math.max(1, power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10));
  const start = Math.floor(least / step);
  const end = Math.max(Math.ceil(most / step), start + 1);
  return Array.from({ length: end - start + 1 }, (_, index) => (start + index) * step);
}

/**
 * Return moments at round local times between two moments, with their labels.
 *
 * @param {number} fromMs
 * @param {number} toMs
 * @param {number} most  the number of intervals
 */
export function timeTicks(fromMs, toMs, most) {
  const rough = (toMs - fromMs) / most;
  const longest = TIME_STEPS_MS[TIME_STEPS_MS.length - 1];
  const step = TIME_STEPS_MS.find((ms) => ms >= rough) ?? Math.ceil(rough / longest) * longest;
  const format = new Intl.DateTimeFormat("en-GB", labelOptions(step));
  const ticks = [];
  const offsetMs = new Date(fromMs).getTimezoneOffset() * MINUTE_MS;
  for (let at = Math.ceil((fromMs - offsetMs) / step) * step + offsetMs; at <= toMs; at += step) {
    ticks.push({ at, label: format.format(at) });
  }
  return ticks;
}

/**
 * @param {number} stepMs
 * @returns {Intl.DateTimeFormatOptions}
 */
function labelOptions(stepMs) {
  if (stepMs < MINUTE_MS) return { timeStyle: "medium" };
  if (stepMs < DAY_MS) return { timeStyle: "short" };
  return stepMs < 365 * DAY_MS ? { day: "numeric", month: "short" } : { month: "short", year: "numeric" };
}

/**
 * Return the title of the time axis; labels of hours do not name their day.
 *
 * @param {number} fromMs
 * @param {number} toMs
 */
function timeTitle(fromMs, toMs) {
  const format = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });
  const [from, to] = [format.format(fromMs), format.format(toMs)];
  return from === to ? `Time, ${from}` : `Time, ${from} to ${to}`;
}

/** @param {HistoryRow[]} points */
function summaryOf(points) {
  const scores = points.map(({ score }) => score);
  const actions = points.length === 1 ? "1 action" : `${points.length} actions`;
  return `${actions}, from ${formatNumber(Math.min(...scores))} to ` +
    `${formatNumber(Math.max(...scores))} points; the last on ${formatMoment(points[points.length - 1].at)}.`;
}

/** @param {number[][]} points */
function steps(points) {
  const [[x, y], ...others] = points.map((point) => point.map((value) => value.toFixed(1)));
  return `M${x} ${y}${others.map(([nextX, nextY]) => `H${nextX}V${nextY}`).join("")}`;
}

/**
 * @param {number} value
 * @param {{from: number, to: number}} range
 * @param {number} start
 * @param {number} end
 */
function scale(value, { from, to }, start, end) {
  return start + ((value - from) / (to - from)) * (end - start);
}

/**
 * @param {number[]} values  ascending
 * @param {number} wanted
 */
function nearest(values, wanted) {
  let found = 0;
  values.forEach((value, index) => {
    if (Math.abs(value - wanted) <= Math.abs(values[found] - wanted)) found = index;
  });
  return found;
}

/**
 * @param {string} tag
 * @param {{[name: string]: string | number}} attributes
 */
function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}

/**
 * @param {string} content
 * @param {{[name: string]: string | number}} attributes
 */
function text(content, attributes) {
  const element = shape("text", attributes);
  element.textContent = content;
  return element;
}
