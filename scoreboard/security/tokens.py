"""Verifies bearer tokens: allowed algorithms, the issuer's keys, claims, scopes.

The api and the streamer share it; neither believes a header of the gateway instead. What stays
true: a token is accepted only with an RS256 or ES256 signature of a key in the issuer's current
set, our ``iss`` and ``aud``, an ``exp`` to come and a ``sub`` that may be a userId. No token leaves
this module: not into a log, an error or a repr.
"""

import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import jwt
import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import KeysUnavailable, SettingInvalid, Unauthenticated
from scoreboard.model import is_identifier
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import AUTH_FAILURES
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
"""Raise one's own score."""

UPDATE_ANY: Final = "update:score:any"
"""Raise anyone's score and state the points: game servers."""

READ: Final = "read:leaderboard"
"""Read a board that is not public."""

TOKEN_BYTES_MAX: Final = 4096
"""A longer token is refused before anything of it is parsed (the gateway's limit too)."""

CACHE_MAX: Final = 10_000
"""Most verified tokens remembered: some 10 MB, and a new check for whoever was pushed out."""

Reason = Literal[
    "missing", "too-long", "malformed", "algorithm", "unknown-key", "signature",
    "expired", "not-yet-valid", "issuer", "audience", "claims", "subject",
]  # fmt: skip
"""Why a token is refused: a closed set, the label of ``scoreboard_auth_failures_total``."""

_BEARER: Final = re.compile(rb"(?i:bearer) +([A-Za-z0-9._~+/-]+=*)")

_DETAILS: Final[Mapping[Reason, str]] = {
    "missing": "Send the header Authorization: Bearer <token>",
    "too-long": f"A token has at most {TOKEN_BYTES_MAX} bytes",
    "malformed": "The token is no JSON Web Token",
    "algorithm": f"Tokens are signed with {' or '.join(ALGORITHMS)}",
    "unknown-key": "The token's kid is no key of the issuer",
    "signature": "The token's signature does not fit",
    "expired": "The token has expired; get a new one",
    "not-yet-valid": "The token is not valid yet; compare the clocks",
    "issuer": "The token comes from another issuer (iss)",
    "audience": "The token is meant for another audience (aud)",
    "claims": "The token needs the claims exp, iss, aud and sub, each of its right type",
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
"""The first class that fits names the reason."""


class Caller(Struct, frozen=True):
    """Who a verified token speaks for, and what it allows."""

    subject: str
    scopes: frozenset[str]
    expires_at_s: float
    issuer: str

    def has(self, scope: str) -> bool:
        """Tell whether the token carries a scope."""
        return scope in self.scopes


_Verified = tuple[Caller, str]


class _Header(Struct, frozen=True):
    alg: str
    kid: Annotated[str, Meta(min_length=1, max_length=256)]


class _Claims(Struct, frozen=True):
    """What is read of a verified token; scopes stand in one of two claims, in one of two forms."""

    sub: str
    iss: str
    exp: float
    scope: str | list[str] | None = None
    scp: str | list[str] | None = None

    def scopes(self) -> frozenset[str]:
        """Give the whole words of both claims."""
        found: set[str] = set()
        for claim in (self.scope, self.scp):
            found.update(claim.split() if isinstance(claim, str) else claim or ())
        return frozenset(found)


class Verifier:
    """Turns a token into its Caller. Run ``run`` in a task group to keep the keys fresh."""

    def __init__(self, settings: Settings) -> None:
        """Take issuer, audience and where the keys are; reads nothing yet.

        Raises SettingInvalid where one of these is missing.
        """
        if not settings.issuer:
            raise SettingInvalid("SCOREBOARD_ISSUER is not set; see .env.example")
        if not settings.audience:
            raise SettingInvalid("SCOREBOARD_AUDIENCE is not set; see .env.example")
        self._issuer = settings.issuer
        self._audience = settings.audience
        self._leeway_s = settings.token_leeway_s
        self._keys = KeyCache(make_source(settings), self._forget)
        self._verified: dict[str, _Verified] = {}
        self._older: dict[str, _Verified] = {}
        """Token → caller and kid. What is used stays: a full ``_verified`` becomes ``_older``,
        whose tokens come back as they are used; the others go with the next change. So a hit is
        one lookup, without the reordering of a strict order of use."""

    @property
    def is_ready(self) -> bool:
        """Tell whether there are keys to verify with."""
        return self._keys.is_loaded

    async def run(self) -> None:
        """Keep the keys fresh until cancelled."""
        await self._keys.run()

    def remembered(self, token: str) -> Caller | None:
        """Give the caller of a token that was verified before and has not expired."""
        found = self._verified.get(token)
        if found is None:
            found = self._older.pop(token, None)
            if found is None:
                return None
            self._remember(token, found)
        if found[0].expires_at_s <= time.time():
            self._verified.pop(token, None)
            return None
        return found[0]

    def _remember(self, token: str, found: _Verified) -> None:
        if len(self._verified) >= CACHE_MAX // 2:
            self._older, self._verified = self._verified, {}
        self._verified[token] = found

    async def verify(self, token: str) -> Caller:
        """Give the caller of a token.

        Raises Unauthenticated with its reason, KeysUnavailable while there are no keys.
        """
        try:
            return self.remembered(token) or await self._verify(token)
        except Unauthenticated as error:
            AUTH_FAILURES.labels(error.reason).inc()
            raise
        except KeysUnavailable:
            AUTH_FAILURES.labels("keys-unavailable").inc()
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
            self._remember(token, (caller, header.kid))
        return caller

    def _forget(self, kids: frozenset[str]) -> None:
        """Drop the tokens whose key is no longer the issuer's."""
        for tokens in (self._verified, self._older):
            for token in [token for token, found in tokens.items() if found[1] in kids]:
                del tokens[token]


def bearer_token(authorization: bytes | None) -> str:
    """Return the token of an Authorization header, or "" where there is no such header.

    Raises Unauthenticated where it is not ``Bearer`` (in any case) and one token (RFC 6750, 2.1).
    """
    if authorization is None:
        return ""
    found = _BEARER.fullmatch(authorization)
    if found is None:
        AUTH_FAILURES.labels("missing").inc()
        raise unauthenticated("missing")
    return found[1].decode("ascii")


def unauthenticated(reason: Reason) -> Unauthenticated:
    """Make the error of a reason, with the sentence that says what to change."""
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
