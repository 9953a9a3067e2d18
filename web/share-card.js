/**
 * The share card: a picture of the top of the board, or of the viewer's own place, drawn in the
 * browser. A dialog shows it before it is shared, copied or saved.
 *
 * @typedef {import("./scoreboard-protocol.js").Row} Row
 * @typedef {{board: string, rows: Row[], mine: (Row & {total?: number}) | null}} Card
 */

import { part } from "./board-view.js";
import { displayName } from "./names.js";
import { cells, hash, hue } from "./sprite.js";

const WIDTH = 1_200;
const HEIGHT = 630;
const FONT = 'Inter, ui-sans-serif, system-ui, "Segoe UI", Roboto, sans-serif';
const ROWS = 5;
const numbers = new Intl.NumberFormat("en");

/**
 * Draw a card: one's own place if there is one, else the first five.
 *
 * @param {Card} card
 * @returns {HTMLCanvasElement}
 */
export function drawCard({ board, rows, mine }) {
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH;
  canvas.height = HEIGHT;
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const style = getComputedStyle(document.documentElement);
  /** @param {string} name */
  const colour = (name) => style.getPropertyValue(name).trim();
  const paint = {
    paper: colour("--paper"),
    card: colour("--card"),
    ink: colour("--ink"),
    quiet: colour("--quiet"),
    light: colour("--face-light"),
    field: colour("--face-field"),
  };
  pen.fillStyle = paint.paper;
  pen.fillRect(0, 0, WIDTH, HEIGHT);
  pen.fillStyle = paint.card;
  pen.beginPath();
  pen.roundRect(40, 40, WIDTH - 80, HEIGHT - 80, 32);
  pen.fill();
  pen.textBaseline = "middle";
  write(pen, board, 96, 104, { size: 34, weight: 600, fill: paint.quiet, width: 640 });
  const date = new Date().toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
  write(pen, date, WIDTH - 96, 104, { size: 26, weight: 500, fill: paint.quiet, align: "right" });
  if (mine) {
    drawFace(pen, mine.userId, 96, 200, 240, paint);
    const name = displayName(mine);
    write(pen, name, 388, 228, { size: 60, weight: 700, fill: paint.ink, width: 700 });
    write(pen, `#${numbers.format(mine.rank)}`, 388, 330, { size: 112, weight: 800, fill: paint.ink });
    const among = mine.total === undefined ? "" : ` among ${numbers.format(mine.total)} players`;
    const text = `${numbers.format(mine.score)} points${among}`;
    write(pen, text, 388, 428, { size: 38, weight: 500, fill: paint.quiet, width: 700 });
  } else {
    rows.slice(0, ROWS).forEach((row, index) => {
      const y = 180 + index * 74;
      write(pen, String(row.rank), 120, y, { size: 36, weight: 700, fill: paint.quiet, align: "center" });
      drawFace(pen, row.userId, 164, y - 29, 58, paint);
      write(pen, displayName(row), 248, y, { size: 38, weight: 600, fill: paint.ink, width: 560 });
      const score = numbers.format(row.score);
      write(pen, score, WIDTH - 96, y, { size: 40, weight: 700, fill: paint.ink, align: "right" });
    });
  }
  const { host } = location;
  write(pen, host, WIDTH - 96, 550, { size: 26, weight: 500, fill: paint.quiet, align: "right" });
  return canvas;
}

/**
 * Show the card in a dialog.
 *
 * @param {Card} card
 */
export function openShareDialog(card) {
  const canvas = drawCard(card);
  const text = describe(card);
  const name = `${card.board}.png`;
  const dialog = /** @type {HTMLDialogElement} */ (part("dialog", "share"));
  const heading = part("h2", "share-title", "Share");
  heading.id = "share-title";
  dialog.setAttribute("aria-labelledby", heading.id);
  const picture = document.createElement("img");
  picture.src = canvas.toDataURL("image/png");
  picture.alt = text;
  picture.width = WIDTH;
  picture.height = HEIGHT;
  const save = /** @type {HTMLAnchorElement} */ (part("a", "action", "Save the picture"));
  save.href = picture.src;
  save.download = name;
  const news = part("p", "share-news");
  news.setAttribute("role", "status");
  const actions = part("p", "share-actions");
  canvas.toBlob((blob) => {
    if (blob === null) return;
    const file = new File([blob], name, { type: "image/png" });
    const shared = { files: [file], text, url: location.href };
    if (navigator.canShare?.(shared)) {
      actions.prepend(button("Share", () => navigator.share(shared), news));
    }
    if (navigator.clipboard && "ClipboardItem" in globalThis) {
      const item = { "image/png": blob };
      const copy = () => navigator.clipboard.write([new ClipboardItem(item)]).then(() => "Copied.");
      save.before(button("Copy the picture", copy, news));
    }
  });
  const close = part("button", "action", "Close");
  close.type = "button";
  close.addEventListener("click", () => dialog.close());
  actions.append(save, close);
  dialog.append(heading, picture, actions, news);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** @param {Card} card */
function describe({ board, rows, mine }) {
  if (mine) return `${displayName(mine)} is number ${numbers.format(mine.rank)} on ${board}.`;
  return rows.length ? `${displayName(rows[0])} leads ${board}.` : board;
}

/**
 * @param {string} label
 * @param {() => Promise<string | void>} act
 * @param {HTMLElement} news
 */
function button(label, act, news) {
  const element = part("button", "action", label);
  element.type = "button";
  element.addEventListener("click", async () => {
    try {
      news.textContent = (await act()) ?? "";
    } catch (error) {
      const isCancelled = error instanceof DOMException && error.name === "AbortError";
      news.textContent = isCancelled ? "" : "The browser did not allow it.";
    }
  });
  return element;
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {string} text
 * @param {number} x
 * @param {number} y
 * @param {{size: number, weight: number, fill: string, align?: CanvasTextAlign, width?: number}} form
 */
function write(pen, text, x, y, { size, weight, fill, align = "left", width = Infinity }) {
  pen.font = `${weight} ${size}px ${FONT}`;
  pen.fillStyle = fill;
  pen.textAlign = align;
  let letters = [...text];
  while (letters.length > 1 && pen.measureText(letters.join("")).width > width) {
    letters = [...letters.slice(0, -2), "…"];
  }
  pen.fillText(letters.join(""), x, y);
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {string} userId
 * @param {number} x
 * @param {number} y
 * @param {number} side  pixels
 * @param {{light: string, field: string}} paint
 */
function drawFace(pen, userId, x, y, side, { light, field }) {
  pen.fillStyle = `oklch(${field} ${hue(userId)})`;
  pen.beginPath();
  pen.roundRect(x, y, side, side, side / 4);
  pen.fill();
  pen.fillStyle = `oklch(${light} ${hue(userId)})`;
  const cell = side / 8;
  for (const [column, row] of cells(hash(userId))) {
    pen.fillRect(x + (column + 1.5) * cell, y + (row + 1.5) * cell, cell + 0.5, cell + 0.5);
  }
}
