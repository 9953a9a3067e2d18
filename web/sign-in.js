/**
 * Sign-in with OAuth 2.0: authorization code flow with PKCE, at any issuer with discovery.
 *
 *     const signIn = new SignIn({ issuer: "https://id.example.com", clientId: "scoreboard-page" });
 *     await signIn.resume();             // on every load: processes a response in the page's URL
 *     if (signIn.player === null) button.onclick = () => signIn.begin();
 *     connect({ url, tokenProvider: () => signIn.token });
 *
 * docs/reference/sign-in.md describes the whole flow.
 *
 * Invariants: the token is stored only in this tab's session storage; a code is removed from the URL
 * before any other request; a response is accepted once, in the tab that sent the request, and only
 * from the issuer it was sent to.
 *
 * @typedef {{sub: string, exp: number, [name: string]: any}} Claims
 * @typedef {{state: string, verifier: string, redirectUri: string, returnTo: string,
 *   startedAtMs: number}} Pending
 */

import { jwtClaims } from "./scoreboard-protocol.js";

const PLAYER_SCOPE = "update:score read:leaderboard";
const FETCH_MS = 10_000;
/** A response that takes longer than this is rejected. */
const PENDING_MS = 15 * 60_000;
/** A token this close to its expiry is not used any more. */
const MARGIN_MS = 5_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;
const RESPONSE_FIELDS = [
  "code", "state", "iss", "error", "error_description", "error_uri", "session_state",
];

/** A failed sign-in; `message` is a sentence for the player. */
export class SignInError extends Error {
  name = "SignInError";
}

export class SignIn {
  /** @type {string} */ #issuer;
  /** @type {string} */ #clientId;
  /** @type {string | undefined} */ #audience;
  /** @type {string} */ #scope;
  /** @type {string} */ #redirectUri;
  /** @type {{pending: string, token: string}} */ #keys;
  /** @type {() => void} */ #onChange;
  /** @type {URLSearchParams | null} */ #response;
  /** @type {string | null} */ #token = null;
  /** @type {Claims | null} */ #claims = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  /**
   * Remove a response of the issuer from the page's URL at once; `resume` processes it.
   *
   * @param {object} options
   * @param {string} options.issuer      as in its metadata and tokens
   * @param {string} options.clientId    of this page, a public client
   * @param {string} [options.audience]  for issuers that need to know which API a token is for
   * @param {string} [options.scope]     default: that of a player
   * @param {string} [options.redirectUri]  of this page, as registered; default: its folder
   * @param {string} [options.store]
   *   pages of one origin that ask for different scopes need different names
   * @param {() => void} [options.onChange]
   *   called when the player signs in or out, or the token expires
   */
  constructor({ issuer, clientId, audience, scope, redirectUri, store = "sign-in", onChange }) {
    this.#issuer = issuer;
    this.#clientId = clientId;
    this.#audience = audience;
    this.#scope = scope ?? PLAYER_SCOPE;
    this.#redirectUri = redirectUri ?? new URL(".", location.href.split(/[?#]/)[0]).href;
    this.#keys = { pending: `scoreboard.${store}.pending`, token: `scoreboard.${store}.token` };
    this.#onChange = onChange ?? (() => {});
    this.#response = takeResponse();
    this.#use(load(this.#keys.token)?.token ?? null);
  }

  /** The user id of the signed-in player, or null. */
  get player() {
    return this.token === null || this.#claims === null ? null : this.#claims.sub;
  }

