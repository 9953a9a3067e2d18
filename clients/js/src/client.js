/**
 * The HTTP API: updates that count once, and reads.
 *
 *     const client = new ScoreboardClient({ url: "https://scores.example.com", token });
 *     await client.update({ userId: "alice", actionId: newActionId("win") });
 *
 * Invariants: every attempt of an update sends the same `actionId`; a delay that the service asks
 * for is respected; an answer that was kept for one user is never given to another.
 */

/**
 * @typedef {import("./openapi.js").components["schemas"]} Schemas
 * @typedef {import("./tokens.js").TokenProvider} TokenProvider
 * @typedef {import("./live.js").LiveOptions} LiveOptions
 *
 * @typedef {object} ClientOptions
 * @property {string | URL} url         where the api listens; in a browser it may be relative
 * @property {string | URL} [liveUrl]   where the streamer listens; default: `/ws/scoreboard` at `url`
 * @property {string} [board]           the board of calls that name none; default: the service's first
 * @property {string} [token]           a JWT that will not be renewed
 * @property {TokenProvider} [tokenProvider]
 *   returns a current JWT, or null for none; called again when the service refuses the token
 * @property {number} [timeoutMs]       limit of one attempt; default: 15,000
 * @property {number} [attempts]        attempts of a request; default: 8
 * @property {number} [baseMs]          ceiling of the first random wait; it doubles; default: 500
 * @property {number} [ceilingMs]       ceiling of later ones; default: 30,000
 * @property {number} [cachedAnswers]   how many answers of reads are kept; default: 100, 0: none
 * @property {typeof globalThis.fetch} [fetch]
 * @property {typeof globalThis.WebSocket} [WebSocket]  for runtimes without one
 * @property {() => number} [random]    for tests
 *
 * @typedef {object} CallOptions
 * @property {AbortSignal} [signal]     aborts the call, also while it waits
 * @property {string} [board]
 *
 * @typedef {CallOptions & {season?: string}} SeasonOptions
 */

import { Answers } from "./answers.js";
import { errorOf, NO_ANSWER, ScoreboardError } from "./errors.js";
import { connect } from "./live.js";
import { holderOf, Tokens } from "./tokens.js";
import { delayMs, unlessAborted, wait } from "./waiting.js";

/** The most actions and bytes of one bulk request that every service accepts. */
const BULK_ACTIONS = 100;
const BULK_BYTES = 16_384;
/** Longer waits are left to the caller. */
const LONGEST_WAIT_MS = 120_000;

/**
 * Return a new id of an action. Store it with the action until the answer arrives.
 *
 * @param {string} kind  the kind of action, such as `win`
 */
