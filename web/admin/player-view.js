/**
 * The search of players, and a player: scores on every board, history as a plot, acts.
 *
 * @typedef {import("./api.js").Act} Act
 * @typedef {import("./api.js").HistoryRow} HistoryRow
 * @typedef {import("./api.js").Kind} Kind
 * @typedef {import("./api.js").UserBoard} UserBoard
 * @typedef {import("./api.js").UserSeason} UserSeason
 * @typedef {import("./main.js").Context} Context
 */

import { openActDialog } from "./act-dialog.js";
import { actList } from "./act-list.js";
import { ApiError } from "./api.js";
import { button, field, identifier, input, link, make, table } from "./elements.js";
import { plot } from "./plot.js";
import { formatDelta, formatMoment, formatNumber, NONE, toLocal } from "./words.js";

const HISTORY_PAGE = 100;
/** Actions of the plot; a longer history is read on the command line. */
const HISTORY_MAX = 2_000;

/** @param {Context} context */
export function showPlayers(context) {
  return context.args[0] === undefined ? showSearch(context) : showPlayer(context);
}

/** @param {Context} context */
async function showSearch(context) {
  const query = context.filters.query ?? "";
  const search = input("query", {
    type: "search", value: query, required: true, minlength: 2, maxlength: 128, spellcheck: "false",
  });
  const form = make("form", { class: "filters", role: "search" },
    field("Player", search, "The id, or how the id or the name begins; at least 2 characters."),
    make("button", { type: "submit", class: "button primary" }, "Search"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    context.filter({ query: search.value.trim() });
  });
  if (query.length < 2) return [form];
  const { users } = await context.api.get("/users", { query });
  if (!users.length) {
    return [form, make("p", { class: "hint" }, "No player is found. ",
      link(context.addressOf("players", query), "Show this id"), " to ban who has not played yet.")];
  }
  return [
    form,
    table("Players found", [{ head: "Player" }, { head: "Name" }],
      users.map((/** @type {{userId: string, name: string | null}} */ { userId, name }) => [
        link(context.addressOf("players", userId), identifier(userId)),
        name === null ? NONE : identifier(name),
      ])),
    users.length < 20 ? null : make("p", { class: "hint" }, "Only 20 are shown; type more of the id."),
  ];
}

/** @param {Context} context */
async function showPlayer(context) {
  const [userId, wanted] = context.args;
  const { name, boards, seasons } = await readPlayer(context, userId);
  context.setHeading(userId);
  const board = wanted ?? boards[0]?.board;
  const chosen = boards.find((one) => one.board === board);
  const parts = [
    make("p", { class: "lead" }, link(context.addressOf("players"), "All players"),
      ...(name === null ? [] : [" · Name: ", identifier(name)])),
    boards.length ? boardTable(context, userId, boards, chosen) : null,
    seasons.length ? seasonTable(context, seasons) : null,
    boardForm(context, userId),
  ];
  if (board === undefined) {
    return [...parts, make("p", { class: "hint" }, "The player has no score on any board.")];
  }
  const heading = make("h2", {}, "On ", identifier(board));
  /** @type {Act[]} */
  const acts = [];
  const list = async () => [
    make("h2", {}, `Acts on ${board}`),
    ...(await actList(context, { board, userId }, (page) => acts.push(...page))),
  ];
  if (chosen === undefined) {
    const none = { board, score: null, rank: null, bannedBy: null };
    return [...parts, heading, make("p", { class: "hint" }, `The player has no score on ${board}.`),
      actButtons(context, userId, none, []), ...(await list())];
  }
  const [history, listed] = await Promise.all([readHistory(context, userId, board, ""), list()]);
  return [
    ...parts,
    heading,
    actButtons(context, userId, chosen, history.history),
    historyOf(context, userId, board, history, acts),
    ...listed,
  ];
}

/**
 * Read a player; one who has never played has no name and no board, and can be banned.
 *
 * @param {Context} context
 * @param {string} userId
 * @returns {Promise<{name: string | null, boards: UserBoard[], seasons: UserSeason[]}>}
 */
async function readPlayer({ api }, userId) {
  try {
    return await api.get(`/users/${encodeURIComponent(userId)}`);
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return { name: null, boards: [], seasons: [] };
    throw error;
  }
}

/**
 * Return a form that shows the player on a board without a score, for example to ban there.
 *
 * @param {Context} context
 * @param {string} userId
 */
function boardForm(context, userId) {
  const name = input("board", { maxlength: 32, required: true, spellcheck: "false" });
  const form = make("form", { class: "filters" }, field("Another board", name),
    make("button", { type: "submit", class: "button" }, "Show"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.hash = context.addressOf("players", userId, name.value.trim());
  });
  return form;
}

/**
 * @param {Context} context
 * @param {string} userId
 * @param {UserBoard[]} boards
 * @param {UserBoard | undefined} chosen
 */
