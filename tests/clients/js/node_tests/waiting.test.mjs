// How long the client waits.
import assert from "node:assert/strict";
import test from "node:test";
import { retryAfterOf } from "./node_modules/@scoreboard/client/dist/errors.js";
import { delayMs } from "./node_modules/@scoreboard/client/dist/waiting.js";

const BACKOFF = { baseMs: 500, ceilingMs: 30_000 };

test("a wait is anywhere between 0 and a ceiling that doubles", () => {
  assert.equal(delayMs(1, 0, null, BACKOFF), 0);
  assert.equal(delayMs(1, 1, null, BACKOFF), 500);
  assert.equal(delayMs(2, 1, null, BACKOFF), 1_000);
  assert.equal(delayMs(4, 0.5, null, BACKOFF), 2_000);
  assert.equal(delayMs(100, 1, null, BACKOFF), 30_000);
});

test("the wait that the service asks for is the least", () => {
  assert.equal(delayMs(1, 0, 2_000, BACKOFF), 2_000);
  assert.equal(delayMs(1, 1, 2_000, BACKOFF), 2_500);
});

test("Retry-After is a number of seconds or a date", () => {
  const nowMs = Date.parse("2026-01-01T00:00:00Z");
  assert.equal(retryAfterOf("3", nowMs), 3_000);
  assert.equal(retryAfterOf("Thu, 01 Jan 2026 00:00:05 GMT", nowMs), 5_000);
  assert.equal(retryAfterOf("Wed, 31 Dec 2025 00:00:00 GMT", nowMs), 0);
  assert.equal(retryAfterOf("soon", nowMs), null);
  assert.equal(retryAfterOf(null, nowMs), null);
});
