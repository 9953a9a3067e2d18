/**
 * The view of held actions: they exceeded a limit of their board, and count if they are released.
 *
 * @typedef {import("./api.js").HeldAction} HeldAction
 * @typedef {import("./main.js").Context} Context
 */

import { openActDialog } from "./act-dialog.js";
import { BULK_MAX, openBulkDialog } from "./bulk-dialog.js";
import { button, field, filterForm, identifier, input, link, make, oneLine, paged, reasonField, select } from "./elements.js";
import { formatDelta, formatMoment, toMoment } from "./words.js";

const PAGE = 50;
/** @type {[string, string][]} */
const STATES = [
  ["any", "any"], ["held", "held"], ["pending", "pending"], ["released", "released"], ["voided", "voided"],
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
  const { state, since, ...others } = filters;
  const query = { ...others, state: state === "any" ? "" : state, since: since && toMoment(since), limit: PAGE };
  /** @type {Map<string, HeldAction>} */
  const shown = new Map();
  /** @param {number} after */
  const read = (after) => context.api.get("/held", { ...query, after });
  /** @param {HeldAction} one */
  const cells = (one) => {
    shown.set(String(one.id), one);
    return cellsOf(context, one);
  };
  const list = make("div", {}, ...(await paged(context, read, "held", "Held actions", COLUMNS, cells)));
  return [
    filterForm(context.filter, [
      field("Board", input("board", { value: filters.board ?? "", maxlength: 32 })),
      field("Player", input("userId", { value: filters.userId ?? "", maxlength: 128 })),
      field("State", select("state", STATES, state)),
      field("Limit", select("exceeded", [["", "any"], ...Object.entries(LIMITS)], filters.exceeded)),
      field("Since", input("since", { type: "datetime-local", value: since ?? "" })),
    ]),
    list,
    selectionOf(context, list, shown),
    make("p", { class: "hint" }, "The oldest first. A held action counts only if it is released; " +
      "a release can be undone, a void cannot."),
  ];
}

/**
 * Return what is done with the selected actions; hidden if none can be selected.
 *
 * @param {Context} context
 * @param {HTMLElement} list
 * @param {Map<string, HeldAction>} shown  by id
 */
function selectionOf(context, list, shown) {
  /** @returns {HTMLInputElement[]} */
  const boxes = () => [...list.querySelectorAll("input")];
  const chosen = () => boxes().flatMap(({ checked, value }) => (checked ? [shown.get(value)] : []))
    .filter((one) => one !== undefined);
  const all = make("input", { type: "checkbox" });
  const count = make("span", { role: "status" });
  /** @param {"release" | "void"} kind */
  const open = (kind) => openBulkDialog(context.api, kind, chosen(), context.refresh);
  const release = button("Release selected", () => open("release"));
  const refuse = button("Void selected", () => open("void"));
  const update = () => {
    const size = chosen().length;
    const isTooMany = size > BULK_MAX;
    count.textContent = isTooMany ? `${size} selected; at most ${BULK_MAX} at once` : `${size} selected`;
    for (const one of [release, refuse]) one.disabled = size === 0 || isTooMany;
    all.checked = size > 0 && size === boxes().length;
    all.indeterminate = size > 0 && !all.checked;
  };
  all.addEventListener("change", () => {
    for (const box of boxes()) box.checked = all.checked;
    update();
  });
  list.addEventListener("change", update);
  new MutationObserver(update).observe(list, { childList: true, subtree: true }); // more rows
  update();
  const bar = make("div", { class: "selection card", role: "group", "aria-label": "Selected actions" },
    make("label", { class: "pick" }, all, "All shown"), count, release, refuse);
  bar.hidden = boxes().length === 0;
  return bar;
}

/**
 * @param {Context} context
 * @param {HeldAction} one
 */
function cellsOf(context, one) {
  const what = `${one.actionId} of ${one.userId} on ${one.board}`;
  const when = formatMoment(one.occurredAt);
  return [
    one.state === "held"
      ? make("label", { class: "pick" },
        make("input", { type: "checkbox", value: one.id, "aria-label": `Select ${what}` }), when)
      : when,
    link(context.addressOf("players", one.userId, one.board), identifier(one.userId)),
    one.season === null ? one.board : `${one.board}, ${one.season}`,
    identifier(one.actionId),
    formatDelta(one.delta),
    LIMITS[one.limit] ?? one.limit,
    stateOf(context, one),
    one.state === "held" ? buttonsOf(context, one, what) : null,
  ];
}

/**
 * @param {Context} context
 * @param {HeldAction} one
 */
function stateOf(context, { state, act, board, userId, voidedBy, voidedReason }) {
  const word = make("span", { class: "badge", "data-state": state }, state);
  if (voidedReason !== null) {
    return make("span", {}, word, " by ", identifier(voidedBy ?? ""), ": ", identifier(voidedReason));
  }
  if (state === "held" || act === null) return word;
  const query = new URLSearchParams({ board, userId });
  return make("span", {}, word, " by an ", link(`${context.addressOf("acts")}?${query}`, "act"));
}

/**
 * @param {Context} context
 * @param {HeldAction} one
 * @param {string} what
 */
function buttonsOf(context, { id, board, season }, what) {
  return make("span", { class: "row-buttons" },
    button("Release", () => {
      openActDialog(context.api, { kind: "release", board, held: id }, `Release ${what}`, context.refresh,
        { season: season ?? "" });
    }, { "aria-label": `Release ${what}` }),
    button("Void", () => {
      context.confirm(`Void ${what}? It then never counts.`, async ({ reason }) => {
        await context.api.post(`/held/${id}/void`, { reason: oneLine(reason) });
        return "The action is voided.";
      }, reasonField("Kept with the action and in the audit log."));
    }, { "aria-label": `Void ${what}` }));
}
