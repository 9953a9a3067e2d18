"""How the flusher fares: whether every lane works, no backlog is stalled, and measures of streams.

scoreboard.http.operator_port serves both.
"""

import time
from contextlib import suppress
from typing import Any, Final

import msgspec

from flusher import metrics
from flusher.partition import PartitionFlusher
from scoreboard.errors import ScoreboardError
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.store.store import Store

OBSERVE_EVERY_S: Final = 1.0


class Probe:
    """Answers probes about lanes, and measures their streams. ``lanes`` may grow."""

    def __init__(self, lanes: list[PartitionFlusher], store: Store) -> None:
        self._lanes = lanes
        self._store = store

    async def observe(self, stop: StopEvent) -> None:
        """Measure streams until ``stop``, also while PostgreSQL is away or we do not lead."""
        while not await stop.sleep(OBSERVE_EVERY_S):
            for lane in self._lanes:
                with suppress(ScoreboardError):  # the lane itself says what is wrong with Redis
                    await self._measure(lane)

    async def _measure(self, lane: PartitionFlusher) -> None:
        labels = (lane.partition.board, str(lane.partition.number))
        committed = lane.status.position  # before Redis is asked, so that lag is never negative
        state = await self._store.state(lane.partition)
        backlog = await self._store.backlog(lane.partition)
        lane.status.note_backlog(backlog.first_id)
        metrics.ACCEPTING.labels(*labels).set(state.is_open)
        metrics.STREAM_LENGTH.labels(*labels).set(backlog.entries)
        metrics.STREAM_PENDING.labels(*labels).set(backlog.pending)
        oldest_ms = backlog.oldest_ms
        age_s = 0.0 if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000)
        metrics.STREAM_AGE.labels(*labels).set(age_s)
        if committed is not None:
            metrics.STREAM_LAG.labels(*labels).set(max(0, state.seq - committed.seq))
        else:
            with suppress(KeyError):
                metrics.STREAM_LAG.remove(*labels)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Tell whether every lane does its work, and how each fares."""
        is_ready = bool(self._lanes) and all(lane.status.is_ready for lane in self._lanes)
        return is_ready, {
            "partitions": [
                {
                    "board": lane.partition.board,
                    "part": lane.partition.number,
                    "condition": lane.status.condition.value,
                    "reason": lane.status.reason,
                    "stalled": lane.status.is_stalled,
                    "committed": msgspec.to_builtins(lane.status.position),
                    "last_success_s": round(lane.status.last_success_s, 3),
                }
                for lane in self._lanes
            ],
        }
