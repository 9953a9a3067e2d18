/**
 * A live scoreboard in a browser: keeps one WebSocket connected and delivers the newest top 10.
 *
 *     import { connect } from "./scoreboard-client.js";
 *
 *     const connection = connect({
 *       url: "wss://scores.example.com/ws/scoreboard",
 *       onBoard: ({ leaderboard }) => draw(leaderboard),
 *       onStatus: ({ state }) => showState(state),
 *     });
 *
 * Two files, no dependencies, no build step. docs/reference/browser-client.md describes every option and state.
 *
 * Invariants: a delivered board is never followed by an older one of the same epoch, across
 * reconnects too; a delay requested by the server is respected; after the device slept, the state is
 * `checking` until the server has answered.
 *
 * @typedef {import("./scoreboard-protocol.js").Board} Board
 * @typedef {import("./scoreboard-protocol.js").Delta} Delta
 * @typedef {import("./scoreboard-protocol.js").Message} Message
 * @typedef {import("./scoreboard-protocol.js").Place} Place
 * @typedef {"connecting" | "live" | "stale" | "checking" | "reconnecting" | "stopped"} State
 * @typedef {"first" | "expired" | "expiring" | "rejected" | "refused"} TokenReason
 *
 * @typedef {object} Status
 * @property {State} state
 * @property {string | null} reason      why the client reconnects or has stopped
 * @property {number | null} code        the close code, if there was one
 * @property {number} attempt            number of failures in a row
 * @property {number | null} retryAtMs   when the next attempt starts
 * @property {boolean} isMandated        whether the server requested the delay
 *
 * @typedef {object} Options
 * @property {string | URL} url      where the streamer listens; may be relative to the page
 * @property {string} [board]        the board; default: the server's first one
 * @property {string} [token]        a JWT that will not be renewed
 * @property {(why: {reason: TokenReason}) => Promise<string | null> | string | null} [tokenProvider]
 *   returns a current JWT, or null for none
 * @property {(board: Board, how: {isSnapshot: boolean}) => void} [onBoard]
 *   called with each newer board, and with the same board when names arrive; `isSnapshot` marks the
 *   first one of a connection
 * @property {(place: Place) => void} [onPlace]  called with the place of a watched user
 * @property {(viewers: number | null) => void} [onViewers]
 *   called when the number of viewers changes; null: the server no longer knows it
 * @property {(status: Status) => void} [onStatus]  called when the status changes
 * @property {(error: {code: string, detail?: string}) => void} [onError]
 *   called with errors that do not end the connection
 * @property {() => number} [random]                for tests
 * @property {typeof globalThis.WebSocket} [WebSocket]  for tests
 */

import {
  applyDelta,
  backoffMs,
  closeAction,
  isAhead,
  isNewer,
  parseMessage,
  subprotocols,
  tokenExpiryMs,
  webSocketUrl,
} from "./scoreboard-protocol.js";

/** The server sends something at least every 15 s; the limit is two and a half times that. */
const SILENCE_MS = 37_000;
/** The first board follows the handshake at once. */
const FIRST_MESSAGE_MS = 10_000;
const PROVIDER_MS = 15_000;
/** A connection that lasted this long resets the backoff. */
const SETTLED_MS = 10_000;
/** The server accepts one `sync` per second and one `auth` per 10 seconds. */
const SYNC_INTERVAL_MS = 2_000;
/** How long the answer to a check may take. */
const CHECK_MS = 3_000;
/** A timer that is this much late was held up by sleep. */
const GAP_MS = 6_000;
const TICK_MS = 2_000;
const RENEW_INTERVAL_MS = 10_000;
const RENEW_ATTEMPTS = 4;
/** A proxy that rejects a token looks like a lost network; after so many, get a new token. */
const SILENT_FAILURES_MAX = 2;
/** A token this close to its expiry is not used for a handshake. */
const EXPIRY_MARGIN_MS = 5_000;
/** The longest delay that a server can request. */
const LONGEST_WAIT_MS = 120_000;

/** The rest of the status while nothing is wrong. */
const NO_FAILURE = { reason: null, code: null, attempt: 0, retryAtMs: null, isMandated: false };

