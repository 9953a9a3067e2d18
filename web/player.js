/**
 * The player panel: sign in, score, sign out. One action is sent at a time.
 *
 * Invariants: an action keeps its id until the server has answered, however often it is sent, so
 * that a click counts once; a rate-limited click shows when the next one can count.
 *
 * @typedef {import("./sign-in.js").SignIn} SignIn
 * @typedef {{userId: string, actionId: string}} Action
 * @typedef {{status: number, retryAfterS: number | null, body: any}} UpdateResponse
 */

import { SignInError } from "./sign-in.js";
import { drawSprite } from "./sprite.js";

const UPDATE = "/api/scores/update";
const FETCH_MS = 8_000;
const ATTEMPTS = 5;
const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 10_000;
const LONGEST_PAUSE_S = 120;
/** Temporary failures: the outcome is unknown, or the same request may succeed later. */
const RETRYABLE = [502, 503, 504];

/**
 * Show the player panel in `element`.
 *
 * @param {HTMLElement} element     an empty section of the page
 * @param {{signIn: SignIn, board?: string}} options
 *   `board` is the board to score on; default: the server's first one
 * @returns {{refresh: () => void}} call `refresh` when the sign-in changes
 */
export function showPlayer(element, options) {
  return new Player(element, options);
}

class Player {
  /** @type {SignIn} */ #signIn;
  /** @type {URL} */ #url;
  /** @type {ReturnType<typeof build>} */ #parts;
  /** @type {string | null} */ #actionId = null; // sent and not answered
  #isBusy = false;
  #isRetrying = false;
  /** @type {string | null} */ #shownPlayer = null;
  #pausedUntilMs = 0;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #ticker;

  /**
   * @param {HTMLElement} element
   * @param {{signIn: SignIn, board?: string}} options
   */
  constructor(element, { signIn, board }) {
    this.#signIn = signIn;
    this.#url = new URL(UPDATE, location.href);
    if (board) this.#url.searchParams.set("board", board);
    this.#parts = build(element);
    this.#parts.enter.addEventListener("click", () => this.#enter());
    this.#parts.score.addEventListener("click", () => this.#submit());
    this.#parts.leave.addEventListener("click", () => this.#leave());
    this.refresh();
    element.hidden = false;
    // The Back button restores the page from the cache, with its last message.
    addEventListener("pageshow", ({ persisted }) => persisted && this.#showMessage(""));
    this.#resume();
  }

  /** Show the signed-in player. */
  refresh() {
    const { enter, identity, name, face, score, leave } = this.#parts;
    const { player } = this.#signIn;
    const { activeElement } = document;
    const hadFocus = [enter, score, leave].some((part) => part === activeElement);
    enter.hidden = player !== null;
    identity.hidden = score.hidden = leave.hidden = player === null;
    if (player !== null && name.textContent !== player) {
      name.textContent = player;
      face.replaceChildren(drawSprite(player));
    }
    if (player !== this.#shownPlayer) this.#actionId = null;
    if (player === null && this.#shownPlayer !== null) {
      this.#showMessage("Your sign-in has expired. Sign in again to continue.");
    }
    this.#shownPlayer = player;
    // If the focused button was hidden, keep the focus here instead of at the top of the page.
    if (hadFocus && document.activeElement === document.body) {
      (player === null ? enter : score).focus();
    }
    this.#showPause();
  }

  // --- signing in and out ---

  async #resume() {
    try {
      await this.#signIn.resume();
    } catch (error) {
      this.#showMessage(messageOf(error), "trouble");
    }
  }

  async #enter() {
    if (this.#isBusy) return;
    this.#isBusy = true;
    this.#showMessage("Opening the sign-in page");
    try {
      await this.#signIn.begin();
    } catch (error) {
      this.#showMessage(messageOf(error), "trouble");
    } finally {
      this.#isBusy = false;
    }
  }

  #leave() {
    this.#signIn.signOut();
    this.#showMessage("You are signed out.");
  }

  // --- one action ---

  async #submit() {
    const { player, token } = this.#signIn;
    if (this.#isBusy || this.#isPaused || player === null || token === null) return;
    this.#isBusy = true;
    this.#actionId ??= crypto.randomUUID();
    try {
      await this.#send({ userId: player, actionId: this.#actionId }, token);
    } finally {
      this.#isBusy = this.#isRetrying = false;
      this.#showPause();
    }
  }

