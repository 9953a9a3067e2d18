/**
 * A live scoreboard in a browser: one WebSocket, kept alive, that hands over the newest top 10.
 *
 *     import { connect } from "./scoreboard-client.js";
 *
 *     const connection = connect({
 *       url: "wss://scores.example.com/ws/scoreboard",
 *       onBoard: ({ leaderboard }) => draw(leaderboard),
 *       onStatus: ({ state }) => showState(state),
 *     });
 *
 * Two files, no dependency, no build step. What stays true: a board that was handed over is never
 * followed by an older one of the same epoch, whatever reconnects in between, and the server's wish
 * to be left alone for a while is obeyed. docs/client.md describes every option and state.
 */

import {
  addressOf,
  afterClose,
  backoffMs,
  isNews,
  readMessage,
  subprotocols,
  tokenExpiryMs,
} from "./scoreboard-protocol.js";

/** The server speaks at least every 15 s; after two and a half times that the line is dead. */
const SILENCE_MS = 37_000;
/** The first board follows the handshake at once. */
const FIRST_MESSAGE_MS = 10_000;
const PROVIDER_MS = 15_000;
/** A connection that lasted this long was a good one: the next trouble starts from the beginning. */
const SETTLED_MS = 10_000;
/** The server answers one `sync` a second and looks at one `auth` in ten. */
const SYNC_EVERY_MS = 2_000;
const RENEW_EVERY_MS = 10_000;
const RENEW_TRIES = 4;
/** A proxy that refuses a token looks like a lost network; after so many a new token is tried. */
const UNHEARD_TRIES = 2;
/** A token within this of its end is not worth a handshake. */
const EXPIRY_MARGIN_MS = 5_000;
/** No server may send a page away for longer than this. */
const LONGEST_WAIT_MS = 120_000;

/** What a status says beside its state while nothing is wrong. */
const CALM = { reason: null, code: null, attempt: 0, retryAtMs: null, isMandated: false };

/**
 * Follow a board until `close()` is called or there is no point in going on.
 *
 * @param {object} options
 * @param {string|URL} options.url        where the streamer listens; may be relative to the page
 * @param {string} [options.board]        which board; the server's default where absent
 * @param {string} [options.token]        a JWT that will not be renewed
 * @param {(why: {reason: string}) => Promise<string|null>|string|null} [options.tokenProvider]
 *   gives a current JWT, or null for none; the reason is `first`, `expired`, `expiring`, `rejected`
 *   or `refused`
 * @param {(board: object, how: {isSnapshot: boolean}) => void} [options.onBoard]
 *   called with each newer board; `isSnapshot` marks the first of a connection
 * @param {(status: object) => void} [options.onStatus]
 *   called when `{state, reason, code, attempt, retryAtMs, isMandated}` changes
 * @param {(error: {code: string, detail?: string}) => void} [options.onError]
 *   called with what went wrong without ending the connection
 * @returns {Connection}
 * @throws {TypeError} where `url` is no address
 */
export function connect(options) {
  return new Connection(options);
}

class Connection {
  #address;
  #options;
  #random;

  #status = Object.freeze({ state: "connecting", ...CALM });
  #board = null;
  #token = null;

  #socket = null;
  #turn = 0; // raised whenever what is under way has become outdated
  #timer = null; // the next attempt, or the watchdog: never both
  #failures = 0;
  #rejections = 0;
  #unheard = 0; // connections in a row that ended without a word from the server
  #renewal = 0; // which try of a renewal is on its way; 0 for none
  #openedAtMs = 0;
  #syncedAtMs = -Infinity;
  #bye = null;
  #hasHeard = false;
  #hasTried = false;
  #isStale = false;
  #onOnline = () => this.#comeBackOnline();

