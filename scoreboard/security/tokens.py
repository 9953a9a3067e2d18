"""Verifies bearer tokens: algorithm, the issuer's keys, claims, scopes.

The api and the streamer identify callers by their tokens only, never by headers of the gateway.

Invariants: an accepted token has an RS256 or ES256 signature by a key of the issuer's current set,
the configured ``iss`` and ``aud``, an ``exp`` in the future and a ``sub`` that is a valid userId.
No log line, error or repr contains a token.
"""

import re
import time
from typing import Final, get_args

from scoreboard.errors import KeysUnavailable, SettingInvalid, Unauthenticated
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import Children, counter
from scoreboard.security.key_set import make_source
from scoreboard.security.local_issuer import LOCAL_ISSUER, LocalIssuer, LocalProver
from scoreboard.security.signatures import Signatures
from scoreboard.security.signed_token import (
    ADMIN,
    READ,
    TOKEN_BYTES_MAX,
    UPDATE,
    UPDATE_ANY,
    Caller,
    Reason,
    SignedToken,
    read_claims,
    unauthenticated,
)

__all__ = [
    "ADMIN",
    "LOCAL_ISSUER",
    "READ",
    "TOKEN_BYTES_MAX",
    "UPDATE",
    "UPDATE_ANY",
    "Caller",
    "LocalIssuer",
    "LocalProver",
    "Verifier",
    "bearer_token",
]

_FAILED: Final = Children(
    counter(
        "auth_failures_total",
        "Tokens refused",
        "reason",
        unit="requests and handshakes",
        normal="a few, such as expired; keys-unavailable: 0",
    ),
    *get_args(Reason),
    "keys-unavailable",
)
_BEARER: Final = re.compile(rb"(?i:bearer) +([A-Za-z0-9._~+/-]+=*)")

_BEARER_START: Final = b"Bearer "


class Verifier:
    """Verifies tokens. Run ``run`` in a task group to refresh the keys."""

    def __init__(self, settings: Settings) -> None:
        """Take issuer, audience and the source of keys; nothing is read yet.

        Raises SettingInvalid if one of these is missing.
        """
        if not settings.issuer:
            raise SettingInvalid("SCOREBOARD_ISSUER is not set; see .env.example")
        if not settings.audience:
            raise SettingInvalid("SCOREBOARD_AUDIENCE is not set; see .env.example")
        self._issuer = settings.issuer
        self._audience = settings.audience
        self._leeway_s = settings.token_leeway_s
        self._signatures = Signatures[Caller](make_source(settings), settings.token_cache)
        self._cache = self._signatures.cache
        self._keys = self._signatures.keys

    @property
    def is_ready(self) -> bool:
        """Return whether there are keys."""
        return self._keys.is_loaded

    async def run(self) -> None:
        """Refresh the keys until cancelled."""
        await self._keys.run()

    def cached(self, token: str) -> Caller | None:
        """Return the caller of a cached token that has not expired."""
        return self._cache.find(token.encode())

    async def authenticate(self, authorization: bytes | None) -> Caller:
        """Return the caller of a request with this Authorization header.

        Raises Unauthenticated with its reason, KeysUnavailable if there are no keys.
        """
        if authorization is not None and authorization.startswith(_BEARER_START):
            # Only tokens of the right form are cached, so the header needs no further check.
            token = authorization[len(_BEARER_START) :]
            caller = self._cache.find(token) if len(token) <= TOKEN_BYTES_MAX else None
            if caller is not None:
                return caller
        return await self.verify(bearer_token(authorization))

    async def verify(self, token: str) -> Caller:
        """Return the caller of a token.

        Raises Unauthenticated with its reason, KeysUnavailable if there are no keys.
        """
        try:
            encoded = _encode(token)
            return self._cache.find(encoded) or await self._signatures.verify(encoded, self._read)
        except Unauthenticated as error:
            _FAILED[error.reason].inc()
            raise
        except KeysUnavailable:
            _FAILED["keys-unavailable"].inc()
            raise

    def _read(self, signed: SignedToken) -> Caller:
        if signed.is_proof:
            raise unauthenticated("type")
        return read_claims(
            signed.payload,
            issuer=self._issuer,
            audience=self._audience,
            leeway_s=self._leeway_s,
            now_s=time.time(),
        )


def bearer_token(authorization: bytes | None) -> str:
    """Return the token of an Authorization header, or "" without the header.

    Raises Unauthenticated if it is not ``Bearer`` (case-insensitive) and one token (RFC 6750, 2.1).
    """
    if authorization is None:
        return ""
    found = _BEARER.fullmatch(authorization)
    if found is None:
        _FAILED["missing"].inc()
        raise unauthenticated("missing")
    return found[1].decode("ascii")


def _encode(token: str) -> bytes:
    if not token:
        raise unauthenticated("missing")
    if len(token) > TOKEN_BYTES_MAX:
        raise unauthenticated("too-long")
    if not token.isascii():
        raise unauthenticated("malformed")
    return token.encode()