/**
 * Follow a board until `close()` is called or retrying is pointless.
 *
 * @param {Options} options
 * @returns {Connection}
 * @throws {TypeError} if `url` is invalid
 */
export function connect(options) {
  return new Connection(options);
}

class Connection {
  /** @type {string} */ #url;
  /** @type {Options} */ #options;
  /** @type {() => number} */ #random;

  /** @type {Readonly<Status>} */ #status = Object.freeze({ state: "connecting", ...NO_FAILURE });
  /** @type {Board | null} */ #board = null;
  /** @type {Board | null} */
  #base = null; // the last board of this connection: what a delta is applied to
  /** @type {string | null} */ #token = null;

  /** @type {WebSocket | null} */ #socket = null;
  #generation = 0; // raised whenever operations under way become outdated
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer; // the next attempt or the watchdog, never both
  #failures = 0;
  #rejections = 0;
  #silentFailures = 0; // connections in a row that ended before any message
  #renewal = 0; // attempt number of the renewal under way; 0 for none
  #openedAtMs = 0;
  #syncedAtMs = -Infinity; // by the wall clock: others can stand still during sleep
  #heardAtMs = -Infinity; // the same
  #isChecking = false;
  /** @type {Message | null} */ #bye = null;
  #hasMessage = false;
  #hasTried = false;
  #isStale = false;
  #listeners = new AbortController();
  /** @type {string[]} */ #watched = [];
  /** @type {Map<string, Place>} */ #places = new Map();
  /** @type {number | null} */ #viewers = null;