  /**
   * Send an action until it is answered; every attempt carries the same id.
   *
   * @param {Action} action
   * @param {string} token
   */
  async #send(action, token) {
    for (let attempt = 1; ; attempt += 1) {
      const response = await post(this.#url, action, token);
      if (this.#actionId !== action.actionId) return; // signed out meanwhile
      if (response !== null && !RETRYABLE.includes(response.status)) {
        this.#onResponse(response);
        return;
      }
      if (attempt === ATTEMPTS) {
        this.#showMessage("The server does not respond. Press again; it counts once.", "trouble");
        return;
      }
      this.#showMessage("No response yet. Trying again; it counts once.", "trouble");
      this.#isRetrying = true;
      this.#showPause();
      await pause(waitMs(attempt, response?.retryAfterS));
    }
  }

  /** @param {UpdateResponse} response */
  #onResponse({ status, body, retryAfterS }) {
    this.#actionId = null;
    if (status === 200) {
      this.#showMessage(body === null ? "Score updated." : `Your score is ${body.newScore}.`);
    } else if (status === 429) {
      this.#startPause(retryAfterS ?? 60);
    } else if (status === 401) {
      this.#signIn.signOut(); // calls `refresh`, which shows a message
    } else {
      this.#showMessage(body?.detail ?? body?.title ?? `The server rejected the action (${status}).`, "trouble");
    }
  }

  // --- the pause after a rate limit ---

  get #isPaused() {
    return Date.now() < this.#pausedUntilMs;
  }

  /** @param {number} seconds */
  #startPause(seconds) {
    const waitS = Math.min(LONGEST_PAUSE_S, Math.max(1, seconds));
    this.#pausedUntilMs = Date.now() + waitS * 1_000;
    this.#showMessage(`Rate limit reached. You can score again in ${waitS} seconds.`);
    this.#ticker ??= setInterval(() => this.#tick(), 1_000);
  }

  #tick() {
    if (!this.#isPaused) {
      clearInterval(this.#ticker);
      this.#ticker = undefined;
      if (this.#signIn.player !== null) this.#showMessage("You can score again.");
    }
    this.#showPause();
  }

  /** Show the countdown on the button, which screen readers do not announce every second. */
  #showPause() {
    const { score } = this.#parts;
    const leftS = Math.ceil((this.#pausedUntilMs - Date.now()) / 1_000);
    score.textContent = leftS > 0 ? `Score again in ${leftS} s` : "Score!";
    score.setAttribute("aria-disabled", String(leftS > 0 || this.#isRetrying));
  }

  /**
   * @param {string} text
   * @param {"" | "trouble"} [mood]
   */
  #showMessage(text, mood = "") {
    this.#parts.news.textContent = text;
    this.#parts.news.dataset.mood = mood;
  }
}

/** @param {HTMLElement} element */
function build(element) {
  const enter = button("player-enter", "Sign in to play");
  const face = make("span", "player-face");
  const name = make("bdi", "player-name");
  const label = make("span");
  label.textContent = "Playing as";
  const identity = make("p", "player-identity");
  identity.append(face, label, " ", name);
  const score = button("player-score", "Score!");
  const leave = button("player-leave", "Sign out");
  const news = make("p", "player-news");
  news.setAttribute("role", "status");
  element.replaceChildren(enter, identity, score, leave, news);
  return { enter, face, name, identity, score, leave, news };
}

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} [className]
 */
function make(tag, className) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  return element;
}

/**
 * @param {string} className
 * @param {string} text
 */
function button(className, text) {
  const element = make("button", className);
  element.type = "button";
  element.textContent = text;
  return element;
}

/**
 * Send an action; return null if there was no response and the outcome is unknown.
 *
 * @param {URL} url
 * @param {Action} action
 * @param {string} token
 * @returns {Promise<UpdateResponse | null>}
 */
async function post(url, action, token) {
  try {
    const response = await fetch(url, {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
      body: JSON.stringify(action),
      signal: AbortSignal.timeout(FETCH_MS),
    });
    const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
    return {
      status: response.status,
      retryAfterS: Number.isFinite(seconds) ? seconds : null,
      body: await response.json().catch(() => null),
    };
  } catch {
    return null;
  }
}

/**
 * Return the delay that the server requests, else a backoff, with jitter.
 *
 * @param {number} attempt
 * @param {number | null} [retryAfterS]
 */
function waitMs(attempt, retryAfterS) {
  const leastMs = retryAfterS ? retryAfterS * 1_000 : FIRST_WAIT_MS * 2 ** (attempt - 1);
  return Math.min(LONGEST_WAIT_MS, leastMs * (1 + Math.random() / 4));
}

/**
 * @param {number} ms
 * @returns {Promise<void>}
 */
function pause(ms) {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}

/** @param {unknown} error */
function messageOf(error) {
  if (error instanceof SignInError) return error.message;
  globalThis.reportError?.(error);
  return "The sign-in failed.";
}
