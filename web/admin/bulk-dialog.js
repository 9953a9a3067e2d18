/**
 * The dialog of several held actions: one reason, a preview of each, then one act after another.
 *
 * Invariants: nothing is done before all are previewed; each act keeps its id however often it is
 * sent, so that it is done once; one that fails does not stop the others.
 *
 * @typedef {import("./api.js").AdminApi} AdminApi
 * @typedef {import("./api.js").HeldAction} HeldAction
 * @typedef {"waiting" | "ready" | "left out" | "done" | "refused" | "unknown"} State
 *   `left out`: the preview was refused. `unknown`: there was no answer, or a temporary error.
 * @typedef {{held: HeldAction, id: string, state: State, text: string, before: string,
 *   after: string}} Item
 */

import { ApiError, newActId } from "./api.js";
import { button, identifier, make, oneLine, reasonField, table, tableRow, valuesOf } from "./elements.js";
import { formatDelta, formatNumber, NONE } from "./words.js";

/** Actions of one dialog: the gateway lets an administrator send 240 requests a minute. */
export const BULK_MAX = 200;
const TRIES = 4;
const PAUSE_S = 1;
const PAUSE_MAX_S = 60;

/** @type {Record<"release" | "void", string>} */
const TITLES = { release: "Release", void: "Void" };

/** @type {Record<State, string>} */
const STATES = {
  waiting: "not previewed yet",
  ready: "ready",
  "left out": "left out",
  done: "done",
  refused: "refused",
  unknown: "not known",
};

/**
 * @param {AdminApi} api
 * @param {"release" | "void"} kind
 * @param {HeldAction[]} chosen
 * @param {() => void} onDone  called when the dialog is closed after something was sent
 */
export function openBulkDialog(api, kind, chosen, onDone) {
  new BulkDialog(api, kind, chosen, onDone);
}

class BulkDialog {
  /** @type {AdminApi} */ #api;
  /** @type {"release" | "void"} */ #kind;
  /** @type {Item[]} */ #items;
  /** @type {HTMLDialogElement} */ #dialog;
  /** @type {HTMLFormElement} */ #form;
  #isBusy = false;
  #isSent = false;
  #isStopped = false;

  #list = make("div", {});
  #progress = make("progress", { max: 1, value: 0, "aria-label": "Progress", hidden: true });
  #message = make("p", { class: "message", role: "status" });
  #show = make("button", { type: "submit", class: "button" }, "Preview");
  #confirm = button("Confirm", () => this.#perform(), { class: "button primary" });
  #stop = button("Stop", () => this.#halt(), { class: "button" });
  #close = button("Cancel", () => this.#isBusy || this.#dialog.close(), { class: "button quiet" });

