/**
 * What is worth a moment: who took the lead and who entered the top 10; and how long somebody leads.
 *
 * @typedef {import("./scoreboard-protocol.js").Row} Row
 * @typedef {{leader: Row | null, entered: Row[]}} Changes
 */

import { displayName } from "./names.js";

/** Boards change up to ten times a second; a moment is seen only if it lasts. */
const MOMENT_MS = 4_000;
const FADE_MS = 350;

/**
 * Compare two boards; before the first one, nobody took the lead and nobody entered.
 *
 * @param {Row[] | null} before
 * @param {Row[]} after
 * @returns {Changes}
 */
export function changesOf(before, after) {
  if (!before?.length || after.length === 0) return { leader: null, entered: [] };
  const known = new Set(before.map(({ userId }) => userId));
  return {
    leader: before[0].userId === after[0].userId ? null : after[0],
    entered: after.filter(({ userId }) => !known.has(userId)),
  };
}

/**
 * Say for how long a player leads. A lead that began before this page was opened is at least as long.
 *
 * @param {{sinceMs: number, isSeen: boolean}} lead
 * @param {number} nowMs
 */
export function leadText({ sinceMs, isSeen }, nowMs) {
  const seconds = Math.floor((nowMs - sinceMs) / 1_000);
  if (seconds < 10) return isSeen ? "New leader" : "";
  let time = `${Math.floor(seconds / 10) * 10} s`;
  if (seconds >= 3_600) time = `${Math.floor(seconds / 3_600)} h`;
  else if (seconds >= 60) time = `${Math.floor(seconds / 60)} min`;
  return isSeen ? `Leads for ${time}` : `Leads for ${time} or more`;
}

/** Shows one moment at a time over the head of the board. */
export class Moments {
  /** @type {HTMLElement} */ #element;
  #reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
  /** @type {Animation | null} */ #animation = null;
  #weight = 0;
  #endsAtMs = 0;

  /** @param {HTMLElement} element  hidden from assistive technology: the announcer speaks */
  constructor(element) {
    this.#element = element;
  }

  /**
   * Show the greatest of these changes, unless a greater one is still shown.
   *
   * @param {Changes} changes
   * @param {string | null} me  the signed-in player
   */
  show({ leader, entered }, me) {
    const mine = entered.find(({ userId }) => userId === me);
    if (leader) {
      const isMe = leader.userId === me;
      this.#play(isMe ? 4 : 2, "lead", isMe ? "You take the lead" : `${displayName(leader)} takes the lead`);
    } else if (mine) {
      this.#play(3, "entry", "You are in the top 10");
    } else if (entered.length > 0) {
      this.#play(1, "entry", `${displayName(entered[0])} enters the top 10`);
    }
  }

  /**
   * @param {number} weight
   * @param {"lead" | "entry"} kind
   * @param {string} text
   */
  #play(weight, kind, text) {
    const nowMs = Date.now();
    if (document.hidden || (nowMs < this.#endsAtMs && weight <= this.#weight)) return;
    this.#weight = weight;
    this.#endsAtMs = nowMs + MOMENT_MS;
    this.#element.dataset.kind = kind;
    this.#element.textContent = text;
    this.#animation?.cancel();
    const away = this.#reducedMotion.matches ? "none" : "translateY(-100%)";
    const edge = FADE_MS / MOMENT_MS;
    this.#animation = this.#element.animate(
      [
        { opacity: 0, transform: away, easing: "cubic-bezier(0.2, 0.8, 0.2, 1)" },
        { opacity: 1, transform: "none", offset: edge },
        { opacity: 1, transform: "none", offset: 1 - edge },
        { opacity: 0, transform: away },
      ],
      { id: "moment", duration: MOMENT_MS },
    );
  }
}
