/** Waits, and their ends. */

/**
 * Return the delay before the next attempt: what the service asks for, and a random part on top.
 * Without the random part, all clients of a restarted service would come back at the same moment.
 *
 * @param {number} attempt  number of failures in a row, from 1
 * @param {number} random   in 0…1
 * @param {number | null} retryAfterMs
 * @param {{baseMs: number, ceilingMs: number}} backoff
 */
export function delayMs(attempt, random, retryAfterMs, { baseMs, ceilingMs }) {
  const ceiling = Math.min(ceilingMs, baseMs * 2 ** Math.min(attempt - 1, 20));
  return Math.round((retryAfterMs ?? 0) + random * ceiling);
}

/**
 * Wait; throw the reason of the signal if it is aborted.
 *
 * @param {number} ms
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export function wait(ms, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
  });
}

/**
 * Return what a promise becomes; throw the reason of the signal if it is aborted before.
 *
 * @template T
 * @param {Promise<T>} promise
 * @param {AbortSignal} [signal]
 * @returns {Promise<T>}
 */
export function unlessAborted(promise, signal) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}
