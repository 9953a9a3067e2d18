/**
 * The administrator's page: signs in for the scope `admin:scores`, and shows the view that the
 * address names (`#/players/alice/main`, `#/acts?state=pending`).
 *
 * @typedef {import("./elements.js").Child} Child
 * @typedef {{
 *   api: AdminApi,
 *   args: string[],
 *   filters: {[name: string]: string},
 *   pages: {count: number},
 *   addressOf: (view: string, ...args: string[]) => string,
 *   filter: (values: {[name: string]: string}) => void,
 *   refresh: () => void,
 *   setHeading: (text: string) => void,
 *   work: (task: () => Promise<string>, options?: {isChange: boolean}) => Promise<void>,
 *   confirm: (question: string, task: (values: {[name: string]: string}) => Promise<string>,
 *     ...fields: HTMLElement[]) => void,
 * }} Context
 *   `args` and `filters` are the rest of the view's address and its query; `filter` shows the view
 *   with other filters. `pages` is how many pages of a table are shown. `work` runs a task, shows the sentence that it returns or the error, and
 *   refreshes the view if the task changes something; `confirm` asks first, and for the values
 *   of fields.
 */

import { SignIn, SignInError } from "../sign-in.js";
import { AdminApi, ApiError } from "./api.js";
import { button, make, valuesOf } from "./elements.js";
import { showPlayers } from "./player-view.js";
import { showHealth } from "./health-view.js";
import { showHeld } from "./held-view.js";
import { showSeasons, showStandings } from "./season-view.js";
import { showActs, showAudit, showBoards } from "./views.js";

const SCOPE = "admin:scores";
const FETCH_MS = 5_000;
const HEALTH_MS = 2_000;

/** @type {{[name: string]: {title: string, show: (context: Context) => Promise<Child[]>, everyMs?: number, of?: string}}} */
const VIEWS = {
  boards: { title: "Boards", show: showBoards },
  players: { title: "Players", show: showPlayers },
  acts: { title: "Acts", show: showActs },
  held: { title: "Held actions", show: showHeld },
  seasons: { title: "Seasons", show: showSeasons, of: "boards" },
  standings: { title: "Standings", show: showStandings, of: "boards" },
  audit: { title: "Audit log", show: showAudit },
  health: { title: "Health", show: showHealth, everyMs: HEALTH_MS },
};
const FOCUSABLE = "a[href], button, input, select, textarea, summary, [tabindex]";

/** @param {string} id */
const find = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** @type {SignIn | null} */
let signIn = null;
let turn = 0; // counts what is shown, so that a late response does not replace a newer view
let isWorking = false;
let pages = { count: 1 };
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

const api = new AdminApi(() => signIn?.token ?? null, () => signIn?.signOut());

/**
 * @param {string} text
 * @param {"" | "trouble"} [mood]
 */
function say(text, mood = "") {
  const element = find("message");
  if (element.textContent !== text) element.textContent = text;
  element.dataset.mood = mood;
}

/** Show the message also to those who have scrolled down to what they pressed. */
function showMessage() {
  find("message").scrollIntoView({ block: "nearest" });
}

/** @param {string} text */
function setHeading(text) {
  find("heading").textContent = text;
  document.title = `${text} · Scoreboard administration`;
}

/** Return the view, its arguments and its filters that the address names. */
function parseAddress() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...args] = path.split("/").map(decode);
  const known = Object.hasOwn(VIEWS, name) ? name : "boards";
  return { name: known, args: args.filter(Boolean), filters: Object.fromEntries(new URLSearchParams(query)) };
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * @param {string} view
 * @param {...string} args
 */
function addressOf(view, ...args) {
  return `#/${[view, ...args].map(encodeURIComponent).join("/")}`;
}

/**
 * Show the view of the address.
 *
 * @param {{isRefresh?: boolean}} [options]  a refresh keeps what is shown until the response
 */
async function show({ isRefresh = false } = {}) {
  clearTimeout(timer);
  if (!signIn?.token) {
    showSignedOut();
    return;
  }
  const mine = (turn += 1);
  const address = location.hash;
  const { name, args, filters } = parseAddress();
  const { title, show: makeView, everyMs, of } = VIEWS[name];
  markCurrent(of ?? name);
  if (!isRefresh) {
    pages = { count: 1 };
    setHeading(args[0] ?? title);
    delete find("view").dataset.address;
    find("view").replaceChildren();
    say("Loading");
  }
  /** @type {string | null} */
  let trouble = null;
  try {
    const parts = await makeView(makeContext(name, args, filters));
    if (mine !== turn) return;
    replaceView(parts);
    find("view").dataset.address = address; // for the tests: what is shown is of this address
  } catch (error) {
    if (mine !== turn) return;
    trouble = sentenceOf(error);
  }
  if (trouble !== null) say(trouble, "trouble");
  else if (!isRefresh || everyMs) say("");
  if (everyMs) timer = setTimeout(() => document.hidden || show({ isRefresh: true }), everyMs);
}

