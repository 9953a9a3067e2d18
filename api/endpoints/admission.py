"""Which updates are admitted: who may send an action, where it counts, and what it earns.

The catalogue says for each kind of action which scope the caller needs, on which boards it counts
if the request names none, and whether it needs a proof of a game server. The rules of a board say
which points it takes (api.endpoints.points).
"""

from typing import Final

from msgspec import UNSET, Struct

from api.documents.schemas import UpdateRequest
from api.endpoints.points import points_of
from scoreboard.errors import Invalid, ProofRequired
from scoreboard.model import Action, Board
from scoreboard.security.access import require_scope, require_self
from scoreboard.security.proofs import ProofVerifier
from scoreboard.security.tokens import Caller
from scoreboard.store.catalogue import Catalogue

_PROOF_NEEDED: Final = "Send the proof of the game server as proof; it awards actions of this kind"


class Admitted(Struct, frozen=True, gc=False):
    """How an admitted update counts."""

    stated: int | None
    """The points that the caller or the proof states."""
    is_trusted: bool
    """Whether a game server states them: the caller, or the signer of the proof."""
    boards: tuple[str, ...]
    """The boards that the request names, else those of its kind; empty: the default board."""


_PLAIN: Final = Admitted(None, is_trusted=False, boards=())
"""The usual update: the catalogue sets the points, and the default board counts them."""


class Admission:
    """Decides about updates of authenticated callers."""

    def __init__(self, catalogue: Catalogue, proofs: ProofVerifier, default_board: str) -> None:
        self._catalogue = catalogue
        self._proofs = proofs
        self._default_boards = (default_board,)

    async def admit(
        self, caller: Caller, request: UpdateRequest, boards: tuple[str, ...], *, trusted: bool
    ) -> Admitted:
        """Check who sends an update; ``boards`` are those that the request names.

        ``trusted`` callers may update any user, set the points, and need no proof. A proof that is
        sent must be valid in any case. Raises Forbidden, ProofRequired, ProofInvalid,
        KeysUnavailable, UnknownKind for a proof, RedisUnavailable before the catalogue was read.
        """
        if not trusted:
            require_self(caller, request.user_id)
        kind = self._catalogue.restrictions(request.action_id)
        if kind.scope:
            require_scope(caller, kind.scope)
        counted = boards or kind.boards
        stated = request.stated_points
        if request.proof is not UNSET:
            self._catalogue.kind_of_action(request.action_id)  # counts at all
            proof = await self._proofs.verify(request.proof)
            proof.require(
                request.user_id,
                request.action_id,
                stated,
                counted or self._default_boards,
                kind.boards or self._default_boards,
            )
            return Admitted(proof.points, is_trusted=True, boards=counted)
        if kind.needs_proof and not trusted:
            raise ProofRequired(_PROOF_NEEDED)
        if stated is None and not counted:
            return _PLAIN
        return Admitted(stated, is_trusted=trusted, boards=counted)

    def action_on(
        self, board: Board, request: UpdateRequest, admitted: Admitted, request_id: str
    ) -> Action:
        """Return an admitted update as an action of one of its boards.

        Raises what ``points_of`` raises, and Invalid for a season of a board without seasons.
        """
        rules, stated = board.layout.rules, admitted.stated
        points = points_of(
            request.action_id, stated, rules, self._catalogue, trusted=admitted.is_trusted
        )
        is_stated = stated is not None
        if request.season is UNSET:
            return Action(request.user_id, request.action_id, points, is_stated, request_id, rules)
        if not rules.season:
            raise Invalid(f"season: the board {board.name} has no seasons")
        season = request.season
        return Action(
            request.user_id, request.action_id, points, is_stated, request_id, rules, season
        )
