/**
 * The rows of the board. Each player in the top 10 has one element, reused across updates.
 *
 * `render` reorders the rows and animates each from its old position (also in the middle of an
 * earlier animation) to the new one; changed scores flash. User ids are only ever set as text. With
 * `prefers-reduced-motion`, rows change places at once.
 *
 * @typedef {import("./scoreboard-protocol.js").Board} Board
 */

import { drawSprite } from "./sprite.js";

const SLIDE_MS = 450;
const ENTER_MS = 350;
const EASING = "cubic-bezier(0.2, 0.8, 0.2, 1)";
const ROWS = 10;

const numbers = new Intl.NumberFormat("en");

export class BoardView {
  /** @type {HTMLElement} */ #list;
  /** @type {Map<string, Row>} */ #rows = new Map();
  #reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

  /** @param {HTMLElement} list */
  constructor(list) {
    this.#list = list;
    list.addEventListener("animationend", (event) => {
      const target = /** @type {Element} */ (event.target);
      // A faded text must not take up space.
      if (target.matches(".row")) target.classList.remove("is-flashing");
      else target.textContent = "";
      target.removeAttribute("data-direction");
    });
  }

  /**
   * Show a board; the first one, or one on a hidden page, without animations.
   *
   * @param {Board} board
   */
  render(board) {
    const entries = board.leaderboard.slice(0, ROWS);
    const isAnimated = this.#rows.size > 0 && !this.#reducedMotion.matches && !document.hidden;
    const isFlashing = this.#rows.size > 0 && !document.hidden;
    /** @type {Map<string, number>} */
    const before = new Map();
    if (isAnimated) {
      for (const [userId, { element }] of this.#rows) before.set(userId, topOf(element));
    }

    const kept = new Map();
    /** @type {HTMLElement[]} */
    const flashing = [];
    for (const entry of entries) {
      const row = this.#rows.get(entry.userId) ?? new Row(entry.userId);
      if (row.show(entry, entries[0].score) && isFlashing) flashing.push(row.element);
      kept.set(entry.userId, row);
    }
    this.#arrange(kept);
    this.#flash(flashing);
    if (isAnimated) this.#animateMoves(before);
    this.#list.dataset.epoch = String(board.epoch);
    this.#list.dataset.seq = String(board.seq);
  }

  /** @param {Map<string, Row>} kept */
  #arrange(kept) {
    for (const [userId, row] of this.#rows) {
      if (!kept.has(userId)) row.element.remove();
    }
    this.#rows = kept;
    let place = this.#list.firstElementChild;
    for (const { element } of kept.values()) {
      if (element === place) place = place.nextElementSibling;
      else this.#list.insertBefore(element, place);
    }
  }

  /** @param {HTMLElement[]} elements */
  #flash(elements) {
    for (const element of elements) element.classList.remove("is-flashing");
    // Reading the layout between the two class changes restarts the animation.
    void this.#list.offsetWidth;
    for (const element of elements) element.classList.add("is-flashing");
  }

  /** @param {Map<string, number>} before  the old top of each row */
  #animateMoves(before) {
    for (const { element } of this.#rows.values()) {
      for (const animation of element.getAnimations()) {
        if (animation.id === "slide") animation.cancel();
      }
    }
    // Read all positions before starting any animation: one layout instead of ten.
    const moves = [...this.#rows].map(([userId, { element }]) => {
      const from = before.get(userId);
      return { element, from, by: from === undefined ? 0 : from - topOf(element) };
    });
    for (const { element, from, by } of moves) {
      if (from === undefined) enter(element);
      else if (Math.abs(by) >= 1) slide(element, by);
    }
  }
}

/** @param {Element} element */
function topOf(element) {
  return element.getBoundingClientRect().top;
}

/**
 * @param {HTMLElement} element
 * @param {number} by  pixels
 */
function slide(element, by) {
  element.classList.add("is-sliding");
  element.classList.toggle("is-rising", by > 0);
  const animation = element.animate(
    [{ transform: `translateY(${by}px)` }, { transform: "none" }],
    { id: "slide", duration: SLIDE_MS, easing: EASING },
  );
  animation.onfinish = () => element.classList.remove("is-sliding", "is-rising");
}

/** @param {HTMLElement} element */
function enter(element) {
  element.animate(
    [{ opacity: 0, transform: "translateY(0.75rem)" }, { opacity: 1, transform: "none" }],
    { id: "enter", duration: ENTER_MS, easing: EASING },
  );
}

class Row {
  /** @type {number | null} */ #rank = null;
  /** @type {number | null} */ #score = null;
  #parts;

  /** @param {string} userId */
  constructor(userId) {
    this.element = document.createElement("li");
    this.element.className = "row";
    this.element.dataset.user = userId;
    const name = part("bdi", "name", userId);
    name.dir = "auto";
    name.title = userId;
    this.#parts = {
      bar: hidden(part("span", "bar")),
      rank: part("span", "rank"),
      move: part("span", "move"),
      gain: part("span", "gain"),
      score: part("data", "score"),
    };
    const { bar, rank, move, gain, score } = this.#parts;
    const trend = hidden(part("span", "trend"));
    trend.append(gain, move);
    this.element.append(
      bar,
      part("span", "visually-hidden", "Rank "),
      rank,
      drawSprite(userId),
      name,
      trend,
      score,
      part("span", "visually-hidden", " points"),
    );
  }

  /**
   * Show rank and score; return whether a score shown before has changed.
   *
   * @param {{rank: number, score: number}} entry
   * @param {number} topScore
   */
  show({ rank, score }, topScore) {
    const { element } = this;
    const { bar, rank: rankPart, score: scorePart, move: moved, gain } = this.#parts;
    if (this.#rank !== null && rank !== this.#rank) {
      const climbed = this.#rank - rank;
      moved.textContent = `${climbed > 0 ? "▲" : "▼"} ${Math.abs(climbed)}`;
      restart(moved, climbed > 0 ? "up" : "down");
    }
    if (rank !== this.#rank) {
      element.dataset.rank = String(rank);
      rankPart.textContent = String(rank);
    }
    const shownScore = this.#score;
    const isChanged = shownScore !== null && score !== shownScore;
    if (isChanged) {
      const gained = score - shownScore;
      gain.textContent = `${gained > 0 ? "+" : "−"}${numbers.format(Math.abs(gained))}`;
    }
    if (score !== this.#score) {
      scorePart.value = String(score);
      scorePart.textContent = numbers.format(score);
    }
    const most = Math.max(score, topScore); // on some boards the lowest score is the best
    bar.style.setProperty("--share", most > 0 ? (Math.min(score, topScore) / most).toFixed(4) : "0");
    this.#rank = rank;
    this.#score = score;
    return isChanged;
  }
}

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} className
 * @param {string} [text]
 */
function part(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

/**
 * @template {Element} T
 * @param {T} element
 */
function hidden(element) {
  element.setAttribute("aria-hidden", "true");
  return element;
}

/**
 * Restart the CSS animation of a direction.
 *
 * @param {HTMLElement} element
 * @param {"up" | "down"} direction
 */
function restart(element, direction) {
  element.removeAttribute("data-direction");
  void element.offsetWidth;
  element.dataset.direction = direction;
}
