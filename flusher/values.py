"""Makes the deltas of values follow from the ledger.

On a board with the operator ``best`` or ``last`` an action states its score. Redis computes the
difference from the score that it has, which a late duplicate may have moved, or which may be older
because Redis lost data. The ledger has the right one, so the difference is computed again from it.
Invariant: after a batch, a user's score in PostgreSQL is the last or the best of the values.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from flusher.batch import parameters_of
from scoreboard.events import Event, season_id_of
from scoreboard.ledger import checks
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.positions import where
from scoreboard.model import Partition, scores_name
from scoreboard.runtime import resources

_SELECT_COUNTED: Final = resources.query("select_counted_actions")
_INSERT_UNCHANGED: Final = resources.query("insert_unchanged_value")


class Rebased(Struct, frozen=True):
    """The actions of a batch, and those of them that change nothing in the ledger."""

    actions: list[Event]
    unchanged: list[Event]


async def rebase(connection: Connection, board: str, actions: Sequence[Event]) -> Rebased:
    """Return actions of one season, in stream order, with the deltas computed from the ledger.

    The caller holds the lock on the position, so no other commit changes these users.

    Raises DatabaseUnavailable.
    """
    users = list({event.user_id for event in actions})
    season = season_id_of(actions[0].season) if actions else ""
    held = await checks.read_scores(connection, scores_name(board, season), users)
    scores = {user: held[user].score if user in held else None for user in users}
    parameters = {
        "board": board,
        "users": [event.user_id for event in actions],
        "actions": [event.action_id for event in actions],
        "epochs": [event.epoch for event in actions],
        "seqs": [event.seq for event in actions],
    }
    rows = await (await connection.execute(_SELECT_COUNTED, parameters)).fetchall()
    counted = {(user, action) for user, action, epoch, _ in rows if epoch is None}
    rejected = {tuple(row) for row in rows if row[2] is not None}
    rebased = Rebased([], [])
    for event in actions:
        key = (event.user_id, event.action_id)
        if key in counted:
            rebased.actions.append(event)
            continue
        if (*key, event.epoch, event.seq) in rejected:  # the batch was committed before
            rebased.unchanged.append(event)
            continue
        counted.add(key)
        before = scores[event.user_id]
        scores[event.user_id] = after = event.applied_to(before)
        delta = after - (before or 0)
        if delta == 0:
            rebased.unchanged.append(event)
            continue
        rebased.actions.append(
            event if delta == event.delta else msgspec.structs.replace(event, delta=delta)
        )
    return rebased


async def insert_unchanged(
    connection: Connection, partition: Partition, events: Sequence[Event]
) -> list[int]:
    """Record values that change nothing in the ledger; return the seqs of new ones."""
    recorded: list[int] = []
    for event in events:
        row = {**where(partition), **parameters_of(event)}
        if (await connection.execute(_INSERT_UNCHANGED, row)).rowcount:
            recorded.append(event.seq)
    return recorded
