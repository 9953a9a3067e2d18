/**
 * The board in a frame of another page: `/embed?board=main&rows=5&theme=dark`.
 *
 * It has neither sign-in nor controls, so a page that shows it cannot make a user press anything.
 */

import { follow, readParameters, SmallBoard } from "./small-board.js";
import { STATE_LABELS } from "./texts.js";

/** @type {{[reason: string]: string}} */
const NOTES = {
  "no-such-board": "There is no board with this name.",
  private: "This board is private.",
  forbidden: "This board is private.",
};

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
const find = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const parameters = readParameters(location.search);
if (parameters.theme !== null) document.documentElement.dataset.theme = parameters.theme;
const view = new SmallBoard(find("rows"), parameters);
const note = find("note");

/** @param {string} text */
function showNote(text) {
  note.textContent = text;
  note.hidden = text === "";
}

follow(
  parameters.board,
  ({ board, leaderboard }) => {
    find("board-name").textContent = board;
    document.title = `${board} · Scoreboard`;
    showNote(leaderboard.length ? "" : "No scores yet");
    view.render(leaderboard);
  },
  (state, reason) => {
    document.documentElement.dataset.state = state;
    find("state").textContent = STATE_LABELS[state];
    // The note stays during the next attempt; a board replaces it.
    if (state === "stopped") showNote(NOTES[reason ?? ""] ?? "The board cannot be shown now.");
  },
);