  /** The current token, or null. */
  get token() {
    if (this.#claims !== null && Date.now() > this.#claims.exp * 1_000 - MARGIN_MS) this.signOut();
    return this.#token;
  }

  /**
   * Complete a sign-in if the page was opened by a response of the issuer; otherwise do nothing.
   *
   * @throws {SignInError} if the response is an error, does not belong to this tab, or gets no token
   */
  async resume() {
    const response = this.#response;
    this.#response = null;
    if (response === null) return;
    const pending = /** @type {Pending | null} */ (load(this.#keys.pending));
    remove(this.#keys.pending);
    if (pending === null || !isSame(response.get("state"), pending.state)) {
      throw new SignInError("This sign-in was not started in this tab. Please sign in again.");
    }
    history.replaceState(history.state, "", pending.returnTo);
    if (Date.now() > pending.startedAtMs + PENDING_MS) {
      throw new SignInError("The sign-in took too long. Please sign in again.");
    }
    const metadata = await this.#discover();
    const issuer = response.get("iss");
    const isRequired = metadata.authorization_response_iss_parameter_supported === true;
    if (issuer === null ? isRequired : issuer !== this.#issuer) {
      throw new SignInError("The response came from another issuer. Please sign in again.");
    }
    const error = response.get("error");
    if (error !== null) throw errorOf(error);
    this.#store(await this.#redeem(metadata, response.get("code"), pending));
  }

  /**
   * Redirect to the sign-in page of the issuer.
   *
   * @throws {SignInError} if the issuer is unreachable, or session storage is not available
   */
  async begin() {
    const { authorization_endpoint: endpoint } = await this.#discover();
    const verifier = randomString();
    const pending = {
      state: randomString(),
      verifier,
      redirectUri: this.#redirectUri,
      returnTo: location.pathname + location.search + location.hash,
      startedAtMs: Date.now(),
    };
    if (!save(this.#keys.pending, pending)) {
      throw new SignInError("Sign-in requires session storage, which this browser blocks.");
    }
    const address = new URL(endpoint);
    /** @type {{[name: string]: string}} */
    const request = {
      response_type: "code",
      client_id: this.#clientId,
      redirect_uri: pending.redirectUri,
      scope: this.#scope,
      state: pending.state,
      code_challenge: await challengeOf(verifier),
      code_challenge_method: "S256",
    };
    if (this.#audience) request.audience = this.#audience;
    for (const [name, value] of Object.entries(request)) address.searchParams.set(name, value);
    location.assign(address);
  }

  /** Delete the token. It is not revoked: it stays valid until it expires. */
  signOut() {
    remove(this.#keys.token);
    clearTimeout(this.#timer);
    this.#token = this.#claims = null;
    this.#onChange();
  }

  async #discover() {
    const address = `${this.#issuer.replace(/\/$/, "")}/.well-known/openid-configuration`;
    const { response, body } = await fetchJson(address);
    if (!response.ok || body?.issuer !== this.#issuer) {
      throw new SignInError("The issuer's configuration is invalid.");
    }
    return body;
  }

  /**
   * Exchange an authorization code for a token.
   *
   * @param {{[name: string]: any}} metadata
   * @param {string | null} code
   * @param {Pending} pending
   * @returns {Promise<string>}
   */
  async #redeem(metadata, code, { redirectUri, verifier }) {
    const { response, body } = await fetchJson(metadata.token_endpoint, {
      method: "POST",
      body: new URLSearchParams({
        grant_type: "authorization_code",
        client_id: this.#clientId,
        code: code ?? "",
        redirect_uri: redirectUri,
        code_verifier: verifier,
      }),
    });
    const isToken = response.ok && /^bearer$/i.test(body?.token_type ?? "");
    if (!isToken || claimsOf(body.access_token) === null) {
      throw new SignInError("The issuer did not return a token. Please sign in again.");
    }
    return body.access_token;
  }

  /** @param {string} token */
  #store(token) {
    save(this.#keys.token, { token });
    this.#use(token);
    this.#onChange();
  }

  /** @param {string | null} token */
  #use(token) {
    const claims = token === null ? null : claimsOf(token);
    const leftMs = claims === null ? 0 : claims.exp * 1_000 - MARGIN_MS - Date.now();
    if (leftMs <= 0) {
      remove(this.#keys.token);
      return;
    }
    [this.#token, this.#claims] = [token, claims];
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.token, Math.min(leftMs + 1, LONGEST_TIMER_MS));
  }
}

/**
 * Return the claims of a JWT that has a subject and an expiry, without verifying it; otherwise null.
 *
 * @param {string} token
 */
export function claimsOf(token) {
  const claims = jwtClaims(token);
  const isUsable = typeof claims?.sub === "string" && Number.isFinite(claims.exp);
  return isUsable ? /** @type {Claims} */ (claims) : null;
}

/**
 * Return the PKCE challenge (S256) of a verifier.
 *
 * @param {string} verifier
 */
export async function challengeOf(verifier) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier));
  return base64url(new Uint8Array(digest));
}

/** Remove the issuer's response from the page's URL, so that a reload or copy does not repeat it. */
function takeResponse() {
  const address = new URL(location.href);
  const fields = address.searchParams;
  if (!fields.has("state") || !(fields.has("code") || fields.has("error"))) return null;
  const response = new URLSearchParams();
  for (const name of RESPONSE_FIELDS) {
    const value = fields.get(name);
    if (value !== null) response.set(name, value);
    fields.delete(name);
  }
  history.replaceState(history.state, "", address);
  return response;
}

/** @param {string} code */
function errorOf(code) {
  if (code === "access_denied") return new SignInError("The sign-in was cancelled.");
  const word = code.replaceAll(/[^a-z_]/g, "").slice(0, 40);
  return new SignInError(`The issuer rejected the sign-in (${word}).`);
}

/**
 * @param {string} address
 * @param {RequestInit} [options]
 */
async function fetchJson(address, options = {}) {
  try {
    const response = await fetch(address, {
      ...options,
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      referrerPolicy: "no-referrer",
      signal: AbortSignal.timeout(FETCH_MS),
    });
    return { response, body: await response.json() };
  } catch {
    throw new SignInError("The issuer is unreachable. Please try again.");
  }
}

function randomString() {
  return base64url(crypto.getRandomValues(new Uint8Array(32)));
}

/** @param {Uint8Array} bytes */
function base64url(bytes) {
  const text = btoa(String.fromCharCode(...bytes));
  return text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/**
 * @param {string | null} one
 * @param {string} other
 */
function isSame(one, other) {
  return typeof one === "string" && one !== "" && one === other;
}

/** @param {string} key */
function load(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key) ?? "null");
  } catch {
    return null;
  }
}

/**
 * @param {string} key
 * @param {unknown} value
 */
function save(key, value) {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false; // storage can be blocked; the token is then lost with the page
  }
}

/** @param {string} key */
function remove(key) {
  try {
    sessionStorage.removeItem(key);
  } catch {
    // as above
  }
}
