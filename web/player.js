/**
 * The player's corner: sign in, score by a press, sign out.
 *
 * One action is under way at a time. What stays true: an action keeps its id until the server has
 * answered, however often it is sent, so that a press counts once; a press that is refused for now
 * says when the next one can count.
 */

import { drawSprite } from "./sprite.js";

const UPDATE = "/api/scores/update";
const FETCH_MS = 8_000;
const TRIES = 5;
const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 10_000;
const LONGEST_PAUSE_S = 120;
/** With these nobody knows whether the action counted, or it did not for reasons that pass. */
const PASSING = [502, 503, 504];

/**
 * Fill `element` and keep it in line with `signIn`.
 *
 * @param {HTMLElement} element     an empty section of the page
 * @param {object} options
 * @param {import("./sign-in.js").SignIn} options.signIn
 * @param {string} [options.board]  where scores are raised; the server's default where absent
 * @returns {{refresh: () => void}} call `refresh` when the sign-in has changed
 */
export function showPlayer(element, options) {
  return new Player(element, options);
}

class Player {
  #signIn;
  #address;
  #parts;
  #actionId = null; // sent and not answered
  #isBusy = false;
  #isSlow = false;
  #shown = null; // the player
  #pausedUntilMs = 0;
  #ticker = null;

  constructor(element, { signIn, board }) {
    this.#signIn = signIn;
    this.#address = new URL(UPDATE, location.href);
    if (board) this.#address.searchParams.set("board", board);
    this.#parts = build(element);
    this.#parts.enter.addEventListener("click", () => this.#enter());
    this.#parts.score.addEventListener("click", () => this.#press());
    this.#parts.leave.addEventListener("click", () => this.#leave());
    this.refresh();
    element.hidden = false;
    // Coming back from the issuer's form by the browser's button finds the page as it was left.
    addEventListener("pageshow", ({ persisted }) => persisted && this.#say(""));
    this.#resume();
  }

  /** Show who is signed in. */
  refresh() {
    const { enter, who, name, face, score, leave } = this.#parts;
    const { player } = this.#signIn;
    const hadFocus = [enter, score, leave].includes(document.activeElement);
    enter.hidden = player !== null;
    who.hidden = score.hidden = leave.hidden = player === null;
    if (player !== null && name.textContent !== player) {
      name.textContent = player;
      face.replaceChildren(drawSprite(player));
    }
    if (player !== this.#shown) this.#actionId = null;
    if (player === null && this.#shown !== null) {
      this.#say("Your sign-in has ended. Sign in again to go on.");
    }
    this.#shown = player;
    // What had the focus may just have gone; it must not fall back to the top of the page.
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
      this.#say(sentenceOf(error), "trouble");
    }
  }

  async #enter() {
    if (this.#isBusy) return;
    this.#isBusy = true;
    this.#say("Opening the sign-in");
    try {
      await this.#signIn.begin();
    } catch (error) {
      this.#say(sentenceOf(error), "trouble");
    } finally {
      this.#isBusy = false;
    }
  }

  #leave() {
    this.#signIn.signOut();
    this.#say("You have signed out.");
  }

  // --- one action ---

  async #press() {
    const { player, token } = this.#signIn;
    if (this.#isBusy || this.#isPaused || player === null) return;
    this.#isBusy = true;
    this.#actionId ??= crypto.randomUUID();
    try {
      await this.#send({ userId: player, actionId: this.#actionId }, token);
    } finally {
      this.#isBusy = this.#isSlow = false;
      this.#showPause();
    }
  }

  /** Send one action until it is answered; every try carries the same id. */
  async #send(action, token) {
    for (let attempt = 1; ; attempt += 1) {
      const answer = await post(this.#address, action, token);
      if (this.#actionId !== action.actionId) return; // signed out meanwhile
      if (answer !== null && !PASSING.includes(answer.status)) {
        this.#take(answer);
        return;
      }
      if (attempt === TRIES) {
        this.#say("The server does not answer. Press again: it counts once.", "trouble");
        return;
      }
      this.#say("No answer yet. Trying again; it counts once.", "trouble");
      this.#isSlow = true;
      this.#showPause();
      await pause(waitMs(attempt, answer?.retryAfterS));
    }
  }

  #take({ status, body, retryAfterS }) {
    this.#actionId = null;
    if (status === 200) {
      this.#say(body === null ? "Counted." : `Counted. Your score is ${body.newScore}.`);
    } else if (status === 429) {
      this.#rest(retryAfterS ?? 60);
    } else if (status === 401) {
      this.#signIn.signOut(); // which `refresh` hears of, and says
    } else {
      this.#say(body?.detail ?? body?.title ?? `The server refused (${status}).`, "trouble");
    }
  }

  // --- the pause when a minute's actions are used up ---

  get #isPaused() {
    return Date.now() < this.#pausedUntilMs;
  }

  #rest(seconds) {
    const waitS = Math.min(LONGEST_PAUSE_S, Math.max(1, seconds));
    this.#pausedUntilMs = Date.now() + waitS * 1_000;
    this.#say(`Nicely quick! That is all that counts in one minute. Go on in ${waitS} seconds.`);
    this.#ticker ??= setInterval(() => this.#tick(), 1_000);
  }

  #tick() {
    if (!this.#isPaused) {
      clearInterval(this.#ticker);
      this.#ticker = null;
      if (this.#signIn.player !== null) this.#say("You can go on.");
    }
    this.#showPause();
  }

  /** The countdown stands on the button, which is not read out at every second. */
  #showPause() {
    const { score } = this.#parts;
    const leftS = Math.ceil((this.#pausedUntilMs - Date.now()) / 1_000);
    score.textContent = leftS > 0 ? `Score again in ${leftS} s` : "Score!";
    score.setAttribute("aria-disabled", String(leftS > 0 || this.#isSlow));
  }

  #say(text, mood = "") {
    this.#parts.news.textContent = text;
    this.#parts.news.dataset.mood = mood;
  }
}

function build(element) {
  const enter = button("player-enter", "Sign in to play");
  const face = make("span", "player-face");
  const name = make("bdi", "player-name");
  const label = make("span");
  label.textContent = "Playing as";
  const who = make("p", "player-who");
  who.append(face, label, " ", name);
  const score = button("player-score", "Score!");
  const leave = button("player-leave", "Sign out");
  const news = make("p", "player-news");
  news.setAttribute("role", "status");
  element.replaceChildren(enter, who, score, leave, news);
  return { enter, face, name, who, score, leave, news };
}

function make(tag, className) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  return element;
}

function button(className, text) {
  const element = make("button", className);
  element.type = "button";
  element.textContent = text;
  return element;
}

/** Send an action; null where no answer came, and nobody knows whether it counted. */
async function post(address, action, token) {
  try {
    const answer = await fetch(address, {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
      body: JSON.stringify(action),
      signal: AbortSignal.timeout(FETCH_MS),
    });
    const seconds = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
    return {
      status: answer.status,
      retryAfterS: Number.isFinite(seconds) ? seconds : null,
      body: await answer.json().catch(() => null),
    };
  } catch {
    return null;
  }
}

/** The server's wish, else back-off; with jitter, so that a crowd does not come back as one. */
function waitMs(attempt, retryAfterS) {
  const leastMs = retryAfterS ? retryAfterS * 1_000 : FIRST_WAIT_MS * 2 ** (attempt - 1);
  return Math.min(LONGEST_WAIT_MS, leastMs * (1 + Math.random() / 4));
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function sentenceOf(error) {
  if (error.name === "SignInFailed") return error.message;
  globalThis.reportError?.(error);
  return "The sign-in failed.";
}
