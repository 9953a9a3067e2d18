// The HTTP API: repeats, problems, tokens, kept answers, bulk requests.
import assert from "node:assert/strict";
import test from "node:test";
import { newActionId, ScoreboardClient, ScoreboardError } from "@scoreboard/client";
import { json, LOST, problem, serve, SILENT } from "./service.mjs";

const COUNTED = json({ success: true, newScore: 10, replayed: false });
const ACTION = { userId: "alice", actionId: "win:1" };
const FAST = { baseMs: 1, ceilingMs: 1 };

function jwt(claims) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${part({ alg: "none" })}.${part(claims)}.x`;
}

test("an update without an answer is repeated with the same actionId", async (t) => {
  const service = await serve(t, LOST, problem(503, "busy", { "Retry-After": "0" }), COUNTED);
  const client = new ScoreboardClient({ ...FAST, url: service.url, token: "x" });

  const reply = await client.update(ACTION);

  assert.equal(reply.newScore, 10);
  assert.deepEqual(
    service.requests.map(({ method, url, body }) => [method, url, JSON.parse(body)]),
    Array(3).fill(["POST", "/api/scores/update", ACTION]),
  );
  assert.equal(service.requests[0].headers.authorization, "Bearer x");
});

test("an answer that is cut off is none", async (t) => {
  const cut = { status: 200, headers: { "Content-Length": "2" }, body: '{"' };
  const service = await serve(t, cut, COUNTED);
  const client = new ScoreboardClient({ ...FAST, url: service.url });

  assert.equal((await client.update(ACTION)).newScore, 10);
});

test("a refusal is final, and says what the problem is", async (t) => {
  const service = await serve(t, problem(409, "board-archived"));
  const client = new ScoreboardClient({ url: service.url });

  const error = await client.update(ACTION).catch((caught) => caught);

  assert.ok(error instanceof ScoreboardError);
  const { type, status, detail, requestId, isRetryable, problem: document } = error;
  assert.deepEqual(
    { type, status, detail, requestId, isRetryable },
    {
      type: "/docs/problems/board-archived",
      status: 409,
      detail: "A detail.",
      requestId: "request-1",
      isRetryable: false,
    },
  );
  assert.equal(document.title, "A title.");
  assert.equal(service.requests.length, 1);
});

test("the error of a proxy is not taken for a problem, and 502 is repeated", async (t) => {
  const page = (status) => ({
    status,
    headers: { "Content-Type": "text/html", "X-Request-Id": "from-proxy" },
    body: "<h1>Sorry</h1>",
  });
  const service = await serve(t, page(502), page(404));
  const client = new ScoreboardClient({ ...FAST, url: service.url });

  const error = await client.leaderboard().catch((caught) => caught);

  assert.equal(error.type, "about:blank");
  assert.equal(error.status, 404);
  assert.equal(error.requestId, "from-proxy");
  assert.equal(service.requests.length, 2);
});

test("the wait that the service asks for is respected", async (t) => {
  const service = await serve(t, problem(429, "rate-limited", { "Retry-After": "1" }), COUNTED);
  const client = new ScoreboardClient({ ...FAST, url: service.url });

  await client.update(ACTION);

  const [first, second] = service.requests;
  assert.ok(second.atMs - first.atMs >= 990, `${second.atMs - first.atMs}`);
});

test("a wait of more than two minutes is left to the caller", async (t) => {
  const service = await serve(t, problem(503, "uninitialised", { "Retry-After": "600" }));
  const client = new ScoreboardClient({ ...FAST, url: service.url });

  const error = await client.update(ACTION).catch((caught) => caught);

  assert.equal(error.retryAfterMs, 600_000);
  assert.ok(error.isRetryable);
  assert.equal(service.requests.length, 1);
});

test("a service that does not answer in time is asked again, then given up", async (t) => {
  const service = await serve(t, SILENT);
  const options = { ...FAST, url: service.url, timeoutMs: 100, attempts: 2 };

  const error = await new ScoreboardClient(options).me().catch((caught) => caught);

  assert.ok(error instanceof ScoreboardError);
  assert.equal(error.type, "no-answer");
  assert.equal(error.status, 0);
  assert.match(error.detail, /in time/);
  assert.equal(service.requests.length, 2);
});

test("a service that cannot be reached is a no-answer with its cause", async (t) => {
  const service = await serve(t, LOST);
  const client = new ScoreboardClient({ ...FAST, url: service.url, attempts: 3 });

  const error = await client.update(ACTION).catch((caught) => caught);

  assert.equal(error.type, "no-answer");
  assert.ok(error.cause instanceof Error);
  assert.equal(service.requests.length, 3);
});

test("a call is aborted while it waits", async (t) => {
  const service = await serve(t, problem(503, "busy", { "Retry-After": "60" }));
  const client = new ScoreboardClient({ url: service.url });
  const abort = new AbortController();

  const done = client.update(ACTION, { signal: abort.signal });
  while (service.requests.length === 0) await new Promise(setImmediate);
  abort.abort(new Error("left the page"));

  await assert.rejects(done, /left the page/);
});

test("a call is aborted while it waits for a token", async (t) => {
  const service = await serve(t, COUNTED);
  const client = new ScoreboardClient({ url: service.url, tokenProvider: () => new Promise(() => {}) });
  const abort = new AbortController();

  const done = client.update(ACTION, { signal: abort.signal });
  abort.abort(new Error("left the page"));

  await assert.rejects(done, /left the page/);
  assert.equal(service.requests.length, 0);
});

test("a refused token is renewed once", async (t) => {
  const service = await serve(t, ({ headers }) =>
    headers.authorization === "Bearer new" ? COUNTED : problem(401, "unauthenticated"),
  );
  const reasons = [];
  const tokenProvider = ({ reason }) => {
    reasons.push(reason);
    return reason === "first" ? "old" : "new";
  };
  const client = new ScoreboardClient({ url: service.url, tokenProvider });

  const replies = await Promise.all([client.update(ACTION), client.update(ACTION)]);

  assert.deepEqual(replies.map(({ newScore }) => newScore), [10, 10]);
  assert.deepEqual(reasons, ["first", "rejected"], "requests share a renewal");
});

test("a token that is refused again is an error", async (t) => {
  const service = await serve(t, problem(401, "unauthenticated"));
  let number = 0;
  const tokenProvider = () => `token-${(number += 1)}`;
  const client = new ScoreboardClient({ url: service.url, tokenProvider });

  await assert.rejects(client.me(), { status: 401, type: "/docs/problems/unauthenticated" });
  assert.equal(service.requests.length, 2);
});

test("a token that cannot be renewed is sent once", async (t) => {
  const service = await serve(t, problem(401, "unauthenticated"));
  const client = new ScoreboardClient({ url: service.url, token: "old" });

  await assert.rejects(client.me(), { status: 401 });
  assert.equal(service.requests.length, 1);
});

test("an expired token is not sent", async (t) => {
  const service = await serve(t, COUNTED);
  const tokens = [jwt({ sub: "alice", exp: Date.now() / 1000 + 2 }), jwt({ sub: "alice" })];
  const reasons = [];
  const tokenProvider = ({ reason }) => {
    reasons.push(reason);
    return tokens[reasons.length - 1];
  };
  const client = new ScoreboardClient({ url: service.url, tokenProvider });
  await client.update(ACTION);

  await client.update(ACTION);

  assert.deepEqual(reasons, ["first", "expired"]);
  assert.equal(service.requests[1].headers.authorization, `Bearer ${tokens[1]}`);
});

test("an unchanged answer is not sent again", async (t) => {
  const board = { leaderboard: [], total: 0, epoch: 1, seq: 1 };
  const service = await serve(t, json(board, { ETag: '"1"' }), { status: 304, headers: {} });
  const client = new ScoreboardClient({ url: service.url });
  const first = await client.leaderboard({ limit: 5 });
  first.leaderboard.push("changed by the caller");

  const second = await client.leaderboard({ limit: 5 });

  assert.deepEqual(second, board);
  assert.equal(service.requests[0].headers["if-none-match"], undefined);
  assert.equal(service.requests[1].headers["if-none-match"], '"1"');
  assert.equal(service.requests[1].url, "/api/scores/leaderboard?limit=5");
});

test("an answer that was kept for one user is not used for another", async (t) => {
  const service = await serve(t, ({ headers }) =>
    headers["if-none-match"]
      ? { status: 304, headers: {} }
      : json({ userId: headers.authorization.split(" ")[1] }, { ETag: '"1"' }),
  );
  const tokens = { alice: jwt({ sub: "alice" }), bob: jwt({ sub: "bob" }) };
  const tokenProvider = ({ reason }) => (reason === "first" ? tokens.alice : tokens.bob);
  const renewed = await serve(t, problem(401, "unauthenticated"));
  const client = new ScoreboardClient({
    url: service.url,
    tokenProvider,
    fetch: (url, init) => fetch(isRefused ? renewed.url : url, init),
  });
  let isRefused = false;
  assert.equal((await client.me()).userId, tokens.alice);
  isRefused = true;
  await assert.rejects(client.me(), { status: 401 }); // it has bob's token now
  isRefused = false;

  assert.equal((await client.me()).userId, tokens.bob);
});

test("many actions are divided, and those that the service asks for are sent again", async (t) => {
  const seen = new Set();
  const service = await serve(t, ({ body }) => {
    const results = JSON.parse(body).updates.map(({ actionId }) => {
      const isRepeated = seen.has(actionId);
      seen.add(actionId);
      if (actionId === "win:7") return { outcome: "problem", problem: { status: 422 } };
      if (actionId !== "win:120" || isRepeated) return { outcome: "applied", newScore: 1 };
      return { outcome: "problem", problem: { status: 503 }, retryAfter: 0 };
    });
    return json({ success: false, results });
  });
  const client = new ScoreboardClient({ ...FAST, url: service.url });
  const actions = Array.from({ length: 250 }, (_, number) => ({
    userId: `user-${number}`,
    actionId: `win:${number}`,
  }));

  const results = await client.updateMany(actions);

  const sent = service.requests.map(({ body }) => JSON.parse(body).updates);
  assert.deepEqual(sent.map(({ length }) => length), [100, 100, 50, 1]);
  assert.deepEqual(sent[3], [actions[120]]);
  assert.equal(results.length, 250);
  assert.deepEqual(
    results.flatMap(({ outcome }, number) => (outcome === "problem" ? number : [])),
    [7],
  );
});

test("a bulk request is not larger than a service accepts", async (t) => {
  const service = await serve(t, ({ body }) =>
    json({ results: JSON.parse(body).updates.map(() => ({ outcome: "applied" })) }),
  );
  const client = new ScoreboardClient({ url: service.url, board: "weekly" });
  const actions = Array.from({ length: 100 }, (_, number) => ({
    userId: "u".repeat(128),
    actionId: `win:${number}`.padEnd(128, "x"),
  }));

  const results = await client.updateMany(actions);

  assert.equal(results.length, 100);
  assert.equal(service.requests.length, 2);
  for (const { body } of service.requests) {
    assert.ok(body.length <= 16_384);
    assert.equal(JSON.parse(body).updates[0].board, "weekly");
  }
});

test("addresses are those of the api", async (t) => {
  const service = await serve(t, json({}));
  const client = new ScoreboardClient({ url: `${service.url}/`, board: "weekly" });

  await client.leaderboard({ limit: 3, offset: 10, names: true, season: "2026-W48" });
  await client.user("auth0|64f1", { around: 2, board: "main" });
  await client.users(["a", "b"]);
  await client.rank(100);
  await client.cutoff(10);
  await client.seasons({ limit: 1 });
  await client.history("alice", { before: "1.2.3" });
  await client.boards({ after: "a" });
  await client.board("main");
  await client.update({ ...ACTION, boards: ["a", "b"] });
  await client.update(ACTION);

  assert.deepEqual(
    service.requests.map(({ url }) => url),
    [
      "/api/scores/leaderboard?limit=3&offset=10&names=true&season=2026-W48&board=weekly",
      "/api/scores/users/auth0%7C64f1?around=2&board=main",
      "/api/scores/users?ids=a%2Cb&board=weekly",
      "/api/scores/rank?score=100&board=weekly",
      "/api/scores/cutoff?rank=10&board=weekly",
      "/api/scores/seasons?limit=1&board=weekly",
      "/api/scores/users/alice/history?before=1.2.3&board=weekly",
      "/api/boards?after=a",
      "/api/boards/main",
      "/api/scores/update",
      "/api/scores/update?board=weekly",
    ],
  );
  await assert.rejects(client.user(".."), TypeError);
});

test("ids of actions are unique and valid", () => {
  const ids = new Set(Array.from({ length: 100 }, () => newActionId("win")));

  assert.equal(ids.size, 100);
  for (const id of ids) assert.match(id, /^win:[0-9a-f]{32}$/);
});
