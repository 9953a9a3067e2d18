/**
 * The rows of the board: one element per player that lives as long as the player is in the top 10.
 *
 * `render` puts the rows in their new order and lets each glide from where it was seen to where it
 * belongs (also out of the middle of an earlier glide); changed scores flash. Ids are only ever set
 * as text. Without motion (`prefers-reduced-motion`) rows change places at once.
 */

import { drawSprite } from "./sprite.js";

const GLIDE_MS = 450;
const ENTER_MS = 350;
const EASING = "cubic-bezier(0.2, 0.8, 0.2, 1)";
const ROWS = 10;

const numbers = new Intl.NumberFormat("en");

export class BoardView {
  #list;
  #rows = new Map();
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(list) {
    this.#list = list;
    list.addEventListener("animationend", ({ target }) => {
      // What has faded away gives its room back.
      if (target.matches(".row")) target.classList.remove("is-flashing");
      else target.textContent = "";
      target.removeAttribute("data-direction");
    });
  }

  /** Show `board`; the first one, or one nobody is looking at, without any motion. */
  render(board) {
    const entries = board.leaderboard.slice(0, ROWS);
    const isMoving = this.#rows.size > 0 && !this.#calm.matches && !document.hidden;
    const isFlashing = this.#rows.size > 0 && !document.hidden;
    const before = new Map();
    if (isMoving) {
      for (const [userId, { element }] of this.#rows) before.set(userId, topOf(element));
    }

    const kept = new Map();
    const flashing = [];
    for (const entry of entries) {
      const row = this.#rows.get(entry.userId) ?? new Row(entry.userId);
      if (row.show(entry, entries[0].score) && isFlashing) flashing.push(row.element);
      kept.set(entry.userId, row);
    }
    this.#arrange(kept);
    this.#flash(flashing);
    if (isMoving) this.#glide(before);
    this.#list.dataset.epoch = board.epoch;
    this.#list.dataset.seq = board.seq;
  }

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

  #flash(elements) {
    for (const element of elements) element.classList.remove("is-flashing");
    // One look at the layout between off and on starts the animation anew.
    void this.#list.offsetWidth;
    for (const element of elements) element.classList.add("is-flashing");
  }

  #glide(before) {
    for (const { element } of this.#rows.values()) {
      for (const animation of element.getAnimations()) {
        if (animation.id === "glide") animation.cancel();
      }
    }
    // All is read before anything is set in motion: one layout, not ten.
    const moves = [...this.#rows].map(([userId, { element }]) => {
      const from = before.get(userId);
      return { element, from, by: from === undefined ? 0 : from - topOf(element) };
    });
    for (const { element, from, by } of moves) {
      if (from === undefined) enter(element);
      else if (Math.abs(by) >= 1) glide(element, by);
    }
  }
}

function topOf(element) {
  return element.getBoundingClientRect().top;
}

function glide(element, by) {
  element.classList.add("is-gliding");
  element.classList.toggle("is-rising", by > 0);
  const animation = element.animate(
    [{ transform: `translateY(${by}px)` }, { transform: "none" }],
    { id: "glide", duration: GLIDE_MS, easing: EASING },
  );
  animation.onfinish = () => element.classList.remove("is-gliding", "is-rising");
}

function enter(element) {
  element.animate(
    [{ opacity: 0, transform: "translateY(0.75rem)" }, { opacity: 1, transform: "none" }],
    { id: "enter", duration: ENTER_MS, easing: EASING },
  );
}

class Row {
  #rank = null;
  #score = null;
  #parts;

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

  /** Write rank and score; true where the score differs from one shown before. */
  show({ rank, score }, topScore) {
    const { element } = this;
    const { bar, rank: place, score: points, move, gain } = this.#parts;
    if (this.#rank !== null && rank !== this.#rank) {
      const climbed = this.#rank - rank;
      move.textContent = `${climbed > 0 ? "▲" : "▼"} ${Math.abs(climbed)}`;
      restart(move, climbed > 0 ? "up" : "down");
    }
    if (rank !== this.#rank) {
      element.dataset.rank = rank;
      place.textContent = rank;
    }
    const isChanged = this.#score !== null && score !== this.#score;
    if (isChanged) {
      const gained = score - this.#score;
      gain.textContent = `${gained > 0 ? "+" : "−"}${numbers.format(Math.abs(gained))}`;
    }
    if (score !== this.#score) {
      points.value = score;
      points.textContent = numbers.format(score);
    }
    bar.style.setProperty("--share", topScore > 0 ? (score / topScore).toFixed(4) : "0");
    this.#rank = rank;
    this.#score = score;
    return isChanged;
  }
}

function part(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function hidden(element) {
  element.setAttribute("aria-hidden", "true");
  return element;
}

function restart(element, direction) {
  element.removeAttribute("data-direction");
  void element.offsetWidth;
  element.dataset.direction = direction;
}
