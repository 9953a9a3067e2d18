/**
 * The row of the viewer, or of the player of the page's address, below the board, while the player is
 * outside the top 10.
 *
 * @typedef {import("./scoreboard-protocol.js").Place} Place
 */

import { part, Row } from "./board-view.js";
import { displayName } from "./names.js";

const numbers = new Intl.NumberFormat("en");
const TOP = 10;

/**
 * Say how far it is to the row ahead and to the top 10, whether the highest or the lowest score is the
 * best; empty if the server does not tell.
 *
 * @param {Place} place
 */
export function distanceText({ rank, total, toNext, toTop }) {
  const words = [];
  if (rank !== null && toNext !== undefined) {
    const next = `rank ${numbers.format(rank - 1)}`;
    words.push(toNext === 0 ? `level with ${next}` : `${counted(toNext, "point")} to ${next}`);
  }
  // One rank behind the top 10, both distances are the same.
  if (rank !== null && rank > TOP + 1 && toTop !== undefined) {
    words.push(toTop === 0 ? `level with rank ${TOP}` : `${counted(toTop, "point")} to the top ${TOP}`);
  }
  if (total !== undefined) words.push(counted(total, "player"));
  return words.join(" · ");
}

/**
 * @param {number} count
 * @param {string} noun  in the singular
 */
function counted(count, noun) {
  return `${numbers.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

export class PlaceView {
  /** @type {HTMLElement} */ #element;
  /** @type {HTMLElement} */ #table = part("div", "table");
  /** @type {Row | null} */ #row = null;

  /** @param {HTMLElement} element  an empty section of the page */
  constructor(element) {
    this.#element = element;
    element.append(this.#table);
  }

  /**
   * Show a place, or nothing.
   *
   * @param {Place | null} place
   * @param {number} topScore  of the board
   * @param {boolean} isSelf   whether it is the place of the viewer
   */
  show(place, topScore, isSelf) {
    this.#element.hidden = place === null;
    if (place === null) {
      this.#row = null;
      this.#table.replaceChildren();
      return;
    }
    const who = isSelf ? "You" : displayName(place);
    this.#element.setAttribute("aria-label", isSelf ? "Your place" : `Place of ${who}`);
    if (place.rank === null || place.score === null) {
      this.#row = null;
      const text = `${who} ${isSelf ? "have" : "has"} no score on this board yet.`;
      this.#table.replaceChildren(part("p", "own-empty", text));
      return;
    }
    if (this.#row?.element.dataset.user !== place.userId) {
      this.#row = new Row(place.userId, "div");
      this.#row.element.classList.add("is-me");
      this.#table.replaceChildren(this.#row.element);
    }
    const { userId, name, rank, score } = place;
    const isAnimated = !document.hidden && !matchMedia("(prefers-reduced-motion: reduce)").matches;
    const isChanged = this.#row.show({ userId, name, rank, score }, topScore, Date.now(), isAnimated);
    this.#row.write([isSelf ? who : "", distanceText(place)].filter(Boolean).join(" · "));
    if (isChanged && !document.hidden) this.#row.flash();
  }
}
