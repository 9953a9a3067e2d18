"""Verifies bearer tokens: algorithm, the issuer's keys, claims, scopes.

The api and the streamer identify callers by their tokens only, never by headers of the gateway.

Invariants: an accepted token has an RS256 or ES256 signature by a key of the issuer's current set,
the configured ``iss`` and ``aud``, an ``exp`` in the future and a ``sub`` that is a valid userId.
No log line, error or repr contains a token.
"""

import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

import jwt
import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import KeysUnavailable, SettingInvalid, Unauthenticated
from scoreboard.model import is_identifier
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import Children, counter
from scoreboard.security.key_set import ALGORITHMS, KeyCache, make_source
from scoreboard.security.local_issuer import LOCAL_ISSUER, LocalIssuer

__all__ = [
    "LOCAL_ISSUER",
    "READ",
    "TOKEN_BYTES_MAX",
    "UPDATE",
    "UPDATE_ANY",
    "Caller",
    "LocalIssuer",
    "Verifier",
    "bearer_token",
]

UPDATE: Final = "update:score"
"""Update one's own score."""

UPDATE_ANY: Final = "update:score:any"
"""Update any user's score and set the points: for game servers."""

READ: Final = "read:leaderboard"
"""Read a board that is not public."""

TOKEN_BYTES_MAX: Final = 4096
"""A longer token is refused before it is parsed (also by the gateway)."""

CACHE_MAX: Final = 10_000
"""Maximum number of cached tokens, about 10 MB; an evicted token is verified again."""

Reason = Literal[
    "missing", "too-long", "malformed", "algorithm", "unknown-key", "signature",
    "expired", "not-yet-valid", "issuer", "audience", "claims", "subject",
]  # fmt: skip
"""Why a token is refused: a closed set, the label of ``scoreboard_auth_failures_total``."""

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

_DETAILS: Final[Mapping[Reason, str]] = {
    "missing": "Send the header Authorization: Bearer <token>",
    "too-long": f"The token must not exceed {TOKEN_BYTES_MAX} bytes",
    "malformed": "Invalid JWT",
    "algorithm": f"Tokens must be signed with {' or '.join(ALGORITHMS)}",
    "unknown-key": "The token's kid is not a key of the issuer",
    "signature": "The token's signature is invalid",
    "expired": "The token has expired",
    "not-yet-valid": "The token is not valid yet; check the clocks",
    "issuer": "The token is from another issuer (iss)",
    "audience": "The token is for another audience (aud)",
    "claims": "The token needs valid claims exp, iss, aud and sub",
    "subject": "The token's sub must be 1 to 128 characters of A-Z a-z 0-9 . _ | : @ -",
}

_FAILURES: Final[tuple[tuple[type[Exception], Reason], ...]] = (
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "not-yet-valid"),
    (jwt.InvalidIssuerError, "issuer"),
    (jwt.InvalidAudienceError, "audience"),
    (jwt.exceptions.InvalidSubjectError, "subject"),
    (jwt.MissingRequiredClaimError, "claims"),
    (jwt.InvalidIssuedAtError, "claims"),
    (jwt.InvalidSignatureError, "signature"),
    (jwt.InvalidAlgorithmError, "algorithm"),
    (Exception, "malformed"),
)
"""The first matching class determines the reason."""


class Caller(Struct, frozen=True):
    """The subject of a verified token, and its scopes."""

    subject: str
    scopes: frozenset[str]
    expires_at_s: float
    issuer: str

    def has(self, scope: str) -> bool:
        """Return whether the token has a scope."""
        return scope in self.scopes


_Verified = tuple[Caller, str]


class _Header(Struct, frozen=True):
    alg: str
    kid: Annotated[str, Meta(min_length=1, max_length=256)]


class _Claims(Struct, frozen=True):
    """The claims read from a verified token; scopes are in one of two claims, as text or list."""

    sub: str
    iss: str
    exp: float
    scope: str | list[str] | None = None
    scp: str | list[str] | None = None

    def scopes(self) -> frozenset[str]:
        """Return the scopes of both claims."""
        found: set[str] = set()
        for claim in (self.scope, self.scp):
            found.update(claim.split() if isinstance(claim, str) else claim or ())
        return frozenset(found)


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
        self._keys = KeyCache(make_source(settings), self._drop)
        self._verified: dict[str, _Verified] = {}
        self._older: dict[str, _Verified] = {}
        """The cache, in two generations: token to caller and kid. A full ``_verified`` becomes
        ``_older``; tokens that are used return to ``_verified``, others are dropped at the next
        change. A hit costs one lookup, without the reordering of an LRU cache."""

    @property
    def is_ready(self) -> bool:
        """Return whether there are keys."""
        return self._keys.is_loaded

    async def run(self) -> None:
        """Refresh the keys until cancelled."""
        await self._keys.run()

    def cached(self, token: str) -> Caller | None:
        """Return the caller of a cached token that has not expired."""
        found = self._verified.get(token)
        if found is None:
            found = self._older.pop(token, None)
            if found is None:
                return None
            self._cache(token, found)
        if found[0].expires_at_s <= time.time():
            self._verified.pop(token, None)
            return None
        return found[0]

    def _cache(self, token: str, found: _Verified) -> None:
        if len(self._verified) >= CACHE_MAX // 2:
            self._older, self._verified = self._verified, {}
        self._verified[token] = found

    async def verify(self, token: str) -> Caller:
        """Return the caller of a token.

        Raises Unauthenticated with its reason, KeysUnavailable if there are no keys.
        """
        try:
            return self.cached(token) or await self._verify(token)
        except Unauthenticated as error:
            _FAILED[error.reason].inc()
            raise
        except KeysUnavailable:
            _FAILED["keys-unavailable"].inc()
            raise

    async def _verify(self, token: str) -> Caller:
        if not token:
            raise unauthenticated("missing")
        if len(token) > TOKEN_BYTES_MAX:
            raise unauthenticated("too-long")
        if not token.isascii():
            raise unauthenticated("malformed")
        header = _header(token)
        key = await self._keys.find(header.kid)
        if key is None:
            raise unauthenticated("unknown-key")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
            raise unauthenticated(
                next(why for kind, why in _FAILURES if isinstance(error, kind))
            ) from None
        caller = _caller(claims)
        if caller.expires_at_s > time.time() and self._keys.known(header.kid) is key:
            self._cache(token, (caller, header.kid))
        return caller

    def _drop(self, kids: frozenset[str]) -> None:
        """Drop cached tokens whose key was removed or changed."""
        for tokens in (self._verified, self._older):
            for token in [token for token, found in tokens.items() if found[1] in kids]:
                del tokens[token]


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


def unauthenticated(reason: Reason) -> Unauthenticated:
    """Make the error of a reason, with its message."""
    return Unauthenticated(_DETAILS[reason], reason=reason)


def _header(token: str) -> _Header:
    try:
        header = msgspec.convert(jwt.get_unverified_header(token), _Header)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise unauthenticated("malformed") from None
    if header.alg not in ALGORITHMS:
        raise unauthenticated("algorithm")
    return header


def _caller(claims: Mapping[str, Any]) -> Caller:
    try:
        read = msgspec.convert(claims, _Claims)
    except msgspec.ValidationError:
        raise unauthenticated("claims") from None
    if not is_identifier(read.sub):
        raise unauthenticated("subject")
    return Caller(read.sub, read.scopes(), read.exp, read.iss)