  /** @param {Options} options */
  constructor(options) {
    this.#options = { ...options };
    this.#url = webSocketUrl(options.url, options.board);
    this.#random = options.random ?? Math.random;
    this.#token = options.token ?? null;
    this.#listen();
    const generation = this.#generation;
    // Deferred, so that the caller has the connection before the first callback.
    queueMicrotask(() => {
      if (generation !== this.#generation) return;
      this.#call("onStatus", this.#status);
      this.#open("first");
    });
  }

  /** The newest board received, or null before the first. */
  get board() {
    return this.#board;
  }

  /** The current status, as last passed to `onStatus`. */
  get status() {
    return this.#status;
  }

  /** Request the current board; return whether the request was sent. */
  sync() {
    const nowMs = Date.now();
    const socket = this.#socket;
    if (socket?.readyState !== 1) return false;
    if (Math.abs(nowMs - this.#syncedAtMs) < SYNC_INTERVAL_MS) return false;
    this.#syncedAtMs = nowMs;
    socket.send('{"type":"sync"}');
    return true;
  }

  /**
   * Follow the places of these users instead of those before; `onPlace` is called with them.
   * A server that watches as many users as it may answers with the error `too-many-watched`.
   *
   * @param {string[]} userIds  at most five
   */
  watch(userIds) {
    const wasWatching = this.#watched.length > 0;
    this.#watched = [...userIds];
    this.#places.clear();
    if (this.#hasMessage && (wasWatching || userIds.length > 0)) this.#sendWatched();
  }

  /**
   * Connect now instead of waiting, or start again after a stop. Return false if there is no wait
   * to skip, or the server requested it.
   */
  retry() {
    const { state, retryAtMs, isMandated, reason } = this.#status;
    if (state === "stopped" && reason !== "closed") {
      this.#failures = this.#rejections = this.#silentFailures = 0;
      this.#listen();
      this.#update({ state: "reconnecting", ...NO_FAILURE });
      this.#open("first");
      return true;
    }
    if (state !== "reconnecting" || retryAtMs === null || isMandated) return false;
    this.#open("expired");
    return true;
  }

  /** Close permanently; `board` remains readable. */
  close() {
    this.#stop("closed", null);
  }

  // --- connecting ---

  /** @param {TokenReason} why */
  async #open(why) {
    const generation = this.#abandon();
    if (this.#status.state !== "connecting") {
      this.#update({ state: "reconnecting", retryAtMs: null, isMandated: false });
    }
    let token;
    try {
      token = await this.#currentToken(why);
    } catch (error) {
      if (generation !== this.#generation) return;
      this.#report({ code: "token-provider", detail: String(error) });
      this.#wait("token-provider", null);
      return;
    }
    if (generation !== this.#generation) return;
    if (token === undefined) {
      this.#stop("signed-out", null);
      return;
    }
    this.#token = token;
    this.#hasTried = true;
    this.#hasMessage = this.#isStale = false;
    this.#renewal = 0;
    this.#bye = this.#base = null;
    this.#openedAtMs = performance.now();
    try {
      const WebSocketClass = this.#options.WebSocket ?? globalThis.WebSocket;
      this.#socket = new WebSocketClass(this.#url, subprotocols(token));
    } catch (error) {
      // An invalid token, or a ws:// URL on an https:// page: retrying does not help.
      const detail = error instanceof Error ? error.name : String(error);
      this.#report({ code: "refused-by-browser", detail });
      this.#stop("refused-by-browser", null);
      return;
    }
    this.#socket.onmessage = ({ data }) => this.#onMessage(data);
    this.#socket.onclose = ({ code }) => this.#onClose(code);
    this.#watch(FIRST_MESSAGE_MS);
  }

  /**
   * Return the token for this attempt: null for none, undefined if the user must sign in.
   *
   * @param {TokenReason} why
   */
  async #currentToken(why) {
    const { tokenProvider } = this.#options;
    const expiryMs = this.#token === null ? null : tokenExpiryMs(this.#token);
    const isExpired = expiryMs !== null && Date.now() > expiryMs - EXPIRY_MARGIN_MS;
    if (!tokenProvider) {
      // An expired token is tried once: the local clock may be wrong.
      return isExpired && this.#hasTried ? undefined : this.#token;
    }
    const isRejected = why === "rejected";
    const isRefused = this.#token !== null && this.#silentFailures >= SILENT_FAILURES_MAX;
    if (!isRejected && !isRefused && this.#token !== null && !isExpired) return this.#token;
    this.#silentFailures = 0;
    const reason = isRefused && !isExpired ? "refused" : this.#token === null ? "first" : "expired";
    const token = await this.#requestToken(isRejected ? why : reason);
    return token === null && isRejected ? undefined : token;
  }

  /** @param {TokenReason} reason */
  async #requestToken(reason) {
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    /** @type {Promise<never>} */
    const limit = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("tokenProvider timed out")), PROVIDER_MS);
    });
    try {
      const token = this.#options.tokenProvider?.({ reason }) ?? null;
      return (await Promise.race([token, limit])) ?? null;
    } finally {
      clearTimeout(timer);
    }
  }

  // --- messages from the server ---

