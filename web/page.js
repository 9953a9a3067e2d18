/**
 * The live page: finds the streamer, follows the board, shows the connection status.
 *
 * The configuration `{"ws", "oauth"}` is in the page, else in `/config.json`: the streamer's address
 * (empty: the page's own origin) and the issuer where players sign in (null: no sign-in). The page's
 * `?board=` selects the board, `?season=` an ended season, which is read over HTTP, `?player=` the
 * player whose place is shown to a viewer who is not signed in, `?wall=1` the wall mode. The page
 * connects anonymously; it uses the player's token only for a board that requires one.
 *
 * @typedef {import("./scoreboard-client.js").Status} Status
 * @typedef {import("./scoreboard-protocol.js").Board} Board
 * @typedef {import("./scoreboard-protocol.js").Place} Place
 * @typedef {{ws?: string, oauth?: {issuer: string, clientId: string} | null}} Config
 */

import { Announcer } from "./announcer.js";
import { BoardView } from "./board-view.js";
import { Moments } from "./moments.js";
import { PlaceView } from "./place-view.js";
import { showPlayer } from "./player.js";
import { refusalOf } from "./refusal.js";
import { connect } from "./scoreboard-client.js";
import { openShareDialog } from "./share-card.js";
import { SignIn } from "./sign-in.js";
import { offerChoices, seasonName } from "./switcher.js";
import { formatAge, STATE_LABELS, statusText, stopText } from "./texts.js";
import { isWall, joinAddress, keepAwake, showQrCode } from "./wall.js";

const SAME_ORIGIN = "/ws/scoreboard";
const FETCH_MS = 5_000;
const TICK_MS = 1_000;
const CHOICES_MS = 200;
/** A reconnection shorter than this is not shown. */
const GRACE_MS = 1_500;
/** Errors that another attempt would not change. */
const FINAL = new Set(["no-such-board", "bad-name", "no-such-season"]);
const BOARD_NAME = /^(?!\.\.?$)[a-z0-9_.-]{1,32}$/;
const USER_ID = /^[A-Za-z0-9._|:@-]{1,128}$/;
const SEASON_ID = /^[0-9A-Z-]{1,32}$/;

const numbers = new Intl.NumberFormat("en");

const root = document.documentElement;
/**
 * @param {string} id
 * @returns {HTMLElement}
 */
const find = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
const view = new BoardView(find("rows"));
const announcer = new Announcer(find("news"));
const moments = new Moments(find("moment"));
const placeView = new PlaceView(find("place"));

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
/** @type {Place | null} */
let place = null;
let isFinal = false; // whether the standings of an ended season are shown
let hasChoices = false; // whether the boards were asked for
/** @type {number | null} */
let viewers = null;

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
  root.dataset.state = isFinal ? "final" : state;
  if (board !== null) root.dataset.view = board.leaderboard.length ? "board" : "empty";
  else root.dataset.view = state === "stopped" ? "stopped" : "loading";

  const reason = failure ?? status.reason;
  let text = statusText({ ...status, state, reason }, nowMs);
  if (isFinal) text = `Final standings: ${seasonName(requestedSeason ?? "")}`;
  else if (state === "live" && changedAtMs !== null) {
    text = `Last change ${formatAge(nowMs - changedAtMs)}`;
  }
  write("connection", isFinal ? "Ended" : STATE_LABELS[state]);
  write("detail", root.dataset.view === "stopped" ? "" : text);
  find("viewers").hidden = viewers === null || (state !== "live" && state !== "checking");
  view.tick(nowMs);
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
  const isSame = board?.epoch === newBoard.epoch && board.seq === newBoard.seq; // names arrived
  if (!isSame) changedAtMs = isDated ? Math.min(atMs, nowMs) : nowMs;
  board = newBoard;
  failure = null;
  moments.show(view.render(newBoard), signIn?.player ?? null);
  announcer.update(newBoard.leaderboard);
  showPlace();
  write("board-name", newBoard.board);
  document.title = `${newBoard.board} · Scoreboard`;
  find("share").hidden = newBoard.leaderboard.length === 0;
  refresh();
  if (!hasChoices && !isWall()) {
    hasChoices = true;
    const current = { board: newBoard.board, season: requestedSeason, token: signIn?.token ?? null };
    setTimeout(() => offerChoices(find("choices"), current), CHOICES_MS); // the board is shown first
  }
}

// --- the viewer's own place, or that of the page's address ---

/** The user whose place is shown, or null: the signed-in player, or that of the page's address. */
function me() {
  return signIn?.player ?? requestedPlayer;
}

function showPlace() {
  const id = me();
  const isOutside = id !== null && place?.userId === id && !view.has(id);
  // A place in the top 10 that is not on the board yet arrives there at once.
  const isShown = isOutside && board !== null && (place?.rank ?? Infinity) > board.leaderboard.length;
  placeView.show(isShown ? place : null, board?.leaderboard[0]?.score ?? 0, id === signIn?.player);
}

/** Follow the place again, after the viewer has signed in or out. */
function followMe() {
  place = null;
  const id = me();
  view.markMe(id, id === signIn?.player);
  connection?.watch(id === null ? [] : [id]);
  showPlace();
}

