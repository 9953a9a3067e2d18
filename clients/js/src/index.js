/**
 * The client of Scoreboard: `connect` follows a live board, `ScoreboardClient` calls the HTTP API.
 */

/**
 * @typedef {import("./client.js").ClientOptions} ClientOptions
 * @typedef {import("./client.js").CallOptions} CallOptions
 * @typedef {import("./errors.js").Problem} Problem
 * @typedef {import("./live.js").LiveOptions} LiveOptions
 * @typedef {import("./live.js").Connection} Connection
 * @typedef {import("./openapi.js").components["schemas"]} Schemas
 * @typedef {import("./scoreboard-client.js").Board} Board
 * @typedef {import("./scoreboard-client.js").Place} Place
 * @typedef {import("./scoreboard-client.js").State} State
 * @typedef {import("./scoreboard-client.js").Status} Status
 * @typedef {import("./scoreboard-protocol.js").Row} Row
 * @typedef {import("./tokens.js").TokenProvider} TokenProvider
 */

export { newActionId, ScoreboardClient } from "./client.js";
export { ScoreboardError } from "./errors.js";
export { connect } from "./live.js";
