/**
 * The texts of the page: states, reasons, times.
 *
 * @typedef {import("./scoreboard-client.js").State} State
 */

/** @type {Record<State, string>} */
export const STATE_LABELS = {
  connecting: "Connecting",
  live: "Live",
  stale: "Paused",
  checking: "Checking",
  reconnecting: "Reconnecting",
  stopped: "Not connected",
};

const INCOMPATIBLE = ["Incompatible version", "This page does not match the server. Reload the page."];

/** @type {{[reason: string]: string[]}} */
const STOPPED = {
  "no-such-board": ["No such board", "There is no board with this name."],
  "bad-name": ["No such board", "A name has up to 32 characters: a–z, 0–9, dot, dash, underscore."],
  "no-such-season": ["No such season", "This board has no season with this name, or its standings are gone."],
  unreachable: ["Not connected", "The server does not respond."],
  private: ["This board is private", "Sign in to watch this board."],
  forbidden: ["Access denied", "You are not allowed to watch this board."],
  "signed-out": ["Signed out", "Your sign-in has expired. Sign in again to continue."],
  "protocol-error": INCOMPATIBLE,
  malformed: INCOMPATIBLE,
  "refused-by-browser": ["Not connected", "The browser blocked the connection."],
};
const CLOSED = ["Not connected", "The server closed the connection."];

/**
 * Return why the page has stopped, as a title and a sentence.
 *
 * @param {string | null} reason
 */
export function stopText(reason) {
  return STOPPED[reason ?? ""] ?? CLOSED;
}

/**
 * Return the connection status as a sentence.
 *
 * @param {{state: State, reason: string | null, retryAtMs: number | null}} status
 * @param {number} nowMs
 */
export function statusText({ state, reason, retryAtMs }, nowMs) {
  switch (state) {
    case "connecting":
      return "Connecting to the scoreboard";
    case "live":
      return "Connected";
    case "checking":
      return "Asking the server for the newest scores";
    case "stale":
      return "Live updates are paused. These scores may be outdated.";
    case "reconnecting": {
      const trouble = reason === "full" ? "The server is full" : "Connection lost";
      if (retryAtMs === null) return `${trouble}. Trying again`;
      const inS = Math.ceil((retryAtMs - nowMs) / 1_000);
      return inS > 0 ? `${trouble}. Trying again in ${inS} s` : `${trouble}. Trying again`;
    }
    default:
      return stopText(reason)[1];
  }
}

/**
 * Return how long ago something was, with one unit.
 *
 * @param {number} elapsedMs
 */
export function formatAge(elapsedMs) {
  const seconds = Math.max(0, Math.floor(elapsedMs / 1_000));
  if (seconds < 2) return "just now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3_600)} h ago`;
  const days = Math.floor(seconds / 86_400);
  return days === 1 ? "yesterday" : `${days} days ago`;
}
