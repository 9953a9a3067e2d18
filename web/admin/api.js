/**
 * The client of `/api/admin`: sends the administrator's token, and turns errors into sentences.
 *
 * @typedef {"correct" | "void" | "void window" | "ban" | "unban" | "release" | "undo"} Kind
 * @typedef {{kind: Kind, board?: string, userId?: string, delta?: number, actionId?: string,
 *   since?: string, until?: string, act?: string, held?: number, inCurrentSeason?: boolean}} Plan
 * @typedef {{score: number | null, rank: number | null}} Place
 * @typedef {{rank: number, userId: string, score: number}} TopRow
 * @typedef {{board: string, userId: string, kind: Kind, delta: number, actions: number,
 *   before: Place, after: Place, topBefore: TopRow[], topAfter: TopRow[]}} Preview
 * @typedef {{act: string, board: string, userId: string, kind: Kind, delta: number,
 *   score: number | null, committed: boolean}} Done
 * @typedef {{id: string, at: string, board: string, userId: string, kind: Kind, delta: number,
 *   actor: string, reason: string, detail: {[name: string]: any}, undoes: string | null,
 *   undoneBy: string | null, state: "applied" | "pending" | "refused"}} Act
 * @typedef {{operator: string, order: string, min: number, max: number, lowering: string,
 *   points: string, season?: string, timeZone?: string}} Rules
 * @typedef {{pointsPerAction: number, pointsPerWindow: number, windowS: number}} Limits
 * @typedef {{name: string, public: boolean, state: string, rules: Rules, partitions: number,
 *   users: number | null, limits: Limits, seenSeconds: number}} AdminBoard
 * @typedef {{board: string, score: number | null, rank: number | null, bannedBy: string | null}}
 *   UserBoard
 * @typedef {{board: string, season: string, score: number, rank: number | null}} UserSeason
 * @typedef {{actionId: string, delta: number, score: number, at: number}} HistoryRow
 * @typedef {{number: number, at: string, actor: string, action: string, board: string | null,
 *   detail: {[name: string]: any}}} AuditRow
 * @typedef {{board: string, open: boolean, uncommitted: number, oldestAgeS: number | null}}
 *   BoardHealth
 * @typedef {{service: "api" | "streamer" | "flusher", address: string,
 *   state: "ready" | "not ready" | "unknown", version: string | null, viewers: number | null,
 *   refusals: {[reason: string]: number} | null}} ProcessHealth
 * @typedef {{boards: BoardHealth[], deadLetters: number, pendingActs: number, held: number,
 *   processes: ProcessHealth[]}} Health
 * @typedef {{id: number, board: string, userId: string, actionId: string, delta: number,
 *   limit: "action" | "window", occurredAt: string, state: string, act: string | null,
 *   voidedBy: string | null, voidedReason: string | null, season: string | null}} HeldAction
 * @typedef {{id: string, startsAt: number, endsAt: number, state: "open" | "final", users: number,
 *   winners: TopRow[]}} Season
 */

const BASE = "/api/admin";
/** The server waits for PostgreSQL for some seconds. */
const FETCH_MS = 20_000;

/** A failed request; `message` is a sentence for the administrator. */
export class ApiError extends Error {
  name = "ApiError";

  /**
   * @param {string} message
   * @param {number} status  0 if there was no response
   * @param {number | null} [retryAfterS]  how long the server wants the client to wait
   */
  constructor(message, status, retryAfterS = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }

  /** Whether the request may have been carried out, or may succeed if it is sent again. */
  get isTemporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

export class AdminApi {
  /** @type {() => string | null} */ #token;
  /** @type {() => void} */ #onRejected;

  /**
   * @param {() => string | null} token
   * @param {() => void} onRejected  called when the server does not accept the token any more
   */
  constructor(token, onRejected) {
    this.#token = token;
    this.#onRejected = onRejected;
  }

  /**
   * @param {string} path
   * @param {{[name: string]: string | number | null | undefined}} [query]  empty ones are left out
   * @returns {Promise<any>}
   */
  get(path, query = {}) {
    return this.#send("GET", BASE + withQuery(path, query));
  }

  /**
   * @param {string} path
   * @param {object} [body]
   * @returns {Promise<any>}
   */
  post(path, body) {
    return this.#send("POST", BASE + path, body);
  }

  /**
   * @param {string} path
   * @param {object} body
   * @returns {Promise<any>}
   */
  patch(path, body) {
    return this.#send("PATCH", BASE + path, body);
  }

  /**
   * @param {string} method
   * @param {string} address
   * @param {object} [body]
   * @throws {ApiError}
   */
  async #send(method, address, body) {
    const token = this.#token();
    if (token === null) throw new ApiError("You are signed out.", 401);
    /** @type {{[name: string]: string}} */
    const headers = { Authorization: `Bearer ${token}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    let answer;
    try {
      response = await fetch(address, {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: "no-store",
        signal: AbortSignal.timeout(FETCH_MS),
      });
      answer = await response.json().catch(() => null);
    } catch {
      throw new ApiError("The server does not respond.", 0);
    }
    if (response.ok && answer !== null) return answer;
    if (response.status === 401) this.#onRejected();
    throw new ApiError(sentenceOf(response, answer), response.ok ? 0 : response.status, retryAfterOf(response));
  }
}

/**
 * @param {string} path
 * @param {{[name: string]: string | number | null | undefined}} query
 */
function withQuery(path, query) {
  const fields = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") fields.set(name, String(value));
  }
  return fields.size ? `${path}?${fields}` : path;
}

/**
 * @param {Response} response
 * @param {any} problem  RFC 9457
 */
function sentenceOf(response, problem) {
  const { status } = response;
  if (status === 401) return "Your sign-in has expired. Sign in again to continue.";
  if (status === 403) {
    const scope = /scope="([^"]*)"/.exec(response.headers.get("WWW-Authenticate") ?? "")?.[1];
    return `This account may not do that: its token needs the scope ${scope ?? "admin:scores"}.`;
  }
  if (status === 429) {
    const seconds = retryAfterOf(response);
    return seconds !== null
      ? `Too many requests. Try again in ${seconds} s.`
      : "Too many requests. Try again later.";
  }
  const words = problem?.detail ?? problem?.title;
  if (typeof words === "string" && words) return /[.!?]$/.test(words) ? words : `${words}.`;
  return `The server answered with the status ${status}.`;
}

/** @param {Response} response */
function retryAfterOf(response) {
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return Number.isFinite(seconds) ? seconds : null;
}

/** Return the id of a new act, 16 hexadecimal digits. */
export function newActId() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
