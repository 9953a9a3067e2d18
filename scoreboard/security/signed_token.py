"""The form of signed tokens (JWT, RFC 7519) and the rules on their claims. No I/O.

Proofs have the same form and another ``typ`` (scoreboard.security.proofs). PyJWT verifies the
signatures (scoreboard.security.signatures). Its ``decode`` is not used, because it
checks the alphabet of base64url character by character and takes twice the time of the signature
(docs/decisions/0120). Invariant: what ``jwt.decode`` refuses is refused here, for the same reason;
tests/unit/test_signed_token.py compares the two.
"""

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct

from scoreboard.errors import Unauthenticated
from scoreboard.model import SCOPE_PATTERN, is_identifier
from scoreboard.security.key_set import ALGORITHMS, KID_LENGTH_MAX

UPDATE: Final = "update:score"
"""Update one's own score."""

UPDATE_ANY: Final = "update:score:any"
"""Update any user's score and set the points: for game servers."""

READ: Final = "read:leaderboard"
"""Read a board that is not public."""

ADMIN: Final = "admin:scores"
"""Administer: correct, void and ban, make and archive boards, read the audit log."""

_SCOPES: Final = frozenset({UPDATE, UPDATE_ANY, READ, ADMIN})

OTHER_SCOPES_MAX: Final = 32
"""Maximum scopes of a token besides these, which kinds of actions can require; more are ignored."""

_SCOPE: Final = re.compile(SCOPE_PATTERN)

TOKEN_BYTES_MAX: Final = 4096
"""A longer token is refused before it is parsed (also by the gateway)."""

Reason = Literal[
    "missing", "too-long", "malformed", "algorithm", "unknown-key", "signature",
    "expired", "not-yet-valid", "issuer", "audience", "claims", "subject", "type",
]  # fmt: skip
"""Why a token is refused: a closed set, the label of ``scoreboard_auth_failures_total``."""

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
    "type": "This is a proof of a game server, not a token",
}

PROOF_TYPE: Final = "scoreboard-proof+jwt"
"""``typ`` of proofs. No token may have it, and every proof must, so that neither passes for the
other if one key signs both."""

_TO_BASE64: Final = bytes.maketrans(b"-_+/", b"+/!!")
"""From base64url to base64; the characters that only base64 has become invalid ones."""

SHARED_MAX: Final = 1024

_SHARED: Final[dict[frozenset[str], frozenset[str]]] = {}
"""One object for each of the first ``SHARED_MAX`` sets of scopes: an issuer gives most of its
tokens one of a few sets."""

_PARSE_ERRORS: Final = (msgspec.MsgspecError, ValueError, RecursionError)


class Caller(Struct, frozen=True, gc=False):
    """The subject of a verified token, and its scopes."""

    subject: str
    scopes: frozenset[str]
    """Those of this service, and up to ``OTHER_SCOPES_MAX`` others."""
    expires_at_s: float
    issuer: str

    def has(self, scope: str) -> bool:
        """Return whether the token has a scope."""
        return scope in self.scopes


class SignedToken(Struct, frozen=True):
    """The parts of a token whose signature is not verified yet."""

    algorithm: str
    kid: str
    is_proof: bool
    """Whether its ``typ`` is that of proofs."""
    signed: bytes
    """What the signature signs: the encoded header and payload."""
    payload: bytes
    signature: bytes


class _Header(Struct, frozen=True):
    alg: str
    kid: Annotated[str, Meta(min_length=1, max_length=KID_LENGTH_MAX)]
    crit: Any = UNSET
    b64: Any = UNSET
    typ: Any = UNSET


class _Claims(Struct, frozen=True):
    """The claims that a caller is made of; scopes are in one of two claims, as text or list."""

    sub: str
    iss: str
    exp: float
    scope: str | list[str] | None = None
    scp: str | list[str] | None = None

    def scopes(self) -> frozenset[str]:
        """Return the scopes of both claims."""
        found: dict[str, None] = {}
        for claim in (self.scope, self.scp):
            found.update(dict.fromkeys(claim.split() if isinstance(claim, str) else claim or ()))
        others = [name for name in found if name not in _SCOPES and _SCOPE.fullmatch(name)]
        scopes = frozenset((*(_SCOPES & found.keys()), *others[:OTHER_SCOPES_MAX]))
        if len(_SHARED) < SHARED_MAX:
            return _SHARED.setdefault(scopes, scopes)
        return _SHARED.get(scopes, scopes)


def unauthenticated(reason: Reason) -> Unauthenticated:
    """Make the error of a reason, with its message."""
    return Unauthenticated(_DETAILS[reason], reason=reason)


