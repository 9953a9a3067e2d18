/**
 * The dialog of an act: what to do and why, then a preview, then the confirmation.
 *
 * Invariants: nothing is done without a preview of exactly this act; an act keeps its id however
 * often it is sent, so that it is done once.
 *
 * @typedef {import("./api.js").AdminApi} AdminApi
 * @typedef {import("./api.js").Done} Done
 * @typedef {import("./api.js").Kind} Kind
 * @typedef {import("./api.js").Plan} Plan
 * @typedef {import("./api.js").Preview} Preview
 * @typedef {import("./api.js").TopRow} TopRow
 * @typedef {Partial<Plan> & Pick<Plan, "kind">} Chosen
 */

import { ApiError, newActId } from "./api.js";
import { button, field, identifier, input, make, oneLine, reasonField, table, valuesOf } from "./elements.js";
import { formatDelta, formatNumber, KINDS } from "./words.js";

/**
 * Ask for the rest of an act, preview it and perform it.
 *
 * @param {AdminApi} api
 * @param {Chosen} chosen  what is known already
 * @param {string} title
 * @param {() => void} onDone  called when the dialog is closed after the act was done
 * @param {{[name: string]: string}} [values]  first values of the fields
 */
export function openActDialog(api, chosen, title, onDone, values = {}) {
  new ActDialog(api, chosen, title, onDone, values);
}

class ActDialog {
  /** @type {AdminApi} */ #api;
  /** @type {Chosen} */ #chosen;
  /** @type {HTMLDialogElement} */ #dialog;
  /** @type {HTMLFormElement} */ #form;
  /** @type {Plan | null} */ #previewed = null;
  #id = "";
  #isSent = false;
  #isBusy = false;
  #isDone = false;

  #preview = make("div", { class: "preview" });
  #message = make("p", { class: "message", role: "status" });
  #show = make("button", { type: "submit", class: "button" }, "Preview");
  #confirm = button("Confirm", () => this.#perform(), { class: "button primary" });
  #close = button("Cancel", () => this.#isBusy || this.#dialog.close(), { class: "button quiet" });

  /**
   * @param {AdminApi} api
   * @param {Chosen} chosen
   * @param {string} title
   * @param {() => void} onDone
   * @param {{[name: string]: string}} values
   */
  constructor(api, chosen, title, onDone, values) {
    this.#api = api;
    this.#chosen = chosen;
    this.#form = make(
      "form",
      { class: "act" },
      ...fieldsOf(chosen, values),
      reasonField("Kept with the act and in the audit log."),
      this.#preview,
      this.#message,
      make("div", { class: "buttons" }, this.#show, this.#confirm, this.#close),
    );
    const heading = make("h2", { id: "act-title" }, title);
    this.#dialog = make("dialog", { "aria-labelledby": "act-title" }, heading, this.#form);
    this.#confirm.hidden = true;
    this.#form.addEventListener("input", () => this.#discardPreview());
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#showPreview();
    });
    this.#dialog.addEventListener("cancel", (event) => this.#isBusy && event.preventDefault());
    this.#dialog.addEventListener("close", () => {
      this.#dialog.remove();
      // If the outcome is unknown, the view may show it.
      if (this.#isSent) onDone();
    });
    document.body.append(this.#dialog);
    this.#dialog.showModal();
  }

  /** A preview is of one act; a change makes it another act. */
  #discardPreview() {
    this.#previewed = null;
    this.#confirm.hidden = true;
    this.#show.hidden = false;
    this.#preview.replaceChildren();
    this.#say("");
  }

  async #showPreview() {
    if (this.#isBusy || this.#isDone) return;
    const { reason, ...values } = valuesOf(this.#form);
    if (!reason) {
      this.#say("Give a reason.", "trouble");
      return;
    }
    const plan = planOf(this.#chosen, values);
    await this.#work("Computing the preview", "", async () => {
      const preview = await this.#api.post("/acts/preview", plan);
      this.#previewed = plan;
      this.#id = newActId();
      this.#preview.replaceChildren(...previewOf(preview));
      this.#say("Nothing is changed yet.");
      this.#show.hidden = true;
      this.#confirm.hidden = false;
      this.#confirm.textContent = `${KINDS[plan.kind]}: ${preview.userId} on ${preview.board}`;
      this.#confirm.focus();
    });
  }

  async #perform() {
    if (this.#isBusy || this.#isDone || this.#previewed === null) return;
    const plan = this.#previewed;
    const reason = oneLine(valuesOf(this.#form).reason);
    this.#isSent = true;
    await this.#work("Working", " Press again: the act is done once.", async () => {
      const done = await this.#api.post("/acts", { ...plan, id: this.#id, reason });
      this.#isDone = true;
      this.#preview.replaceChildren();
      for (const control of this.#form.elements) {
        if (control !== this.#close) control.toggleAttribute("disabled", true);
      }
      this.#confirm.hidden = true;
      this.#close.textContent = "Close";
      this.#close.focus();
      this.#say(doneText(plan.kind, done));
    });
  }

  /**
   * @param {string} text
   * @param {string} advice  for a temporary error
   * @param {() => Promise<void>} task
   */
  async #work(text, advice, task) {
    this.#isBusy = true;
    this.#say(text);
    this.#form.setAttribute("aria-busy", "true");
    // Fields that change meanwhile would not be those of the preview.
    const controls = [...this.#form.querySelectorAll("input, textarea")];
    for (const control of controls) control.toggleAttribute("readonly", true);
    try {
      await task();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.#say(error.message + (error.isTemporary ? advice : ""), "trouble");
    } finally {
      this.#isBusy = false;
      this.#form.removeAttribute("aria-busy");
      for (const control of controls) control.toggleAttribute("readonly", false);
    }
  }

  /**
   * @param {string} text
   * @param {"" | "trouble"} [mood]
   */
  #say(text, mood = "") {
    this.#message.textContent = text;
    this.#message.dataset.mood = mood;
  }
}

