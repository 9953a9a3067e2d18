"""How a lane fares, for whoever looks at it from outside: the health check and the tests."""

import time
from enum import Enum
from typing import Final

from msgspec import Struct

from scoreboard.errors import ScoreboardError
from scoreboard.ledger.positions import Position
from scoreboard.model import Partition
from scoreboard.runtime.telemetry import get_logger

_log = get_logger(__name__)


class Condition(Enum):
    """How a lane fares, for the health check."""

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
        """Tell whether the lane does, or could at once do, its work."""
        return self in {
            Condition.STANDBY,
            Condition.FLUSHING,
            Condition.UNINITIALISED,
            Condition.FENCED,
            Condition.RETIRED,
        }


STALLED_S: Final = 30.0
"""Longest time for which entries may wait without any commit, by whichever flusher."""


class PartitionStatus(Struct):
    """What a lane lets others see; ``position`` is None where another flusher moves it."""

    partition: Partition
    condition: Condition = Condition.STARTING
    position: Position | None = None
    reason: str = ""
    last_success_s: float = 0.0
    first_id: str = ""
    """The oldest entry that waits, as last seen; empty where none does."""
    waits_since_s: float = 0.0
    """Since when it has been the oldest one (monotonic clock)."""
    is_stall_logged: bool = False
    """Whether it was logged that the backlog is stalled."""

    @property
    def is_ready(self) -> bool:
        """Tell whether the lane does its work and the backlog is not stalled."""
        return self.condition.is_ready and not self.is_stalled

    @property
    def is_stalled(self) -> bool:
        """Tell whether entries wait and nobody commits: a commit cuts the stream behind it."""
        return bool(self.first_id) and time.monotonic() - self.waits_since_s >= STALLED_S

    def note_backlog(self, first_id: str) -> None:
        """Take note of the oldest entry that waits, and log it once if it stays for too long."""
        if first_id != self.first_id:
            self.first_id, self.waits_since_s = first_id, time.monotonic()
        if self.is_stalled != self.is_stall_logged:
            self.is_stall_logged = not self.is_stall_logged
            event = "backlog_stalled" if self.is_stall_logged else "backlog_moved"
            level = _log.error if self.is_stall_logged else _log.info
            level(event, partition=str(self.partition), first=first_id)

    def set_condition(self, condition: Condition, reason: str = "") -> None:
        """Take a condition, and log it if it is news."""
        if (condition, reason) == (self.condition, self.reason):
            return
        self.condition, self.reason = condition, reason
        fields = {"partition": str(self.partition), "condition": condition.value}
        if reason:
            level = _log.error if condition is Condition.BROKEN else _log.warning
            level("partition_degraded", **fields, reason=reason)
        else:
            _log.info("partition_condition_changed", **fields)

    def set_failed(self, condition: Condition, error: ScoreboardError) -> None:
        """Take a condition that an error explains."""
        self.set_condition(condition, f"{error.code}: {error.detail}")
