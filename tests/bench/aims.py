"""What the project wants to reach: one list, from which `make bench` writes the table of aims."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from tests.bench.rows import Parameter, Row


class Aim(NamedTuple):
    """A limit for the median of a row, or for its ratio to the row of another variant."""

    title: str
    limit: float
    work: str
    variant: str
    metric: str
    parameters: Mapping[str, Parameter] = MappingProxyType({})
    over: str = ""
    """Another variant: the aim is for the ratio to it."""


class Result(NamedTuple):
    """An aim with what was measured; None if it was not."""

    aim: Aim
    measured: float | None
    unit: str

    @property
    def is_met(self) -> bool:
        return self.measured is not None and self.measured <= self.aim.limit


def _api(title: str, limit: float, work: str, connections: int, metric: str = "server CPU") -> Aim:
    return Aim(title, limit, work, "api", metric, {"connections": connections})


AIMS = (
    _api("update, 64 connections, 4,000 users: CPU of the api", 40, "update", 64),
    _api("update, 64 connections, 100,000 users: CPU of the api", 45, "update-many-users", 64),
    _api("update, 1 connection: CPU of the api", 200, "update", 1),
    _api("update with a token seen for the first time: CPU of the api", 110, "first-token", 64),
    _api("read of the leaderboard, 64 connections: CPU of the api", 40, "leaderboard", 64),
    _api("standing among a million users: CPU of the api", 50, "user-million", 64),
    _api("standing among a million users: CPU of Redis", 25, "user-million", 64, "Redis CPU"),
    Aim("highest steady rate: p99 of updates", 50, "hold", "system", "update p99"),
    Aim("highest steady rate: p99 of the flusher's lag", 1000, "hold", "system", "flusher lag p99"),
    Aim("highest steady rate: p99 to viewers", 250, "hold", "system", "viewer delay p99"),
)


def judge(rows: Iterable[Row], aims: Iterable[Aim] = AIMS) -> list[Result]:
    """Return each aim with its measurement."""
    found = list(rows)
    return [_judge(aim, found) for aim in aims]


def _judge(aim: Aim, rows: list[Row]) -> Result:
    row = _find(aim, aim.variant, rows)
    if row is None:
        return Result(aim, None, "")
    if not aim.over:
        return Result(aim, row.median, row.unit)
    other = _find(aim, aim.over, rows)
    if other is None or not other.median:
        return Result(aim, None, "×")
    return Result(aim, row.median / other.median, "×")


def _find(aim: Aim, variant: str, rows: list[Row]) -> Row | None:
    wanted = aim.parameters.items()
    for row in rows:
        if (row.work, row.variant, row.metric) == (aim.work, variant, aim.metric) and (
            wanted <= row.parameters.items()
        ):
            return row
    return None
