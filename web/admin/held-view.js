/**
 * The view of held actions: they exceeded a limit of their board, and count if they are released.
 *
 * @typedef {import("./api.js").HeldAction} HeldAction
 * @typedef {import("./main.js").Context} Context
 */

import { openActDialog } from "./act-dialog.js";
import { button, field, filterForm, identifier, input, link, make, oneLine, reasonField, select, table } from "./elements.js";
import { formatDelta, formatMoment } from "./words.js";

const PAGE = 100;
/** @type {[string, string][]} */
const STATES = [
  ["", "any"], ["held", "held"], ["pending", "pending"], ["released", "released"], ["voided", "voided"],
];
const LIMITS = { action: "points of an action", window: "points of a time" };

const COLUMNS = [
  { head: "When" }, { head: "Player" }, { head: "Board" }, { head: "Action" },
  { head: "Points", isNumber: true }, { head: "Limit" }, { head: "State" }, { head: "" },
];

/** @param {Context} context */
export async function showHeld(context) {
  /** @type {{[name: string]: string}} */
  const filters = { state: "held", ...context.filters };
  const { held } = await context.api.get("/held", { ...filters, limit: PAGE });
  return [
    filterForm(context.filter, [
      field("Board", input("board", { value: filters.board ?? "", maxlength: 32 })),
      field("Player", input("userId", { value: filters.userId ?? "", maxlength: 128 })),
      field("State", select("state", STATES, filters.state)),
    ]),
    held.length
      ? table("Held actions", COLUMNS, held.map((/** @type {HeldAction} */ one) => cellsOf(context, one)))
      : make("p", { class: "hint" }, "There are no such actions."),
    make("p", { class: "hint" }, `At most the ${PAGE} oldest. A held action counts only if it is released; ` +
      "a release can be undone, a void cannot."),
  ];
}

/**
 * @param {Context} context
 * @param {HeldAction} one
 */
function cellsOf(context, one) {
  const state = make("span", { class: "badge", "data-state": one.state }, one.state);
  if (one.voidedReason !== null) state.title = `${one.voidedBy}: ${one.voidedReason}`;
  return [
    formatMoment(one.occurredAt),
    link(context.addressOf("players", one.userId, one.board), identifier(one.userId)),
    one.season === null ? one.board : `${one.board}, ${one.season}`,
    identifier(one.actionId),
    formatDelta(one.delta),
    LIMITS[one.limit] ?? one.limit,
    state,
    one.state === "held" ? buttonsOf(context, one) : null,
  ];
}

/**
 * @param {Context} context
 * @param {HeldAction} one
 */
function buttonsOf(context, { id, board, userId, actionId }) {
  const what = `${actionId} of ${userId} on ${board}`;
  return make("span", { class: "row-buttons" },
    button("Release", () => {
      openActDialog(context.api, { kind: "release", board, held: id }, `Release ${what}`, context.refresh);
    }, { "aria-label": `Release ${what}` }),
    button("Void", () => {
      context.confirm(`Void ${what}? It then never counts.`, async ({ reason }) => {
        await context.api.post(`/held/${id}/void`, { reason: oneLine(reason) });
        return "The action is voided.";
      }, reasonField("Kept with the action and in the audit log."));
    }, { "aria-label": `Void ${what}` }));
}