export function newActionId(kind) {
  // randomUUID() does not exist on pages without TLS.
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return `${kind}:${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

export class ScoreboardClient {
  /** @type {string} */ #url;
  /** @type {ClientOptions} */ #options;
  /** @type {Tokens} */ #tokens;
  /** @type {Answers} */ #answers;

  /**
   * @param {ClientOptions} options
   * @throws {TypeError} if `url` is invalid
   */
  constructor(options) {
    const address = new URL(options.url, globalThis.location?.href);
    this.#url = address.href.replace(/[?#].*$/, "").replace(/\/$/, "");
    this.#options = options;
    this.#tokens = new Tokens(options);
    this.#answers = new Answers(options.cachedAnswers ?? 100);
  }

  // --- updates ---

  /**
   * Count one action, once, and return the user's new score.
   *
   * Throws a ScoreboardError if the service refuses the action, or does not answer. In the second
   * case, and after a restart of your program, send the same `actionId` again.
   *
   * @param {Schemas["UpdateRequest"]} action
   * @param {CallOptions} [options]
   * @returns {Promise<Schemas["UpdateReply"]>}
   */
  async update(action, options = {}) {
    const board = action.boards ? undefined : this.#boardOf(options);
    return await this.#send("/api/scores/update", { query: { board }, body: action, ...options });
  }

  /**
   * Count many actions of any users, each of them once, and return what happened to each, in the
   * same order. Needs the token of a game server.
   *
   * They are sent in as many requests as necessary, and those that the service asks for are sent
   * again. Throws a ScoreboardError if a whole request fails: some actions may have counted then,
   * so send all of them again with the same ids.
   *
   * @param {Schemas["UpdateItem"][]} actions
   * @param {CallOptions} [options]
   * @returns {Promise<Schemas["BulkResult"][]>}
   */
  async updateMany(actions, options = {}) {
    const board = this.#boardOf(options);
    const items = actions.map((action) =>
      board === undefined || action.board || action.boards ? action : { ...action, board },
    );
    /** @type {Schemas["BulkResult"][]} */
    const results = new Array(items.length);
    let open = items.map((_, index) => index);
    for (let attempt = 1; ; attempt += 1) {
      for (const part of partsOf(open, items)) {
        const body = { updates: part.map((index) => items[index]) };
        /** @type {Schemas["BulkReply"]} */
        const reply = await this.#send("/api/scores/updates", { body, ...options });
        part.forEach((index, place) => {
          results[index] = reply.results[place];
        });
      }
      open = open.filter((index) => results[index].retryAfter !== undefined);
      const waits = open.map((index) => 1_000 * (results[index].retryAfter ?? 0));
      const longestMs = Math.max(0, ...waits);
      if (open.length === 0 || attempt >= this.#attempts || longestMs > LONGEST_WAIT_MS) {
        return results;
      }
      await this.#wait(attempt, longestMs, options.signal);
    }
  }

  // --- reads ---

  /**
   * Return rows of a board, best first.
   *
   * @param {SeasonOptions & {limit?: number, offset?: number, names?: boolean}} [options]
   * @returns {Promise<Schemas["LeaderboardReply"]>}
   */
  async leaderboard({ limit, offset, names, ...options } = {}) {
    return await this.#read("/api/scores/leaderboard", { limit, offset, names }, options);
  }

  /**
   * Return the rank and the score of a user, and `around` neighbours on each side.
   *
   * @param {string} userId
   * @param {SeasonOptions & {around?: number}} [options]
   * @returns {Promise<Schemas["StandingReply"]>}
   */
  async user(userId, { around, ...options } = {}) {
    return await this.#read(`/api/scores/users/${encoded(userId)}`, { around }, options);
  }

  /**
   * Return the rank and the score of the holder of the token.
   *
   * @param {SeasonOptions & {around?: number}} [options]
   * @returns {Promise<Schemas["StandingReply"]>}
   */
  async me({ around, ...options } = {}) {
    return await this.#read("/api/scores/me", { around }, options);
  }

  /**
   * Return the standings of up to 100 users, best first.
   *
   * @param {string[]} ids
   * @param {SeasonOptions & {names?: boolean}} [options]
   * @returns {Promise<Schemas["StandingsReply"]>}
   */
  async users(ids, { names, ...options } = {}) {
    return await this.#read("/api/scores/users", { ids: ids.join(","), names }, options);
  }

  /**
   * Return the rank that a score would get now.
   *
   * @param {number} score
   * @param {SeasonOptions} [options]
   * @returns {Promise<Schemas["ScoreRankReply"]>}
   */
  async rank(score, options = {}) {
    return await this.#read("/api/scores/rank", { score }, options);
  }

  /**
   * Return the score that a rank takes.
   *
   * @param {number} rank
   * @param {SeasonOptions} [options]
   * @returns {Promise<Schemas["CutoffReply"]>}
   */
  async cutoff(rank, options = {}) {
    return await this.#read("/api/scores/cutoff", { rank }, options);
  }

  /**
   * Return the seasons of a board with their winners, latest first. `before` is `next` of the page
   * before.
   *
   * @param {CallOptions & {limit?: number, before?: string}} [options]
   * @returns {Promise<Schemas["SeasonsReply"]>}
   */
  async seasons({ limit, before, ...options } = {}) {
    return await this.#read("/api/scores/seasons", { limit, before }, options);
  }

  /**
   * Return the counted actions of a user, latest first. `before` is `next` of the page before.
   *
   * @param {string} userId
   * @param {CallOptions & {limit?: number, before?: string}} [options]
   * @returns {Promise<Schemas["HistoryReply"]>}
   */
  async history(userId, { limit, before, ...options } = {}) {
    const path = `/api/scores/users/${encoded(userId)}/history`;
    return await this.#read(path, { limit, before }, options);
  }

  /**
   * Return boards and their rules, by name. `after` is `next` of the page before.
   *
   * @param {{signal?: AbortSignal, limit?: number, after?: string}} [options]
   * @returns {Promise<Schemas["BoardsReply"]>}
   */
  async boards({ limit, after, signal } = {}) {
    return await this.#send("/api/boards", { query: { limit, after }, signal });
  }

  /**
   * Return one board and its rules.
   *
   * @param {string} name
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<Schemas["BoardReply"]>}
   */
  async board(name, { signal } = {}) {
    return await this.#send(`/api/boards/${encoded(name)}`, { signal });
  }

  // --- live boards ---

  /**
   * Follow a board with the token of this client; see `connect`.
   *
   * @param {Omit<LiveOptions, "url" | "token" | "tokenProvider">} [options]
   * @returns {import("./live.js").Connection}
   */
  connect(options = {}) {
    const { WebSocket, token, liveUrl = `${this.#url}/ws/scoreboard` } = this.#options;
    return connect({
      WebSocket,
      ...options,
      board: options.board ?? this.#options.board,
      url: liveUrl,
      ...(this.#tokens.canRenew
        ? { tokenProvider: ({ reason }) => this.#tokens.forLive(reason) }
        : { token }),
    });
  }

  // --- requests ---

  get #attempts() {
    return this.#options.attempts ?? 8;
  }

  /** @param {{board?: string}} options */
  #boardOf({ board }) {
    return board ?? this.#options.board;
  }

  /**
   * @param {string} path
   * @param {{[name: string]: string | number | boolean | undefined}} query
   * @param {SeasonOptions} options
   */
  async #read(path, query, { season, signal, ...options }) {
    const board = this.#boardOf(options);
    return await this.#send(path, { query: { ...query, season, board }, signal });
  }

  /**
   * Send a request until it is answered or refused; return the parsed answer.
   *
   * @param {string} path
   * @param {{query?: {[name: string]: string | number | boolean | undefined}, body?: object,
   *   signal?: AbortSignal}} request
   * @returns {Promise<any>}
   */
  async #send(path, { query = {}, body, signal }) {
    const url = `${this.#url}${path}${queryOf(query)}`;
    const text = body && JSON.stringify(body);
    let token = await unlessAborted(this.#tokens.current(), signal);
    let isRenewed = false;
    for (let attempt = 1; ; ) {
      const { answer, error } = await this.#attempt(url, token, text, signal);
      if (!error) return JSON.parse(answer);
      if (error.status === 401 && !isRenewed && this.#tokens.canRenew) {
        isRenewed = true;
        const other = await unlessAborted(this.#tokens.instead(token), signal);
        if (other === null || other === token) throw error;
        token = other;
        continue;
      }
      const isTooLong = (error.retryAfterMs ?? 0) > LONGEST_WAIT_MS;
      if (!error.isRetryable || isTooLong || attempt >= this.#attempts) throw error;
      await this.#wait(attempt, error.retryAfterMs, signal);
      attempt += 1;
      token = await unlessAborted(this.#tokens.current(), signal); // the wait may have outlasted it
    }
  }

  /**
   * Send a request once.
   *
   * @param {string} url
   * @param {string | null} token
   * @param {string | undefined} body
   * @param {AbortSignal} [signal]
   * @returns {Promise<{answer: string, error?: undefined} | {answer?: undefined, error: ScoreboardError}>}
   */
  async #attempt(url, token, body, signal) {
    const key = `${holderOf(token)} ${url}`;
    const kept = body === undefined ? this.#answers.get(key) : null;
    const timeout = AbortSignal.timeout(this.#options.timeoutMs ?? 15_000);
    const send = this.#options.fetch ?? globalThis.fetch;
    try {
      const response = await send(url, {
        method: body === undefined ? "GET" : "POST",
        headers: {
          Accept: "application/json",
          ...(token === null ? {} : { Authorization: `Bearer ${token}` }),
          ...(body === undefined ? {} : { "Content-Type": "application/json" }),
          ...(kept ? { "If-None-Match": kept.etag } : {}),
        },
        body,
        credentials: "omit",
        signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      });
      if (response.status === 304 && kept) return { answer: kept.text };
      const text = await response.text();
      if (!response.ok) return { error: errorOf(response, text) };
      JSON.parse(text); // an answer that was cut off is none
      const etag = response.headers.get("ETag");
      if (body === undefined && etag) this.#answers.set(key, etag, text);
      return { answer: text };
    } catch (cause) {
      if (signal?.aborted) throw signal.reason;
      const detail = timeout.aborted
        ? "The service did not answer in time."
        : "The service could not be reached, or its answer was lost.";
      return { error: new ScoreboardError({ type: NO_ANSWER, status: 0, detail, cause }) };
    }
  }

  /**
   * @param {number} attempt
   * @param {number | null} retryAfterMs
   * @param {AbortSignal} [signal]
   */
  async #wait(attempt, retryAfterMs, signal) {
    const { baseMs = 500, ceilingMs = 30_000, random = Math.random } = this.#options;
    await wait(delayMs(attempt, random(), retryAfterMs, { baseMs, ceilingMs }), signal);
  }
}

/**
 * Return an id as a part of a path. `fetch` would remove `.` and `..`, and ask for something else.
 *
 * @param {string} text
 */
function encoded(text) {
  if (text === "." || text === "..") throw new TypeError(`not an id: ${text}`);
  return encodeURIComponent(text);
}

/** @param {{[name: string]: string | number | boolean | undefined}} query */
function queryOf(query) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined);
  if (given.length === 0) return "";
  return `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}`;
}

/**
 * Divide actions into bulk requests.
 *
 * @param {number[]} indices
 * @param {object[]} items
 */
function partsOf(indices, items) {
  const encoder = new TextEncoder();
  const empty = '{"updates":[]}'.length;
  /** @type {number[][]} */
  const parts = [];
  let bytes = Infinity;
  for (const index of indices) {
    const size = encoder.encode(JSON.stringify(items[index])).length + 1; // and a comma
    const isFull = parts.length > 0 && parts[parts.length - 1].length >= BULK_ACTIONS;
    if (isFull || bytes + size > BULK_BYTES) {
      parts.push([]);
      bytes = empty;
    }
    parts[parts.length - 1].push(index);
    bytes += size;
  }
  return parts;
}
