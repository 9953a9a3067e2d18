/**
 * The rules of the subprotocols `scoreboard.v1` and `scoreboard.v1.delta` for a viewer: pure
 * functions without sockets, clocks or state. scoreboard-client.js applies them.
 *
 * @typedef {{rank: number, userId: string, score: number, name?: string}} Row
 * @typedef {{epoch: number, seq: number}} Position
 * @typedef {Position & {board: string, at?: number, offset?: number, viewers?: number,
 *   leaderboard: Row[]}} Board
 * @typedef {Position & {board: string, base: number, at?: number, count: number, changes: Row[]}
 *   } Delta
 * @typedef {Position & {board: string, userId: string, name?: string, rank: number | null,
 *   score: number | null, total?: number, toNext?: number, toTop?: number, above?: Row[],
 *   below?: Row[]}} Place
 * @typedef {{action: "retry" | "renew" | "stop", reason: string, floorMs?: number}} CloseAction
 * @typedef {{[name: string]: any, type: string}} Message
 */

/** The subprotocols of boards: the compact form is preferred, earlier servers have only the other. */
export const SUBPROTOCOLS = ["scoreboard.v1.delta", "scoreboard.v1"];
const BEARER = "bearer.";
const BACKOFF_FLOOR_MS = 500;
const BACKOFF_CEILING_MS = 30_000;

/**
 * Return whether a board at `position` replaces the one held, at `current` (null: none). An equal
 * position is the same board with newer names.
 *
 * @param {Position | null} current
 * @param {Position} position
 */
export function isNewer(current, position) {
  return current === null || position.epoch !== current.epoch || position.seq >= current.seq;
}

/**
 * Return whether the server, at `position`, has a board that the viewer, at `current`, lacks.
 *
 * @param {Position | null} current
 * @param {Position} position
 */
export function isAhead(current, position) {
  return current === null || position.epoch !== current.epoch || position.seq > current.seq;
}

/**
 * Return the board that a delta makes of the one it is based on; null if it does not fit to it.
 *
 * @param {Board | null} base
 * @param {Delta} delta
 * @returns {Board | null}
 */
export function applyDelta(base, delta) {
  if (base === null || base.board !== delta.board) return null;
  if (base.epoch !== delta.epoch || base.seq !== delta.base) return null;
  const first = (base.offset ?? 0) + 1;
  const rows = base.leaderboard.slice(0, delta.count);
  for (const row of delta.changes) {
    if (row.rank < first || row.rank >= first + delta.count) return null;
    rows[row.rank - first] = row;
  }
  if (rows.length !== delta.count || rows.includes(/** @type {any} */ (undefined))) return null;
  return { ...base, seq: delta.seq, at: delta.at, leaderboard: rows };
}

/**
 * Return the delay in milliseconds before a reconnect, with full jitter.
 *
 * @param {number} attempt    number of failures in a row
 * @param {number} random     in 0…1
 * @param {number} [floorMs]  least delay; a higher floor shifts the whole range
 */
export function backoffMs(attempt, random, floorMs = BACKOFF_FLOOR_MS) {
  const grown = Math.min(BACKOFF_CEILING_MS, 1_000 * 2 ** Math.min(attempt, 10));
  const ceiling = Math.max(grown, 2 * floorMs);
  return Math.round(floorMs + random * (ceiling - floorMs));
}

/**
 * Return what a viewer must do after a close code: `retry`, `renew` (get a new token, then retry)
 * or `stop`. `floorMs` is the least delay where it is longer than usual. Unknown codes are retried,
 * so that a page survives codes of newer servers.
 *
 * @param {number} code
 * @returns {CloseAction}
 */
