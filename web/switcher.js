/**
 * The choice of board and season in the head of the page. A choice opens the page's address with it,
 * so that it can be shared and the Back button works.
 *
 * @typedef {{name: string, rules?: {season?: string}}} BoardInfo
 * @typedef {{id: string, state: string}} SeasonInfo
 */

const FETCH_MS = 5_000;
const BOARDS = 100;
const SEASONS = 24;
const MONTH = /^(\d{4})-(\d\d)$/;
const WEEK = /^(\d{4})-W(\d\d)$/;
const DAY = /^\d{4}-\d\d-\d\d$/;

/**
 * Return the id of a season in words.
 *
 * @param {string} id
 */
export function seasonName(id) {
  const week = WEEK.exec(id);
  if (week) return `Week ${Number(week[2])}, ${week[1]}`;
  /** @param {Intl.DateTimeFormatOptions} form */
  const dated = (form) => new Date(id).toLocaleDateString("en", { ...form, timeZone: "UTC" });
  if (MONTH.test(id)) return dated({ month: "long", year: "numeric" });
  if (DAY.test(id)) return dated({ day: "numeric", month: "long", year: "numeric" });
  return id;
}

/**
 * Offer the boards, and the seasons of the current one, if there is more than one.
 *
 * @param {HTMLElement} element   contains the name of the board, which stays if there is no choice
 * @param {{board: string, season: string | null, token: string | null}} current
 */
export async function offerChoices(element, { board, season, token }) {
  const found = await read("/api/boards", { limit: BOARDS }, token);
  /** @type {BoardInfo[]} */
  const boards = Array.isArray(found?.boards) ? found.boards : [];
  if (boards.length > 0 && boards.every(({ name }) => name !== board)) boards.unshift({ name: board });
  if (boards.length > 1) {
    const options = boards.map(({ name }) => ({ value: name, text: name }));
    for (const name of element.children) /** @type {HTMLElement} */ (name).hidden = true;
    element.append(choice("Board", options, board, (name) => open({ board: name, season: null })));
  }
  if (!boards.find(({ name }) => name === board)?.rules?.season) return;
  const list = await read("/api/scores/seasons", { board, limit: SEASONS }, token);
  /** @type {SeasonInfo[]} */
  const seasons = Array.isArray(list?.seasons) ? list.seasons : [];
  const ended = seasons.filter(({ state }) => state === "final").map(({ id }) => id);
  if (season !== null && !ended.includes(season)) ended.unshift(season);
  if (ended.length === 0) return;
  const options = [
    { value: "", text: "This season" },
    ...ended.map((id) => ({ value: id, text: seasonName(id) })),
  ];
  element.append(choice("Season", options, season ?? "", (id) => open({ board, season: id || null })));
}

/**
 * @param {string} label
 * @param {{value: string, text: string}[]} options
 * @param {string} current
 * @param {(value: string) => void} onChange
 */
function choice(label, options, current, onChange) {
  const select = document.createElement("select");
  select.className = "choice";
  select.setAttribute("aria-label", label);
  select.append(...options.map(({ value, text }) => new Option(text, value, false, value === current)));
  select.addEventListener("change", () => onChange(select.value));
  return select;
}

/** @param {{board: string, season: string | null}} choice */
function open({ board, season }) {
  const address = new URL(location.href);
  address.searchParams.set("board", board);
  if (season === null) address.searchParams.delete("season");
  else address.searchParams.set("season", season);
  address.hash = "";
  location.assign(address);
}

/**
 * @param {string} path
 * @param {{[name: string]: string | number}} query
 * @param {string | null} token
 */
async function read(path, query, token) {
  const address = new URL(path, location.href);
  for (const [name, value] of Object.entries(query)) address.searchParams.set(name, String(value));
  try {
    const response = await fetch(address, {
      headers: token === null ? {} : { Authorization: `Bearer ${token}` },
      signal: AbortSignal.timeout(FETCH_MS),
    });
    return response.ok ? await response.json() : null;
  } catch {
    return null; // the board is shown without a choice
  }
}