  /**
   * @param {AdminApi} api
   * @param {"release" | "void"} kind
   * @param {HeldAction[]} chosen
   * @param {() => void} onDone
   */
  constructor(api, kind, chosen, onDone) {
    this.#api = api;
    this.#kind = kind;
    this.#items = chosen.map((held) => ({
      held, id: newActId(), state: "waiting", text: "", before: NONE, after: NONE,
    }));
    this.#form = make(
      "form",
      { class: "act" },
      make("p", {}, summaryOf(chosen)),
      reasonField("Kept with each act and in the audit log."),
      this.#list,
      this.#progress,
      this.#message,
      make("div", { class: "buttons" }, this.#show, this.#confirm, this.#stop, this.#close),
    );
    const heading = make("h2", { id: "bulk-title" }, `${TITLES[kind]} ${countOf(chosen.length)}`);
    this.#dialog = make("dialog", { class: "wide", "aria-labelledby": "bulk-title" }, heading, this.#form);
    this.#confirm.hidden = true;
    this.#stop.hidden = true;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#preview();
    });
    this.#dialog.addEventListener("cancel", (event) => this.#isBusy && event.preventDefault());
    this.#dialog.addEventListener("close", () => {
      this.#isStopped = true; // also when the sign-in has ended
      this.#dialog.remove();
      if (this.#isSent) onDone();
    });
    this.#draw();
    document.body.append(this.#dialog);
    this.#dialog.showModal();
  }

  async #preview() {
    if (this.#isBusy || this.#isSent) return;
    if (!valuesOf(this.#form).reason) {
      this.#say("Give a reason.", "trouble");
      return;
    }
    const items = this.#items.filter(({ state }) => state === "waiting");
    await this.#run("Preview", items, async (item) => {
      if (this.#kind === "release") {
        const { id, board } = item.held;
        const { before, after } = await this.#api.post("/acts/preview", { kind: "release", board, held: id });
        item.before = formatNumber(before.score);
        item.after = formatNumber(after.score);
      }
      item.state = "ready";
    }, "left out", "left out");
    const ready = this.#count("ready");
    const isWhole = this.#count("waiting") === 0;
    this.#show.hidden = isWhole;
    this.#confirm.hidden = !isWhole || ready === 0;
    this.#confirm.textContent = `${TITLES[this.#kind]} ${countOf(ready)}`;
    this.#say(isWhole ? `Nothing is changed yet. ${this.#outcome()}` : "Stopped. Nothing is changed.");
    if (ready && isWhole) this.#confirm.focus();
  }

  async #perform() {
    if (this.#isBusy) return;
    const reason = oneLine(valuesOf(this.#form).reason);
    this.#isSent = true;
    for (const control of this.#form.querySelectorAll("textarea")) control.readOnly = true;
    const items = this.#items.filter(({ state }) => state === "ready" || state === "unknown");
    this.#confirm.hidden = true;
    await this.#run(TITLES[this.#kind], items, async (item) => {
      const { id, board } = item.held;
      if (this.#kind === "void") {
        await this.#api.post(`/held/${id}/void`, { reason });
      } else {
        const done = await this.#api.post("/acts", { kind: "release", board, held: id, id: item.id, reason });
        if (done.score !== null) item.after = formatNumber(done.score);
        if (!done.committed) item.text = "PostgreSQL has not confirmed it yet";
      }
      item.state = "done";
    }, "refused", "unknown");
    const left = this.#count("ready") + this.#count("unknown");
    this.#confirm.hidden = left === 0;
    this.#confirm.textContent = `Go on with ${countOf(left)}`;
    this.#close.textContent = "Close";
    this.#say(this.#outcome() + (this.#count("unknown") ? " Go on: each act is done once." : ""),
      this.#count("refused") + this.#count("unknown") ? "trouble" : "");
    (left ? this.#confirm : this.#close).focus();
  }

  /**
   * Do something for one item after another.
   *
   * @param {string} what
   * @param {Item[]} items
   * @param {(item: Item) => Promise<void>} task  sets the state
   * @param {State} refused  the state after an error that stays
   * @param {State} unknown  the state after an error that may pass
   */
  async #run(what, items, task, refused, unknown) {
    this.#isBusy = true;
    this.#isStopped = false;
    this.#show.hidden = true;
    this.#close.hidden = true;
    this.#stop.hidden = false;
    this.#progress.hidden = false;
    this.#progress.max = items.length;
    for (const [index, item] of items.entries()) {
      if (this.#isStopped) break;
      this.#progress.value = index;
      this.#say(`${what}: ${index + 1} of ${items.length}`);
      item.text = "";
      try {
        await this.#retry(() => task(item));
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        item.state = error.isTemporary ? unknown : refused;
        item.text = error.message;
      }
      this.#draw(item);
    }
    this.#progress.hidden = true;
    this.#stop.hidden = true;
    this.#close.hidden = false;
    this.#isBusy = false;
  }

  /**
   * Repeat a task while its error may pass, as long as the server wants it to wait.
   *
   * @param {() => Promise<void>} task
   */
  async #retry(task) {
    for (let tries = 1; ; tries += 1) {
      try {
        await task();
        return;
      } catch (error) {
        const isOver = tries >= TRIES || this.#isStopped;
        if (isOver || !(error instanceof ApiError) || !error.isTemporary) throw error;
        const seconds = Math.min(error.retryAfterS ?? PAUSE_S * 2 ** (tries - 1), PAUSE_MAX_S);
        this.#say(`${error.message} Waiting for ${seconds} s.`);
        await this.#pause(seconds);
        if (this.#isStopped) throw error;
      }
    }
  }

  /** @param {number} seconds */
  async #pause(seconds) {
    const end = performance.now() + seconds * 1_000;
    while (performance.now() < end && !this.#isStopped) {
      await new Promise((resolve) => {
        setTimeout(resolve, 100);
      });
    }
  }

  #halt() {
    this.#isStopped = true;
    this.#say("Stopping after this action");
  }

  /** @param {State} state */
  #count(state) {
    return this.#items.filter((item) => item.state === state).length;
  }

  #outcome() {
    const states = /** @type {State[]} */ (["done", "ready", "left out", "refused", "unknown"]);
    const texts = states.flatMap((state) => {
      const count = this.#count(state);
      return count ? [`${count} ${STATES[state]}`] : [];
    });
    return `${texts.join(", ")}.`;
  }

  /**
   * Show all items, or an item that has changed.
   *
   * @param {Item} [changed]
   */
  #draw(changed) {
    const columns = [
      { head: "Action" }, { head: "Player" }, { head: "Board" }, { head: "Points", isNumber: true },
      ...(this.#kind === "release"
        ? [{ head: "Score now", isNumber: true }, { head: "Score after", isNumber: true }]
        : []),
      { head: "State" },
    ];
    /** @param {Item} item */
    const cells = ({ held, state, text, before, after }) => [
      identifier(held.actionId),
      identifier(held.userId),
      held.board,
      formatDelta(held.delta),
      ...(this.#kind === "release" ? [before, after] : []),
      make("span", {}, make("span", { class: "badge", "data-state": state }, STATES[state]), text && ` ${text}`),
    ];
    if (changed === undefined) {
      this.#list.replaceChildren(
        table("Chosen actions", columns, this.#items.map(cells)),
        make("p", { class: "hint" }, this.#kind === "release"
          ? "Each preview is that of this action alone, as of now."
          : "They never count, and this cannot be undone. Scores do not change."),
      );
      return;
    }
    const row = this.#list.querySelectorAll("tbody tr")[this.#items.indexOf(changed)];
    row.replaceWith(tableRow(columns, cells(changed)));
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

/** @param {number} count */
function countOf(count) {
  return count === 1 ? "1 action" : `${count} actions`;
}

/**
 * Return how many actions, players and boards there are, and the points of all.
 *
 * @param {HeldAction[]} chosen
 */
function summaryOf(chosen) {
  const players = new Set(chosen.map(({ userId }) => userId)).size;
  const boards = new Set(chosen.map(({ board }) => board)).size;
  const points = chosen.reduce((sum, { delta }) => sum + delta, 0);
  return `${countOf(chosen.length)} of ${players === 1 ? "1 player" : `${players} players`} on ` +
    `${boards === 1 ? "1 board" : `${boards} boards`}, ${formatDelta(points)} points in all.`;
}
