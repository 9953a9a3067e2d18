/**
 * How a player is called on the page: the name, else the user id; ids that no person would read, such
 * as UUIDs, in a short form. The full id is the title of the name.
 *
 * @typedef {{userId: string, name?: string}} Named
 */

const OPAQUE = [
  /^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$/i, // a UUID
  /^[0-9a-hjkmnp-tv-z]{26}$/i, // a ULID
  /^[0-9a-f]{16,}$/i,
  /^\d{12,}$/,
];
/** The id of an identity provider, such as `auth0|64ab31`. */
const OF_PROVIDER = /^[\w.-]+\|(.{4,})$/;
const ENDING = 4;

/**
 * Return the name to show.
 *
 * @param {Named} player
 */
export function displayName({ userId, name }) {
  return name?.trim() ? name : readableId(userId);
}

/**
 * Return the name with the id, for the title.
 *
 * @param {Named} player
 */
export function fullName({ userId, name }) {
  return name?.trim() && name !== userId ? `${name} (${userId})` : userId;
}

/**
 * Return a user id as it is, or `Player 4E5F` for one that is opaque. Ids that start with a time end
 * with what is random.
 *
 * @param {string} userId
 */
export function readableId(userId) {
  const own = OF_PROVIDER.exec(userId)?.[1] ?? userId;
  const isOpaque = own !== userId || OPAQUE.some((form) => form.test(own));
  return isOpaque ? `Player ${own.slice(-ENDING).toUpperCase()}` : userId;
}
