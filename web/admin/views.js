/**
 * The views of boards, acts and the audit log.
 *
 * A view fetches first and returns its elements; it may be called again to refresh them.
 *
 * @typedef {import("./api.js").AdminBoard} AdminBoard
 * @typedef {import("./api.js").AuditRow} AuditRow
 * @typedef {import("./main.js").Context} Context
 */

import { actList } from "./act-list.js";
import { button, field, filterForm, identifier, input, link, make, paged, select, valuesOf } from "./elements.js";
import { describeLimits, describeRules, formatMoment, formatNumber, formatSeconds } from "./words.js";

const BOARD_PATTERN = "(?!\\.\\.?$)[a-z0-9_.\\-]{1,32}";
const SCORE_MAX = 2 ** 31 - 1;
const PAGE = 50;
const SEEN_HOURS = 12;
const SEEN_HOURS_MAX = 596_523; // 2³¹ seconds

// --- boards ---

const BOARD_COLUMNS = [
  { head: "Board" }, { head: "State" }, { head: "Readable by" }, { head: "Players", isNumber: true },
  { head: "Rules" }, { head: "Partitions", isNumber: true }, { head: "" },
];

/** @param {Context} context */
export async function showBoards(context) {
  /** @param {string} after */
  const read = (after) => context.api.get("/boards", { limit: PAGE, after });
  /** @param {AdminBoard} board */
  const cells = (board) => boardCells(context, board);
  return [
    ...(await paged(context, read, "boards", "Boards", BOARD_COLUMNS, cells)),
    newBoardForm(context),
  ];
}

/**
 * @param {Context} context
 * @param {AdminBoard} board
 */
function boardCells(context, { name, state, public: isPublic, users, rules, partitions, limits, seenSeconds }) {
  /** @param {object} wanted */
  const send = async (wanted) => {
    await context.api.patch(`/boards/${encodeURIComponent(name)}`, wanted);
    return `Board ${name} is changed.`;
  };
  /**
   * @param {string} text
   * @param {object} wanted
   * @param {string} question
   */
  const change = (text, wanted, question) =>
    button(text, () => context.confirm(question, () => send(wanted)), { "aria-label": `${text}: ${name}` });
  const askLimits = () => context.confirm(
    `Limits of ${name}: actions that exceed one are held until an administrator decides. 0: no limit.`,
    (values) => send({ limits: limitsOf(values) }),
    ...limitFields(limits, rules.operator === "add"),
  );
  const isOpen = state === "open";
  const { season } = rules;
  return [
    link(`/?board=${encodeURIComponent(name)}`, name),
    make("span", { class: "badge", "data-state": state }, state),
    isPublic ? "everyone" : "token holders",
    formatNumber(users),
    [describeRules(rules), describeLimits(limits), describeMemory(seenSeconds)].filter(Boolean).join(", "),
    String(partitions),
    make("span", { class: "row-buttons" },
      link(context.addressOf("standings", name), "Standings"),
      season ? link(context.addressOf("seasons", name), "Seasons") : null,
      button("Limits", askLimits, { "aria-label": `Limits: ${name}` }),
      isPublic
        ? change("Make private", { public: false }, `Make ${name} private? Viewers without a token are disconnected.`)
        : change("Make public", { public: true }, `Make ${name} public? Everyone can then read it.`),
      isOpen
        ? change("Archive", { state: "archived" }, `Archive ${name}? It then accepts no actions, and can still be read.`)
        : change("Open", { state: "open" }, `Open ${name} again? It then accepts actions.`)),
  ];
}

/** @param {number} seconds */
function describeMemory(seconds) {
  return seconds === SEEN_HOURS * 3_600 ? "" : `actions remembered for ${formatSeconds(seconds)}`;
}

/**
 * @param {import("./api.js").Limits} limits
 * @param {boolean} hasWindow
 */
function limitFields({ pointsPerAction, pointsPerWindow, windowS }, hasWindow) {
  const points = { type: "number", min: 0, max: SCORE_MAX, step: 1, required: true };
  const fields = [field("Points of an action", input("pointsPerAction", { ...points, value: pointsPerAction }))];
  if (!hasWindow) return fields;
  return [
    ...fields,
    field("Points of a user in a time", input("pointsPerWindow", { ...points, value: pointsPerWindow })),
    field("Length of the time in seconds", input("windowS", { ...points, value: windowS })),
  ];
}

/** @param {{[name: string]: string}} values */
function limitsOf(values) {
  const numbers = Object.entries(values).map(([name, text]) => [name, Number(text)]);
  return { pointsPerAction: 0, pointsPerWindow: 0, windowS: 0, ...Object.fromEntries(numbers) };
}

