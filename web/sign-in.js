/**
 * Signs a player in by OAuth 2.0: authorization code with PKCE, at any issuer found by discovery.
 *
 *     const signIn = new SignIn({ issuer: "https://id.example.com", clientId: "scoreboard-page" });
 *     await signIn.resume();             // on every load: takes up an answer in the page's address
 *     if (signIn.player === null) button.onclick = () => signIn.begin();
 *     connect({ url, tokenProvider: () => signIn.token });
 *
 * What stays true: a token lies in this tab's session storage and nowhere else; a code leaves the
 * address before anything is loaded by it; an answer is taken only in the tab that asked, once,
 * from the issuer that was asked. docs/sign-in.md tells the whole way.
 */

const PENDING = "scoreboard.sign-in.pending";
const TOKEN = "scoreboard.sign-in.token";
const SCOPE = "update:score read:leaderboard";
const FETCH_MS = 10_000;
/** A form that was left open longer than this is answered by a new one. */
const PENDING_MS = 15 * 60_000;
/** A token this close to its end would end under way. */
const MARGIN_MS = 5_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;
const ANSWER_FIELDS = [
  "code", "state", "iss", "error", "error_description", "error_uri", "session_state",
];

/** A sign-in that did not come about; `message` is a sentence for the player. */
export class SignInFailed extends Error {
  name = "SignInFailed";
}

export class SignIn {
  #issuer;
  #clientId;
  #audience;
  #onChange;
  #answer;
  #token = null;
  #claims = null;
  #timer = null;

  /**
   * Takes an answer out of the page's address at once; `resume` then acts on it.
   *
   * @param {object} options
   * @param {string} options.issuer      as its metadata and its tokens name it
   * @param {string} options.clientId    of this page, a public client
   * @param {string} [options.audience]  sent along for issuers that ask which API a token is for
   * @param {() => void} [options.onChange]  called when the player signs in, out, or the token ends
   */
  constructor({ issuer, clientId, audience, onChange }) {
    this.#issuer = issuer;
    this.#clientId = clientId;
    this.#audience = audience;
    this.#onChange = onChange ?? (() => {});
    this.#answer = takeAnswer();
    this.#take(recall(TOKEN)?.token ?? null);
  }

  /** The signed-in player's id, or null. */
  get player() {
    return this.token === null ? null : this.#claims.sub;
  }

