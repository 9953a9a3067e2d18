/**
 * The rows of the board. Each player in the top 10 has one element, reused across updates.
 *
 * `render` reorders the rows and animates each from its old position (also in the middle of an
 * earlier animation) to the new one; changed scores roll and flash. All rows have one height, so
 * positions follow from the order and nothing reads the layout. User ids and names are only ever set
 * as text. With `prefers-reduced-motion`, rows change places at once.
 *
 * @typedef {import("./scoreboard-protocol.js").Board} Board
 * @typedef {import("./scoreboard-protocol.js").Row} Entry
 */

import { changesOf, leadText } from "./moments.js";
import { displayName, fullName } from "./names.js";
import { drawSprite, hue } from "./sprite.js";

const SLIDE_MS = 450;
const ENTER_MS = 350;
const ROLL_MS = 450;
const FLASH_MS = 1_200;
const GAIN_MS = 3_000;
const MOVE_MS = 4_000;
const NEW_MS = 6_000;
const EASING = "cubic-bezier(0.2, 0.8, 0.2, 1)";
const ROWS = 10;
/** A gain later than this begins a new streak. */
const STREAK_MS = 20_000;
/** A shorter streak is not shown. */
const STREAK_MIN = 3;

const numbers = new Intl.NumberFormat("en");
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

export class BoardView {
  /** @type {HTMLElement} */ #list;
  /** @type {Map<string, Row>} */ #rows = new Map();
  /** @type {Entry[] | null} */ #shown = null;
  /** @type {{userId: string, sinceMs: number, isSeen: boolean} | null} */ #lead = null;
  /** @type {string | null} */ #me = null;
  #isSelf = false;

  /** @param {HTMLElement} list */
  constructor(list) {
    this.#list = list;
  }

