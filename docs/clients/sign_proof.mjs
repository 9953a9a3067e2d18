/**
 * Sign proofs of actions in a game server.
 *
 *     node sign_proof.mjs proof-key.pem KID alice raid:77 250
 *
 * KID is the kid of the key in the key set. Needs Node.js 22 and no packages.
 */

import { sign as signBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { argv } from "node:process";
import { fileURLToPath } from "node:url";

/** A player must send the proof within this time; the service accepts at most 600. */
const LIFE_S = 300;

const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** Sign that a user did an action, which is worth these points; `pem` is a P-256 key. */
export function sign(pem, kid, userId, actionId, points) {
  const header = { alg: "ES256", typ: "scoreboard-proof+jwt", kid };
  const exp = Math.floor(Date.now() / 1000) + LIFE_S;
  const signed = `${encode(header)}.${encode({ sub: userId, actionId, points, exp })}`;
  const key = { key: pem, dsaEncoding: "ieee-p1363" };
  const signature = signBytes("sha256", Buffer.from(signed), key);
  return `${signed}.${signature.toString("base64url")}`;
}

if (argv[1] === fileURLToPath(import.meta.url)) {
  const [path, kid, userId, actionId, points] = argv.slice(2);
  console.log(sign(readFileSync(path, "utf8"), kid, userId, actionId, Number(points)));
}
