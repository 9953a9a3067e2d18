/**
 * `<score-board>`: a live board as an element of a page. Importing this module defines it.
 *
 *     <score-board src="/ws/scoreboard" board="main" rows="10" user="alice" theme="auto"></score-board>
 *
 * | attribute | meaning |
 * |---|---|
 * | `src` | address of the streamer; default: `/ws/scoreboard` of the page's host |
 * | `board` | the board; default: the service's first |
 * | `rows` | number of rows, 1 to 100; default: 10 |
 * | `user` | whose row is marked, and whose place is shown below if it is further down |
 * | `theme` | `light`, `dark`, or `auto` (default): that of the page |
 *
 * A token is set as a property, `token` or `tokenProvider`, and never in the document. The element
 * dispatches `board`, `place`, `status` and `error` events, with the message as `detail`. Names
 * and ids are only ever inserted as text.
 */

/**
 * @typedef {import("./shared-board.js").Snapshot} Snapshot
 * @typedef {import("./shared-board.js").Board} Board
 * @typedef {import("./shared-board.js").Place} Place
 * @typedef {import("./shared-board.js").Status} Status
 * @typedef {import("./scoreboard-protocol.js").Row} Row
 * @typedef {import("./tokens.js").TokenProvider} TokenProvider
 * @typedef {import("./element-tag.js").TagName} TagName
 *
 * @typedef {object} Texts
 * @property {string} list          accessible name of the list of rows
 * @property {string} place         accessible name of the rows around the user
 * @property {string} connecting
 * @property {string} empty
 * @property {string} stale
 * @property {string} reconnecting
 * @property {string} stopped
 * @property {string} signedOut
 * @property {string} noScore
 * @property {(points: string) => string} toNext
 */

import { styleSheet } from "./element-style.js";
import { displayName, fullName } from "./names.js";
import { accountOf, follow, keyOf, NOTHING, placeOf, snapshotOf } from "./shared-board.js";

/** A loss that ends sooner is not worth a notice. */
const NOTICE_MS = 1_500;
const ROWS_DEFAULT = 10;
const ROWS_MAX = 100;

/** @type {Texts} */
const ENGLISH = {
  list: "Leaderboard",
  place: "Your place",
  connecting: "Connecting…",
  empty: "No scores yet.",
  stale: "The scores may be out of date.",
  reconnecting: "Connection lost. Reconnecting…",
  stopped: "The board cannot be shown.",
  signedOut: "Sign in to see the board.",
  noScore: "You have no score yet.",
  toNext: (points) => `${points} points to the next rank`,
};

// On a server the module can be imported, and defines nothing.
const Base = globalThis.HTMLElement ?? /** @type {typeof HTMLElement} */ (class {});

export class ScoreBoardElement extends Base {
  static observedAttributes = ["src", "board", "rows", "user"];

