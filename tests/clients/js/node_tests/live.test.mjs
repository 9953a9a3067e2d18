// Live boards in Node, and what works without a page.
import assert from "node:assert/strict";
import { once } from "node:events";
import test from "node:test";
import { connect, ScoreboardClient } from "@scoreboard/client";
import { WebSocket as WsWebSocket, WebSocketServer } from "ws";

const WebSocket = globalThis.WebSocket ?? WsWebSocket;

function board(seq, ...rows) {
  const leaderboard = rows.map(([userId, score], index) => ({ rank: index + 1, userId, score }));
  return { type: "leaderboard", board: "main", epoch: 1, seq, at: 1, leaderboard };
}

/** Serve viewers; each gets the messages. Return what they sent. */
async function stream(t, ...messages) {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  const seen = { urls: [], protocols: [], received: [] };
  server.on("connection", (viewer, request) => {
    seen.urls.push(request.url);
    seen.protocols.push(request.headers["sec-websocket-protocol"]);
    viewer.on("message", (data) => {
      seen.received.push(JSON.parse(data));
      server.emit("received");
    });
    for (const message of messages) viewer.send(JSON.stringify(message));
  });
  await once(server, "listening");
  t.after(() => {
    for (const viewer of server.clients) viewer.terminate();
    server.close();
  });
  return { url: `http://127.0.0.1:${server.address().port}`, server, ...seen };
}

/** Connect; the test closes it. Return the first values of a callback. */
async function values(t, callback, count, options, make = connect) {
  const got = [];
  await new Promise((resolve) => {
    const connection = make({
      WebSocket,
      ...options,
      [callback]: (value) => {
        got.push(value);
        if (got.length >= count) resolve();
      },
    });
    t.after(() => connection.close());
    options.then?.(connection);
  });
  return got;
}

test("a board and its changes arrive", async (t) => {
  const streamer = await stream(t, board(1, ["alice", 10]), board(2, ["bob", 20], ["alice", 10]));

  const boards = await values(t, "onBoard", 2, { url: `${streamer.url}/ws/scoreboard` });

  assert.deepEqual(
    boards.map(({ leaderboard }) => leaderboard.map(({ userId }) => userId)),
    [["alice"], ["bob", "alice"]],
  );
  assert.deepEqual(streamer.urls, ["/ws/scoreboard"]);
});

test("a window is asked for in the address", async (t) => {
  const streamer = await stream(t, { ...board(1), board: "weekly" });

  await values(t, "onBoard", 1, { url: streamer.url, board: "weekly", rows: 25, offset: 50 });

  assert.deepEqual(streamer.urls, ["/?rows=25&offset=50&board=weekly"]);
});

test("the place of a watched user arrives", async (t) => {
  const place = {
    type: "place",
    board: "main",
    epoch: 1,
    seq: 1,
    userId: "zoe",
    rank: 23,
    score: 5,
    total: 100,
    toNext: 15,
    above: [{ rank: 22, userId: "yan", score: 20 }],
    below: [],
  };
  const streamer = await stream(t, board(1), place);

  const [got] = await values(t, "onPlace", 1, {
    url: streamer.url,
    then: (connection) => connection.watch(["zoe"]),
  });

  assert.equal(got.rank, 23);
  assert.equal(got.above[0].userId, "yan");
  if (streamer.received.length === 0) await once(streamer.server, "received");
  assert.deepEqual(streamer.received, [{ type: "watch", userIds: ["zoe"] }]);
});

test("a change arrives as a delta", async (t) => {
  const changes = [{ rank: 2, userId: "bob", score: 9 }];
  const delta = { type: "delta", board: "main", epoch: 1, base: 1, seq: 2, at: 2, count: 2, changes };
  const streamer = await stream(t, board(1, ["alice", 10]), delta);

  const boards = await values(t, "onBoard", 2, { url: streamer.url });

  assert.deepEqual(boards[1], { ...board(2, ["alice", 10], ["bob", 9]), at: 2 });
});

test("a client follows the board with its own token and address", async (t) => {
  const streamer = await stream(t, board(1));
  let calls = 0;
  const client = new ScoreboardClient({
    url: streamer.url,
    tokenProvider: () => `token-${(calls += 1)}`,
    WebSocket,
  });

  await values(t, "onBoard", 1, {}, (options) => client.connect(options));

  assert.deepEqual(streamer.urls, ["/ws/scoreboard"]);
  assert.match(streamer.protocols[0], /^scoreboard\.v1\.delta, ?scoreboard\.v1, ?bearer\.token-1$/);
  assert.equal(calls, 1);
});

test("an exception in a callback is reported and ends nothing", async (t) => {
  const streamer = await stream(t, board(1, ["alice", 10]), board(2, ["bob", 20]));
  const errors = t.mock.method(console, "error", () => {});

  const seqs = await new Promise((resolve) => {
    const got = [];
    const connection = connect({
      url: streamer.url,
      WebSocket,
      onBoard: ({ seq }) => {
        got.push(seq);
        if (got.length === 2) resolve(got);
        else throw new Error("of the page");
      },
    });
    t.after(() => connection.close());
  });

  assert.deepEqual(seqs, [1, 2]);
  assert.match(String(errors.mock.calls[0].arguments[0]), /of the page/);
});

test("a runtime without a WebSocket is told what to pass", (t) => {
  const before = Object.getOwnPropertyDescriptor(globalThis, "WebSocket");
  Object.defineProperty(globalThis, "WebSocket", { value: undefined, configurable: true });
  t.after(() => {
    delete globalThis.WebSocket;
    if (before) Object.defineProperty(globalThis, "WebSocket", before);
  });

  assert.throws(() => connect({ url: "ws://127.0.0.1:1/" }), /option WebSocket.* package ws/);
});

test("an address that is none is refused at once", () => {
  assert.throws(() => connect({ url: "/ws/scoreboard", WebSocket }), TypeError);
  assert.throws(() => new ScoreboardClient({ url: "nowhere" }), TypeError);
});
