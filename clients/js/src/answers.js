/** The latest answers of reads by their ETags, so that an unchanged one is not sent again. */
export class Answers {
  #max;
  /** @type {Map<string, {etag: string, text: string}>} */ #kept = new Map(); // oldest use first

  /** @param {number} max  how many are kept */
  constructor(max) {
    this.#max = max;
  }

  /** @param {string} key */
  get(key) {
    const found = this.#kept.get(key);
    if (found === undefined) return null;
    this.#kept.delete(key);
    this.#kept.set(key, found);
    return found;
  }

  /**
   * @param {string} key
   * @param {string} etag
   * @param {string} text
   */
  set(key, etag, text) {
    this.#kept.delete(key);
    this.#kept.set(key, { etag, text });
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= this.#max) break;
      this.#kept.delete(oldest);
    }
  }
}
