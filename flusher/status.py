"""The status of a partition flusher, for the health check."""

import time
from enum import Enum
from typing import Final

from msgspec import Struct

from scoreboard.errors import ScoreboardError
from scoreboard.ledger.positions import Position
from scoreboard.model import Partition
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.partitions import Backlog

_log = get_logger(__name__)


class Condition(Enum):
    """The condition of a partition flusher."""

    STARTING = "starting"
    STANDBY = "standby"
    FLUSHING = "flushing"
    UNINITIALISED = "uninitialised"
    FENCED = "fenced"
    RETIRED = "retired"
    RECOVERING = "recovering"
    REDIS_AWAY = "redis_away"
    DATABASE_AWAY = "database_away"
    BROKEN = "broken"
    STOPPED = "stopped"

    @property
    def is_ready(self) -> bool:
        """Return whether the partition is flushed, or needs no flushing at the moment."""
        return self in {
            Condition.STANDBY,
            Condition.FLUSHING,
            Condition.UNINITIALISED,
            Condition.FENCED,
            Condition.RETIRED,
        }


STALLED_S: Final = 30.0
"""Longest time that entries may wait without a commit by any flusher."""


class PartitionStatus(Struct):
    """The status of a partition flusher; ``position`` is None while another process leads."""

    partition: Partition
    is_kept: bool = True
    """Whether it is never given back; what is normal for others is logged as debug."""
    condition: Condition = Condition.STARTING
    position: Position | None = None
    reason: str = ""
    last_success_s: float = 0.0
    first_id: str = ""
    """The oldest waiting entry at the last measurement; empty for none."""
    waits_since_s: float = 0.0
    """When it became the oldest one (monotonic clock)."""
    is_stall_logged: bool = False
    """Whether the stalled backlog was logged."""
    resumptions: int = 0
    """Number of times that flushing began, after a takeover, a reconnection or a recovery."""
    backlog: Backlog = Backlog()
    """The last measurement of the stream."""

    @property
    def is_ready(self) -> bool:
        """Return whether the condition is ready and the backlog is not stalled."""
        return self.condition.is_ready and not self.is_stalled

    @property
    def is_stalled(self) -> bool:
        """Return whether entries wait and no flusher commits (a commit trims the stream)."""
        return bool(self.first_id) and time.monotonic() - self.waits_since_s >= STALLED_S

    def note_backlog(self, backlog: Backlog) -> None:
        """Record the backlog; log once when it stalls or moves again."""
        self.backlog = backlog
        first_id = backlog.first_id
        if first_id != self.first_id:
            self.first_id, self.waits_since_s = first_id, time.monotonic()
        if self.is_stalled != self.is_stall_logged:
            self.is_stall_logged = not self.is_stall_logged
            if self.is_stall_logged:
                _log.error("backlog_stalled", partition=str(self.partition), first_id=first_id)
            else:
                _log.info("backlog_moved", partition=str(self.partition), first_id=first_id)

    def set_condition(self, condition: Condition, reason: str = "") -> None:
        """Set the condition; log a change."""
        if (condition, reason) == (self.condition, self.reason):
            return
        self.condition, self.reason = condition, reason
        name, word = str(self.partition), condition.value
        if not reason and self.is_kept:
            _log.info("partition_condition_changed", partition=name, condition=word)
        elif not reason:
            _log.debug("partition_condition_changed", partition=name, condition=word)
        elif condition is Condition.BROKEN:
            _log.error("partition_broken", partition=name, condition=word, reason=reason)
        else:
            _log.warning("partition_degraded", partition=name, condition=word, reason=reason)

    def set_failed(self, condition: Condition, error: ScoreboardError) -> None:
        """Set a condition caused by an error."""
        self.set_condition(condition, f"{error.code}: {error.detail}")
