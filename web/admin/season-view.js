/**
 * The views of a board's seasons, and of the standings of one.
 *
 * @typedef {import("./api.js").Season} Season
 * @typedef {import("./api.js").TopRow} TopRow
 * @typedef {import("./main.js").Context} Context
 */

import { identifier, link, make, paged, table } from "./elements.js";
import { formatMoment, formatNumber } from "./words.js";

const PAGE = 20;
const RANKS = 100;

const COLUMNS = [
  { head: "Season" }, { head: "From" }, { head: "Until, not included" }, { head: "State" },
  { head: "Players", isNumber: true }, { head: "Winners" },
];

/** @param {Context} context */
export async function showSeasons(context) {
  const [board, season] = context.args;
  if (season !== undefined) return showStandings(context, board, season);
  context.setHeading(`Seasons of ${board}`);
  /** @param {string} before */
  const read = (before) => context.api.read("/seasons", { board, limit: PAGE, before });
  /** @param {Season} one */
  const cells = ({ id, startsAt, endsAt, state, users, winners }) => [
    link(context.addressOf("seasons", board, id), id),
    formatMoment(startsAt),
    formatMoment(endsAt),
    make("span", { class: "badge", "data-state": state }, state),
    state === "final" ? formatNumber(users) : "",
    winners.map(({ userId, score }) => `${userId} (${formatNumber(score)})`).join(", "),
  ];
  return [
    ...(await paged(context, read, "seasons", `Seasons of ${board}`, COLUMNS, cells)),
    make("p", { class: "hint" }, "The standings of a final season never change. Acts change the current season only."),
  ];
}

/**
 * @param {Context} context
 * @param {string} board
 * @param {string} season
 */
async function showStandings(context, board, season) {
  context.setHeading(`${board}, ${season}`);
  const columns = [{ head: "Rank", isNumber: true }, { head: "Player" }, { head: "Score", isNumber: true }];
  const { leaderboard, total } = await context.api.read("/leaderboard", { board, season, limit: RANKS });
  return [
    make("p", {}, link(context.addressOf("seasons", board), `All seasons of ${board}`)),
    table(`Standings of ${season}`, columns, leaderboard.map((/** @type {TopRow} */ { rank, userId, score }) => [
      String(rank),
      link(context.addressOf("players", userId, board), identifier(userId)),
      formatNumber(score),
    ])),
    make("p", { class: "hint" }, `${formatNumber(Math.min(total, RANKS))} of ${formatNumber(total)} players.`),
  ];
}
