"""The issuer's keys as rows of the gateway's configuration, including retired keys. No I/O.

Invariants: a key that the issuer no longer publishes is kept for the lifetime of a token; its row
contains the time of its retirement, so the rendered file is the only state.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Struct

from cli.gateway.kong_yaml import parse
from scoreboard.errors import OperatorMistake
from scoreboard.security.key_set import ALGORITHMS, Keys

PLAYERS: Final = "players"
"""The consumer that owns every key, and therefore every token, of the issuer."""

_RETIRED: Final = re.compile(r"retired-at-([0-9]{1,12})")


class KeyRow(Struct, frozen=True):
    """A key of the gateway; ``retired_at_s`` is when the issuer stopped publishing it."""

    kid: str
    algorithm: str
    pem: str
    retired_at_s: int | None = None


class _Secret(Struct):
    key: str
    algorithm: str
    rsa_public_key: str
    tags: list[str] = msgspec.field(default_factory=list)


class _Consumer(Struct):
    username: str
    jwt_secrets: list[_Secret] = msgspec.field(default_factory=list)


class _Rendered(Struct):
    consumers: list[_Consumer]


def rows_of(keys: Keys) -> tuple[KeyRow, ...]:
    """Return the rows of an issuer's key set."""
    rows: list[KeyRow] = []
    for kid, key in sorted(keys.items()):
        pem = key.public.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        rows.append(KeyRow(kid, str(key.public.algorithm_name), pem.decode()))
    return tuple(rows)


def rows_in(rendered: str) -> tuple[KeyRow, ...]:
    """Return the rows of a rendered configuration; an empty text has none.

    Raises OperatorMistake for any other text, which must not be overwritten.
    """
    if not rendered.strip():
        return ()
    _, found = parse(rendered, _Rendered, "The file to replace")
    rows = [
        KeyRow(secret.key, secret.algorithm, secret.rsa_public_key, _retired_at_s(secret.tags))
        for consumer in found.consumers
        if consumer.username == PLAYERS
        for secret in consumer.jwt_secrets
    ]
    if not rows or any(row.algorithm not in ALGORITHMS for row in rows):
        raise OperatorMistake("The file to replace is not a rendered configuration")
    return tuple(rows)


def merge_rows(
    before: Iterable[KeyRow],
    now: Iterable[KeyRow],
    *,
    now_s: int,
    grace_s: int,
    revoked: frozenset[str] = frozenset(),
) -> tuple[KeyRow, ...]:
    """Merge the current keys with those retired less than ``grace_s`` seconds ago.

    Tokens signed with a retired key may still be valid. A ``revoked`` kid is removed at once.

    Raises ValueError if no key remains.
    """
    merged = {row.kid: row for row in now}
    for row in before:
        since_s = now_s if row.retired_at_s is None else row.retired_at_s
        if row.kid not in merged and now_s - since_s < grace_s:
            merged[row.kid] = KeyRow(row.kid, row.algorithm, row.pem, since_s)
    rows = tuple(row for kid, row in sorted(merged.items()) if kid not in revoked)
    if not rows:
        raise ValueError("no key would remain")
    return rows


def secret_of(row: KeyRow) -> dict[str, Any]:
    """Return the entry of ``jwt_secrets`` for a row.

    Raises ValueError for an algorithm that the services do not verify.
    """
    if row.algorithm not in ALGORITHMS:
        raise ValueError(f"the algorithm {row.algorithm} is not supported")
    # Without `algorithm` Kong would use the public key as the secret of HS256.
    secret: dict[str, Any] = {"key": row.kid, "algorithm": row.algorithm, "rsa_public_key": row.pem}
    if row.retired_at_s is not None:
        secret["tags"] = [f"retired-at-{row.retired_at_s}"]
    return secret


def _retired_at_s(tags: Iterable[str]) -> int | None:
    for tag in tags:
        match = _RETIRED.fullmatch(tag)
        if match:
            return int(match[1])
    return None
