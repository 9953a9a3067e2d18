/**
 * The live page: finds the streamer, follows the board, shows the connection status.
 *
 * `/config.json` returns `{"ws", "oauth"}`: the streamer's address (empty: the page's own origin)
 * and the issuer where players sign in (null: no sign-in). The page's `?board=` selects the board.
 * The page connects anonymously; it uses the player's token only for a board that requires one.
 *
 * @typedef {import("./scoreboard-client.js").Status} Status
 * @typedef {import("./scoreboard-protocol.js").Board} Board
 */

import { Announcer } from "./announcer.js";
import { BoardView } from "./board-view.js";
import { showPlayer } from "./player.js";
import { connect } from "./scoreboard-client.js";
import { SignIn } from "./sign-in.js";
import { formatAge, STATE_LABELS, statusText, stopText } from "./texts.js";

const SAME_ORIGIN = "/ws/scoreboard";
const FETCH_MS = 5_000;
const TICK_MS = 1_000;
/** A reconnection shorter than this is not shown. */
const GRACE_MS = 1_500;
/** Errors that another attempt would not change. */
const FINAL = new Set(["no-such-board", "bad-name"]);
const BOARD_NAME = /^(?!\.\.?$)[a-z0-9_.-]{1,32}$/;

const root = document.documentElement;
/**
 * @param {string} id
 * @returns {HTMLElement}
 */
const find = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
const view = new BoardView(find("rows"));
const announcer = new Announcer(find("news"));

/** @type {ReturnType<typeof connect> | null} */
let connection = null;
/** @type {Status} */
let status = initialStatus();
/** @type {Board | null} */
let board = null;
/** @type {number | null} */
let changedAtMs = null;
let lostAtMs = 0;
/** @type {"live" | "stale"} */
let stateBeforeLoss = "live";
/** @type {string | null} */
let failure = null; // an error found by the page itself
/** @type {SignIn | null} */
let signIn = null; // null where the deployment has no sign-in
let isPrivate = false; // whether the board requires a token

/** @returns {Status} */
function initialStatus() {
  return {
    state: "connecting", reason: null, code: null, attempt: 0, retryAtMs: null, isMandated: false,
  };
}

/**
 * @param {string} id
 * @param {string} text
 */
function write(id, text) {
  const element = find(id);
  if (element.textContent !== text) element.textContent = text;
}

/** Update everything except the rows; cheap, because it runs every second. */
function refresh() {
  const nowMs = Date.now();
  const isBrief = status.state === "reconnecting" && board !== null && nowMs - lostAtMs < GRACE_MS;
  const state = failure !== null ? "stopped" : isBrief ? stateBeforeLoss : status.state;
  root.dataset.state = state;
  if (board !== null) root.dataset.view = board.leaderboard.length ? "board" : "empty";
  else root.dataset.view = state === "stopped" ? "stopped" : "loading";

  const reason = failure ?? status.reason;
  const text =
    state === "live" && changedAtMs !== null
      ? `Last change ${formatAge(nowMs - changedAtMs)}`
      : statusText({ ...status, state, reason }, nowMs);
  write("connection", STATE_LABELS[state]);
  write("detail", root.dataset.view === "stopped" ? "" : text);
  const canRetry = state === "reconnecting" && status.retryAtMs !== null && !status.isMandated;
  const canRestart = state === "stopped" && !FINAL.has(reason ?? "");
  find("retry").hidden = !(canRetry || (canRestart && board !== null));
  find("restart").hidden = !canRestart;

  if (root.dataset.view === "empty") {
    write("panel-title", "No scores yet");
    write("panel-text", "The first score appears here.");
  } else if (root.dataset.view === "stopped") {
    const [title, explanation] = stopText(reason);
    write("panel-title", title);
    write("panel-text", explanation);
  }
}

/**
 * @param {Board} newBoard
 * @param {{isSnapshot: boolean}} how
 */