/** @param {Child[]} parts */
function replaceView(parts) {
  const view = find("view");
  const index = [...view.querySelectorAll(FOCUSABLE)].findIndex((one) => one === document.activeElement);
  view.replaceChildren(...parts.filter((part) => part !== null));
  // Keep the focus where it was, instead of at the top of the page.
  const again = view.querySelectorAll(FOCUSABLE)[index];
  if (again instanceof HTMLElement) again.focus({ preventScroll: true });
}

/**
 * @param {string} name
 * @param {string[]} args
 * @param {{[name: string]: string}} filters
 * @returns {Context}
 */
function makeContext(name, args, filters) {
  const refresh = () => {
    show({ isRefresh: true });
  };
  return {
    api, args, filters, pages, addressOf, refresh, setHeading, work, confirm,
    filter: (values) => {
      const address = `${addressOf(name, ...args)}?${new URLSearchParams(values)}`;
      if (location.hash === address) refresh();
      else location.hash = address;
    },
  };
}

/**
 * @param {() => Promise<string>} task
 * @param {{isChange: boolean}} [options]
 */
async function work(task, { isChange } = { isChange: true }) {
  if (isWorking) return;
  isWorking = true;
  say("Working");
  try {
    say(await task());
    if (isChange) {
      await show({ isRefresh: true });
      showMessage();
    }
  } catch (error) {
    say(sentenceOf(error), "trouble");
    showMessage();
  } finally {
    isWorking = false;
  }
}

/**
 * @param {string} question
 * @param {(values: {[name: string]: string}) => Promise<string>} task
 * @param {...HTMLElement} fields
 */
function confirm(question, task, ...fields) {
  const form = make("form", { class: "act" }, make("p", {}, question), ...fields,
    make("div", { class: "buttons" }, make("button", { type: "submit", class: "button primary" }, "Confirm"),
      button("Cancel", () => dialog.close(), { class: "button quiet" })));
  const dialog = make("dialog", { "aria-label": question }, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const values = valuesOf(form);
    dialog.close();
    work(() => task(values));
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** @param {string} name */
function markCurrent(name) {
  for (const one of find("views").querySelectorAll("a")) {
    if (one.hash === `#/${name}`) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
}

/** @param {unknown} error */
function sentenceOf(error) {
  if (error instanceof ApiError || error instanceof SignInError) return error.message;
  globalThis.reportError?.(error);
  return "The page has failed. Reload it.";
}

// --- signing in and out ---

/** Show who is signed in, and either the views or how to sign in. */
function showIdentity() {
  const player = signIn?.player ?? null;
  for (const id of ["who", "leave", "views"]) find(id).hidden = player === null;
  find("who-name").textContent = player ?? "";
}

function showSignedOut() {
  turn += 1;
  showIdentity();
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  setHeading("Administration");
  find("view").replaceChildren(
    make("p", { class: "lead" }, "Sign in with an account that has the scope admin:scores."),
    button("Sign in", async () => {
      say("Opening the sign-in page");
      try {
        await signIn?.begin();
      } catch (error) {
        say(sentenceOf(error), "trouble");
      }
    }, { class: "button primary" }),
  );
}

/** @param {...string} sentences */
function showUnavailable(...sentences) {
  setHeading("Administration is not available");
  find("views").hidden = true;
  find("view").replaceChildren(...sentences.map((text) => make("p", { class: "lead" }, text)));
  say("");
}

/** Show the first view if the server lets this account administer. */
async function enter() {
  showIdentity();
  const before = turn;
  try {
    await api.get("/boards", { limit: 1 });
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) {
      showUnavailable(
        "The administration API is switched off on this server (SCOREBOARD_ADMIN_API=false).",
        "An operator can switch it on, or use the scoreboard command instead.",
      );
      return;
    }
    if (error instanceof ApiError && error.status === 403) {
      showUnavailable(error.message, "Sign out, and sign in with another account.");
      return;
    }
    // A view shows other errors, and can be tried again.
  }
  if (turn === before) await show(); // a view that was opened meanwhile may have been filled in
}

async function start() {
  let oauth;
  try {
    const response = await fetch("/admin/config.json", { signal: AbortSignal.timeout(FETCH_MS) });
    ({ oauth } = await response.json());
  } catch {
    say("The server does not respond. Reload the page to try again.", "trouble");
    return;
  }
  if (!oauth) {
    showUnavailable(
      "This server has no sign-in: SCOREBOARD_SIGN_IN_ISSUER and SCOREBOARD_SIGN_IN_CLIENT_ID are not set.",
      "Use the scoreboard command instead.",
    );
    return;
  }
  signIn = new SignIn({
    ...oauth,
    scope: SCOPE,
    redirectUri: new URL("/admin", location.href).href,
    store: "administrator",
    onChange: () => {
      showIdentity();
      if (signIn?.player === null) {
        showSignedOut();
        say("You are signed out.");
      }
    },
  });
  try {
    await signIn.resume();
  } catch (error) {
    showSignedOut();
    say(sentenceOf(error), "trouble");
    return;
  }
  if (signIn.token) await enter();
  else showSignedOut();
}

find("zone").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
find("leave").addEventListener("click", () => signIn?.signOut());
find("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  find("main").focus();
});
addEventListener("hashchange", async () => {
  await show();
  find("main").focus({ preventScroll: true });
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && signIn?.token && VIEWS[parseAddress().name].everyMs) show({ isRefresh: true });
});
start();
