"""How a lane fares, for whoever looks at it from outside: the health check and the tests."""

from enum import Enum

from msgspec import Struct

from scoreboard.archive import Position
from scoreboard.model import Partition


class Condition(Enum):
    """How a lane fares, for the health check."""

    STARTING = "starting"
    STANDBY = "standby"
    FLUSHING = "flushing"
    UNINITIALISED = "uninitialised"
    FENCED = "fenced"
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
        }


class LaneStatus(Struct):
    """What a lane lets others see; ``position`` is None where another flusher moves it."""

    partition: Partition
    condition: Condition = Condition.STARTING
    position: Position | None = None
    reason: str = ""
    last_success_s: float = 0.0