  /** @type {string | undefined} */ #token;
  /** @type {TokenProvider | undefined} */ #tokenProvider;
  #texts = ENGLISH;
  /** @type {Snapshot} */ #snapshot = NOTHING;
  /** @type {(() => void) | null} */ #release = null;
  /** What the snapshot is of. */
  #key = "";
  #isPlanned = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #noticeTimer;
  /** @type {Map<string, HTMLElement>} */ #items = new Map();
  #numbers = new Intl.NumberFormat();
  #list = Object.assign(document.createElement("ol"), { part: "list" });
  #place = Object.assign(document.createElement("ol"), { part: "place", hidden: true });
  #gap = Object.assign(document.createElement("p"), { part: "gap" });
  #notice = Object.assign(document.createElement("p"), { part: "status" });

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [styleSheet()];
    // Without a marker, Safari does not treat an ol as a list.
    for (const list of [this.#list, this.#place]) list.setAttribute("role", "list");
    this.#notice.setAttribute("role", "status");
    const title = document.createElement("slot");
    title.name = "title";
    root.append(title, this.#list, this.#place, this.#gap, this.#notice);
  }

  /** A JWT that will not be renewed. */
  get token() {
    return this.#token;
  }

  set token(token) {
    this.#token = token;
    this.#plan();
  }

  /** Returns a current JWT, or null for none. */
  get tokenProvider() {
    return this.#tokenProvider;
  }

  set tokenProvider(tokenProvider) {
    this.#tokenProvider = tokenProvider;
    this.#plan();
  }

  /**
   * The texts of the element, in English unless they are set.
   * @returns {Texts}
   */
  get texts() {
    return this.#texts;
  }

  /** @param {Partial<Texts>} texts */
  set texts(texts) {
    this.#texts = { ...ENGLISH, ...texts };
    this.#draw();
  }

  connectedCallback() {
    for (const name of /** @type {const} */ (["token", "tokenProvider", "texts"])) {
      this.#adoptProperty(name);
    }
    const lang = this.closest("[lang]")?.getAttribute("lang") || undefined;
    this.#numbers = new Intl.NumberFormat(lang);
    this.#draw();
    this.#plan();
  }

  disconnectedCallback() {
    this.#release?.();
    this.#release = null;
    clearTimeout(this.#noticeTimer);
  }

  attributeChangedCallback() {
    this.#plan();
  }

  /**
   * Take over a property that was set before the element was defined.
   *
   * @param {"token" | "tokenProvider" | "texts"} name
   */
  #adoptProperty(name) {
    if (!Object.hasOwn(this, name)) return;
    const self = /** @type {{[name: string]: unknown}} */ (/** @type {unknown} */ (this));
    const value = self[name];
    delete self[name];
    self[name] = value;
  }

  get #rows() {
    const rows = Number.parseInt(this.getAttribute("rows") ?? "", 10);
    return Number.isNaN(rows) ? ROWS_DEFAULT : Math.min(ROWS_MAX, Math.max(1, rows));
  }

  get #user() {
    return this.getAttribute("user") || undefined;
  }

  /** Follow what the attributes name; once, however many of them change together. */
  #plan() {
    if (this.#isPlanned || !this.isConnected) return;
    this.#isPlanned = true;
    queueMicrotask(() => {
      this.#isPlanned = false;
      if (this.isConnected) this.#follow();
    });
  }

  #follow() {
    const options = {
      url: this.getAttribute("src") || "/ws/scoreboard",
      board: this.getAttribute("board") || undefined,
      rows: Math.max(ROWS_DEFAULT, this.#rows),
      token: this.#token,
      tokenProvider: this.#tokenProvider,
      account: accountOf(this.#tokenProvider),
    };
    const key = keyOf(options);
    if (key !== this.#key) this.#snapshot = NOTHING;
    this.#key = key;
    const before = this.#release;
    this.#release = null;
    try {
      this.#release = follow(options, {
        user: this.#user,
        tokenProvider: (why) => this.#tokenProvider?.(why) ?? null,
        onChange: (snapshot) => this.#show(snapshot),
        onError: (error) => this.#dispatch("error", error),
      });
      this.#show(snapshotOf(key)); // another element may have the board already
    } catch (error) {
      this.#show({ ...NOTHING, status: { ...NOTHING.status, state: "stopped", reason: "address" } });
      this.#dispatch("error", { code: "address", detail: String(error) });
    }
    before?.(); // afterwards: the new connection may be the same one
  }

