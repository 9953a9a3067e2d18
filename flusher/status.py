"""How a lane fares, for whoever looks at it from outside: the health check and the tests."""

from enum import Enum

from msgspec import Struct

from scoreboard.archive import Position
from scoreboard.errors import ScoreboardError
from scoreboard.model import Partition
from scoreboard.telemetry import get_logger

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


class LaneStatus(Struct):
    """What a lane lets others see; ``position`` is None where another flusher moves it."""

    partition: Partition
    condition: Condition = Condition.STARTING
    position: Position | None = None
    reason: str = ""
    last_success_s: float = 0.0

    def become(self, condition: Condition, reason: str = "") -> None:
        """Take a condition, and log it if it is news."""
        if (condition, reason) == (self.condition, self.reason):
            return
        self.condition, self.reason = condition, reason
        fields = {"partition": str(self.partition), "condition": condition.value}
        if reason:
            level = _log.error if condition is Condition.BROKEN else _log.warning
            level("lane_troubled", **fields, reason=reason)
        else:
            _log.info("lane_changed", **fields)

    def trouble(self, condition: Condition, error: ScoreboardError) -> None:
        """Take a condition that an error explains."""
        self.become(condition, f"{error.code}: {error.detail}")
