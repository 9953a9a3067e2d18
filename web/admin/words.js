/**
 * Numbers, times and the names of acts, as words.
 *
 * @typedef {import("./api.js").Act} Act
 * @typedef {import("./api.js").Kind} Kind
 * @typedef {import("./api.js").Rules} Rules
 */

const numbers = new Intl.NumberFormat("en");
const signed = new Intl.NumberFormat("en", { signDisplay: "exceptZero" });
const moments = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const NONE = "–";

/** @type {Record<Kind, string>} */
export const KINDS = {
  correct: "Correct score",
  void: "Void action",
  "void window": "Void actions of a time",
  ban: "Ban",
  unban: "Unban",
  release: "Release",
  undo: "Undo",
};

/** @param {number | null} value */
export function formatNumber(value) {
  return value === null ? NONE : numbers.format(value);
}

/** @param {number} value */
export function formatDelta(value) {
  return signed.format(value).replace("-", "−");
}

/** @param {string | number} at  ISO 8601 or milliseconds */
export function formatMoment(at) {
  return moments.format(new Date(at));
}

/**
 * Return a local time of an input as ISO 8601 in UTC; empty if it is none.
 *
 * @param {string} local
 */
export function toMoment(local) {
  const moment = new Date(local);
  return Number.isNaN(moment.getTime()) ? "" : moment.toISOString();
}

/**
 * Return a time in ms as the value of an input for local times, in whole seconds.
 *
 * @param {number} at
 */
export function toLocal(at) {
  const offsetMs = new Date(at).getTimezoneOffset() * 60_000;
  return new Date(at - offsetMs).toISOString().slice(0, 19);
}

/** @param {number | null} seconds */
export function formatSeconds(seconds) {
  if (seconds === null) return NONE;
  return seconds < 10 ? `${seconds.toFixed(1)} s` : `${numbers.format(Math.round(seconds))} s`;
}

/** @param {Rules} rules */
export function describeRules({ operator, order, min, max, lowering, points, season, timeZone }) {
  const counts = { add: "points add up", best: "best value counts", last: "last value counts" };
  const texts = [
    counts[/** @type {keyof typeof counts} */ (operator)] ?? operator,
    `${order} first`,
    `${numbers.format(min)} to ${numbers.format(max)}`,
    lowering === "nobody" ? "never lowered" : `lowered by ${lowering}`,
    points === "catalogue" ? "points by catalogue" : "points stated",
    ...(season ? [`seasons ${season} in ${timeZone}`] : []),
  ];
  return texts.join(", ");
}

/** @param {import("./api.js").Limits} limits */
export function describeLimits({ pointsPerAction, pointsPerWindow, windowS }) {
  const texts = [
    ...(pointsPerAction ? [`at most ${numbers.format(pointsPerAction)} points an action`] : []),
    ...(pointsPerWindow ? [`at most ${numbers.format(pointsPerWindow)} in ${numbers.format(windowS)} s`] : []),
  ];
  return texts.join(", ");
}

/**
 * Return whether an act can be undone: an undo is not undone, and an act is undone once.
 *
 * @param {Act} act
 */
export function canUndo({ kind, state, undoneBy }) {
  return state === "applied" && kind !== "undo" && undoneBy === null;
}
