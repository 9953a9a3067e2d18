/**
 * Tells people who listen instead of look what happened, at a pace that can be listened to.
 *
 * Boards come up to ten times a second; a polite live region gets one sentence at most every ten
 * seconds, about the difference between what was last said and what holds now.
 */

const PACE_MS = 10_000;
const LONGEST_NAME = 24;
const MOST_MOVES = 2;

const numbers = new Intl.NumberFormat("en");

/** Say in a sentence what changed between two boards' rows; empty where no place did. */
export function summarise(before, after) {
  if (after.length === 0) return before?.length ? "The board is empty." : "";
  const leader = after[0];
  const leads = `${spoken(leader)} leads with ${numbers.format(leader.score)} points.`;
  if (!before?.length) return leads;
  const ranks = new Map(before.map(({ userId, rank }) => [userId, rank]));
  const said = [];
  if (before[0].userId !== leader.userId) {
    said.push(`${spoken(leader)} takes the lead with ${numbers.format(leader.score)} points.`);
  }
  const moves = after.slice(1).flatMap((row) => {
    const rank = ranks.get(row.userId);
    if (rank === undefined) return `${spoken(row)} enters at ${row.rank}.`;
    return rank > row.rank ? `${spoken(row)} rises to ${row.rank}.` : [];
  });
  said.push(...moves.slice(0, MOST_MOVES));
  if (moves.length > MOST_MOVES) said.push(`${moves.length - MOST_MOVES} more moved up.`);
  return said.join(" ");
}

function spoken({ userId }) {
  const letters = [...userId];
  return letters.length > LONGEST_NAME ? `${letters.slice(0, LONGEST_NAME).join("")}…` : userId;
}

export class Announcer {
  #region;
  #said = null;
  #newest = null;
  #timer = null;

  constructor(region) {
    this.#region = region;
  }

  /** Note the newest rows; they are spoken of now, or together with what follows soon. */
  note(rows) {
    this.#newest = rows;
    if (this.#timer === null) this.#speak();
  }

  #speak() {
    this.#timer = null;
    const sentence = summarise(this.#said, this.#newest);
    this.#said = this.#newest;
    if (!sentence) return;
    this.#region.textContent = sentence;
    this.#timer = setTimeout(() => this.#speak(), PACE_MS);
  }
}
