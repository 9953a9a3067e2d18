"""The flusher's health check and the metrics of its streams.

scoreboard.http.operator_port serves both.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from flusher import metrics
from flusher.partition import PartitionFlusher
from flusher.roster import Roster
from scoreboard.errors import ScoreboardError
from scoreboard.health.checks import Check, backlog_name
from scoreboard.health.readings import describe_backlogs, describe_secrets
from scoreboard.ledger.positions import Position
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.store.client import REDIS_UP
from scoreboard.store.durability import Durability
from scoreboard.store.partitions import PAGE, Backlog, Partitions, PartitionState

OBSERVE_EVERY_S: Final = 1.0
DURABILITY_EVERY_S: Final = 10.0


class Probe:
    """Reports the health of partition flushers and measures their streams."""

    def __init__(
        self,
        roster: Roster,
        store: Partitions,
        more_checks: Callable[[], Mapping[str, Check]],
        check_durability: Callable[[], Awaitable[Durability]],
    ) -> None:
        """``check_durability`` exports whether Redis keeps what it acknowledges, and returns it."""
        self._roster = roster
        self._store = store
        self._more_checks = more_checks
        self._check_durability = check_durability
        self._durability_due_s = 0.0
        self._is_primary = True

    async def observe(self, stop: StopEvent) -> None:
        """Measure streams until ``stop``, also without PostgreSQL or the lease."""
        while not await stop.sleep(OBSERVE_EVERY_S):
            await self._measure_redis()
            flushers = self._roster.flushers
            for start in range(0, len(flushers), PAGE):
                with suppress(ScoreboardError):  # the partition flushers log it
                    await self._measure(flushers[start : start + PAGE])

    async def _measure_redis(self) -> None:
        try:
            await self._store.now_s()
        except ScoreboardError:
            REDIS_UP.set(0)
            self._roster.leases.is_redis_up = False
            return
        REDIS_UP.set(1)
        if time.monotonic() >= self._durability_due_s or not self._is_primary:
            with suppress(ScoreboardError):
                self._is_primary = (await self._check_durability()).is_primary
                self._durability_due_s = time.monotonic() + DURABILITY_EVERY_S
        # A replica answers, and refuses what a leader sends.
        self._roster.leases.is_redis_up = self._is_primary

    async def _measure(self, flushers: Sequence[PartitionFlusher]) -> None:
        # Before Redis is asked, so that lag is never negative.
        positions = [flusher.status.position for flusher in flushers]
        measured = await self._store.measure([flusher.partition for flusher in flushers])
        for flusher, committed, found in zip(flushers, positions, measured, strict=True):
            # One that is being given back may have no series any more.
            if not isinstance(found, ScoreboardError) and not flusher.is_leaving:
                _export(flusher, committed, *found)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Return whether every partition flusher is ready, and the status of each."""
        flushers = self._roster.flushers
        is_ready = bool(flushers) and all(flusher.status.is_ready for flusher in flushers)
        return is_ready, {
            "partitions": [
                {
                    "board": flusher.partition.board,
                    "part": flusher.partition.number,
                    "condition": flusher.status.condition.value,
                    "reason": flusher.status.reason,
                    "stalled": flusher.status.is_stalled,
                    "committed": msgspec.to_builtins(flusher.status.position),
                    "last_success_s": round(flusher.status.last_success_s, 3),
                }
                for flusher in flushers
            ],
            "waiting": self._roster.waiting,
            "checks": self._checks(flushers),
        }

    def _checks(self, flushers: Sequence[PartitionFlusher]) -> dict[str, Check]:
        backlogs: dict[str, list[Backlog]] = {}
        for flusher in flushers:
            backlogs.setdefault(flusher.partition.board, []).append(flusher.status.backlog)
        return {
            **{backlog_name(board): describe_backlogs(found) for board, found in backlogs.items()},
            **self._more_checks(),
            **describe_secrets(),
        }


def _export(
    flusher: PartitionFlusher, committed: Position | None, state: PartitionState, backlog: Backlog
) -> None:
    """Export the measurement of a partition; entries keep it from being given back."""
    labels = (flusher.partition.board, str(flusher.partition.number))
    if backlog.entries:
        flusher.wake()
    flusher.status.note_backlog(backlog)
    metrics.ACCEPTING[labels].set(state.is_open and not state.is_archived)
    metrics.STREAM_LENGTH[labels].set(backlog.entries)
    metrics.STREAM_PENDING[labels].set(backlog.pending)
    oldest_ms = backlog.oldest_ms
    age_s = 0.0 if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000)
    metrics.STREAM_AGE[labels].set(age_s)
    if committed is not None:
        metrics.STREAM_LAG.labels(*labels).set(max(0, state.seq - committed.seq))
    else:
        with suppress(KeyError):
            metrics.STREAM_LAG.remove(*labels)