def parse_token(token: bytes, algorithms: Collection[str] = ALGORITHMS) -> SignedToken:
    """Split a token or a proof into its parts.

    Raises Unauthenticated.
    """
    try:
        head, body, tail = token.split(b".")
        # As a whole first, because msgspec does not check what a struct ignores.
        fields = msgspec.json.decode(_decode_part(head))
        header = msgspec.convert(fields, _Header)
        payload, signature = _decode_part(body), _decode_part(tail)
    except _PARSE_ERRORS:
        raise unauthenticated("malformed") from None
    if not _is_understood(header):
        raise unauthenticated("malformed")
    if header.alg not in algorithms:
        raise unauthenticated("algorithm")
    signed = token[: len(head) + 1 + len(body)]
    return SignedToken(header.alg, header.kid, _is_proof(header.typ), signed, payload, signature)


def read_claims(
    payload: bytes, *, issuer: str, audience: str, leeway_s: float, now_s: float
) -> Caller:
    """Check the claims of a token whose signature is valid; return its caller.

    Raises Unauthenticated. The rules and their order are those of ``jwt.decode``.
    """
    try:
        claims = msgspec.json.decode(payload)
    except _PARSE_ERRORS:
        raise unauthenticated("malformed") from None
    if not isinstance(claims, dict):
        raise unauthenticated("malformed")
    _check(claims, issuer=issuer, audience=audience, leeway_s=leeway_s, now_s=now_s)
    try:
        read = msgspec.convert(claims, _Claims)
    except (msgspec.ValidationError, OverflowError):
        raise unauthenticated("claims") from None
    if not is_identifier(read.sub):
        raise unauthenticated("subject")
    return Caller(read.sub, read.scopes(), read.exp, issuer)


def _check(
    claims: Mapping[str, Any], *, issuer: str, audience: str, leeway_s: float, now_s: float
) -> None:
    """Apply the rules of RFC 7519 to the registered claims."""
    audiences: Any = claims.get("aud")
    if not audiences or any(claims.get(name) is None for name in ("exp", "iss", "sub")):
        raise unauthenticated("claims")
    if "iat" in claims and _seconds(claims["iat"], "claims") > now_s + leeway_s:
        raise unauthenticated("not-yet-valid")
    if "nbf" in claims and _seconds(claims["nbf"], "malformed") > now_s + leeway_s:
        raise unauthenticated("not-yet-valid")
    if _seconds(claims["exp"], "malformed") <= now_s - leeway_s:
        raise unauthenticated("expired")
    if claims["iss"] != issuer:
        raise unauthenticated("issuer")
    names: Any = [audiences] if isinstance(audiences, str) else audiences
    if (
        not isinstance(names, list)
        or audience not in names
        or not all(isinstance(name, str) for name in names)
    ):
        raise unauthenticated("audience")
    if not isinstance(claims["sub"], str):
        raise unauthenticated("subject")
    if not isinstance(claims.get("jti", ""), str):
        raise unauthenticated("malformed")


def _seconds(value: Any, otherwise: Reason) -> int:  # noqa: ANN401 (a claim of any type)
    """Return the whole seconds of a claim.

    Raises Unauthenticated with the reason ``otherwise`` if it is not a number.
    """
    try:
        return int(value)
    except (ValueError, TypeError, OverflowError):
        raise unauthenticated(otherwise) from None


def _is_understood(header: _Header) -> bool:
    """Return whether the header has no extension that changes the token's meaning.

    ``b64`` is the only one that PyJWT knows (RFC 7797); its value false means that the payload is
    sent separately, which is not supported.
    """
    if header.b64 is False:
        return False
    if header.crit is UNSET:
        return True
    return header.b64 is not UNSET and (
        isinstance(header.crit, list)
        and bool(header.crit)
        and all(name == "b64" for name in header.crit)
    )


def _is_proof(typ: Any) -> bool:  # noqa: ANN401 (any JSON value)
    """Return whether a ``typ`` is that of proofs, as media types are compared (RFC 7515, 4.1.9)."""
    return isinstance(typ, str) and typ.lower().removeprefix("application/") == PROOF_TYPE


def _decode_part(part: bytes) -> bytes:
    """Decode base64url, with or without padding, in its only canonical form.

    Raises ValueError.
    """
    if part.endswith(b"=") and len(part) % 4:
        raise ValueError("invalid padding")
    padded = part.translate(_TO_BASE64) + b"=" * (-len(part) % 4)
    data = a2b_base64(padded)
    # The decoder ignores characters and bits that do not belong there.
    if b2a_base64(data, newline=False) != padded:
        raise ValueError("not canonical base64url")
    return data
