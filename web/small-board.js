/**
 * What the embedded page and the overlay share: parameters, the connection, the rows.
 *
 * Both are without sign-in and controls. They keep trying: whoever shows them cannot press a button.
 *
 * @typedef {import("./scoreboard-client.js").State} State
 * @typedef {{rank: number, userId: string, score: number, name?: string}} Row
 * @typedef {{board: string | null, rows: number, theme: string | null, align: string,
 *   user: string | null}} Parameters
 * @typedef {Map<string, {element: HTMLElement, score: number}>} Shown  rows by user
 */

import { displayName } from "./names.js";
import { refusalOf } from "./refusal.js";
import { connect } from "./scoreboard-client.js";

const SAME_ORIGIN = "/ws/scoreboard";
const FETCH_MS = 5_000;
const AGAIN_MS = 5_000;
/** After an error that usually lasts, such as an unknown board. */
const STOPPED_AGAIN_MS = 60_000;
const ROWS_MAX = 10;
const BOARD_NAME = /^(?!\.\.?$)[a-z0-9_.-]{1,32}$/;

const numbers = new Intl.NumberFormat("en-US");

/**
 * Read the parameters of the page; what is invalid has its default.
 *
 * @param {string} search  the query of the address
 * @returns {Parameters}
 */
export function readParameters(search) {
  const given = new URLSearchParams(search);
  const rows = given.get("rows") ?? "";
  const theme = given.get("theme");
  const align = given.get("align");
  return {
    board: given.get("board") || null,
    rows: /^([1-9]|10)$/.test(rows) ? Number(rows) : ROWS_MAX,
    theme: theme === "dark" || theme === "light" ? theme : null,
    align: align === "center" || align === "right" ? align : "left",
    user: given.get("user") || null,
  };
}

/**
 * Follow a board as long as the page is open.
 *
 * @param {string | null} board  null: the default board
 * @param {(board: {board: string, leaderboard: Row[]}) => void} onBoard
 * @param {(state: State, reason: string | null) => void} onState
 */
export async function follow(board, onBoard, onState) {
  if (board !== null && !BOARD_NAME.test(board)) {
    onState("stopped", "no-such-board");
    return;
  }
  const url = await findStreamer();
  let isRefused = false;
  let hasBoard = false;
  const connection = connect({
    url,
    board: board ?? undefined,
    onBoard: (received) => {
      hasBoard = true;
      onBoard(received);
    },
    onStatus: ({ state, reason, attempt }) => {
      if (isRefused) return;
      onState(state, reason);
      if (state === "stopped") {
        hasBoard = false;
        setTimeout(() => connection.retry(), STOPPED_AGAIN_MS);
      } else if (state === "reconnecting" && attempt === 1 && !hasBoard) explain();
    },
  });

  /** Say why the first handshake failed, if the api knows, and start again later. */
  async function explain() {
    const refusal = await refusalOf(board);
    if (refusal === null || hasBoard || isRefused) return;
    isRefused = true;
    connection.close();
    onState("stopped", refusal);
    setTimeout(() => follow(board, onBoard, onState), STOPPED_AGAIN_MS);
  }
}

/** Return the address of the streamer, as soon as the server tells it. */
async function findStreamer() {
  for (;;) {
    try {
      const answer = await fetch("/config.json", { signal: AbortSignal.timeout(FETCH_MS) });
      if (answer.ok) return (await answer.json()).ws || SAME_ORIGIN;
    } catch {
      // The server is away; try again below.
    }
    await new Promise((resolve) => {
      setTimeout(resolve, AGAIN_MS);
    });
  }
}

/** Draws rows into a list, and marks those whose score has changed. */
export class SmallBoard {
  /** @type {Shown} */ #shown = new Map();
  #list;
  #count;
  #user;

  /**
   * @param {HTMLElement} list
   * @param {Parameters} parameters
   */
  constructor(list, { rows, user }) {
    this.#list = list;
    this.#count = rows;
    this.#user = user;
  }

  /** @param {Row[]} rows  best first */
  render(rows) {
    /** @type {Shown} */
    const shown = new Map();
    for (const row of rows.slice(0, this.#count)) {
      const before = this.#shown.get(row.userId);
      const element = before?.element ?? this.#makeRow(row.userId);
      const [rank, name, score] = /** @type {HTMLElement[]} */ ([...element.children]);
      rank.textContent = String(row.rank);
      name.textContent = displayName(row);
      score.textContent = numbers.format(row.score);
      element.classList.remove("is-changed");
      if (before && before.score !== row.score) {
        void element.offsetWidth; // starts the animation again
        element.classList.add("is-changed");
      }
      shown.set(row.userId, { element, score: row.score });
    }
    this.#shown = shown;
    this.#list.replaceChildren(...[...shown.values()].map(({ element }) => element));
  }

  /** @param {string} userId */
  #makeRow(userId) {
    const element = document.createElement("li");
    element.className = userId === this.#user ? "row is-user" : "row";
    for (const [tag, name] of [["span", "rank"], ["bdi", "name"], ["span", "score"]]) {
      const part = document.createElement(tag);
      part.className = name;
      element.append(part);
    }
    return element;
  }
}
