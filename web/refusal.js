/** Why a handshake was refused: browsers hide its status, so the api is asked for the same board. */

const FETCH_MS = 5_000;

/**
 * Ask the api for a board; return why it cannot be watched, or null if the api does not know a reason
 * or cannot be reached.
 *
 * @param {string | null} board  null: the default board
 * @returns {Promise<"no-such-board" | "private" | null>}
 */
export async function refusalOf(board) {
  const url = new URL("/api/scores/leaderboard?limit=1", location.href);
  if (board) url.searchParams.set("board", board);
  let status;
  try {
    ({ status } = await fetch(url, { signal: AbortSignal.timeout(FETCH_MS) }));
  } catch {
    return null;
  }
  if (status === 404) return "no-such-board";
  return status === 401 || status === 403 ? "private" : null;
}
