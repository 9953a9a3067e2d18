// Sends updates with k6 at a constant rate: each with its own actionId, by the users of a file of tokens
// in turn.
//
//   k6 run -e LOAD_TOKENS=$PWD/tokens.txt -e LOAD_RATE=200 -e LOAD_DURATION=30s loadtest/k6/update.js
//
// Variables: LOAD_URL, LOAD_TOKENS, LOAD_BOARD, LOAD_KIND, LOAD_RATE (updates per second), LOAD_DURATION,
// LOAD_CONNECTIONS (most requests at once).
import { check } from "k6";
import { SharedArray } from "k6/data";
import exec from "k6/execution";
import http from "k6/http";
import { Counter } from "k6/metrics";

const url = __ENV.LOAD_URL || "http://127.0.0.1:8000";
const board = __ENV.LOAD_BOARD ? `?board=${__ENV.LOAD_BOARD}` : "";
const kind = __ENV.LOAD_KIND || "win";
const connections = Number(__ENV.LOAD_CONNECTIONS || 64);

const players = new SharedArray("players", () =>
  open(__ENV.LOAD_TOKENS || "tokens.txt").trim().split("\n").map((line) => {
    const [user, token, ...rest] = line.split(" ");
    if (!user || !token || rest.length > 0) throw new Error("each line of LOAD_TOKENS is USER TOKEN");
    return { user, token };
  }));

const acknowledged = new Counter("acknowledged");
const replayed = new Counter("replayed");
const limited = new Counter("limited");
const failed = new Counter("failed");

export const options = {
  scenarios: {
    updates: {
      // An open loop: k6 starts requests at this rate, whether or not earlier ones were answered. If all
      // connections are busy it counts dropped_iterations.
      executor: "constant-arrival-rate",
      rate: Number(__ENV.LOAD_RATE || 100),
      timeUnit: "1s",
      duration: __ENV.LOAD_DURATION || "30s",
      preAllocatedVUs: connections,
      maxVUs: connections,
      gracefulStop: "10s",
    },
  },
  thresholds: {
    checks: ["rate==1"],
    dropped_iterations: ["count==0"],
  },
  summaryTrendStats: ["min", "med", "p(90)", "p(99)", "p(99.9)", "max"],
};

/** Returns what every user of k6 shares: an id of this run, so that two runs never send the same action. */
export function setup() {
  return { run: `${Date.now().toString(36)}${Math.random().toString(36).slice(2)}` };
}

/** @param {{ run: string }} data */
export default function update({ run }) {
  const number = exec.scenario.iterationInTest;
  const { user, token } = players[number % players.length];
  const response = http.post(
    `${url}/api/scores/update${board}`,
    JSON.stringify({ userId: user, actionId: `${kind}:${run}-${number}` }),
    {
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
      responseCallback: http.expectedStatuses(200, 429),
      tags: { name: "update" },
      timeout: "10s",
    },
  );
  if (response.status === 429) {
    limited.add(1);
    return;
  }
  const counted = response.status === 200 && response.json("replayed") === false;
  if (counted) acknowledged.add(1);
  else if (response.status === 200) replayed.add(1);
  else failed.add(1);
  check(response, { "the update was counted, as a new one": () => counted });
}
