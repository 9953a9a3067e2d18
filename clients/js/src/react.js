/**
 * A live board as a React hook.
 *
 *     const { rows, place, status } = useScoreboard({ url: "/ws/scoreboard", user: "alice" });
 *
 * Components with the same address, board, window and token share one connection. On a server the
 * hook returns no rows and connects nowhere.
 */

/**
 * @typedef {import("./shared-board.js").SharedOptions} ScoreboardOptions
 * @typedef {import("./scoreboard-protocol.js").Row} Row
 * @typedef {import("./shared-board.js").Board} Board
 * @typedef {import("./shared-board.js").Place} Place
 * @typedef {import("./shared-board.js").Status} Status
 *
 * @typedef {object} Scoreboard
 * @property {readonly Row[]} rows     best first; empty before the first board
 * @property {Board | null} board      the whole message
 * @property {Place | null} place      that of `user`, or of the token's holder
 * @property {Readonly<Status>} status
 * @property {() => boolean} retry     connect now, or start again after a stop
 */

import { useCallback, useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { follow, keyOf, NOTHING, placeOf, retry, snapshotOf } from "./shared-board.js";

/** @type {readonly Row[]} */
const NO_ROWS = Object.freeze([]);

/**
 * Follow a board while the component is mounted.
 *
 * `tokenProvider` may be another function at each render; the latest one is called. When another
 * user signs in, change `account`: the connection is that of the user before.
 *
 * @param {ScoreboardOptions} options
 * @returns {Scoreboard}
 */
export function useScoreboard(options) {
  const { user } = options;
  const key = keyOf(options);
  const latest = useRef(options);
  useEffect(() => {
    latest.current = options;
  });
  const subscribe = useCallback(
    /** @param {() => void} onChange */
    (onChange) =>
      follow(latest.current, {
        user,
        onChange,
        tokenProvider: (why) => latest.current.tokenProvider?.(why) ?? null,
      }),
    // The key has everything else that a connection depends on.
    [key, user],
  );
  const snapshot = useSyncExternalStore(
    subscribe,
    () => snapshotOf(key),
    () => NOTHING,
  );
  return useMemo(
    () => ({
      rows: snapshot.board?.leaderboard ?? NO_ROWS,
      board: snapshot.board,
      place: placeOf(snapshot, user),
      status: snapshot.status,
      retry: () => retry(key),
    }),
    [snapshot, user, key],
  );
}