  /** A token that is good for now, or null. */
  get token() {
    if (this.#token !== null && Date.now() > this.#claims.exp * 1_000 - MARGIN_MS) this.signOut();
    return this.#token;
  }

  /**
   * Finish a sign-in where the page was opened by the issuer's answer; else do nothing.
   *
   * @throws {SignInFailed} where the answer is a refusal, not ours, or leads to no token
   */
  async resume() {
    const answer = this.#answer;
    this.#answer = null;
    if (answer === null) return;
    const pending = recall(PENDING);
    forget(PENDING);
    if (pending === null || !isSame(answer.get("state"), pending.state)) {
      throw new SignInFailed("This sign-in was not started here. Please sign in again.");
    }
    history.replaceState(history.state, "", pending.returnTo);
    if (Date.now() > pending.startedAtMs + PENDING_MS) {
      throw new SignInFailed("The sign-in took too long. Please sign in again.");
    }
    const metadata = await this.#discover();
    const named = answer.get("iss");
    const mustName = metadata.authorization_response_iss_parameter_supported === true;
    if (named === null ? mustName : named !== this.#issuer) {
      throw new SignInFailed("The answer came from another issuer. Please sign in again.");
    }
    if (answer.has("error")) throw refusalOf(answer);
    this.#keep(await this.#redeem(metadata, answer.get("code"), pending));
  }

  /**
   * Leave the page for the issuer's form.
   *
   * @throws {SignInFailed} where the issuer cannot be reached, or nothing can be kept meanwhile
   */
  async begin() {
    const { authorization_endpoint: endpoint } = await this.#discover();
    const verifier = randomText();
    const pending = {
      state: randomText(),
      verifier,
      redirectUri: new URL(".", location.href.split(/[?#]/)[0]).href,
      returnTo: location.pathname + location.search + location.hash,
      startedAtMs: Date.now(),
    };
    if (!remember(PENDING, pending)) {
      throw new SignInFailed("Signing in needs session storage, which this browser forbids here.");
    }
    const address = new URL(endpoint);
    const question = {
      response_type: "code",
      client_id: this.#clientId,
      redirect_uri: pending.redirectUri,
      scope: SCOPE,
      state: pending.state,
      code_challenge: await challengeOf(verifier),
      code_challenge_method: "S256",
    };
    if (this.#audience) question.audience = this.#audience;
    for (const [name, value] of Object.entries(question)) address.searchParams.set(name, value);
    location.assign(address);
  }

  /** Forget the token. It stays good until it ends, so it must not have been kept elsewhere. */
  signOut() {
    forget(TOKEN);
    clearTimeout(this.#timer);
    this.#token = this.#claims = null;
    this.#onChange();
  }

  async #discover() {
    const address = `${this.#issuer.replace(/\/$/, "")}/.well-known/openid-configuration`;
    const { answer, body } = await ask(address);
    if (!answer.ok || body?.issuer !== this.#issuer) {
      throw new SignInFailed("The issuer does not say how to sign in.");
    }
    return body;
  }

  async #redeem(metadata, code, { redirectUri, verifier }) {
    const { answer, body } = await ask(metadata.token_endpoint, {
      method: "POST",
      body: new URLSearchParams({
        grant_type: "authorization_code",
        client_id: this.#clientId,
        code: code ?? "",
        redirect_uri: redirectUri,
        code_verifier: verifier,
      }),
    });
    const isToken = answer.ok && /^bearer$/i.test(body?.token_type ?? "");
    if (!isToken || claimsOf(body.access_token) === null) {
      throw new SignInFailed("The issuer gave no token. Please sign in again.");
    }
    return body.access_token;
  }

  #keep(token) {
    remember(TOKEN, { token });
    this.#take(token);
    this.#onChange();
  }

  #take(token) {
    const claims = token === null ? null : claimsOf(token);
    const leftMs = claims === null ? 0 : claims.exp * 1_000 - MARGIN_MS - Date.now();
    if (leftMs <= 0) {
      forget(TOKEN);
      return;
    }
    [this.#token, this.#claims] = [token, claims];
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.token, Math.min(leftMs + 1, LONGEST_TIMER_MS));
  }
}

/** Read what a JWT says of its bearer and its end; null where it is none. Verifies nothing. */
export function claimsOf(token) {
  try {
    const body = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(bytes));
    return typeof claims.sub === "string" && Number.isFinite(claims.exp) ? claims : null;
  } catch {
    return null;
  }
}

/** Give the PKCE challenge (S256) of a verifier. */
export async function challengeOf(verifier) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier));
  return base64url(new Uint8Array(digest));
}

/** Take the issuer's answer out of the page's address, so that no reload or copy carries it. */
function takeAnswer() {
  const address = new URL(location.href);
  const fields = address.searchParams;
  if (!fields.has("state") || !(fields.has("code") || fields.has("error"))) return null;
  const answer = new URLSearchParams();
  for (const name of ANSWER_FIELDS) {
    if (fields.has(name)) answer.set(name, fields.get(name));
    fields.delete(name);
  }
  history.replaceState(history.state, "", address);
  return answer;
}

function refusalOf(answer) {
  if (answer.get("error") === "access_denied") return new SignInFailed("You did not sign in.");
  const word = answer.get("error").replaceAll(/[^a-z_]/g, "").slice(0, 40);
  return new SignInFailed(`The issuer refused the sign-in (${word}).`);
}

async function ask(address, options = {}) {
  try {
    const answer = await fetch(address, {
      ...options,
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      referrerPolicy: "no-referrer",
      signal: AbortSignal.timeout(FETCH_MS),
    });
    return { answer, body: await answer.json() };
  } catch {
    throw new SignInFailed("The issuer cannot be reached. Please try again.");
  }
}

function randomText() {
  return base64url(crypto.getRandomValues(new Uint8Array(32)));
}

function base64url(bytes) {
  const text = btoa(String.fromCharCode(...bytes));
  return text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function isSame(one, other) {
  return typeof one === "string" && one !== "" && one === other;
}

function recall(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key));
  } catch {
    return null;
  }
}

function remember(key, value) {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false; // storage can be forbidden; a token then lasts as long as the page
  }
}

function forget(key) {
  try {
    sessionStorage.removeItem(key);
  } catch {
    // as above
  }
}
