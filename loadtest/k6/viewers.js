// Watches a board with k6: WebSockets that receive every change, and how old each one is when it arrives.
//
//   k6 run -e LOAD_VIEWERS=200 -e LOAD_DURATION=30 loadtest/k6/viewers.js
//
// Variables: LOAD_WS_URL, LOAD_BOARD, LOAD_VIEWERS, LOAD_DURATION (seconds), LOAD_TOKEN (for a board that is
// not public). Run updates meanwhile.
import { check } from "k6";
import { Counter, Trend } from "k6/metrics";
import { setTimeout } from "k6/timers";
import { WebSocket } from "k6/websockets";

const url = __ENV.LOAD_WS_URL || "ws://127.0.0.1:8001/ws/scoreboard";
const board = __ENV.LOAD_BOARD ? `?board=${__ENV.LOAD_BOARD}` : "";
const viewers = Number(__ENV.LOAD_VIEWERS || 100);
const seconds = Number(__ENV.LOAD_DURATION || 30);
const headers = __ENV.LOAD_TOKEN ? { Authorization: `Bearer ${__ENV.LOAD_TOKEN}` } : undefined;

const boards = new Counter("boards");
const backwards = new Counter("boards_backwards");
const lost = new Counter("connections_lost");
// By the clocks of both machines: on two machines their difference is included.
const age = new Trend("board_age", true);

export const options = {
  scenarios: {
    viewers: {
      executor: "per-vu-iterations",
      vus: viewers,
      iterations: 1,
      maxDuration: `${seconds + 30}s`,
    },
  },
  thresholds: {
    checks: ["rate==1"],
    boards_backwards: ["count==0"],
    connections_lost: ["count==0"],
  },
  summaryTrendStats: ["min", "med", "p(90)", "p(99)", "p(99.9)", "max"],
};

export default function watch() {
  const socket = new WebSocket(`${url}${board}`, null, { headers });
  let [epoch, seq, count, isOver] = [0, -1, 0, false];

  socket.addEventListener("open", () => {
    setTimeout(() => {
      isOver = true;
      socket.close();
    }, seconds * 1000);
  });

  socket.addEventListener("message", (event) => {
    const message = JSON.parse("data" in event ? String(event.data) : "{}");
    if (message.type !== "leaderboard") return;
    // The first board may be old: nothing has changed since.
    if (count > 0) age.add(Date.now() - message.at);
    if (message.epoch < epoch || (message.epoch === epoch && message.seq < seq)) backwards.add(1);
    ({ epoch, seq } = message);
    count += 1;
    boards.add(1);
  });

  socket.addEventListener("close", () => {
    if (!isOver) lost.add(1);
    check(count, { "the viewer received the board": (received) => received > 0 });
  });
}
