/**
 * Player avatars, derived from the user id: the same id always has the same sprite.
 *
 * Five by five cells, mirrored, in one of many hues; the lightness is that of the theme, in OKLCH, so
 * that all hues are equally strong. They make it easier to follow a moving row.
 */

const SVG = "http://www.w3.org/2000/svg";
const SIDE = 5;

/**
 * Return a 32-bit hash (FNV-1a with a final mix).
 *
 * @param {string} text
 */
export function hash(text) {
  let bits = 0x811c9dc5;
  for (let index = 0; index < text.length; index += 1) {
    bits = Math.imul(bits ^ text.charCodeAt(index), 0x01000193);
  }
  bits = Math.imul(bits ^ (bits >>> 15), 0x2c1b3c6d);
  bits = Math.imul(bits ^ (bits >>> 12), 0x297a2d39);
  return (bits ^ (bits >>> 15)) >>> 0;
}

/**
 * Return the sprite of `id` as an SVG element, hidden from assistive technology.
 *
 * @param {string} id
 */
export function drawSprite(id) {
  const bits = hash(id);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", cells(bits).map(([x, y]) => `M${x} ${y}h1v1h-1z`).join(""));
  const sprite = document.createElementNS(SVG, "svg");
  sprite.setAttribute("viewBox", "-1.5 -1.5 8 8");
  sprite.setAttribute("aria-hidden", "true");
  sprite.setAttribute("class", "sprite");
  sprite.style.setProperty("--hue", String(hue(id)));
  sprite.append(path);
  return sprite;
}

/**
 * Return the hue of `id`, in degrees; the golden angle spreads them.
 *
 * @param {string} id
 */
export function hue(id) {
  return Math.round((hash(id) >>> 15) * 137.508) % 360;
}

/**
 * Return the filled cells of a sprite.
 *
 * @param {number} bits
 */
export function cells(bits) {
  const filled = [];
  for (let y = 0; y < SIDE; y += 1) {
    for (let x = 0; x < 3; x += 1) {
      const isFilled = (bits >>> (y * 3 + x)) & 1;
      // The centre is always filled, so that no sprite is empty.
      if (!isFilled && !(x === 2 && y === 2)) continue;
      filled.push([x, y]);
      if (x < 2) filled.push([SIDE - 1 - x, y]);
    }
  }
  return filled;
}
