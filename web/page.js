/**
 * The live page: asks where the streamer is, follows the board, and says how things stand.
 *
 * `/config.json` gives `{"ws", "oauth"}`: the streamer's address, empty where it is on this page's
 * own origin, and where players sign in, null where they do not. `?board=` of the page chooses the
 * board. The page watches as anybody may, and as the signed-in player only a board that asks for it.
 */

import { Announcer } from "./announcer.js";
import { BoardView } from "./board-view.js";
import { showPlayer } from "./player.js";
import { connect } from "./scoreboard-client.js";
import { SignIn } from "./sign-in.js";
import { ago, sentenceFor, whyStopped, WORDS } from "./words.js";

const SAME_ORIGIN = "/ws/scoreboard";
const FETCH_MS = 5_000;
const TICK_MS = 1_000;
/** A reconnection this short is nothing to tell people about. */
const GRACE_MS = 1_500;
/** What another try would not change. */
const FINAL = new Set(["no-such-board", "bad-name"]);
const BOARD_NAME = /^[a-z0-9_.-]{1,32}$/;

const root = document.documentElement;
const find = (id) => document.getElementById(id);
const view = new BoardView(find("rows"));
const announcer = new Announcer(find("news"));

let connection = null;
let status = { state: "connecting", reason: null, attempt: 0, retryAtMs: null };
let board = null;
let changedAtMs = null;
let lostAtMs = null;
let steady = "live"; // the state before the last loss
let verdict = null; // what is wrong beyond the connection, once it is known
let signIn = null; // where the deployment lets players sign in
let isPrivate = false; // the board is shown to a token only

function write(id, text) {
  const element = find(id);
  if (element.textContent !== text) element.textContent = text;
}

/** Bring everything but the rows in line with what is known; cheap, and runs every second. */
function show() {
  const nowMs = Date.now();
  const isBrief = status.state === "reconnecting" && board !== null && nowMs - lostAtMs < GRACE_MS;
  const state = verdict !== null ? "stopped" : isBrief ? steady : status.state;
  root.dataset.state = state;
  if (board !== null) root.dataset.view = board.leaderboard.length ? "board" : "empty";
  else root.dataset.view = state === "stopped" ? "stopped" : "loading";

  const reason = verdict ?? status.reason;
  const isDated = state === "live" && changedAtMs !== null;
  const sentence = isDated
    ? `Last change ${ago(nowMs - changedAtMs)}`
    : sentenceFor({ ...status, state, reason }, nowMs);
  write("connection", WORDS[state]);
  write("detail", root.dataset.view === "stopped" ? "" : sentence);
  const canHurry = state === "reconnecting" && status.retryAtMs !== null && !status.isMandated;
  const canRestart = state === "stopped" && !FINAL.has(reason);
  find("retry").hidden = !(canHurry || (canRestart && board !== null));
  find("restart").hidden = !canRestart;

  if (root.dataset.view === "empty") {
    write("panel-title", "No scores yet");
    write("panel-text", "The first action puts somebody on the board.");
  } else if (root.dataset.view === "stopped") {
    const [title, text] = whyStopped(reason);
    write("panel-title", title);
    write("panel-text", text);
  }
}

function onBoard(newer, { isSnapshot }) {
  // The server's clock dates what happened before we looked; what we see happen, ours does.
  const nowMs = Date.now();
  changedAtMs = isSnapshot && Number.isFinite(newer.at) ? Math.min(newer.at, nowMs) : nowMs;
  board = newer;
  verdict = null;
  view.render(newer);
  announcer.note(newer.leaderboard);
  write("board-name", newer.board);
  document.title = `${newer.board} · Scoreboard`;
  show();
}

function onStatus(newer) {
  if (newer.state === "reconnecting" && status.state !== "reconnecting") lostAtMs = Date.now();
  if (newer.state === "live" || newer.state === "stale") steady = newer.state;
  status = newer;
  if (newer.state === "live" || newer.state === "stale") verdict = null;
  if (newer.state === "reconnecting" && newer.attempt === 1 && board === null) diagnose();
  show();
}

/**
 * A browser does not say why a handshake was refused. Where not even the first one worked, the api
 * is asked the same question over HTTP: it has words for a board that is unknown or not public.
 */
async function diagnose() {
  const question = new URL("/api/scores/leaderboard?limit=1", location.href);
  if (wishedBoard) question.searchParams.set("board", wishedBoard);
  let answer;
  try {
    answer = await fetch(question, { signal: AbortSignal.timeout(FETCH_MS) });
  } catch {
    return; // out of reach altogether: the connection goes on trying
  }
  if (board !== null) return;
  if (answer.status === 404) giveUp("no-such-board");
  if (answer.status === 401 || answer.status === 403) {
    giveUp("private");
    watchAsPlayer();
  }
}

/** Watch a board that is not public with the player's token, where that has not been tried. */
function watchAsPlayer() {
  if (verdict !== "private" || isPrivate || !signIn?.token) return;
  isPrivate = true;
  start();
}

function giveUp(why) {
  verdict = why;
  connection?.close();
  connection = null;
  show();
}

async function configuration() {
  try {
    const answer = await fetch("/config.json", { signal: AbortSignal.timeout(FETCH_MS) });
    if (answer.ok) return await answer.json();
  } catch {
    // a page that was served can as well find its streamer beside itself
  }
  return {};
}

function offerSignIn(oauth) {
  if (!oauth || signIn !== null) return;
  let player = null;
  const onChange = () => {
    player?.refresh();
    if (signIn?.token) watchAsPlayer();
    else if (isPrivate) location.reload(); // what only the player might see leaves with them
  };
  signIn = new SignIn({ ...oauth, onChange });
  player = showPlayer(find("player"), { signIn, board: wishedBoard || undefined });
}

async function start() {
  verdict = null;
  status = { state: "connecting", reason: null, attempt: 0, retryAtMs: null };
  show();
  if (wishedBoard && !BOARD_NAME.test(wishedBoard)) {
    giveUp("bad-name");
    return;
  }
  const { ws, oauth } = await configuration();
  offerSignIn(oauth);
  const tokenProvider = isPrivate ? () => signIn.token : undefined;
  const url = ws || SAME_ORIGIN;
  connection = connect({ url, board: wishedBoard || undefined, tokenProvider, onBoard, onStatus });
}

const wishedBoard = new URL(location.href).searchParams.get("board");
if (wishedBoard && BOARD_NAME.test(wishedBoard)) write("board-name", wishedBoard);
for (const button of ["retry", "restart"]) {
  find(button).addEventListener("click", () => {
    if (connection === null) start();
    else connection.retry();
  });
}
setInterval(show, TICK_MS);
document.addEventListener("visibilitychange", () => document.hidden || show());
start();