  /** @param {unknown} data */
  #onMessage(data) {
    const message = typeof data === "string" ? parseMessage(data) : null;
    this.#heardAtMs = Date.now();
    // What arrived before the sleep proves nothing: only a board answers a check.
    if (message?.type === "leaderboard") this.#isChecking = false;
    if (!this.#isChecking) this.#watch(SILENCE_MS);
    if (message === null) {
      this.#report({ code: "bad-frame" });
      return;
    }
    switch (message.type) {
      case "leaderboard":
        this.#onLeaderboard(/** @type {Board & Message} */ (message));
        break;
      case "delta":
        this.#onDelta(/** @type {Delta & Message} */ (message));
        break;
      case "heartbeat":
        this.#setLive();
        // The answer to a token says nothing of viewers.
        if (message.exp) this.#renewal = 0;
        else this.#count(message.viewers);
        if (isAhead(this.#board, /** @type {Board & Message} */ (message))) this.sync();
        break;
      case "place":
        this.#onPlace(/** @type {Place & Message} */ (message));
        break;
      case "status":
        this.#isStale = message.state === "stale";
        this.#setLive();
        break;
      case "auth_expiring":
        this.#renew(this.#generation, 1);
        break;
      case "error":
        this.#report({ code: String(message.code), detail: message.detail });
        if (this.#renewal > 0) this.#renewLater(this.#generation, this.#renewal);
        break;
      case "bye":
        this.#bye = message;
        break;
      default: // newer servers may send other types
    }
  }

  /** @param {Board} received */
  #onLeaderboard(received) {
    const { board } = this.#options;
    if (board && received.board !== board) {
      this.#report({ code: "other-board", detail: received.board });
      return;
    }
    const isSnapshot = !this.#hasMessage;
    this.#setLive();
    this.#count(received.viewers);
    this.#base = received;
    this.#deliver(received, isSnapshot);
  }

  /** @param {Delta} delta */
  #onDelta(delta) {
    this.#setLive();
    if (this.#base === null) return; // a board comes first
    const board = applyDelta(this.#base, delta);
    if (board === null) {
      if (isAhead(this.#board, delta)) this.sync();
      return;
    }
    if (this.#viewers === null) delete board.viewers;
    else board.viewers = this.#viewers;
    this.#base = board;
    this.#deliver(board, false);
  }

  /**
   * @param {Board} board
   * @param {boolean} isSnapshot
   */
  #deliver(board, isSnapshot) {
    // Positions of different boards do not compare; the server's default board can change.
    if (this.#board?.board === board.board && !isNewer(this.#board, board)) return;
    // The page may change what it gets; the base of the next delta must stay as it is.
    this.#board = { ...board, leaderboard: board.leaderboard.map((row) => ({ ...row })) };
    this.#call("onBoard", this.#board, { isSnapshot });
  }

  /** @param {Place} place */
  #onPlace(place) {
    const before = this.#places.get(place.userId);
    if (before?.board === place.board && !isNewer(before, place)) return;
    this.#places.set(place.userId, place);
    this.#call("onPlace", place);
  }

  /** @param {unknown} viewers */
  #count(viewers) {
    const known = Number.isSafeInteger(viewers) ? /** @type {number} */ (viewers) : null;
    if (known === this.#viewers) return;
    this.#viewers = known;
    this.#call("onViewers", known);
  }

  #sendWatched() {
    if (this.#socket?.readyState !== 1) return;
    this.#socket.send(JSON.stringify({ type: "watch", userIds: this.#watched }));
  }

  #setLive() {
    const isFirst = !this.#hasMessage;
    this.#hasMessage = true;
    this.#silentFailures = 0;
    if (isFirst && this.#watched.length > 0) this.#sendWatched();
    if (this.#isChecking) return;
    this.#update({ state: this.#isStale ? "stale" : "live", ...NO_FAILURE });
  }

  /**
   * @param {number} generation
   * @param {number} attempt
   */
  async #renew(generation, attempt) {
    if (!this.#options.tokenProvider) return;
    let token = null;
    try {
      token = await this.#requestToken("expiring");
    } catch (error) {
      this.#report({ code: "token-provider", detail: String(error) });
    }
    if (generation !== this.#generation) return;
    if (token !== null && this.#socket?.readyState === 1) {
      this.#token = token;
      this.#renewal = attempt;
      this.#socket.send(JSON.stringify({ type: "auth", token }));
    } else {
      this.#renewLater(generation, attempt);
    }
  }

  /**
   * @param {number} generation
   * @param {number} attempt
   */
  #renewLater(generation, attempt) {
    this.#renewal = 0;
    if (attempt >= RENEW_ATTEMPTS) return;
    setTimeout(
      () => generation === this.#generation && this.#renew(generation, attempt + 1),
      RENEW_INTERVAL_MS,
    );
  }

  // --- disconnecting ---

  /** @param {number} code */
  #onClose(code) {
    const lastedMs = performance.now() - this.#openedAtMs;
    if (this.#hasMessage && lastedMs >= SETTLED_MS) this.#failures = this.#rejections = 0;
    const { action, reason, floorMs } = closeAction(code);
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

  /**
   * Schedule the next attempt.
   *
   * @param {string} reason
   * @param {number | null} code
   * @param {unknown} [delayMs]  the range that the server requests
   * @param {number} [floorMs]
   */
  #wait(reason, code, delayMs, floorMs) {
    const generation = this.#abandon();
    this.#failures += 1;
    if (!this.#hasMessage) this.#silentFailures += 1;
    const isRange = Array.isArray(delayMs) && delayMs.length === 2 && delayMs.every((ms) => ms >= 0);
    const waitMs = isRange
      ? Math.min(LONGEST_WAIT_MS, delayMs[0] + this.#random() * Math.max(0, delayMs[1] - delayMs[0]))
      : backoffMs(this.#failures, this.#random(), floorMs);
    this.#openLater(generation, waitMs);
    this.#update({
      state: "reconnecting",
      reason,
      code,
      attempt: this.#failures,
      retryAtMs: Date.now() + waitMs,
      isMandated: isRange || floorMs !== undefined,
    });
  }

  /**
   * @param {number} generation
   * @param {number} waitMs
   */
  #openLater(generation, waitMs) {
    this.#timer = setTimeout(() => generation === this.#generation && this.#open("expired"), waitMs);
  }

  /**
   * @param {string} reason
   * @param {number | null} code
   */
  #stop(reason, code) {
    if (this.#status.state === "stopped" && reason !== "closed") return;
    this.#abandon();
    this.#listeners.abort();
    this.#update({ state: "stopped", ...NO_FAILURE, reason, code });
  }

  /** Cancel what is under way; return the number of the new generation. */
  #abandon() {
    clearTimeout(this.#timer);
    this.#isChecking = false;
    const socket = this.#socket;
    this.#socket = null;
    if (socket !== null) {
      socket.onmessage = socket.onclose = null;
      if (socket.readyState < 2) socket.close(1000);
    }
    this.#generation += 1;
    return this.#generation;
  }

  /** @param {number} limitMs */
  #watch(limitMs) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#wait("silent", null), limitMs);
  }

  // --- after sleep ---

  #listen() {
    this.#listeners.abort();
    this.#listeners = new AbortController();
    const { signal } = this.#listeners;
    const onWake = () => globalThis.document?.hidden || this.#check();
    globalThis.addEventListener?.("online", () => this.#reconnectOnline(), { signal });
    globalThis.addEventListener?.("pageshow", onWake, { signal });
    globalThis.document?.addEventListener("visibilitychange", onWake, { signal });
    globalThis.document?.addEventListener("resume", onWake, { signal });
    let tickedAtMs = Date.now();
    const ticker = setInterval(() => {
      const gapMs = Date.now() - tickedAtMs;
      tickedAtMs = Date.now();
      if (gapMs > GAP_MS) onWake();
    }, TICK_MS);
    signal.addEventListener("abort", () => clearInterval(ticker));
  }

  /** Ask the server for the board, and reconnect if it does not answer soon. */
  #check() {
    const { state } = this.#status;
    this.#reconnectOnline();
    if (state !== "live" && state !== "stale") return;
    if (Math.abs(Date.now() - this.#heardAtMs) < SYNC_INTERVAL_MS) return;
    this.sync();
    this.#isChecking = true;
    this.#update({ state: "checking" });
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#open("expired"), CHECK_MS);
  }

  #reconnectOnline() {
    const { state, retryAtMs, isMandated } = this.#status;
    if (state !== "reconnecting" || retryAtMs === null || isMandated) return;
    // Jitter: all clients behind the same router come back at the same moment.
    this.#openLater(this.#abandon(), this.#random() * 1_000);
  }

  // --- callbacks ---

  /** @param {Partial<Status>} change */
  #update(change) {
    const before = this.#status;
    const after = { ...before, ...change };
    const names = /** @type {(keyof Status)[]} */ (Object.keys(after));
    if (names.every((name) => after[name] === before[name])) return;
    this.#status = Object.freeze(after);
    this.#call("onStatus", this.#status);
  }

  /** @param {{code: string, detail?: string}} error */
  #report(error) {
    this.#call("onError", error);
  }

  /**
   * Call a callback; report its error to the page without ending the connection.
   *
   * @param {"onBoard" | "onPlace" | "onStatus" | "onViewers" | "onError"} name
   * @param {any[]} values
   */
  #call(name, ...values) {
    const callback = /** @type {((...values: any[]) => void) | undefined} */ (this.#options[name]);
    try {
      callback?.(...values);
    } catch (error) {
      globalThis.reportError?.(error);
    }
  }
}
