"""Writes history into PostgreSQL as the flusher does, for reseeds."""

from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg

from scoreboard.model import Board, kind_of, partition_of, user_uuid


@dataclass(frozen=True)
class Counted:
    """One counted action; ``at_s`` is when Redis applied it, seconds since 1970."""

    user_id: str
    action_id: str
    delta: int
    at_s: float


def write_history(
    database_url: str,
    history: list[Counted],
    board: Board | None = None,
    *,
    epoch: int = 1,
) -> None:
    """Create the board and write ``history`` in its order: ledger, scores, positions."""
    board = board or Board()
    layout = board.layout
    seqs = dict.fromkeys(range(layout.partitions), 0)
    scores: dict[str, tuple[int, int, datetime, int]] = {}
    with psycopg.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO boards VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            (
                board.name,
                layout.partitions,
                layout.seen_seconds,
                layout.seen_shards,
                board.is_public,
            ),
        )
        users = {one.user_id for one in history}
        cursor.executemany(
            "INSERT INTO users (id, external_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [(user_uuid(user), user) for user in users],
        )
        rows = []
        for one in history:
            part = partition_of(one.user_id, layout.partitions)
            seqs[part] += 1
            held, actions, _, _ = scores.get(one.user_id, (0, 0, None, 0))
            at = datetime.fromtimestamp(one.at_s, UTC)
            scores[one.user_id] = (held + one.delta, actions + 1, at, seqs[part])
            rows.append(
                (
                    board.name,
                    user_uuid(one.user_id),
                    one.action_id,
                    part,
                    epoch,
                    seqs[part],
                    one.delta,
                    held + one.delta,
                    kind_of(one.action_id),
                    at,
                )
            )
        cursor.executemany(
            "INSERT INTO score_events (board, user_id, action_id, part, epoch, seq, delta,"
            " score_after, kind, occurred_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            rows,
        )
        cursor.executemany(
            "INSERT INTO scores VALUES (%s, %s, %s, %s, %s, %s)",
            [(board.name, user_uuid(user), *facts) for user, facts in scores.items()],
        )
        cursor.executemany(
            "INSERT INTO flush_state VALUES (%s, %s, %s, %s, %s)",
            [(board.name, part, epoch, seq, f"{1000 + part}-0") for part, seq in seqs.items()],
        )