  constructor(options) {
    this.#options = { ...options };
    this.#address = addressOf(options.url, options.board);
    this.#random = options.random ?? Math.random;
    this.#token = options.token ?? null;
    globalThis.addEventListener?.("online", this.#onOnline);
    const turn = this.#turn;
    // Later, so that the first callback finds the caller with this object in hand.
    queueMicrotask(() => {
      if (turn !== this.#turn) return;
      this.#call("onStatus", this.#status);
      this.#open("first");
    });
  }

  /** The newest board taken, or null before the first. */
  get board() {
    return this.#board;
  }

  /** The state as `onStatus` last heard it. */
  get status() {
    return this.#status;
  }

  /** Ask the server for the current board; true where it could be asked. */
  sync() {
    const nowMs = performance.now();
    if (this.#socket?.readyState !== 1 || nowMs - this.#syncedAtMs < SYNC_EVERY_MS) return false;
    this.#syncedAtMs = nowMs;
    this.#socket.send('{"type":"sync"}');
    return true;
  }

  /**
   * Try at once instead of waiting, or start again after a stop. False where there is nothing to
   * hurry, or the server itself asked for the wait.
   */
  retry() {
    const { state, retryAtMs, isMandated, reason } = this.#status;
    if (state === "stopped" && reason !== "closed") {
      this.#failures = this.#rejections = this.#unheard = 0;
      globalThis.addEventListener?.("online", this.#onOnline);
      this.#tell({ state: "reconnecting", ...CALM });
      this.#open("first");
      return true;
    }
    if (state !== "reconnecting" || retryAtMs === null || isMandated) return false;
    this.#open("expired");
    return true;
  }

  /** End for good; the last board stays readable. */
  close() {
    this.#stop("closed", null);
  }

  // --- one attempt ---

  async #open(why) {
    const turn = this.#abandon();
    if (this.#status.state !== "connecting") {
      this.#tell({ state: "reconnecting", retryAtMs: null, isMandated: false });
    }
    let token;
    try {
      token = await this.#freshToken(why);
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#report({ code: "token-provider", detail: String(error) });
      this.#wait("token-provider", null);
      return;
    }
    if (turn !== this.#turn) return;
    if (token === undefined) {
      this.#stop("signed-out", null);
      return;
    }
    this.#token = token;
    this.#hasTried = true;
    this.#hasHeard = this.#isStale = false;
    this.#renewal = 0;
    this.#bye = null;
    this.#openedAtMs = performance.now();
    try {
      const WebSocketClass = this.#options.WebSocket ?? globalThis.WebSocket;
      this.#socket = new WebSocketClass(this.#address, subprotocols(token));
    } catch (error) {
      // A token that is no token, or a ws:// address on an https:// page: no retry mends that.
      this.#report({ code: "refused-by-browser", detail: error.name });
      this.#stop("refused-by-browser", null);
      return;
    }
    this.#socket.onmessage = ({ data }) => this.#hear(data);
    this.#socket.onclose = ({ code }) => this.#lose(code);
    this.#watch(FIRST_MESSAGE_MS);
  }

  /** Give the token for this attempt, null for none, undefined where only signing in would help. */
  async #freshToken(why) {
    const { tokenProvider } = this.#options;
    const expiryMs = this.#token === null ? null : tokenExpiryMs(this.#token);
    const isOver = expiryMs !== null && Date.now() > expiryMs - EXPIRY_MARGIN_MS;
    if (!tokenProvider) {
      // Tried once all the same: it may be this clock that is wrong.
      return isOver && this.#hasTried ? undefined : this.#token;
    }
    const isRejected = why === "rejected";
    const isRefused = this.#token !== null && this.#unheard >= UNHEARD_TRIES;
    if (!isRejected && !isRefused && this.#token !== null && !isOver) return this.#token;
    this.#unheard = 0;
    const reason = isRefused && !isOver ? "refused" : this.#token === null ? "first" : "expired";
    const token = await this.#ask(isRejected ? why : reason);
    return token === null && isRejected ? undefined : token;
  }

  async #ask(reason) {
    let timer;
    const limit = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("no token in time")), PROVIDER_MS);
    });
    try {
      return (await Promise.race([this.#options.tokenProvider({ reason }), limit])) ?? null;
    } finally {
      clearTimeout(timer);
    }
  }

  // --- what the server says ---

  #hear(data) {
    const message = typeof data === "string" ? readMessage(data) : null;
    this.#watch(SILENCE_MS);
    if (message === null) {
      this.#report({ code: "bad-frame" });
      return;
    }
    switch (message.type) {
      case "leaderboard":
        this.#take(message);
        break;
      case "heartbeat":
        if (message.exp) this.#renewal = 0;
        this.#becomeLive();
        if (isNews(this.#board, message)) this.sync();
        break;
      case "status":
        this.#isStale = message.state === "stale";
        this.#becomeLive();
        break;
      case "auth_expiring":
        this.#renew(this.#turn, 1);
        break;
      case "error":
        this.#report({ code: String(message.code), detail: message.detail });
        if (this.#renewal > 0) this.#renewLater(this.#turn, this.#renewal);
        break;
      case "bye":
        this.#bye = message;
        break;
      default: // a newer server may say more
    }
  }

  #take(frame) {
    const { board } = this.#options;
    if (board && frame.board !== board) {
      this.#report({ code: "other-board", detail: frame.board });
      return;
    }
    const isSnapshot = !this.#hasHeard;
    this.#becomeLive();
    // The kept position means nothing on another board, which a new default can bring.
    if (this.#board?.board === frame.board && !isNews(this.#board, frame)) return;
    this.#board = frame;
    this.#call("onBoard", frame, { isSnapshot });
  }

  #becomeLive() {
    this.#hasHeard = true;
    this.#unheard = 0;
    this.#tell({ state: this.#isStale ? "stale" : "live", ...CALM });
  }

  async #renew(turn, attempt) {
    if (!this.#options.tokenProvider) return;
    let token = null;
    try {
      token = await this.#ask("expiring");
    } catch (error) {
      this.#report({ code: "token-provider", detail: String(error) });
    }
    if (turn !== this.#turn) return;
    if (token !== null && this.#socket?.readyState === 1) {
      this.#token = token;
      this.#renewal = attempt;
      this.#socket.send(JSON.stringify({ type: "auth", token }));
    } else {
      this.#renewLater(turn, attempt);
    }
  }

  #renewLater(turn, attempt) {
    this.#renewal = 0;
    if (attempt >= RENEW_TRIES) return;
    setTimeout(() => turn === this.#turn && this.#renew(turn, attempt + 1), RENEW_EVERY_MS);
  }

  // --- losing the line ---

  #lose(code) {
    const lastedMs = performance.now() - this.#openedAtMs;
    if (this.#hasHeard && lastedMs >= SETTLED_MS) this.#failures = this.#rejections = 0;
    const { action, reason, floorMs } = afterClose(code);
    const bye = this.#bye;
    if (action === "stop") {
      this.#stop(reason, code);
    } else if (action === "renew") {
      this.#rejections += 1;
      if (this.#rejections > 1 || !this.#options.tokenProvider) {
        this.#stop("signed-out", code);
      } else {
        this.#token = null;
        this.#open("rejected");
      }
    } else if (bye?.reconnect === false) {
      this.#stop("goodbye", code);
    } else {
      this.#wait(reason, code, bye?.delay_ms, floorMs);
    }
  }

  #wait(reason, code, delay, floorMs) {
    const turn = this.#abandon();
    this.#failures += 1;
    if (!this.#hasHeard) this.#unheard += 1;
    const ranged = Array.isArray(delay) && delay.length === 2 && delay.every((ms) => ms >= 0);
    const waitMs = ranged
      ? Math.min(LONGEST_WAIT_MS, delay[0] + this.#random() * Math.max(0, delay[1] - delay[0]))
      : backoffMs(this.#failures, this.#random(), floorMs);
    this.#timer = setTimeout(() => turn === this.#turn && this.#open("expired"), waitMs);
    this.#tell({
      state: "reconnecting",
      reason,
      code,
      attempt: this.#failures,
      retryAtMs: Date.now() + waitMs,
      isMandated: ranged || floorMs !== undefined,
    });
  }

  #stop(reason, code) {
    if (this.#status.state === "stopped" && reason !== "closed") return;
    this.#abandon();
    globalThis.removeEventListener?.("online", this.#onOnline);
    this.#tell({ state: "stopped", ...CALM, reason, code });
  }

  /** Leave whatever is under way behind, and give the number of the turn that begins. */
  #abandon() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const socket = this.#socket;
    this.#socket = null;
    if (socket !== null) {
      socket.onmessage = socket.onclose = null;
      if (socket.readyState < 2) socket.close(1000);
    }
    this.#turn += 1;
    return this.#turn;
  }

  #watch(limitMs) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#wait("silent", null), limitMs);
  }

  #comeBackOnline() {
    const { state, retryAtMs, isMandated } = this.#status;
    if (state !== "reconnecting" || retryAtMs === null || isMandated) return;
    const turn = this.#abandon();
    // Everybody behind the same router comes back in the same instant.
    const waitMs = this.#random() * 1_000;
    this.#timer = setTimeout(() => turn === this.#turn && this.#open("expired"), waitMs);
  }

  // --- telling the caller ---

  #tell(change) {
    const before = this.#status;
    const after = { ...before, ...change };
    if (Object.keys(after).every((key) => after[key] === before[key])) return;
    this.#status = Object.freeze(after);
    this.#call("onStatus", this.#status);
  }

  #report(error) {
    this.#call("onError", error);
  }

  /** Call back; a fault of the page is the page's to see, and must not end the connection. */
  #call(name, ...values) {
    try {
      this.#options[name]?.(...values);
    } catch (error) {
      globalThis.reportError?.(error);
    }
  }
}
