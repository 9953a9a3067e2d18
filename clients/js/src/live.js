/**
 * A live board, in browsers and in Node.
 *
 * scoreboard-client.js is the client that the live page of the service uses. This module adds
 * the window of rows, and what other runtimes than browsers lack.
 */

/**
 * @typedef {import("./scoreboard-client.js").Options} BrowserOptions
 * @typedef {BrowserOptions & {rows?: number, offset?: number}} LiveOptions
 *   `rows` is the number of rows to follow, 10 to 100, and `offset` how many to skip before them
 * @typedef {ReturnType<typeof connectInBrowser>} Connection
 */

import { connect as connectInBrowser } from "./scoreboard-client.js";

/** The window that every viewer gets without asking for one. */
const DEFAULT_ROWS = 10;
/** What callbacks are called; their exceptions are reported and end nothing. */
const CALLBACKS = /** @type {const} */ (["onBoard", "onPlace", "onViewers", "onStatus", "onError"]);

/**
 * Follow a board until `close()` is called or retrying is pointless.
 *
 * @param {LiveOptions} options
 * @returns {Connection}
 * @throws {TypeError} if `url` is invalid, or the runtime has no WebSocket and none is passed
 */
export function connect({ rows, offset, ...options }) {
  if (!options.WebSocket && !globalThis.WebSocket) {
    throw new TypeError(
      "This runtime has no WebSocket (Node has one since version 22): " +
        "pass the option WebSocket, such as the class of the package ws",
    );
  }
  return connectInBrowser({
    ...options,
    ...("reportError" in globalThis ? {} : reporting(options)),
    url: windowUrl(options.url, rows, offset),
  });
}

/**
 * Return the address of a window of rows. That of the usual window has no parameters, so that
 * services without windows accept it.
 *
 * @param {string | URL} url
 * @param {number} [rows]
 * @param {number} [offset]
 * @throws {TypeError} if `url` is invalid
 */
export function windowUrl(url, rows = DEFAULT_ROWS, offset = 0) {
  const address = new URL(url, globalThis.location?.href);
  if (rows > DEFAULT_ROWS) address.searchParams.set("rows", String(rows));
  if (offset > 0) address.searchParams.set("offset", String(offset));
  return address.href;
}

/**
 * Return the callbacks, with exceptions written to the console: without `reportError`, as in
 * Node, they would be lost.
 *
 * @param {{[name: string]: any}} options
 */
function reporting(options) {
  /** @type {{[name: string]: (...values: unknown[]) => void}} */
  const made = {};
  for (const name of CALLBACKS) {
    const callback = options[name];
    if (!callback) continue;
    made[name] = (...values) => {
      try {
        callback(...values);
      } catch (error) {
        // eslint-disable-next-line no-console -- the runtime has no other place for it
        console.error(error);
      }
    };
  }
  return made;
}
