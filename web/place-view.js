/**
 * The viewer's own row below the board, while the player is outside the top 10.
 *
 * @typedef {import("./scoreboard-protocol.js").Place} Place
 */

import { part, Row } from "./board-view.js";

const numbers = new Intl.NumberFormat("en");

/**
 * Say how far it is to the row ahead and to the top 10; empty if the server does not tell.
 *
 * @param {Place} place
 */
export function distanceText({ rank, total, toNext, toTop }) {
  const words = [];
  if (rank !== null && toNext !== undefined) {
    words.push(`${numbers.format(toNext)} to rank ${numbers.format(rank - 1)}`);
  }
  if (toTop !== undefined) words.push(`${numbers.format(toTop)} to the top 10`);
  if (total !== undefined) words.push(`of ${numbers.format(total)}`);
  return words.join(" · ");
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
   */
  show(place, topScore) {
    this.#element.hidden = place === null;
    if (place === null) {
      this.#row = null;
      this.#table.replaceChildren();
      return;
    }
    if (place.rank === null || place.score === null) {
      this.#row = null;
      this.#table.replaceChildren(part("p", "own-empty", "You have no score on this board yet."));
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
    this.#row.write(["You", distanceText(place)].filter(Boolean).join(" · "));
    if (isChanged && !document.hidden) this.#row.flash();
  }
}