/** @param {Context} context */
function newBoardForm(context) {
  const bounds = { type: "number", min: 0, max: SCORE_MAX, step: 1, required: true };
  const form = make(
    "form",
    { class: "card form" },
    field("Name", input("name", { required: true, pattern: BOARD_PATTERN, maxlength: 32, spellcheck: "false" }),
      "Up to 32 characters: a–z, 0–9, dot, dash, underscore. It can never be used for another board."),
    field("Actions", select("operator", [
      ["add", "add their points"], ["best", "count if they are the best value"], ["last", "set the value"],
    ])),
    field("First rank", select("order", [["highest", "the highest score"], ["lowest", "the lowest score"]])),
    field("Lowest score", input("min", { ...bounds, value: 0 })),
    field("Highest score", input("max", { ...bounds, value: SCORE_MAX })),
    onlyFor("operator=add", field("Who may lower a score", select("lowering", [
      ["nobody", "nobody"], ["trusted", "game servers"], ["players", "players"],
    ]))),
    field("Points", select("points", [["catalogue", "from the catalogue"], ["stated", "stated by the caller"]])),
    field("Seasons", select("season", [
      ["", "none"], ["daily", "a day"], ["weekly", "a week"], ["monthly", "a month"], ["cron", "by a cron expression"],
    ]), "Scores begin anew with each season; the standings of earlier ones are kept."),
    onlyFor("season=cron", field("Cron expression",
      input("cron", { required: true, maxlength: 95, spellcheck: "false", placeholder: "0 6 * * 1" }),
      "Minute, hour, day, month, day of the week: when a season begins.")),
    onlyFor("season", field("Time zone of the seasons",
      input("timeZone", { maxlength: 64, spellcheck: "false", placeholder: "UTC" }), "For example Europe/Berlin.")),
    field("Readable by", select("public", [["true", "everyone"], ["false", "token holders"]])),
    field("Remember actions for, in hours",
      input("seenHours", { type: "number", min: 1, max: SEEN_HOURS_MAX, step: 1, required: true, value: SEEN_HOURS }),
      "A repeat within this time gets the first answer. PostgreSQL counts each action once, also later."),
    field("Limit: points of an action", input("pointsPerAction", { ...bounds, value: 0 }),
      "What exceeds a limit is held until an administrator decides. 0: no limit."),
    onlyFor("operator=add", field("Limit: points of a user in a time", input("pointsPerWindow", { ...bounds, value: 0 }))),
    onlyFor("operator=add", field("Length of this time in seconds", input("windowS", { ...bounds, value: 0 }),
      "From 10 seconds to 31 days.")),
    make("div", { class: "buttons" }, make("button", { type: "submit", class: "button primary" }, "Make the board")),
  );
  form.addEventListener("change", () => showFitting(form));
  showFitting(form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const { name, public: isPublic, min, max, seenHours, season, cron, timeZone, operator, order, lowering, points,
      ...limits } = valuesOf(form);
    context.work(async () => {
      await context.api.post("/boards", {
        name,
        public: isPublic === "true",
        rules: {
          operator, order, points, lowering, timeZone, min: Number(min), max: Number(max),
          season: season === "cron" ? `cron:${cron}` : season,
        },
        limits: limitsOf(limits),
        seenSeconds: Number(seenHours) * 3_600,
      });
      return `Board ${name} is open.`;
    });
  });
  return make("details", {}, make("summary", {}, "New board"),
    make("p", { class: "hint" }, "The rules of a board can never be changed; its limits can."), form);
}

/**
 * Return a field that is shown only if another control has a value, or with `name=value` this one.
 *
 * @param {string} condition
 * @param {HTMLElement} shown
 */
function onlyFor(condition, shown) {
  shown.dataset.only = condition;
  return shown;
}

/**
 * Show the fields that fit the others; hidden ones are disabled, and so are no values of the form.
 *
 * @param {HTMLFormElement} form
 */
function showFitting(form) {
  for (const one of /** @type {NodeListOf<HTMLElement>} */ (form.querySelectorAll("[data-only]"))) {
    const [name, wanted] = (one.dataset.only ?? "").split("=");
    const { value } = /** @type {HTMLSelectElement} */ (form.elements.namedItem(name));
    one.hidden = wanted === undefined ? value === "" : value !== wanted;
    for (const control of one.querySelectorAll("input, select")) control.toggleAttribute("disabled", one.hidden);
  }
}

// --- acts ---

/** @param {Context} context */
export async function showActs(context) {
  const filters = context.filters;
  return [
    filterForm(context.filter, [
      field("Board", input("board", { value: filters.board ?? "", maxlength: 32 })),
      field("Player", input("userId", { value: filters.userId ?? "", maxlength: 128 })),
      field("State", select("state", [
        ["", "any"], ["applied", "applied"], ["pending", "pending"], ["refused", "refused"],
      ], filters.state)),
    ]),
    ...(await actList(context, filters)),
    make("p", { class: "hint" }, "The latest first. A pending act is recorded and not in the ledger yet: " +
      "for a moment, or because it was interrupted. Complete it if it stays."),
  ];
}

// --- the audit log ---

const AUDIT_COLUMNS = [
  { head: "When" }, { head: "Actor" }, { head: "Action" }, { head: "Board" }, { head: "Detail" },
];

/** @param {Context} context */
export async function showAudit(context) {
  const filters = context.filters;
  /** @param {string} before */
  const read = (before) => context.api.get("/audit", { ...filters, limit: PAGE, before });
  return [
    filterForm(context.filter, [
      field("Actor", input("actor", { value: filters.actor ?? "", maxlength: 256 })),
      field("Action", input("action", { value: filters.action ?? "", maxlength: 64 }), "For example: board create"),
      field("Board", input("board", { value: filters.board ?? "", maxlength: 32 })),
      field("Player", input("userId", { value: filters.userId ?? "", maxlength: 128 })),
    ]),
    ...(await paged(context, read, "rows", "Audit log", AUDIT_COLUMNS, auditCells)),
  ];
}

/** @param {AuditRow} row */
function auditCells({ at, actor, action, board, detail }) {
  return [
    formatMoment(at), identifier(actor), action, board ?? "",
    make("span", { class: "detail-text" }, ...Object.entries(detail).flatMap(([name, value]) =>
      [make("b", {}, name), ` ${typeof value === "string" ? value : JSON.stringify(value)} `])),
  ];
}