export function closeAction(code) {
  switch (code) {
    case 1002: // protocol error
    case 1003: // unsupported data
    case 1007: // invalid payload
    case 1009: // message too big
      return { action: "stop", reason: "protocol-error" };
    case 4400:
      return { action: "stop", reason: "malformed" };
    case 4403:
      return { action: "stop", reason: "forbidden" };
    case 4404:
      return { action: "stop", reason: "no-such-board" };
    case 4401:
      return { action: "renew", reason: "token" };
    case 1001:
    case 1012:
      return { action: "retry", reason: "restart" };
    case 1013:
      return { action: "retry", reason: "full", floorMs: 5_000 };
    case 4429:
      return { action: "retry", reason: "too-chatty", floorMs: 30_000 };
    default:
      return { action: "retry", reason: "lost" };
  }
}

/**
 * Decode the claims of a JWT without verifying it; null if it is not a JWT.
 *
 * @param {string} token
 * @returns {{[name: string]: any} | null}
 */
export function jwtClaims(token) {
  try {
    const body = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(bytes));
    return claims !== null && typeof claims === "object" ? claims : null;
  } catch {
    return null;
  }
}

/**
 * Return when a JWT expires, in milliseconds since 1970; null if it has no expiry.
 *
 * @param {string} token
 * @returns {number | null}
 */
export function tokenExpiryMs(token) {
  const exp = jwtClaims(token)?.exp;
  return Number.isFinite(exp) ? exp * 1_000 : null;
}

/**
 * Parse a message from the server; null if it is invalid.
 *
 * @param {string} text
 * @returns {Message | null}
 */
export function parseMessage(text) {
  let message;
  try {
    message = JSON.parse(text);
  } catch {
    return null;
  }
  if (message === null || typeof message !== "object") return null;
  if (message.type === "leaderboard") return isBoard(message) ? message : null;
  if (message.type === "delta") return isDelta(message) ? message : null;
  if (message.type === "heartbeat") return isPosition(message) ? message : null;
  if (message.type === "place") return isPlace(message) ? message : null;
  return typeof message.type === "string" ? message : null;
}

/** @param {{epoch?: unknown, seq?: unknown}} message */
function isPosition({ epoch, seq }) {
  return Number.isSafeInteger(epoch) && Number.isSafeInteger(seq);
}

/** @param {{[name: string]: any}} message */
function isBoard(message) {
  return (
    isPosition(message) &&
    typeof message.board === "string" &&
    Array.isArray(message.leaderboard) &&
    message.leaderboard.every(isRow)
  );
}

/** @param {{[name: string]: any}} message */
function isDelta(message) {
  return (
    isPosition(message) &&
    typeof message.board === "string" &&
    Number.isSafeInteger(message.base) &&
    Number.isSafeInteger(message.count) &&
    message.count >= 0 &&
    Array.isArray(message.changes) &&
    message.changes.every(isRow)
  );
}

/** @param {any} row */
function isRow(row) {
  return (
    row !== null &&
    typeof row === "object" &&
    Number.isSafeInteger(row.rank) &&
    Number.isSafeInteger(row.score) &&
    typeof row.userId === "string" &&
    (row.name === undefined || typeof row.name === "string")
  );
}

/** @param {{[name: string]: any}} message */
function isPlace(message) {
  return (
    isPosition(message) &&
    typeof message.board === "string" &&
    (isRow(message) || (typeof message.userId === "string" && message.rank === null))
  );
}

/**
 * Return the WebSocket URL: `http` becomes `ws`, relative URLs are resolved against `base`.
 *
 * @param {string | URL} url
 * @param {string} [board]
 * @param {string} [base]   default: the address of the page
 * @throws {TypeError} if `url` is invalid
 */
export function webSocketUrl(url, board, base = globalThis.location?.href) {
  const address = new URL(url, base);
  address.protocol = address.protocol.replace(/^http/, "ws");
  if (!/^wss?:$/.test(address.protocol)) throw new TypeError(`not a WebSocket URL: ${url}`);
  address.hash = "";
  if (board) address.searchParams.set("board", board);
  return address.href;
}

/**
 * Return the subprotocols to offer. A token travels there, and never in the URL.
 *
 * @param {string | null} token
 */
export function subprotocols(token) {
  return token ? [...SUBPROTOCOLS, BEARER + token] : [...SUBPROTOCOLS];
}
