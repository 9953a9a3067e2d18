/**
 * The wall mode, `?wall=1`: the board in large type on a screen in a room, without controls, with a
 * QR code of the page's address for people to join.
 */

/** Whether the page was opened in wall mode. */
export function isWall() {
  return ["1", "true"].includes(new URL(location.href).searchParams.get("wall") ?? "");
}

/** Return the address of this page for a person in the room: the same board, with controls. */
export function joinAddress() {
  const address = new URL(location.href);
  const board = address.searchParams.get("board");
  address.search = "";
  address.hash = "";
  if (board) address.searchParams.set("board", board);
  return address.href;
}

/**
 * Show the QR code of an address.
 *
 * @param {HTMLElement} element
 * @param {string} address
 */
export async function showQrCode(element, address) {
  const { encode } = await import("./vendor/uqr/index.mjs");
  const { data, size } = encode(address, { ecc: "M", border: 2 });
  const SVG = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", `0 0 ${size} ${size}`);
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `QR code of ${address}`);
  const path = document.createElementNS(SVG, "path");
  const cells = data.flatMap((row, y) => row.flatMap((isDark, x) => (isDark ? `M${x} ${y}h1v1h-1z` : [])));
  path.setAttribute("d", cells.join(""));
  picture.append(path);
  element.replaceChildren(picture);
}

/** Keep the screen on while the page is visible, where the browser can. */
export function keepAwake() {
  const request = () => {
    if (!document.hidden) navigator.wakeLock?.request("screen").catch(() => {}); // refused: no matter
  };
  document.addEventListener("visibilitychange", request);
  request();
}