  /** @param {Snapshot} snapshot */
  #show(snapshot) {
    const before = this.#snapshot;
    const place = placeOf(snapshot, this.#user);
    const isPlaceNew = place !== null && place !== placeOf(before, this.#user);
    this.#snapshot = snapshot;
    this.#draw();
    if (snapshot.board && snapshot.board !== before.board) this.#dispatch("board", snapshot.board);
    if (isPlaceNew) this.#dispatch("place", place);
    if (snapshot.status !== before.status) this.#dispatch("status", snapshot.status);
  }

  /**
   * @param {"board" | "place" | "status" | "error"} type
   * @param {unknown} detail
   */
  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // --- drawing ---

  #draw() {
    const { board, status } = this.#snapshot;
    const place = placeOf(this.#snapshot, this.#user);
    const rows = board?.leaderboard.slice(0, this.#rows) ?? [];
    const own = this.#user ?? place?.userId;
    this.#drawRows(rows, own);
    const isShown = rows.some(({ userId }) => userId === own);
    this.#drawPlace(place, isShown);
    this.#list.ariaLabel = this.#texts.list;
    this.#list.ariaBusy = board === null ? "true" : null;
    this.#place.ariaLabel = this.#texts.place;
    this.#drawNotice(status, board !== null, rows.length === 0);
  }

  /**
   * @param {readonly Row[]} rows
   * @param {string | undefined} own
   */
  #drawRows(rows, own) {
    /** @type {Map<string, HTMLElement>} */
    const items = new Map();
    for (const row of rows) {
      const item = this.#items.get(row.userId) ?? rowElement();
      this.#fill(item, row, row.userId === own);
      items.set(row.userId, item);
    }
    this.#items = items;
    this.#list.replaceChildren(...items.values());
  }

  /**
   * @param {Place | null} place
   * @param {boolean} isShown  whether the user is among the rows of the board
   */
  #drawPlace(place, isShown) {
    const { rank = null, score = null } = place ?? {};
    const isBelow = place !== null && rank !== null && score !== null && !isShown;
    this.#place.hidden = !isBelow;
    const rows = isBelow
      ? [...(place.above ?? []), { ...place, rank, score }, ...(place.below ?? [])]
      : [];
    this.#place.replaceChildren(
      ...rows.map((row) => this.#fill(rowElement(), row, row.userId === place?.userId)),
    );
    const toNext = place?.toNext;
    if (place !== null && rank === null) this.#gap.textContent = this.#texts.noScore;
    else if (toNext === undefined || toNext === null) this.#gap.textContent = "";
    else this.#gap.textContent = this.#texts.toNext(this.#numbers.format(toNext));
  }

  /**
   * @param {HTMLElement} item
   * @param {{rank: number, userId: string, score: number, name?: string}} row
   * @param {boolean} isOwn
   */
  #fill(item, { rank, userId, score, name }, isOwn) {
    item.setAttribute("part", isOwn ? "row own" : "row");
    item.ariaCurrent = isOwn ? "true" : null;
    const [rankPart, namePart, scorePart] = item.children;
    setText(rankPart, this.#numbers.format(rank));
    setText(namePart, displayName({ userId, name }));
    namePart.setAttribute("title", fullName({ userId, name }));
    setText(scorePart, this.#numbers.format(score));
    return item;
  }

  /**
   * @param {Readonly<Status>} status
   * @param {boolean} hasBoard
   * @param {boolean} isEmpty
   */
  #drawNotice({ state, reason }, hasBoard, isEmpty) {
    clearTimeout(this.#noticeTimer);
    this.#notice.setAttribute("part", `status ${state}`);
    const texts = this.#texts;
    const text = {
      connecting: texts.connecting,
      live: isEmpty ? texts.empty : "",
      checking: "", // it takes at most some seconds
      stale: texts.stale,
      reconnecting: texts.reconnecting,
      stopped: reason === "signed-out" ? texts.signedOut : texts.stopped,
    }[state];
    if (state !== "reconnecting" || !hasBoard) setText(this.#notice, text);
    else this.#noticeTimer = setTimeout(() => setText(this.#notice, text), NOTICE_MS);
  }
}

/** Return an empty row. */
function rowElement() {
  const item = document.createElement("li");
  for (const part of ["rank", "name", "score"]) {
    // A name of another direction must not turn the row around.
    item.append(Object.assign(document.createElement(part === "name" ? "bdi" : "span"), { part }));
  }
  return item;
}

/**
 * Change a text only if it differs: a screen reader may announce what is set again.
 *
 * @param {Element} element
 * @param {string} text
 */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

if (globalThis.customElements && !customElements.get("score-board")) {
  customElements.define("score-board", ScoreBoardElement);
}
