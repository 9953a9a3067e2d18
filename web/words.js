/** What the page says in words: states, reasons, times. One place, so that the tone is one. */

/** The states as the lamp at the top names them. */
export const WORDS = {
  connecting: "Connecting",
  live: "Live",
  stale: "Paused",
  reconnecting: "Reconnecting",
  stopped: "Not connected",
};

const MISUNDERSTOOD = ["No common language", "This page and the server do not fit. Reload the page."];

/** Why there is nothing more to wait for: a title and what to do about it. */
const STOPPED = {
  "no-such-board": ["No such board", "There is no board of this name here."],
  "bad-name": ["No such board", "A name is made of a–z, 0–9, dot, dash and underscore, up to 32."],
  private: ["This board is private", "Only those who are signed in can watch it."],
  forbidden: ["Not for you to see", "You are not allowed to watch this board."],
  "signed-out": ["Signed out", "Your sign-in has ended. Sign in again to go on watching."],
  "protocol-error": MISUNDERSTOOD,
  malformed: MISUNDERSTOOD,
  "refused-by-browser": ["Not connected", "The browser did not allow the connection."],
};
const ENDED = ["Not connected", "The server has ended the connection."];

/** Say why the page has stopped, as a title and a sentence. */
export function whyStopped(reason) {
  return STOPPED[reason] ?? ENDED;
}

/** Say how the connection stands, in a sentence for people. */
export function sentenceFor({ state, reason, retryAtMs }, nowMs) {
  switch (state) {
    case "connecting":
      return "Connecting to the scoreboard";
    case "live":
      return "Connected";
    case "stale":
      return "Live updates are paused. This is how things stood last.";
    case "reconnecting": {
      const trouble = reason === "full" ? "The server is full" : "The connection was lost";
      if (retryAtMs === null) return `${trouble}. Trying again`;
      const inS = Math.ceil((retryAtMs - nowMs) / 1_000);
      return inS > 0 ? `${trouble}. Trying again in ${inS} s` : `${trouble}. Trying again`;
    }
    default:
      return whyStopped(reason)[1];
  }
}

/** Say how long ago something was, coarser the longer it is. */
export function ago(elapsedMs) {
  const seconds = Math.max(0, Math.floor(elapsedMs / 1_000));
  if (seconds < 2) return "just now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3_600)} h ago`;
  const days = Math.floor(seconds / 86_400);
  return days === 1 ? "yesterday" : `${days} days ago`;
}