function onBoard(newBoard, { isSnapshot }) {
  // The server's clock dates a snapshot; the local clock dates the changes that arrive live.
  const nowMs = Date.now();
  const atMs = newBoard.at;
  const isDated = isSnapshot && typeof atMs === "number" && Number.isFinite(atMs);
  changedAtMs = isDated ? Math.min(atMs, nowMs) : nowMs;
  board = newBoard;
  failure = null;
  view.render(newBoard);
  announcer.update(newBoard.leaderboard);
  write("board-name", newBoard.board);
  document.title = `${newBoard.board} · Scoreboard`;
  refresh();
}

/** @param {Status} newStatus */
function onStatus(newStatus) {
  const { state } = newStatus;
  if (state === "reconnecting" && status.state !== "reconnecting") lostAtMs = Date.now();
  status = newStatus;
  if (state === "live" || state === "stale") {
    stateBeforeLoss = state;
    failure = null;
  }
  if (state === "reconnecting" && newStatus.attempt === 1 && board === null) diagnose();
  refresh();
}

/**
 * Find out why the first handshake failed. Browsers hide the status of a rejected handshake, so ask
 * the api for the same board over HTTP: its status tells if the board is unknown or not public.
 */
async function diagnose() {
  const url = new URL("/api/scores/leaderboard?limit=1", location.href);
  if (requestedBoard) url.searchParams.set("board", requestedBoard);
  let response;
  try {
    response = await fetch(url, { signal: AbortSignal.timeout(FETCH_MS) });
  } catch {
    return; // unreachable: the connection keeps retrying
  }
  if (board !== null) return;
  if (response.status === 404) fail("no-such-board");
  if (response.status === 401 || response.status === 403) {
    fail("private");
    watchAsPlayer();
  }
}

/** Follow a board that is not public with the player's token, unless that was already tried. */
function watchAsPlayer() {
  if (failure !== "private" || isPrivate || !signIn?.token) return;
  isPrivate = true;
  start();
}

/** @param {string} reason */
function fail(reason) {
  failure = reason;
  connection?.close();
  connection = null;
  refresh();
}

/** @returns {Promise<{ws?: string, oauth?: {issuer: string, clientId: string} | null}>} */
async function fetchConfig() {
  try {
    const response = await fetch("/config.json", { signal: AbortSignal.timeout(FETCH_MS) });
    if (response.ok) return await response.json();
  } catch {
    // use the defaults: the streamer is on the page's own origin
  }
  return {};
}

/** @param {{issuer: string, clientId: string} | null | undefined} oauth */
function offerSignIn(oauth) {
  if (!oauth || signIn !== null) return;
  /** @type {ReturnType<typeof showPlayer> | null} */
  let player = null;
  const onChange = () => {
    player?.refresh();
    if (signIn?.token) watchAsPlayer();
    else if (isPrivate) location.reload(); // remove what only the player may see
  };
  signIn = new SignIn({ ...oauth, onChange });
  player = showPlayer(find("player"), { signIn, board: requestedBoard || undefined });
}

async function start() {
  failure = null;
  status = initialStatus();
  refresh();
  if (requestedBoard && !BOARD_NAME.test(requestedBoard)) {
    fail("bad-name");
    return;
  }
  const { ws, oauth } = await fetchConfig();
  offerSignIn(oauth);
  const tokenProvider = isPrivate ? () => signIn?.token ?? null : undefined;
  const url = ws || SAME_ORIGIN;
  connection = connect({ url, board: requestedBoard || undefined, tokenProvider, onBoard, onStatus });
}

const requestedBoard = new URL(location.href).searchParams.get("board");
if (requestedBoard && BOARD_NAME.test(requestedBoard)) write("board-name", requestedBoard);
for (const button of ["retry", "restart"]) {
  find(button).addEventListener("click", () => {
    if (connection === null) start();
    else connection.retry();
  });
}
setInterval(refresh, TICK_MS);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
start();
