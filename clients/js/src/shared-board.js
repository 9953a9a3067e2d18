/**
 * Live boards that several parts of a page show: one connection for each address, board, window and
 * account.
 *
 * A connection outlives its last follower by a second, so that a part of the page that is moved, or
 * built twice as by React's StrictMode, does not connect again.
 */

/**
 * @typedef {import("./live.js").LiveOptions} LiveOptions
 * @typedef {import("./scoreboard-client.js").Board} Board
 * @typedef {import("./scoreboard-client.js").Place} Place
 * @typedef {import("./scoreboard-client.js").Status} Status
 * @typedef {import("./tokens.js").TokenProvider} TokenProvider
 *
 * @typedef {object} SharedOptions
 * @property {string | URL} url        where the streamer listens; may be relative to the page
 * @property {string} [board]          the board; default: the service's first
 * @property {number} [rows]           rows to follow, 10 to 100; default: 10
 * @property {number} [offset]         rows to skip before them; default: 0
 * @property {string} [user]           the user whose place is followed; default: that of the token
 * @property {string} [token]          a JWT that will not be renewed
 * @property {TokenProvider} [tokenProvider]
 * @property {string} [account]        who is signed in: another value is another connection
 * @property {typeof globalThis.WebSocket} [WebSocket]  for runtimes without one
 *
 * @typedef {object} Follower
 * @property {string} [user]
 * @property {TokenProvider} [tokenProvider]
 * @property {(snapshot: Snapshot) => void} onChange
 * @property {(error: {code: string, detail?: string}) => void} [onError]
 *
 * @typedef {object} Snapshot
 * @property {Board | null} board      the newest board
 * @property {Readonly<Status>} status
 * @property {ReadonlyMap<string, Place>} places  the newest places, by user id
 * @property {readonly string[]} watched  the users whose places were asked for
 */

import { connect } from "./live.js";

const LINGER_MS = 1_000;
/** The server accepts so many watched users of a connection. */
const WATCHED_MAX = 5;

/**
 * What there is before a connection.
 * @type {Snapshot}
 */
export const NOTHING = Object.freeze({
  board: null,
  status: Object.freeze({
    state: "connecting",
    reason: null,
    code: null,
    attempt: 0,
    retryAtMs: null,
    isMandated: false,
  }),
  places: new Map(),
  watched: Object.freeze([]),
});

/** @type {Map<string, SharedBoard>} */
const boards = new Map();

/**
 * Return what options have in common that can share a connection.
 *
 * @param {SharedOptions} options
 */
export function keyOf({ url, board, rows, offset, token, tokenProvider, account }) {
  const isRenewed = Boolean(tokenProvider); // components make another function at each render
  return JSON.stringify([String(url), board, rows, offset, token, isRenewed, account]);
}

/** @type {WeakMap<TokenProvider, string>} */
const accounts = new WeakMap();
let accountCount = 0;

/**
 * Return an account for a provider, where another provider means another user.
 *
 * @param {TokenProvider | undefined} provider
 */
export function accountOf(provider) {
  if (provider === undefined) return undefined;
  const account = accounts.get(provider) ?? `provider ${(accountCount += 1)}`;
  accounts.set(provider, account);
  return account;
}

/**
 * Follow a board; the returned function ends that.
 *
 * @param {SharedOptions} options
 * @param {Follower} follower
 * @throws {TypeError} as `connect`
 */
export function follow(options, follower) {
  const key = keyOf(options);
  let shared = boards.get(key);
  if (shared === undefined) {
    shared = new SharedBoard(options, () => boards.delete(key));
    boards.set(key, shared);
  }
  return shared.add(follower);
}

/**
 * Return what is known for a key.
 *
 * @param {string} key
 */
export function snapshotOf(key) {
  return boards.get(key)?.snapshot ?? NOTHING;
}

/**
 * Connect now instead of waiting, or start again after a stop; return whether that is possible.
 *
 * @param {string} key
 */
export function retry(key) {
  return boards.get(key)?.retry() ?? false;
}

/**
 * Return the place of a user; without a user, that of the holder of the token.
 *
 * @param {Snapshot} snapshot
 * @param {string} [user]
 * @returns {Place | null}
 */
export function placeOf({ places, watched }, user) {
  if (user) return places.get(user) ?? null;
  // A place that was not asked for is that of the token's holder.
  return [...places.values()].find(({ userId }) => !watched.includes(userId)) ?? null;
}

class SharedBoard {
  snapshot = NOTHING;
  #connection;
  #end;
  /** @type {Set<Follower>} */ #followers = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  /**
   * @param {SharedOptions} options
   * @param {() => void} end  called when the connection is closed
   */
  constructor({ url, board, rows, offset, token, tokenProvider, WebSocket }, end) {
    this.#end = end;
    this.#connection = connect({
      url,
      board,
      rows,
      offset,
      token,
      WebSocket,
      tokenProvider: tokenProvider && ((why) => this.#token(why)),
      onBoard: (newest) => this.#change({ board: newest }),
      onStatus: (status) => this.#change({ status }),
      onPlace: (place) => {
        const { places } = this.snapshot;
        this.#change({ places: new Map([...places, [place.userId, place]]) });
      },
      onError: (error) => this.#followers.forEach(({ onError }) => onError?.(error)),
    });
  }

  /** @param {Follower} follower */
  add(follower) {
    clearTimeout(this.#timer);
    this.#followers.add(follower);
    this.#watch();
    // It may have stopped for want of a token that the new follower has.
    if (this.snapshot.status.state === "stopped") this.#connection.retry();
    return () => {
      if (!this.#followers.delete(follower)) return;
      this.#watch();
      if (this.#followers.size === 0) this.#timer = setTimeout(() => this.#close(), LINGER_MS);
    };
  }

  retry() {
    return this.#connection.retry();
  }

  #close() {
    this.#end();
    this.#connection.close();
  }

  #watch() {
    const users = [...new Set([...this.#followers].flatMap(({ user }) => user || []))];
    const watched = users.slice(0, WATCHED_MAX);
    // Users stay watched while it lingers: the same part of the page may come back.
    const { places, watched: before } = this.snapshot;
    if (this.#followers.size === 0 || String(watched) === String(before)) return;
    this.#connection.watch(watched);
    const kept = [...places].filter(([user]) => watched.includes(user));
    this.#change({ watched, places: new Map(kept) });
  }

  /** @param {Parameters<TokenProvider>[0]} why */
  #token(why) {
    // The one that came last knows best who is signed in.
    const providers = [...this.#followers].flatMap(({ tokenProvider }) => tokenProvider ?? []);
    return providers.at(-1)?.(why) ?? null;
  }

  /** @param {Partial<Snapshot>} change */
  #change(change) {
    this.snapshot = Object.freeze({ ...this.snapshot, ...change });
    for (const { onChange } of [...this.#followers]) onChange(this.snapshot);
  }
}
