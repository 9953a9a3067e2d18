/**
 * The view of the system's health: what waits, who watches, what is refused, which process answers.
 *
 * What no process tells is shown as unknown, not as zero.
 *
 * @typedef {import("./api.js").Health} Health
 * @typedef {import("./api.js").ProcessHealth} ProcessHealth
 * @typedef {import("./main.js").Context} Context
 * @typedef {{atMs: number, totals: Map<string, {[reason: string]: number}>}} Sample
 *   `totals` are the refusals of each process since it started, by its address
 */

import { identifier, link, make, table } from "./elements.js";
import { formatMoment, formatNumber, formatSeconds, NONE } from "./words.js";

const UNKNOWN = "unknown";
/** A board whose oldest action waits longer is late. */
const LATE_S = 30;
const WINDOW_MS = 60_000;
/** Refusals of a process are compared with those of a minute ago.
 * @type {Sample[]} */
const samples = [];

const BOARD_COLUMNS = [
  { head: "Board" }, { head: "Accepts actions" }, { head: "Waiting actions", isNumber: true },
  { head: "Oldest waits", isNumber: true },
];
const PROCESS_COLUMNS = [
  { head: "Process" }, { head: "Address" }, { head: "State" }, { head: "Version" },
  { head: "Viewers", isNumber: true }, { head: "Refusals since its start", isNumber: true },
];

/** @param {Context} context */
export async function showHealth(context) {
  /** @type {Health} */
  const health = await context.api.get("/status");
  const { boards, deadLetters, pendingActs, held, processes } = health;
  const waiting = boards.reduce((sum, { uncommitted }) => sum + uncommitted, 0);
  const oldest = boards.reduce((most, { oldestAgeS }) => Math.max(most, oldestAgeS ?? 0), 0);
  const closed = boards.filter(({ open }) => !open).length;
  const silent = processes.filter(({ state }) => state !== "ready").length;
  const refused = countRefusals(processes, performance.now());
  return [
    make("dl", { class: "tiles" },
      tile("Viewers", viewersOf(processes), false),
      tile(refused.seconds ? `Refused in ${refused.seconds} s` : "Refused", refused.text, false),
      tile("Lag of PostgreSQL", waiting ? formatSeconds(oldest) : NONE, oldest > LATE_S),
      tile("Actions that wait for PostgreSQL", formatNumber(waiting), false),
      tile("Boards that are closed", formatNumber(closed), closed > 0),
      tile("Processes that are not ready", processes.length ? formatNumber(silent) : UNKNOWN, silent > 0),
      tile("Dead letters", formatNumber(deadLetters), deadLetters > 0),
      tile("Pending acts", linked("#/acts?state=pending", pendingActs), pendingActs > 0),
      tile("Held actions", linked("#/held", held), false)),
    make("h2", {}, "Boards"),
    table("Health of the boards", BOARD_COLUMNS, boards.map(({ board, open, uncommitted, oldestAgeS }) => [
      board,
      make("span", { class: "badge", "data-state": open ? "open" : "closed" }, open ? "yes" : "no"),
      formatNumber(uncommitted),
      formatSeconds(oldestAgeS),
    ])),
    make("p", { class: "hint" }, `The default boards, those on which actions wait, and those that are closed, as of ${formatMoment(Date.now())}; ` +
      "refreshed every 2 s."),
    make("h2", {}, "Processes"),
    processes.length
      ? table("Processes", PROCESS_COLUMNS, processes.map(processCells))
      : make("p", { class: "hint" }, "Unknown: no metrics port is named in SCOREBOARD_SERVICES."),
    make("h2", {}, "Refusals"),
    refusalTable(refused, processes),
    make("p", { class: "hint" }, "As the processes count them; what a gateway refuses does not reach them."),
  ];
}

/** @param {ProcessHealth} one */
function processCells({ service, address, state, version, viewers, refusals }) {
  const isUnknown = state === "unknown";
  const shown = { ready: "open", "not ready": "closed", unknown: "closed" }[state];
  return [
    service,
    identifier(address),
    make("span", { class: "badge", "data-state": shown }, isUnknown ? "does not answer" : state),
    version ?? UNKNOWN,
    service === "flusher" ? "" : viewers === null ? UNKNOWN : formatNumber(viewers),
    refusals === null ? UNKNOWN : formatNumber(sumOf(refusals)),
  ];
}