/** @param {number | null} newViewers */
function onViewers(newViewers) {
  viewers = newViewers;
  if (viewers !== null) {
    write("viewer-count", numbers.format(viewers));
    find("viewers").title = `${numbers.format(viewers)} watching`;
  }
  refresh();
}

function share() {
  if (board === null) return;
  const rows = board.leaderboard;
  const id = me();
  const row = rows.find(({ userId }) => userId === id) ?? null;
  const isPlaced = place !== null && place.rank !== null && place.score !== null;
  const mine = row ?? (isPlaced ? /** @type {any} */ (place) : null);
  openShareDialog({ board: board.board, rows, mine });
}

/** @param {Status} newStatus */
function onStatus(newStatus) {
  const { state } = newStatus;
  // A check that failed has already lasted longer than what is not shown.
  if (state === "reconnecting" && status.state === "checking") lostAtMs = 0;
  else if (state === "reconnecting" && status.state !== "reconnecting") lostAtMs = Date.now();
  status = newStatus;
  if (state === "live" || state === "stale") {
    stateBeforeLoss = state;
    failure = null;
  }
  if (state === "reconnecting" && newStatus.attempt === 1 && board === null) diagnose();
  refresh();
}

/** Find out why the first handshake failed; without a reason, the connection keeps retrying. */
async function diagnose() {
  const reason = await refusalOf(requestedBoard);
  if (reason === null || board !== null) return;
  fail(reason);
  if (reason === "private") watchAsPlayer();
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

/** @returns {Promise<Config>} */
async function readConfig() {
  const inPage = document.querySelector('meta[name="scoreboard-config"]')?.getAttribute("content");
  if (inPage) return JSON.parse(inPage);
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
    followMe();
    if (signIn?.token) watchAsPlayer();
    else if (isPrivate) location.reload(); // remove what only the player may see
  };
  signIn = new SignIn({ ...oauth, onChange });
  player = showPlayer(find("player"), { signIn, board: requestedBoard || undefined });
}

/**
 * Show the final standings of the season of the page's address; return false if it is not over.
 *
 * @param {string} name  of the board
 * @param {string} season
 */
async function showSeason(name, season) {
  const url = new URL("/api/scores/leaderboard?limit=10&names=true", location.href);
  url.searchParams.set("season", season);
  url.searchParams.set("board", name);
  const headers = signIn?.token ? { Authorization: `Bearer ${signIn.token}` } : undefined;
  let response;
  try {
    response = await fetch(url, { headers, signal: AbortSignal.timeout(FETCH_MS) });
    if (response.ok) {
      const standings = await response.json();
      if (standings.endsAt !== undefined) return false;
      isFinal = true;
      onBoard({ ...standings, board: name }, { isSnapshot: true });
      return true;
    }
  } catch {
    // shown below
  }
  if (response?.status === 404) fail("no-such-season");
  else fail(response?.status === 401 || response?.status === 403 ? "private" : "unreachable");
  return true;
}

async function start() {
  failure = null;
  status = initialStatus();
  refresh();
  if (requestedBoard && !BOARD_NAME.test(requestedBoard)) {
    fail("bad-name");
    return;
  }
  const { ws, oauth } = await readConfig();
  if (!isWall()) offerSignIn(oauth);
  if (requestedBoard && requestedSeason && (await showSeason(requestedBoard, requestedSeason))) {
    followMe();
    return;
  }
  const tokenProvider = isPrivate ? () => signIn?.token ?? null : undefined;
  const url = ws || SAME_ORIGIN;
  connection = connect({
    url,
    board: requestedBoard || undefined,
    tokenProvider,
    onBoard,
    onPlace: (received) => {
      if (received.userId !== me()) return;
      place = received;
      showPlace();
    },
    onStatus,
    onViewers,
  });
  followMe();
}

const address = new URL(location.href);
/**
 * @param {string} name
 * @param {RegExp} form
 */
const requested = (name, form) => {
  const value = address.searchParams.get(name);
  return value !== null && form.test(value) ? value : null;
};
const requestedBoard = address.searchParams.get("board");
const requestedSeason = requested("season", SEASON_ID);
const requestedPlayer = requested("player", USER_ID);
if (requestedBoard && BOARD_NAME.test(requestedBoard)) write("board-name", requestedBoard);
for (const button of ["retry", "restart"]) {
  find(button).addEventListener("click", () => {
    if (connection === null) start();
    else connection.retry();
  });
}
find("share").addEventListener("click", share);
if (isWall()) {
  root.dataset.wall = "";
  keepAwake();
  write("join-address", joinAddress().replace(/^https?:\/\//, ""));
  // Without the code, the address remains.
  showQrCode(find("qr"), joinAddress()).catch(() => {
    find("qr").hidden = true;
  });
  find("join").hidden = false;
}
const wallLink = new URL(location.href);
wallLink.searchParams.set("wall", "1");
find("wall-link").setAttribute("href", wallLink.search);
setInterval(refresh, TICK_MS);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
start();