/**
 * @param {Chosen} chosen
 * @param {{[name: string]: string}} values
 */
function fieldsOf({ kind, actionId }, values) {
  if (kind === "correct") {
    const delta = input("delta", { type: "number", step: 1, required: true, inputmode: "text" });
    return [field("Points to add", delta, "A negative number takes points away, for example -5.")];
  }
  if (kind === "void" && actionId === undefined) {
    return [field("Action id", input("actionId", { required: true, maxlength: 128, spellcheck: "false" }))];
  }
  if (kind === "void window") {
    const attributes = { type: "datetime-local", step: 1, required: true };
    return [
      field("From", input("since", { ...attributes, value: values.since ?? null })),
      field("Until, not included", input("until", { ...attributes, value: values.until ?? null })),
    ];
  }
  if (kind === "release" && values.season) {
    const box = make("input", { type: "checkbox", name: "inCurrentSeason" });
    return [make("label", { class: "pick" }, box, `Count in the current season, also if ${values.season} is over`)];
  }
  return [];
}

/**
 * @param {Chosen} chosen
 * @param {{[name: string]: string}} values  of the form
 * @returns {Plan}
 */
function planOf(chosen, values) {
  /** @type {Plan} */
  const plan = { ...chosen };
  if (values.delta !== undefined) plan.delta = Number(values.delta);
  if (values.actionId !== undefined) plan.actionId = values.actionId;
  if (values.since !== undefined) plan.since = new Date(values.since).toISOString();
  if (values.until !== undefined) plan.until = new Date(values.until).toISOString();
  if (values.inCurrentSeason !== undefined) plan.inCurrentSeason = true;
  return plan;
}

/** @param {Preview} preview */
function previewOf({ userId, kind, delta, actions, before, after, topBefore, topAfter }) {
  const columns = [
    { head: "Of the player" }, { head: "Before", isNumber: true }, { head: "After", isNumber: true },
  ];
  const what = ["void", "void window"].includes(kind)
    ? `Takes back ${actions === 1 ? "1 action" : `${actions} actions`}, ${formatDelta(delta)} points.`
    : `${KINDS[kind]}: ${formatDelta(delta)} points.`;
  const isBan = kind === "ban" || kind === "unban";
  return [
    make("h3", {}, "Preview"),
    isBan ? null : make("p", {}, what),
    table(`Score and rank of ${userId}`, columns, [
      ["Score", formatNumber(before.score), formatNumber(after.score)],
      ["Rank", formatNumber(before.rank), formatNumber(after.rank)],
    ]),
    isSameTop(topBefore, topAfter)
      ? make("p", { class: "hint" }, "The top of the board does not change.")
      : make("div", { class: "tops" }, topTable("Top before", topBefore, userId),
        topTable("Top after", topAfter, userId)),
  ].filter((part) => part !== null);
}

/**
 * @param {TopRow[]} before
 * @param {TopRow[]} after
 */
function isSameTop(before, after) {
  return JSON.stringify(before.map(rowText)) === JSON.stringify(after.map(rowText));
}

/** @param {TopRow} row */
function rowText({ rank, userId, score }) {
  return [rank, userId, score];
}

/**
 * @param {string} title
 * @param {TopRow[]} rows
 * @param {string} marked  the user of the act
 */
function topTable(title, rows, marked) {
  const columns = [{ head: "Rank" }, { head: "Player" }, { head: "Score", isNumber: true }];
  const cells = rows.map(({ rank, userId, score }) => [
    String(rank),
    userId === marked ? make("strong", {}, identifier(userId)) : identifier(userId),
    formatNumber(score),
  ]);
  return make("div", {}, make("h4", {}, title),
    cells.length ? table(title, columns, cells) : make("p", { class: "hint" }, "Nobody."));
}

/**
 * @param {Kind} kind  as chosen; the reply to an undo has that of the opposite act
 * @param {Done} done
 */
function doneText(kind, { act, score, committed }) {
  const result = score === null ? "" : ` The score is ${formatNumber(score)}.`;
  const wait = committed ? "" : " PostgreSQL has not confirmed it yet; it will be listed as pending until then.";
  return `${KINDS[kind]} is done (act ${act}).${result}${wait}`;
}
