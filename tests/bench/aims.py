"""What the project wants to reach: one list, from which `make bench` writes the table of aims."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tests.bench.rows import Parameter, Row


class Aim(NamedTuple):
    """A limit for the median of a row, or for its ratio to the row of another variant."""

    title: str
    limit: float
    benchmark: str
    work: str
    variant: str
    metric: str
    parameters: Mapping[str, Parameter] = MappingProxyType({})
    over: str = ""
    """Another variant: the aim is for the ratio to it."""
    unit: str = "µs"


class Result(NamedTuple):
    """An aim with what was measured; None if it was not."""

    aim: Aim
    measured: float | None

    @property
    def is_met(self) -> bool:
        return self.measured is not None and self.measured <= self.aim.limit


def _api(title: str, limit: float, work: str, connections: int, metric: str = "server CPU") -> Aim:
    benchmark = {"first-token": "tokens"}.get(work, "api" if work.startswith("update") else "reads")
    return Aim(title, limit, benchmark, work, "api", metric, {"connections": connections})


def _frame(title: str, limit: float, metric: str, viewers: int, unit: str = "µs") -> Aim:
    return Aim(
        f"{title}, {viewers:,} viewers",
        limit,
        "ws",
        "frame",
        "streamer",
        metric,
        {"viewers": viewers},
        unit=unit,
    )


def _place(board: str, load: str) -> Aim:
    title = f"change to one's place, p99, 5,000 viewers of a board {board}"
    return Aim(title, 1200, "places", "places", load, "change to place p99", unit="ms")


def _hold(title: str, limit: float, metric: str) -> Aim:
    return Aim(f"highest steady rate: {title}", limit, "soak", "hold", "system", metric, unit="ms")


def _scale(
    title: str,
    limit: float,
    part: str,
    work: str,
    metric: str = "both, of the first",
    unit: str = "×",
    **parameters: Parameter,
) -> Aim:
    return Aim(title, limit, f"scale-{part}", work, "system", metric, parameters, unit=unit)


def _script(sync: str) -> Aim:
    return Aim(
        f"an action in a batch of 16 among a million users, appendfsync {sync}: "
        "CPU of Redis, of that of four plain commands",
        1.2,
        "lua",
        "actions",
        "submit.lua",
        "Redis CPU",
        {"members": 1_000_000, "batch": 16, "users": "known", "appendfsync": sync},
        over="plain",
        unit="×",
    )


AIMS = (
    _api("update, 64 connections, 4,000 users: CPU of the api", 40, "update", 64),
    _api("update, 64 connections, 100,000 users: CPU of the api", 45, "update-many-users", 64),
    _api("update, 1 connection: CPU of the api", 200, "update", 1),
    _api("update with a token seen for the first time: CPU of the api", 110, "first-token", 64),
    _api("read of the leaderboard, 64 connections: CPU of the api", 40, "leaderboard", 64),
    _api("standing among a million users: CPU of the api", 50, "user-million", 64),
    _api("standing among a million users: CPU of Redis", 25, "user-million", 64, "Redis CPU"),
    _frame("frame to a viewer: CPU of the streamer", 7, "server CPU", 2_000),
    _frame("frame to a viewer: CPU of the streamer", 7, "server CPU", 5_000),
    _frame("memory of a viewer", 5, "memory of a viewer", 5_000, "KB"),
    Aim("handshake of a viewer: CPU", 100, "ws", "handshake", "streamer", "server CPU"),
    _frame("update to viewer, p50", 15, "sent p50", 2_000, "ms"),
    _frame("update to viewer, p99", 60, "sent p99", 2_000, "ms"),
    _place("whose top changes all the time", "10 boards/s"),
    _place("whose top is quiet", "quiet top"),
    _script("always"),
    _script("no"),
    Aim(
        "memory of a remembered action",
        120,
        "lua",
        "memory",
        "action, remembered",
        "memory",
        unit="B",
    ),
    Aim(
        "memory of an action in the stream",
        120,
        "lua",
        "memory",
        "action, waiting",
        "memory",
        unit="B",
    ),
    Aim(
        "update, 64 connections: CPU of api, Redis, flusher and PostgreSQL",
        110,
        "system",
        "update",
        "scoreboard",
        "together CPU",
        {"load": "64 in turn"},
    ),
    _hold("p99 of updates", 50, "update p99"),
    _hold("p99 of the flusher's lag", 1000, "flusher lag p99"),
    _hold("p99 to viewers", 250, "viewer delay p99"),
    _scale(
        "update, 8 partitions, 64 connections: CPU of api and Redis, of that with one partition",
        1.2,
        "partitions",
        "update",
        partitions=8,
        connections=64,
    ),
    _scale(
        "update over 10,000 boards: CPU of api and Redis, of that of one board",
        1.2,
        "boards",
        "update",
        boards=10_000,
    ),
    *(
        _scale(
            f"read of {title}, 8 partitions: CPU of api and Redis, of that with one partition",
            8,
            "reads",
            "read",
            read=read,
            partitions=8,
        )
        for read, title in (("top", "the top"), ("rank", "a rank"), ("around", "neighbours"))
    ),
    _scale(
        "update, two api processes with twice the updates: CPU of the api, of that of one",
        1.1,
        "apis",
        "update",
        "api, of the first",
        **{"api processes": 2, "load": "500/s each"},
    ),
    _scale(
        "update on a cluster of one primary: CPU of the api, of that on one server",
        1.2,
        "lanes",
        "update",
        "api, of one server",
        Redis="cluster of 1",
    ),
    _scale(
        "a flusher is killed: time until another one flushes its partitions",
        5,
        "flushers",
        "event",
        "moved after a kill",
        "s",
        flushers=2,
    ),
)


def judge(rows: Mapping[str, Sequence[Row]], aims: Iterable[Aim] = AIMS) -> list[Result]:
    """Return each aim with its measurement; ``rows`` are those of each benchmark."""
    return [_judge(aim, rows.get(aim.benchmark, ())) for aim in aims]


def _judge(aim: Aim, rows: Sequence[Row]) -> Result:
    row = _find(aim, aim.variant, rows)
    if row is None:
        return Result(aim, None)
    if not aim.over:
        return Result(aim, row.median)
    other = _find(aim, aim.over, rows)
    if other is None or not other.median:
        return Result(aim, None)
    return Result(aim, row.median / other.median)


def _find(aim: Aim, variant: str, rows: Sequence[Row]) -> Row | None:
    wanted = aim.parameters.items()
    for row in rows:
        if (row.work, row.variant, row.metric) == (aim.work, variant, aim.metric) and (
            wanted <= row.parameters.items()
        ):
            return row
    return None
