/**
 * The views of a board's standings, of its seasons, and of the standings of one. They use endpoints
 * of administrators, because a private board needs another scope elsewhere.
 *
 * @typedef {import("./api.js").Season} Season
 * @typedef {import("./api.js").TopRow} TopRow
 * @typedef {import("./main.js").Context} Context
 */

import { identifier, link, make, paged } from "./elements.js";
import { formatMoment, formatNumber } from "./words.js";

const PAGE = 20;
const RANKS = 100;

const COLUMNS = [
  { head: "Season" }, { head: "From" }, { head: "Until, not included" }, { head: "State" },
  { head: "Players", isNumber: true }, { head: "Winners" },
];
const RANK_COLUMNS = [{ head: "Rank", isNumber: true }, { head: "Player" }, { head: "Score", isNumber: true }];

/** @param {Context} context */
export async function showSeasons(context) {
  const [board, season] = context.args;
  if (season !== undefined) return showStandings(context);
  context.setHeading(`Seasons of ${board}`);
  /** @param {string} before */
  const read = (before) => context.api.get(`${pathOf(board)}/seasons`, { limit: PAGE, before });
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
    make("p", { class: "hint" }, "The standings of a final season change only if an action of it is counted later. Acts change the current season only."),
  ];
}

/** @param {Context} context */
export async function showStandings(context) {
  const [board, season] = context.args;
  context.setHeading(season === undefined ? `Standings of ${board}` : `${board}, ${season}`);
  let total = 0;
  /** @param {number} offset */
  const read = async (offset) => {
    const page = await context.api.get(`${pathOf(board)}/leaderboard`, { season, limit: RANKS, offset });
    total = page.total;
    const end = Number(offset) + RANKS;
    return { ...page, next: end < total ? end : null };
  };
  /** @param {TopRow} row */
  const cells = ({ rank, userId, score }) => [
    String(rank),
    link(context.addressOf("players", userId, board), identifier(userId)),
    formatNumber(score),
  ];
  const shown = await paged(context, read, "leaderboard", `Standings of ${season ?? board}`, RANK_COLUMNS, cells);
  const back = season === undefined
    ? link(context.addressOf("boards"), "All boards")
    : link(context.addressOf("seasons", board), `All seasons of ${board}`);
  return [
    make("p", {}, back, total === 1 ? " · 1 player" : ` · ${formatNumber(total)} players`),
    ...shown,
  ];
}

/** @param {string} board */
function pathOf(board) {
  return `/boards/${encodeURIComponent(board)}`;
}
