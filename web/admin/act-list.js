/**
 * A list of acts, in pages, with buttons to undo applied acts and to complete interrupted ones.
 *
 * @typedef {import("./api.js").Act} Act
 * @typedef {import("./main.js").Context} Context
 */

import { openActDialog } from "./act-dialog.js";
import { button, identifier, link, make, paged } from "./elements.js";
import { canUndo, formatDelta, formatMoment, KINDS } from "./words.js";

const PAGE = 100;
const COLUMNS = [
  { head: "When" }, { head: "Act" }, { head: "Player" }, { head: "Board" },
  { head: "Points", isNumber: true }, { head: "Reason" }, { head: "By" }, { head: "State" }, { head: "" },
];

/**
 * Return the table of acts, or a sentence if there are none.
 *
 * @param {Context} context
 * @param {{[name: string]: string}} filters
 * @param {(acts: Act[]) => void} [onRead]  gets each page
 */
export function actList(context, filters, onRead) {
  /** @param {string} before */
  const read = async (before) => {
    const page = await context.api.get("/acts", { ...filters, limit: PAGE, before });
    onRead?.(page.acts);
    return page;
  };
  /** @param {Act} act */
  const cells = (act) => [
    formatMoment(act.at),
    make("span", { title: act.id }, KINDS[act.kind] ?? act.kind),
    link(context.addressOf("players", act.userId, act.board), identifier(act.userId)),
    act.board,
    formatDelta(act.delta),
    identifier(act.reason),
    identifier(act.actor),
    stateOf(act),
    actionOf(context, act),
  ];
  return paged(context, read, "acts", "Acts", COLUMNS, cells);
}

/** @param {Act} act */
function stateOf({ state, undoneBy, undoes }) {
  const word = make("span", { class: "badge", "data-state": state }, state);
  if (undoneBy !== null) word.append(", undone");
  if (undoes !== null) word.title = `undoes ${undoes}`;
  return word;
}

/**
 * @param {Context} context
 * @param {Act} act
 */
function actionOf(context, act) {
  const what = `${KINDS[act.kind] ?? act.kind} of ${act.userId} on ${act.board}`;
  if (canUndo(act)) {
    return button("Undo", () => {
      openActDialog(context.api, { kind: "undo", act: act.id }, `Undo: ${what}`, context.refresh);
    }, { "aria-label": `Undo: ${what}` });
  }
  if (act.state !== "pending") return null;
  const resume = button("Complete", () => context.work(async () => {
    const done = await context.api.post(`/acts/${act.id}/resume`);
    return done.committed ? "The act is complete." : "The act is applied; PostgreSQL has not confirmed it yet.";
  }), { "aria-label": `Complete: ${what}` });
  return resume;
}