/**
 * Return the sum of the viewers: "12", "at least 12" if a process does not tell, or "unknown".
 *
 * @param {ProcessHealth[]} processes
 */
function viewersOf(processes) {
  const found = processes.filter(({ service }) => service !== "flusher");
  const known = found.flatMap(({ viewers }) => (viewers === null ? [] : [viewers]));
  if (!known.length) return UNKNOWN;
  const sum = formatNumber(known.reduce((total, one) => total + one, 0));
  return known.length < found.length || !found.some(({ service }) => service === "streamer") ? `at least ${sum}` : sum;
}

/**
 * Return the refusals of about the last minute, by reason. A process counts from its second answer,
 * and from zero if it was restarted.
 *
 * @param {ProcessHealth[]} processes
 * @param {number} nowMs
 */
function countRefusals(processes, nowMs) {
  const known = processes.filter(({ refusals }) => refusals !== null);
  samples.push({ atMs: nowMs, totals: new Map(known.map(({ service, address, refusals }) => [`${service} ${address}`, refusals ?? {}])) });
  while (samples.length > 1 && samples[1].atMs <= nowMs - WINDOW_MS) samples.shift();
  /** @type {{[reason: string]: number}} */
  const byReason = {};
  for (const [index, { totals }] of samples.entries()) {
    for (const [name, after] of totals) {
      const before = lastBefore(index, name);
      if (before === null) continue;
      for (const [reason, total] of Object.entries(after)) {
        const held = before[reason] ?? 0;
        byReason[reason] = (byReason[reason] ?? 0) + (total < held ? total : total - held);
      }
    }
  }
  const seconds = Math.round((nowMs - samples[0].atMs) / 1_000);
  const isWhole = known.length === processes.length;
  const sum = formatNumber(sumOf(byReason));
  const counted = seconds === 0 ? NONE : isWhole ? sum : `at least ${sum}`;
  return { byReason, seconds, text: known.length ? counted : UNKNOWN };
}

/**
 * Return the refusals of a process in the last sample before another one that has it.
 *
 * @param {number} index
 * @param {string} name
 */
function lastBefore(index, name) {
  for (let earlier = index - 1; earlier >= 0; earlier -= 1) {
    const found = samples[earlier].totals.get(name);
    if (found) return found;
  }
  return null;
}

/**
 * @param {{byReason: {[reason: string]: number}, seconds: number}} recent
 * @param {ProcessHealth[]} processes
 */
function refusalTable({ byReason, seconds }, processes) {
  /** @type {Map<string, number>} */
  const totals = new Map();
  for (const { refusals } of processes) {
    for (const [reason, total] of Object.entries(refusals ?? {})) {
      totals.set(reason, (totals.get(reason) ?? 0) + total);
    }
  }
  if (!totals.size) {
    const isKnown = processes.some(({ refusals }) => refusals !== null);
    return make("p", { class: "hint" }, isKnown ? "Nothing was refused." : "Unknown.");
  }
  const columns = [
    { head: "What, and why" }, { head: `In the last ${seconds} s`, isNumber: true },
    { head: "Since the processes started", isNumber: true },
  ];
  const rows = [...totals].toSorted(([, first], [, second]) => second - first);
  return table("Refusals", columns, rows.map(([reason, total]) =>
    [reason, formatNumber(byReason[reason] ?? 0), formatNumber(total)]));
}

/** @param {{[reason: string]: number}} counts */
function sumOf(counts) {
  return Object.values(counts).reduce((sum, one) => sum + one, 0);
}

/**
 * @param {string} address
 * @param {number} value
 */
function linked(address, value) {
  return value ? link(address, formatNumber(value)) : formatNumber(value);
}

/**
 * @param {string} name
 * @param {import("./elements.js").Child} value
 * @param {boolean} isTrouble
 */
function tile(name, value, isTrouble) {
  return make("div", { class: "card tile", "data-mood": isTrouble ? "trouble" : null },
    make("dt", {}, name), make("dd", {}, value));
}
