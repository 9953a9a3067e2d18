/**
 * The rules of `scoreboard.v1` as a viewer sees them, free of sockets and clocks.
 *
 * scoreboard-client.js lives by them; tests try them one by one. Nothing here keeps state.
 */

export const SUBPROTOCOL = "scoreboard.v1";
const BEARER = "bearer.";
const BACKOFF_FLOOR_MS = 500;
const BACKOFF_CEILING_MS = 30_000;

/** Tell whether a frame at `position` is to be taken by a viewer that holds `kept` (or nothing). */
export function isNews(kept, position) {
  return kept === null || position.epoch !== kept.epoch || position.seq > kept.seq;
}

/**
 * Give a waiting time in milliseconds with full jitter, for the `attempt`-th failure in a row.
 * `random` is in 0…1; with a higher floor the whole range moves up.
 */
export function backoffMs(attempt, random, floorMs = BACKOFF_FLOOR_MS) {
  const grown = Math.min(BACKOFF_CEILING_MS, 1_000 * 2 ** Math.min(attempt, 10));
  const ceiling = Math.max(grown, 2 * floorMs);
  return Math.round(floorMs + random * (ceiling - floorMs));
}

/**
 * Say what a close code asks of a viewer: `{action, reason, floorMs?}`, where action is `retry`,
 * `renew` (get a new token, then retry) or `stop`, and `floorMs` the least wait where it is more
 * than usual. Codes nobody knows yet are retried: a page must survive them.
 */
export function afterClose(code) {
  switch (code) {
    case 1002: // protocol error
    case 1003: // binary
    case 1007: // not UTF-8
    case 1009: // too big
      return { action: "stop", reason: "protocol-error" };
    case 4400:
      return { action: "stop", reason: "malformed" };
    case 4403:
      return { action: "stop", reason: "forbidden" };
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

/** Read when a JWT ends, in milliseconds since 1970; null where it does not say. Verifies nothing. */
export function tokenExpiryMs(token) {
  try {
    const body = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const { exp } = JSON.parse(atob(body));
    return Number.isFinite(exp) ? exp * 1_000 : null;
  } catch {
    return null;
  }
}

/** Parse a text from the server; null where it is no message of ours. */
export function readMessage(text) {
  let message;
  try {
    message = JSON.parse(text);
  } catch {
    return null;
  }
  if (message === null || typeof message !== "object") return null;
  if (message.type === "leaderboard") return isBoard(message) ? message : null;
  if (message.type === "heartbeat") return isPosition(message) ? message : null;
  return typeof message.type === "string" ? message : null;
}

function isPosition({ epoch, seq }) {
  return Number.isSafeInteger(epoch) && Number.isSafeInteger(seq);
}

function isBoard(message) {
  return (
    isPosition(message) &&
    typeof message.board === "string" &&
    Array.isArray(message.leaderboard) &&
    message.leaderboard.every(
      (row) =>
        row !== null &&
        typeof row === "object" &&
        Number.isSafeInteger(row.rank) &&
        Number.isSafeInteger(row.score) &&
        typeof row.userId === "string",
    )
  );
}

/** Give the WebSocket's address: `http` becomes `ws`, relative is to the page, `board` is added. */
export function addressOf(url, board, base = globalThis.location?.href) {
  const address = new URL(url, base);
  address.protocol = address.protocol.replace(/^http/, "ws");
  if (!/^wss?:$/.test(address.protocol)) throw new TypeError(`no WebSocket address: ${url}`);
  address.hash = "";
  if (board) address.searchParams.set("board", board);
  return address.href;
}

/** Give what to offer in the handshake; a token travels there and never in the address. */
export function subprotocols(token) {
  return token ? [SUBPROTOCOL, BEARER + token] : [SUBPROTOCOL];
}
