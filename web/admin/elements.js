/**
 * Builds elements. Texts are only ever set as text, so that no id, name or reason can become markup.
 *
 * @typedef {Node | string | null} Child  null adds nothing
 * @typedef {{head: string, isNumber?: boolean}} Column
 */

/**
 * Return a new element; attributes that are null or false are left out.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {{[name: string]: string | number | boolean | null}} attributes
 * @param {...Child} children
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/**
 * Return a button of the class `class`.
 *
 * @param {string} text
 * @param {() => void} onClick
 * @param {{[name: string]: string}} [attributes]
 */
export function button(text, onClick, attributes = {}) {
  const element = make("button", { type: "button", class: "button", ...attributes }, text);
  element.addEventListener("click", onClick);
  return element;
}

/**
 * Return a link to a view of this page, or to another path.
 *
 * @param {string} address
 * @param {Child} text
 */
export function link(address, text) {
  return make("a", { href: address }, text);
}

/**
 * Return an id or name whose direction does not affect the text around it.
 *
 * @param {string} text
 */
export function identifier(text) {
  return make("bdi", { class: "identifier", dir: "auto" }, text);
}

/**
 * Return a table that can be scrolled sideways, also by keyboard. On a narrow screen each row is a
 * block, and each cell shows the heading of its column.
 *
 * @param {string} label    for screen readers
 * @param {Column[]} columns
 * @param {Child[][]} rows  the cells of each row; the first cell is its heading
 */
export function table(label, columns, rows) {
  const body = make("tbody");
  body.append(...rows.map((cells) => tableRow(columns, cells)));
  const head = columns.map(({ head: text, isNumber }) =>
    make("th", { scope: "col", class: isNumber ? "number" : null },
      text || make("span", { class: "visually-hidden" }, "Actions")));
  return make(
    "div",
    { class: "card scroll", role: "region", "aria-label": label, tabindex: 0 },
    // The roles are those of a table, which narrow screens would lose with `display: block`.
    make("table", { role: "table", "aria-label": label },
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...head)),
      body),
  );
}

/**
 * Return a row of such a table.
 *
 * @param {Column[]} columns
 * @param {Child[]} cells
 */
export function tableRow(columns, cells) {
  const made = cells.map((cell, index) => {
    const { head, isNumber } = columns[index];
    const attributes = { class: isNumber ? "number" : null, "data-head": head };
    return index === 0
      ? make("th", { scope: "row", role: "rowheader", ...attributes }, cell)
      : make("td", { role: "cell", ...attributes }, cell);
  });
  return make("tr", { role: "row" }, ...made);
}

/**
 * Return a control with its label, and a hint if it needs one.
 *
 * @template {HTMLElement} Control
 * @param {string} label
 * @param {Control} control  has a name
 * @param {string} [hint]
 */
export function field(label, control, hint) {
  const id = `field-${(fieldCount += 1)}`;
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return make(
    "div",
    { class: "field" },
    make("label", { for: id }, label),
    control,
    hint ? make("p", { class: "hint", id: `${id}-hint` }, hint) : null,
  );
}

let fieldCount = 0;

/**
 * Return an input.
 *
 * @param {string} name
 * @param {{[name: string]: string | number | boolean | null}} [attributes]
 */
export function input(name, attributes = {}) {
  return make("input", { name, autocomplete: "off", ...attributes });
}

/**
 * Return a choice between values.
 *
 * @param {string} name
 * @param {[value: string, text: string][]} options
 * @param {string} [chosen]
 */
export function select(name, options, chosen) {
  return make("select", { name }, ...options.map(([value, text]) =>
    make("option", { value, selected: value === chosen }, text)));
}

/**
 * Return the trimmed texts of a form's controls by name, without empty ones.
 *
 * @param {HTMLFormElement} form
 * @returns {{[name: string]: string}}
 */
export function valuesOf(form) {
  /** @type {{[name: string]: string}} */
  const values = {};
  for (const [name, value] of new FormData(form)) {
    const text = String(value).trim();
    if (text) values[name] = text;
  }
  return values;
}

const REASON_MAX = 500;

/** @param {string} hint */
export function reasonField(hint) {
  const reason = make("textarea", { name: "reason", rows: 2, maxlength: REASON_MAX, required: true });
  return field("Reason", reason, hint);
}

/**
 * Return a reason as one line: a line break would make it two lines of a log.
 *
 * @param {string} reason
 */
export function oneLine(reason) {
  return reason.replaceAll(/\s+/g, " ");
}

/**
 * Return a table of rows that are read in pages, with a button for more. A refresh reads as many
 * pages as were shown.
 *
 * @param {import("./main.js").Context} context
 * @param {(cursor: any) => Promise<any>} read
 * @param {string} name  the field of the rows
 * @param {string} label
 * @param {Column[]} columns
 * @param {(row: any) => Child[]} cells
 */
export async function paged({ pages, work }, read, name, label, columns, cells) {
  const first = await read("");
  if (!first[name].length) return [make("p", { class: "hint" }, "There is nothing to show.")];
  const shown = table(label, columns, first[name].map(cells));
  let { next } = first;
  const readNext = async () => {
    const page = await read(next);
    shown.querySelector("tbody")?.append(...page[name].map((/** @type {any} */ row) => tableRow(columns, cells(row))));
    next = page.next;
  };
  for (let count = 1; count < pages.count && next; count += 1) await readNext();
  const more = button("Show more", () => work(async () => {
    await readNext();
    pages.count += 1;
    more.hidden = !next;
    return "";
  }, { isChange: false }));
  more.hidden = !next;
  return [shown, more];
}

/**
 * Return a form whose values become the filters in the address of the view.
 *
 * @param {import("./main.js").Context["filter"]} filter
 * @param {HTMLElement[]} fields
 */
export function filterForm(filter, fields) {
  const form = make("form", { class: "filters", role: "search" }, ...fields,
    make("button", { type: "submit", class: "button" }, "Show"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    filter(valuesOf(form));
  });
  return form;
}
