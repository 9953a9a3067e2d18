/**
 * The token of a client: the one it was given, or the latest one of its provider.
 *
 * Requests and live boards of a client share it, so that a renewal for one serves the others.
 */

/**
 * @typedef {import("./scoreboard-client.js").TokenReason} TokenReason
 * @typedef {(why: {reason: TokenReason}) => Promise<string | null> | string | null} TokenProvider
 */

import { jwtClaims, tokenExpiryMs } from "./scoreboard-protocol.js";

/** A token this close to its expiry is not used for a request. */
const EXPIRY_MARGIN_MS = 5_000;
const PROVIDER_MS = 15_000;

export class Tokens {
  /** @type {string | null} */ #token;
  /** @type {TokenProvider | undefined} */ #provider;
  /** @type {Promise<string | null> | null} */ #renewal = null;

  /** @param {{token?: string, tokenProvider?: TokenProvider}} options */
  constructor({ token, tokenProvider }) {
    this.#token = token ?? null;
    this.#provider = tokenProvider;
  }

  get canRenew() {
    return this.#provider !== undefined;
  }

  /**
   * Return a token that has not expired, or null to send none. Without a provider the token is
   * returned as it is: the local clock may be wrong.
   *
   * @returns {Promise<string | null>}
   */
  async current() {
    if (!this.#provider) return this.#token;
    if (this.#token === null) return await this.#renew("first");
    const expiryMs = tokenExpiryMs(this.#token);
    const isExpired = expiryMs !== null && Date.now() > expiryMs - EXPIRY_MARGIN_MS;
    return isExpired ? await this.#renew("expired") : this.#token;
  }

  /**
   * Return another token than the refused one, or null if there is none.
   *
   * @param {string | null} refused
   * @param {TokenReason} reason
   * @returns {Promise<string | null>}
   */
  async instead(refused, reason = "rejected") {
    if (!this.#provider) return null;
    // Another request may have renewed it meanwhile.
    if (this.#token !== refused) return this.#token;
    return await this.#renew(reason);
  }

  /**
   * Return a token for a live board, which says why it needs one.
   *
   * @param {TokenReason} reason
   */
  async forLive(reason) {
    return reason === "first" || reason === "expired"
      ? await this.current()
      : await this.#renew(reason);
  }

  /** @param {TokenReason} reason */
  #renew(reason) {
    this.#renewal ??= this.#request(reason).finally(() => {
      this.#renewal = null;
    });
    return this.#renewal;
  }

  /** @param {TokenReason} reason */
  async #request(reason) {
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    /** @type {Promise<never>} */
    const limit = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("tokenProvider timed out")), PROVIDER_MS);
    });
    try {
      const token = this.#provider?.({ reason }) ?? null;
      this.#token = (await Promise.race([token, limit])) ?? null;
      return this.#token;
    } finally {
      clearTimeout(timer);
    }
  }
}

/**
 * Return what identifies the holder of a token, to keep answers of different users apart.
 *
 * @param {string | null} token
 */
export function holderOf(token) {
  if (token === null) return "";
  const claims = jwtClaims(token);
  return typeof claims?.sub === "string" ? `${claims.iss} ${claims.sub}` : token;
}
