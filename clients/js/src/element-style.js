/**
 * The style of `<score-board>`. Pages change it with custom properties and `::part()`.
 *
 * It is a constructed style sheet, which a strict Content-Security-Policy allows.
 */

const CSS = `
:host {
  display: block;
  font: var(--score-board-font, inherit);
  color: var(--score-board-color, CanvasText);
  background: var(--score-board-background, Canvas);
  border: 1px solid var(--score-board-border, color-mix(in srgb, CanvasText 20%, Canvas));
  border-radius: var(--score-board-radius, 0.5rem);
  padding: var(--score-board-padding, 0.5rem 0);
}
:host([theme="light"]) { color-scheme: light; }
:host([theme="dark"]) { color-scheme: dark; }
:host([hidden]) { display: none; }
::slotted([slot="title"]) { padding: 0 1rem; }
ol {
  display: grid;
  grid-template-columns: minmax(2.5ch, max-content) minmax(0, 1fr) max-content;
  list-style: none;
  margin: 0;
  padding: 0;
}
li {
  display: grid;
  grid-column: 1 / -1;
  grid-template-columns: subgrid;
  gap: 0.75em;
  padding: 0.35em 1em;
}
li[aria-current] {
  background: var(--score-board-own, color-mix(in srgb, Highlight 20%, Canvas));
  font-weight: 600;
}
[part~="rank"] { text-align: end; font-variant-numeric: tabular-nums; }
[part~="name"] { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
[part~="score"] { text-align: end; font-variant-numeric: tabular-nums; }
[part~="place"] {
  margin-top: 0.35em;
  padding-top: 0.35em;
  border-top: 1px dashed var(--score-board-border, color-mix(in srgb, CanvasText 20%, Canvas));
}
p { margin: 0; padding: 0.35em 1em; font-size: 0.9em; }
/* Not display: none, because a status has to be there before its text, to be announced. */
p:empty { padding: 0; }
[hidden] { display: none; }
`;

/** @type {CSSStyleSheet | undefined} */
let sheet;

/** Return the style sheet, which all elements share. */
export function styleSheet() {
  if (sheet === undefined) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(CSS);
  }
  return sheet;
}
