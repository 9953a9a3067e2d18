/**
 * The board over a video, for streaming software: `/overlay?board=main&rows=5&align=right&user=ID`.
 *
 * It shows rows and nothing else. While the connection is lost, the last rows stay.
 */

import { follow, readParameters, SmallBoard } from "./small-board.js";

const root = document.documentElement;
const parameters = readParameters(location.search);
root.dataset.align = parameters.align;
root.style.setProperty("--rows", String(parameters.rows));
const view = new SmallBoard(
  /** @type {HTMLElement} */ (document.getElementById("rows")),
  parameters,
);

follow(
  parameters.board,
  ({ leaderboard }) => view.render(leaderboard),
  (state) => {
    root.dataset.state = state;
  },
);
