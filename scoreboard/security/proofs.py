"""Verifies proofs: game servers sign that a user did an action, and players send that along.

A proof is a JWS in compact form with ``typ`` ``scoreboard-proof+jwt`` and the claims ``sub``,
``actionId``, ``points`` and ``exp``; optionally ``board`` or ``boards``, ``aud``, ``nbf`` and
``iat``. docs/how-to/prove-actions.md describes it for game servers.

Invariants: an accepted proof has a signature by a key of the current set, is of this user and
action, and expires within SCOREBOARD_PROOF_LIFE_S. No log line, error or repr contains a proof.
"""

import time
from collections.abc import Collection, Mapping
from typing import Annotated, Final, Literal, cast, get_args

import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import KeysUnavailable, ProofInvalid, Unauthenticated
from scoreboard.model import BOARDS_MAX, ActionId, StatedPoints, UserId, require_whole
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import Children, counter
from scoreboard.security.key_set import PROOF_ALGORITHMS, make_proof_source
from scoreboard.security.signatures import Signatures
from scoreboard.security.signed_token import SignedToken
from scoreboard.violations import describe_violation

PROOF_BYTES_MAX: Final = 2048
"""A longer proof is refused before it is parsed; the gateway accepts bodies of 4 KB."""

CACHE_SIZE: Final = 10_000
"""Verified proofs that a process remembers for repeated requests."""

Reason = Literal[
    "not-accepted", "too-long", "malformed", "type", "algorithm", "unknown-key", "signature",
    "claims", "expired", "not-yet-valid", "lifetime", "audience", "user", "action", "points",
    "board",
]  # fmt: skip
"""Why a proof is refused: a closed set, the label of ``scoreboard_proof_failures_total``."""

_DETAILS: Final[Mapping[Reason, str]] = {
    "not-accepted": "This service accepts no proofs: it has no keys of game servers",
    "too-long": f"The proof must not exceed {PROOF_BYTES_MAX} bytes",
    "malformed": "The proof is not a JWS in compact form with alg and kid",
    "type": "The typ of the proof must be scoreboard-proof+jwt",
    "algorithm": f"Proofs must be signed with {', '.join(PROOF_ALGORITHMS)}",
    "unknown-key": "The proof's kid is not a key of the game servers",
    "signature": "The proof's signature is invalid",
    "claims": "The proof needs valid claims sub, actionId, points and exp",
    "expired": "The proof has expired; get a new one for the same actionId",
    "not-yet-valid": "The proof is not valid yet; check the clocks",
    "lifetime": "The proof's exp is too far in the future",
    "audience": "The proof is for another audience (aud)",
    "user": "The proof is of another user (sub)",
    "action": "The proof is of another action (actionId)",
    "points": "The proof is of other points; omit points, or state those of the proof",
    "board": "The proof is not for this board; name it in the claim board or boards",
}
_FAILED: Final = Children(
    counter(
        "proof_failures_total",
        "Proofs refused",
        "reason",
        unit="updates",
        normal="a few, such as expired; signature, user, action, points: forged proofs; "
        "keys-unavailable: 0",
    ),
    *get_args(Reason),
    "keys-unavailable",
)


class Proof(Struct, frozen=True, gc=False):
    """What a verified proof says."""

    user_id: str
    action_id: str
    points: int
    boards: tuple[str, ...]
    """The boards that it is for; empty: those on which the action counts by default."""
    expires_at_s: float

    def require(
        self,
        user_id: str,
        action_id: str,
        stated_points: int | None,
        boards: Collection[str],
        default_boards: Collection[str],
    ) -> None:
        """Check that the proof is of an update.

        Raises ProofInvalid.
        """
        if self.user_id != user_id:
            raise proof_invalid("user")
        if self.action_id != action_id:
            raise proof_invalid("action")
        if stated_points not in {None, self.points}:
            raise proof_invalid("points")
        if not set(boards) <= set(self.boards or default_boards):
            raise proof_invalid("board")


class _Claims(Struct, frozen=True, rename="camel"):
    sub: UserId
    action_id: ActionId
    points: StatedPoints | float
    exp: float
    nbf: float = 0
    iat: float = 0
    aud: str | list[str] | None = None
    board: str | None = None
    boards: Annotated[list[str], Meta(min_length=1, max_length=BOARDS_MAX)] | None = None

    def __post_init__(self) -> None:
        """Check what the types cannot express."""
        if isinstance(self.points, float):
            require_whole(self.points)
        if self.board is not None and self.boards is not None:
            raise ValueError("name board or boards, not both")


_decode: Final = msgspec.json.Decoder(_Claims).decode


def proof_invalid(reason: Reason, more: str = "") -> ProofInvalid:
    """Make the error of a reason, with its message and ``more`` about it, and count it."""
    _FAILED[reason].inc()
    detail = f"{_DETAILS[reason]}: {more}" if more else _DETAILS[reason]
    return ProofInvalid(detail, reason=reason)


class ProofVerifier:
    """Verifies proofs. Run ``run`` in a task group to refresh the keys."""

    def __init__(self, settings: Settings) -> None:
        """Take the source of keys; nothing is read yet.

        Raises SettingInvalid.
        """
        source = make_proof_source(settings)
        self._signatures = (
            Signatures[Proof](source, CACHE_SIZE, algorithms=PROOF_ALGORITHMS, of="proofs")
            if source is not None
            else None
        )
        self._audience = settings.audience
        self._leeway_s = settings.token_leeway_s
        self._life_s = settings.proof_life_s

    async def run(self) -> None:
        """Refresh the keys until cancelled; return if there is no source of keys."""
        if self._signatures is not None:
            await self._signatures.keys.run()

    async def verify(self, proof: str) -> Proof:
        """Return what a proof says.

        Raises ProofInvalid, KeysUnavailable if there are no keys.
        """
        signatures = self._signatures
        if signatures is None:
            raise proof_invalid("not-accepted")
        if len(proof) > PROOF_BYTES_MAX:
            raise proof_invalid("too-long")
        if not proof.isascii():
            raise proof_invalid("malformed")
        encoded = proof.encode()
        try:
            return signatures.cache.find(encoded) or await signatures.verify(encoded, self._read)
        except Unauthenticated as error:
            raise proof_invalid(cast("Reason", error.reason)) from None
        except KeysUnavailable:
            _FAILED["keys-unavailable"].inc()
            raise

    def _read(self, signed: SignedToken) -> Proof:
        """Check the claims of a proof whose signature is valid.

        Raises ProofInvalid.
        """
        if not signed.is_proof:
            raise proof_invalid("type")
        try:
            claims = _decode(signed.payload)
        except msgspec.ValidationError as error:
            raise proof_invalid("claims", describe_violation(error, _Claims)) from None
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise proof_invalid("claims", "the payload is not JSON") from None
        now_s = time.time()
        if claims.exp <= now_s - self._leeway_s:
            raise proof_invalid("expired")
        if claims.exp > now_s + self._life_s + self._leeway_s:
            raise proof_invalid("lifetime")
        if max(claims.nbf, claims.iat) > now_s + self._leeway_s:
            raise proof_invalid("not-yet-valid")
        if not self._is_for_us(claims.aud):
            raise proof_invalid("audience")
        boards = claims.boards if claims.board is None else [claims.board]
        points = int(claims.points)
        return Proof(claims.sub, claims.action_id, points, tuple(boards or ()), claims.exp)

    def _is_for_us(self, audience: str | list[str] | None) -> bool:
        return audience is None or self._audience in (
            [audience] if isinstance(audience, str) else audience
        )