  /**
   * Show a board; the first one, or one on a hidden page, without animations.
   *
   * @param {Board} board
   * @returns {import("./moments.js").Changes}  who took the lead, and who entered
   */
  render(board) {
    const entries = board.leaderboard.slice(0, ROWS);
    const isLater = this.#rows.size > 0;
    const isShown = isLater && !document.hidden;
    const isAnimated = isShown && !reducedMotion.matches;
    const changes = changesOf(this.#shown, entries);
    const nowMs = Date.now();
    this.#follow(entries, isLater, nowMs);

    const kept = new Map();
    /** @type {Row[]} */
    const changed = [];
    /** @type {{row: Row, by: number | null}[]} */
    const moves = [];
    for (const [index, entry] of entries.entries()) {
      const known = this.#rows.get(entry.userId);
      const row = known ?? new Row(entry.userId);
      if (row.show(entry, entries[0].score, nowMs, isAnimated) && isShown) changed.push(row);
      if (!known && isShown) row.isNewUntilMs = nowMs + NEW_MS;
      if (!known) moves.push({ row, by: null });
      else if (row.index !== index) moves.push({ row, by: row.index - index });
      row.index = index;
      row.element.classList.toggle("is-me", entry.userId === this.#me);
      kept.set(entry.userId, row);
    }
    this.#arrange(kept);
    this.tick(nowMs);
    for (const row of changed) row.flash();
    if (isAnimated) {
      for (const { row, by } of moves) {
        if (by === null) row.enter();
        else row.slide(by);
      }
      if (changes.leader) kept.get(changes.leader.userId).crown();
    }
    this.#shown = entries;
    this.#list.dataset.epoch = String(board.epoch);
    this.#list.dataset.seq = String(board.seq);
    return changes;
  }

  /**
   * Mark the row of a player.
   *
   * @param {string | null} userId
   * @param {boolean} isSelf  whether it is the viewer
   */
  markMe(userId, isSelf) {
    this.#me = userId;
    this.#isSelf = isSelf;
    for (const [id, row] of this.#rows) row.element.classList.toggle("is-me", id === userId);
    this.tick(Date.now());
  }

  /**
   * Whether a player is among the rows.
   *
   * @param {string} userId
   */
  has(userId) {
    return this.#rows.has(userId);
  }

  /**
   * Update the notes below the names; call it about once a second.
   *
   * @param {number} nowMs
   */
  tick(nowMs) {
    for (const [userId, row] of this.#rows) {
      const lead = this.#lead?.userId === userId ? leadText(this.#lead, nowMs) : "";
      row.note(nowMs, lead, this.#isSelf && userId === this.#me);
    }
  }

  /**
   * @param {Entry[]} entries
   * @param {boolean} isSeen  whether a change of the lead was seen by this page
   * @param {number} nowMs
   */
  #follow(entries, isSeen, nowMs) {
    const leader = entries[0]?.userId ?? null;
    if (leader === null) this.#lead = null;
    else if (this.#lead?.userId !== leader) this.#lead = { userId: leader, sinceMs: nowMs, isSeen };
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
}

/** One player's row; also used for the viewer's own place below the board. */
export class Row {
  index = 0;
  isNewUntilMs = 0;
  /** @type {number | null} */ #rank = null;
  /** @type {number | null} */ #score = null;
  #streak = 0;
  #gainedAtMs = -Infinity;
  /** @type {{animation: Animation, by: number} | null} */ #slide = null;
  /** @type {Map<string, Animation>} */ #running = new Map();
  #parts;

  /**
   * @param {string} userId
   * @param {"li" | "div"} [tag]
   */
  constructor(userId, tag = "li") {
    this.element = document.createElement(tag);
    this.element.className = "row";
    this.element.dataset.user = userId;
    this.element.style.setProperty("--hue", String(hue(userId)));
    this.#parts = {
      bar: hidden(part("span", "bar")),
      rank: part("span", "rank"),
      name: part("bdi", "name"),
      note: part("span", "note"),
      move: part("span", "move"),
      gain: part("span", "gain"),
      score: part("data", "score"),
      roll: hidden(part("span", "roll")),
      crown: hidden(part("span", "crown")),
    };
    const { bar, rank, name, note, move, gain, score, roll, crown } = this.#parts;
    name.dir = "auto";
    const who = part("span", "who");
    who.append(name, note);
    const trend = hidden(part("span", "trend"));
    trend.append(gain, move);
    const place = part("span", "place");
    place.append(crown, part("span", "visually-hidden", "Rank "), rank);
    this.element.append(
      bar,
      place,
      drawSprite(userId),
      who,
      trend,
      score,
      roll,
      part("span", "visually-hidden", " points"),
    );
  }

  /**
   * Show rank, name and score; return whether a score shown before has changed.
   *
   * @param {Entry} entry
   * @param {number} topScore
   * @param {number} nowMs
   * @param {boolean} isAnimated
   */
  show(entry, topScore, nowMs, isAnimated) {
    const { rank, score } = entry;
    const { element } = this;
    const { bar, rank: rankPart, name, score: scorePart, move: moved, gain } = this.#parts;
    const text = displayName(entry);
    if (name.textContent !== text) {
      name.textContent = text;
      name.title = fullName(entry);
    }
    if (this.#rank !== null && rank !== this.#rank) {
      const climbed = this.#rank - rank;
      moved.textContent = `${climbed > 0 ? "▲" : "▼"} ${numbers.format(Math.abs(climbed))}`;
      moved.dataset.direction = climbed > 0 ? "up" : "down";
      this.#fade("move", moved, MOVE_MS);
    }
    if (rank !== this.#rank) {
      element.dataset.rank = String(rank);
      rankPart.textContent = numbers.format(rank);
    }
    const shownScore = this.#score;
    const isChanged = shownScore !== null && score !== shownScore;
    if (isChanged) {
      const gained = score - shownScore;
      gain.textContent = `${gained > 0 ? "+" : "−"}${numbers.format(Math.abs(gained))}`;
      this.#count(gained, nowMs);
      this.#fade("gain", gain, GAIN_MS);
    }
    if (score !== this.#score) {
      const before = scorePart.textContent;
      scorePart.value = String(score);
      scorePart.textContent = numbers.format(score);
      if (isChanged && isAnimated) this.#roll(before ?? "", scorePart.textContent, score > shownScore);
    }
    const most = Math.max(score, topScore); // on some boards the lowest score is the best
    const share = most > 0 ? (Math.min(score, topScore) / most).toFixed(4) : "0";
    bar.style.setProperty("--share", share);
    this.#rank = rank;
    this.#score = score;
    return isChanged;
  }

  /**
   * Show what is remarkable about the player.
   *
   * @param {number} nowMs
   * @param {string} lead    for how long the player leads, or empty
   * @param {boolean} isMe
   */
  note(nowMs, lead, isMe) {
    const isStreak = this.#streak >= STREAK_MIN && nowMs - this.#gainedAtMs < STREAK_MS;
    const words = [
      isMe ? "You" : "",
      lead,
      nowMs < this.isNewUntilMs && !lead ? "New in the top 10" : "",
      isStreak ? `${this.#streak} gains in a row` : "",
    ];
    this.write(words.filter(Boolean).slice(0, 2).join(" · "));
    this.element.classList.toggle("is-on-streak", isStreak);
  }

  /**
   * Set the text below the name.
   *
   * @param {string} text
   */
  write(text) {
    const { note } = this.#parts;
    if (note.textContent !== text) note.textContent = text;
  }

  /** Light the row up for a moment. */
  flash() {
    this.element.classList.add("is-flashing");
    const frames = [{ opacity: 1 }, { opacity: 0 }];
    const options = { id: "flash", duration: FLASH_MS, easing: "ease-out", pseudoElement: "::after" };
    this.#run("flash", this.element.animate(frames, options), () =>
      this.element.classList.remove("is-flashing"),
    );
  }

  /**
   * Move the row from an earlier position to its own.
   *
   * @param {number} by  rows, below zero from above
   */
  slide(by) {
    const { element } = this;
    // The rest of a slide under way; its progress follows from the clock, without a layout.
    const progress = this.#slide?.animation.effect?.getComputedTiming().progress ?? 1;
    const from = by + (this.#slide ? this.#slide.by * (1 - progress) : 0);
    this.#slide?.animation.cancel();
    element.classList.add("is-sliding");
    element.classList.toggle("is-rising", from > 0);
    const animation = element.animate(
      [{ transform: `translateY(${from * 100}%)` }, { transform: "none" }],
      { id: "slide", duration: SLIDE_MS, easing: EASING },
    );
    this.#slide = { animation, by: from };
    animation.onfinish = () => {
      this.#slide = null;
      element.classList.remove("is-sliding", "is-rising");
    };
  }

  /** Let the row appear. */
  enter() {
    this.element.animate(
      [{ opacity: 0, transform: "translateY(0.75rem)" }, { opacity: 1, transform: "none" }],
      { id: "enter", duration: ENTER_MS, easing: EASING },
    );
  }

  /** Let the crown drop onto the row's rank. */
  crown() {
    const frames = [
      { opacity: 0, transform: "translateY(-1.1rem) rotate(-24deg)" },
      { opacity: 1, transform: "none" },
    ];
    const easing = "cubic-bezier(0.3, 1.6, 0.5, 1)";
    this.#run("crown", this.#parts.crown.animate(frames, { id: "crown", duration: 700, easing }));
  }

  /**
   * @param {number} gained
   * @param {number} nowMs
   */
  #count(gained, nowMs) {
    const isContinued = nowMs - this.#gainedAtMs < STREAK_MS;
    this.#streak = gained > 0 ? (isContinued ? this.#streak + 1 : 1) : 0;
    this.#gainedAtMs = nowMs;
  }

  /**
   * Roll the last digits, those that differ, from the old number to the new one. The number itself
   * is hidden meanwhile; assistive technology reads only that.
   *
   * @param {string} before
   * @param {string} after
   * @param {boolean} isUp
   */
  #roll(before, after, isUp) {
    const { score, roll } = this.#parts;
    let same = 0;
    while (before.length === after.length && before[same] === after[same]) same += 1;
    const turning = part("span", "turning", after.slice(same));
    turning.dataset.before = before.slice(same);
    turning.dataset.way = isUp ? "up" : "down";
    const window = part("span", "window", after.slice(0, same));
    window.append(turning);
    roll.replaceChildren(window);
    const timing = { id: "roll", duration: ROLL_MS, easing: EASING };
    turning.animate([{ transform: `translateY(${isUp ? 100 : -100}%)` }, { transform: "none" }], timing);
    this.#run("roll", roll.animate([{ opacity: 1 }, { opacity: 1 }], timing));
    this.#run("score", score.animate([{ opacity: 0 }, { opacity: 0 }], timing));
  }

  /**
   * Show a text that fades away.
   *
   * @param {string} name
   * @param {HTMLElement} element
   * @param {number} durationMs
   */
  #fade(name, element, durationMs) {
    const from = reducedMotion.matches ? "none" : "translateY(0.4rem)";
    const frames = [
      { opacity: 0, transform: from },
      { opacity: 1, transform: "none", offset: 0.05 },
      { opacity: 1, transform: "none", offset: 0.9 },
      { opacity: 0, transform: "none" },
    ];
    this.#run(name, element.animate(frames, { id: name, duration: durationMs }), () => {
      element.textContent = ""; // it must not take up space
      element.removeAttribute("data-direction");
    });
  }

  /**
   * Replace the animation of this name.
   *
   * @param {string} name
   * @param {Animation} animation
   * @param {() => void} [onFinish]
   */
  #run(name, animation, onFinish) {
    this.#running.get(name)?.cancel();
    this.#running.set(name, animation);
    animation.onfinish = () => {
      this.#running.delete(name);
      onFinish?.();
    };
  }
}

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} className
 * @param {string} [text]
 */
export function part(tag, className, text = "") {
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
