"""Shows who moves where before an act is performed. Changes nothing."""

from typing import Final

from msgspec import Struct

from scoreboard.errors import ScoreOutOfRange, UnknownUser
from scoreboard.ledger.acts import select_bans_of
from scoreboard.ledger.checks import read_scores
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.seasons import current_scores
from scoreboard.model import WATCHED_TOP, Board, Row
from scoreboard.moderation.plans import Plan
from scoreboard.store.store import Store

SHOWN: Final = WATCHED_TOP


class Place(Struct, frozen=True, rename="camel"):
    """A user's score and rank; ``rank`` None: not on the board."""

    score: int | None
    rank: int | None


class Preview(Struct, frozen=True, rename="camel"):
    """The user's place and the top of the board, before and after an act.

    Among equal scores the user is taken to be the last one.
    """

    user_id: str
    before: Place
    after: Place
    top_before: tuple[Row, ...]
    top_after: tuple[Row, ...]


async def preview(store: Store, connection: Connection, board: Board, plan: Plan) -> Preview:
    """Return what an act would change, as of now.

    Raises RedisUnavailable, Uninitialised, DatabaseUnavailable.
    """
    user = plan.user_id
    top = (await store.leaderboard(board.name, limit=SHOWN + 1)).rows
    try:
        standing = await store.standing(board.name, user)
        before = Place(standing.score, standing.rank)
    except UnknownUser:
        name = await current_scores(connection, board)
        held = (await read_scores(connection, name, [user])).get(user)
        before = Place(held.score if held else None, None)
    is_banned = user in await select_bans_of(connection, board.name, [user])
    is_shown = plan.kind != "ban" and (not is_banned or plan.kind == "unban")
    score = before.score
    if plan.delta:
        score = (score or 0) + plan.delta
    rank = None
    if is_shown and score is not None:
        rank = 1 + await store.count_from(board.name, board.layout, score)
        is_counted = before.rank is not None and before.score is not None
        if is_counted and _is_as_good(board, before.score, score):
            rank -= 1
    others = [row for row in top if row.user_id != user]
    if rank is not None and score is not None and rank <= SHOWN:
        others.insert(rank - 1, Row(rank, user, score))
    after = tuple(
        Row(number, row.user_id, row.score) for number, row in enumerate(others[:SHOWN], 1)
    )
    return Preview(user, before, Place(score, rank), top[:SHOWN], after)


def require_in_bounds(board: Board, plan: Plan, found: Preview) -> None:
    """Check that an act leaves the score within the bounds of the board.

    Raises ScoreOutOfRange.
    """
    rules, score = board.layout.rules, found.after.score
    if plan.delta and score is not None and not rules.act_min <= score <= rules.score_max:
        raise ScoreOutOfRange(
            f"The score of {plan.user_id} is {found.before.score or 0}; {plan.delta:+} would take "
            f"it out of {rules.act_min} to {rules.score_max}"
        )


def _is_as_good(board: Board, score: int | None, other: int) -> bool:
    """Return whether a score is as good as another or better."""
    if score is None:
        return False
    return score <= other if board.layout.rules.order == "lowest" else score >= other