function boardTable(context, userId, boards, chosen) {
  const columns = [
    { head: "Board" }, { head: "Score", isNumber: true }, { head: "Rank", isNumber: true }, { head: "State" },
  ];
  return table("Scores by board", columns, boards.map((one) => {
    const { board, score, rank, bannedBy } = one;
    const address = link(context.addressOf("players", userId, board), board);
    if (one === chosen) address.setAttribute("aria-current", "true");
    const state = bannedBy === null
      ? make("span", { class: "badge", "data-state": "open" }, rank === null ? "no rank" : "ranked")
      : make("span", { class: "badge", "data-state": "closed", title: `by act ${bannedBy}` }, "banned");
    return [address, formatNumber(score), formatNumber(rank), state];
  }));
}

/**
 * @param {Context} context
 * @param {UserSeason[]} seasons
 */
function seasonTable(context, seasons) {
  const columns = [
    { head: "Ended season" }, { head: "Board" }, { head: "Score", isNumber: true }, { head: "Rank", isNumber: true },
  ];
  return table("Ended seasons", columns, seasons.map(({ board, season, score, rank }) => [
    season, link(context.addressOf("seasons", board), board), formatNumber(score), formatNumber(rank),
  ]));
}

/**
 * @param {Context} context
 * @param {string} userId
 * @param {UserBoard} chosen
 * @param {HistoryRow[]} history  latest first; a window to void is all of it at first
 */
function actButtons(context, userId, { board, bannedBy }, history) {
  /**
   * @param {string} text
   * @param {Kind} kind
   * @param {string} className
   */
  const act = (text, kind, className) => button(text, () => {
    const window = kind === "void window" ? windowOf(history) : {};
    openActDialog(context.api, { kind, board, userId }, `${text}: ${userId} on ${board}`, context.refresh, window);
  }, { class: className });
  return make("div", { class: "buttons" },
    bannedBy === null ? act("Ban", "ban", "button danger") : act("Unban", "unban", "button"),
    act("Correct the score", "correct", "button"),
    act("Void an action", "void", "button"),
    act("Void actions of a time", "void window", "button"));
}

/**
 * Return the window of a history as local times, in whole seconds.
 *
 * @param {HistoryRow[]} history
 * @returns {{[name: string]: string}}
 */
function windowOf(history) {
  if (!history.length) return {};
  const first = history[history.length - 1].at;
  return { since: toLocal(first), until: toLocal(history[0].at + 1_000) };
}

/**
 * @param {Context} context
 * @param {string} userId
 * @param {string} board
 * @param {string} before
 * @returns {Promise<{history: HistoryRow[], next?: string}>}
 */
function readHistory(context, userId, board, before) {
  const path = `/users/${encodeURIComponent(userId)}/history`;
  return context.api.get(path, { board, limit: HISTORY_PAGE, before });
}

/**
 * Return the plot and the table of a history, with a button for earlier actions.
 *
 * @param {Context} context
 * @param {string} userId
 * @param {string} board
 * @param {{history: HistoryRow[], next?: string}} first
 * @param {Act[]} acts
 */
function historyOf(context, userId, board, first, acts) {
  const shown = make("div", {});
  let { history, next } = first;
  let isOpen = false;
  const show = () => {
    if (!history.length) {
      shown.replaceChildren(make("p", { class: "hint" }, "No action is in the ledger yet."));
      return;
    }
    const more = button("Load earlier actions", () => context.work(async () => {
      const page = await readHistory(context, userId, board, next ?? "");
      history = [...history, ...page.history];
      next = page.next;
      show();
      return `${history.length} actions are shown.`;
    }, { isChange: false }));
    more.hidden = next === undefined || history.length >= HISTORY_MAX;
    const details = make("details", { open: isOpen },
      make("summary", {}, "The same as a table, to void single actions"),
      historyTable(context, userId, board, history, acts));
    details.addEventListener("toggle", () => {
      isOpen = details.open;
    });
    shown.replaceChildren(
      make("div", { class: "card plot-card" }, plot(history)),
      make("p", { class: "hint" }, next === undefined
        ? `All ${history.length} actions are shown.`
        : `The latest ${history.length} actions are shown.`),
      more,
      details,
    );
  };
  show();
  return shown;
}

/**
 * @param {Context} context
 * @param {string} userId
 * @param {string} board
 * @param {HistoryRow[]} history
 * @param {Act[]} acts  which are undone, not voided
 */
function historyTable(context, userId, board, history, acts) {
  const rowsOfActs = new Set(acts.map(({ id }) => `act:${id}`));
  const columns = [
    { head: "When" }, { head: "Action" }, { head: "Points", isNumber: true },
    { head: "Score after", isNumber: true }, { head: "" },
  ];
  return table("History of the score", columns, history.map(({ actionId, delta, score, at }) => [
    formatMoment(at),
    identifier(actionId),
    formatDelta(delta),
    formatNumber(score),
    rowsOfActs.has(actionId) ? null : button("Void", () => openActDialog(
      context.api,
      { kind: "void", board, userId, actionId },
      `Void ${actionId} of ${userId} on ${board}`,
      context.refresh,
    ), { "aria-label": `Void ${actionId}` }),
  ]));
}
