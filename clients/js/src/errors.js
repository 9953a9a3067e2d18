/**
 * The errors of requests.
 */

/**
 * @typedef {import("./openapi.js").components["schemas"]["UpdateProblem"]} Problem
 */

/** The type of an error without an answer of the service: the outcome is unknown. */
export const NO_ANSWER = "no-answer";

/**
 * A request that failed: the service refused it, or did not answer in time.
 *
 * `type` identifies the problem and never changes its meaning, such as
 * `/docs/problems/board-archived`; it is `no-answer` if the service did not answer, and
 * `about:blank` if something else answered, such as a proxy.
 */
export class ScoreboardError extends Error {
  /** @type {string} */
  type;
  /**
   * The HTTP status; 0 without an answer.
   * @type {number}
   */
  status;
  /**
   * What is wrong, in words.
   * @type {string}
   */
  detail;
  /**
   * Identifies the request in the logs of the service.
   * @type {string | null}
   */
  requestId;
  /**
   * How long the service asks to wait.
   * @type {number | null}
   */
  retryAfterMs;
  /**
   * The whole problem document; null if there was none.
   * @type {Problem | null}
   */
  problem;

  /**
   * @param {{type: string, status: number, detail: string, title?: string,
   *   requestId?: string | null, retryAfterMs?: number | null, problem?: Problem | null,
   *   cause?: unknown}} facts
   */
  constructor({ type, status, detail, title, requestId, retryAfterMs, problem, cause }) {
    super(title ? `${title} ${detail}` : detail, { cause });
    this.name = "ScoreboardError";
    this.type = type;
    this.status = status;
    this.detail = detail;
    this.requestId = requestId ?? null;
    this.retryAfterMs = retryAfterMs ?? null;
    this.problem = problem ?? null;
  }

  /** Whether the same request can succeed later: no answer, 429 or 5xx. */
  get isRetryable() {
    const { status } = this;
    return status === 0 || status === 429 || (status >= 500 && status !== 501 && status !== 505);
  }
}

/**
 * Return the error for a response that is neither a success nor 304.
 *
 * @param {Response} response
 * @param {string} text  its body
 */
export function errorOf(response, text) {
  const { status, headers } = response;
  const requestId = headers.get("X-Request-Id");
  const retryAfterMs = retryAfterOf(headers.get("Retry-After"), Date.now());
  const problem = problemOf(headers.get("Content-Type"), text);
  if (problem === null) {
    const detail = `The answer has the status ${status}, and is not one of the service.`;
    return new ScoreboardError({ type: "about:blank", status, detail, requestId, retryAfterMs });
  }
  const { type, title, detail, request_id: id } = problem;
  return new ScoreboardError({
    type,
    title,
    detail,
    status,
    problem,
    retryAfterMs,
    requestId: id ?? requestId,
  });
}

/**
 * Return the milliseconds that a `Retry-After` header asks for; null if it is missing or invalid.
 *
 * @param {string | null} text
 * @param {number} nowMs
 */
export function retryAfterOf(text, nowMs) {
  if (text === null) return null;
  if (/^\d{1,9}$/.test(text)) return Number(text) * 1_000;
  const atMs = Date.parse(text);
  return Number.isNaN(atMs) ? null : Math.max(0, atMs - nowMs);
}

/**
 * @param {string | null} contentType
 * @param {string} text
 * @returns {Problem | null}
 */
function problemOf(contentType, text) {
  if (!contentType?.startsWith("application/problem+json")) return null;
  try {
    const problem = JSON.parse(text);
    return typeof problem?.type === "string" && typeof problem.detail === "string" ? problem : null;
  } catch {
    return null;
  }
}
