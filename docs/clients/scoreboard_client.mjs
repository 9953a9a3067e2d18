/**
 * A client of Scoreboard: update a score with retries, and watch a board.
 *
 *     export TOKEN=$(scoreboard token --sub alice)
 *     node scoreboard_client.mjs update http://127.0.0.1:8000 alice javascript:1
 *     node scoreboard_client.mjs watch ws://127.0.0.1:8001/ws/scoreboard 3
 *
 * Needs Node.js 22 and no packages. In a browser use web/scoreboard-client.js.
 */

const TRIES = 8;
const TIMEOUT_MS = 15_000;
const SILENCE_MS = 37_000;
const STOP_CODES = new Set([1002, 1003, 1007, 1009, 4400, 4401, 4403, 4404]);
const LEAST_WAIT_MS = { 1013: 5_000, 4429: 30_000 };

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const backoff = (attempt) => Math.random() * Math.min(30_000, 500 * 2 ** attempt);

/**
 * Count one action and return the reply. Every try sends the same actionId, so the action counts
 * once however often a response is lost.
 */
export async function update(api, userId, actionId, token) {
  let failure = "";
  for (let attempt = 0; attempt < TRIES; attempt += 1) {
    let waitMs = backoff(attempt);
    try {
      const response = await fetch(`${api}/api/scores/update`, {
        method: "POST",
        headers: { "Authorization": `Bearer ${token}`, "Content-Type": "application/json" },
        body: JSON.stringify({ userId, actionId }),
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      const text = await response.text();
      if (response.ok) return JSON.parse(text);
      failure = text;
      if (response.status !== 429 && response.status < 500) break;
      waitMs += 1000 * Number(response.headers.get("Retry-After") ?? 0);
    } catch (error) {
      failure = String(error.cause ?? error); // the outcome is unknown: the next try tells
    }
    await sleep(waitMs);
  }
  throw new Error(`the update failed: ${failure}`);
}

/**
 * Call onBoard with each board, and again when names of it arrive, until it returns false; reconnect
 * when the connection is lost.
 */
export async function watch(url, token, onBoard) {
  let epoch = 0;
  let seq = -1;
  let failures = 0;
  let isDone = false;
  let isOver = false;
  while (true) {
    let delayMs = backoff(failures);
    failures = Math.min(failures + 1, 6);
    const code = await new Promise((resolve) => {
      const protocols = token ? ["scoreboard.v1", `bearer.${token}`] : ["scoreboard.v1"];
      const socket = new WebSocket(url, protocols);
      const abandon = () => { resolve(1006); socket.close(); };
      let timer = setTimeout(abandon, SILENCE_MS);
      socket.onclose = (event) => { clearTimeout(timer); resolve(event.code); };
      socket.onmessage = ({ data }) => {
        clearTimeout(timer);
        timer = setTimeout(abandon, SILENCE_MS);
        const message = JSON.parse(data);
        if (message.type === "bye") {
          isOver = message.reconnect === false;
          const [lowMs, highMs] = message.delay_ms ?? [100, 3_000];
          delayMs = lowMs + Math.random() * (highMs - lowMs);
        }
        if (isDone || message.type !== "leaderboard") return;
        // An equal seq is the same board, with newer names.
        if (message.epoch === epoch && message.seq < seq) return;
        ({ epoch, seq } = message);
        failures = 0;
        if (onBoard(message.leaderboard) === false) {
          isDone = true;
          socket.close(1000);
        }
      };
    });
    if (isDone) return;
    if (isOver || STOP_CODES.has(code)) throw new Error(`closed with ${code}`);
    await sleep(Math.max(delayMs, (1 + Math.random()) * (LEAST_WAIT_MS[code] ?? 0)));
  }
}

const [command, ...words] = process.argv.slice(2);
const token = process.env.TOKEN ?? "";
if (command === "update" && words.length === 3) {
  console.log(JSON.stringify(await update(...words, token)));
} else if (command === "watch" && words.length >= 1) {
  let left = words[1] ? Number(words[1]) : Infinity;
  await watch(words[0], token, (leaderboard) => {
    console.log(JSON.stringify(leaderboard));
    left -= 1;
    return left > 0;
  });
} else {
  console.error("usage: update API USER ACTION | watch URL [COUNT]");
  process.exitCode = 2;
}
