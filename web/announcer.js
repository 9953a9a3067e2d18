/**
 * Announces changes to screen readers.
 *
 * Boards arrive up to ten times a second. A polite live region gets one text at most every ten
 * seconds, with the changes since the last one.
 *
 * @typedef {import("./scoreboard-protocol.js").Row} Row
 */

import { displayName } from "./names.js";

const INTERVAL_MS = 10_000;
const NAME_LENGTH_MAX = 24;
const MOVES_MAX = 2;

const numbers = new Intl.NumberFormat("en");

/**
 * Describe the changes of rank between two boards; empty if there are none.
 *
 * @param {Row[] | null} before
 * @param {Row[]} after
 */
export function summarise(before, after) {
  if (after.length === 0) return before?.length ? "The board is empty." : "";
  const leader = after[0];
  const leads = `${spokenName(leader)} leads with ${numbers.format(leader.score)} points.`;
  if (!before?.length) return leads;
  const ranks = new Map(before.map(({ userId, rank }) => [userId, rank]));
  const sentences = [];
  if (before[0].userId !== leader.userId) {
    sentences.push(`${spokenName(leader)} takes the lead with ${numbers.format(leader.score)} points.`);
  }
  const moves = after.slice(1).flatMap((row) => {
    const rank = ranks.get(row.userId);
    if (rank === undefined) return `${spokenName(row)} enters at ${row.rank}.`;
    return rank > row.rank ? `${spokenName(row)} rises to ${row.rank}.` : [];
  });
  sentences.push(...moves.slice(0, MOVES_MAX));
  if (moves.length > MOVES_MAX) sentences.push(`${moves.length - MOVES_MAX} more moved up.`);
  return sentences.join(" ");
}

/** @param {Row} row */
function spokenName(row) {
  const name = displayName(row);
  const letters = [...name];
  return letters.length > NAME_LENGTH_MAX ? `${letters.slice(0, NAME_LENGTH_MAX).join("")}…` : name;
}

export class Announcer {
  /** @type {HTMLElement} */ #region;
  /** @type {Row[] | null} */ #announced = null;
  /** @type {Row[]} */ #newest = [];
  /** @type {ReturnType<typeof setTimeout> | null} */ #timer = null;

  /** @param {HTMLElement} region  a live region */
  constructor(region) {
    this.#region = region;
  }

  /**
   * Announce the newest rows, now or when the interval is over.
   *
   * @param {Row[]} rows
   */
  update(rows) {
    this.#newest = rows;
    if (this.#timer === null) this.#announce();
  }

  #announce() {
    this.#timer = null;
    const text = summarise(this.#announced, this.#newest);
    this.#announced = this.#newest;
    if (!text) return;
    this.#region.textContent = text;
    this.#timer = setTimeout(() => this.#announce(), INTERVAL_MS);
  }
}
