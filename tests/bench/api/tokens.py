"""Tokens of the benchmarks' users, signed with RS256 as those of an identity provider.

Signing takes about 0.6 ms, a minute for 100,000 users. The key and the tokens are therefore kept
in the cache folder of the tests and used again by later runs. Only servers of benchmarks trust
the key.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.fakes.tokens import AUDIENCE, ISSUER, KeyPair
from tests.support.repository import CACHE

KID = "bench"
CLAIMS = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "iat": 1_700_000_000,
    "exp": 4_102_444_800,  # the year 2100
    "scope": "update:score read:leaderboard",
}


class Tokens(NamedTuple):
    """Files: the key set, and a token per line, the token of user N in line N from 0."""

    jwks: Path
    tokens: Path


def user_id(number: int) -> str:
    """Return the id of a user of the benchmarks."""
    return f"auth0|user{number:06d}"


def prepare(count: int) -> Tokens:
    """Return the files, after signing the tokens that are missing."""
    version = hashlib.sha256(json.dumps(CLAIMS).encode()).hexdigest()[:12]
    folder = CACHE / f"bench-tokens-{version}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = Tokens(folder / "jwks.json", folder / "tokens.txt")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        key = _key(folder / "key.pem")
        if not found.jwks.exists():
            pair = KeyPair(kid=KID, algorithm="RS256", private=key)
            found.jwks.write_text(json.dumps({"keys": [pair.jwk]}), encoding="utf-8")
        text = found.tokens.read_text() if found.tokens.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # an interrupted run leaves half a line
        if len(whole) < len(text):
            os.truncate(found.tokens, len(whole))
        with found.tokens.open("a") as lines:
            for number in range(whole.count("\n"), count):
                claims = CLAIMS | {"sub": user_id(number)}
                lines.write(jwt.encode(claims, key, "RS256", {"kid": KID}) + "\n")
    return found


def trusted_token() -> str:
    """Return a token that may update every user and state the points."""
    key = _key(prepare(0).jwks.with_name("key.pem"))
    claims = CLAIMS | {"sub": "bench", "scope": "update:score:any"}
    return jwt.encode(claims, key, "RS256", {"kid": KID})


def _key(path: Path) -> rsa.RSAPrivateKey:
    if path.exists():
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
        assert isinstance(loaded, rsa.RSAPrivateKey)
        return loaded
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    new = path.with_suffix(".new")
    new.write_bytes(
        made.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    new.chmod(0o600)
    new.replace(path)
    return made
