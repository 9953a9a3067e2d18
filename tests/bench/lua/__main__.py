"""`make bench-lua`: Redis's CPU time and memory per action, against four plain commands.

Boards of several sizes are loaded into one server. Batches of actions then reach each of them
alternately as one call of submit.lua and as pipelined ZINCRBY, XADD, HSET and PUBLISH for each
action: the same payload, without exactly-once, order of equals or limits. CPU is that of the
server's process, user and system, from INFO, divided by the number of actions.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import click
import redis
from redis.connection import Connection

from cli.embedded.servers import EmbeddedValkey
from scoreboard.model import SLOT_COUNT, Layout, Partition, digest_of, shard_of
from scoreboard.model import Action as ScoreAction
from scoreboard.runtime import resources
from scoreboard.store.dispatcher import submit_command
from scoreboard.store.keys import GROUP, PartitionKeys
from tests.bench.rows import Figures, Recorder, Row

SIZES: Final = (1_000, 1_000_000, 5_000_000)
BATCHES: Final = (1, 16, 64)
SYNCS: Final = ("always", "no")
KINDS: Final = ("known", "new", "replay")
"""Actions of users of the board, of new users, and repeats."""
SUBMIT, OTHER, PLAIN = "submit.lua", "other", "plain"
LAYOUT: Final = Layout()
SCORES: Final = 100_000
"""Number of different scores of a loaded board."""

REMEMBERED: Final = 1000
"""Actions in each hash of the dedup window, of both generations, before the measurement."""

PAGE: Final = 2000
MEMORY_ACTIONS: Final = 200_000

Command = tuple[Any, ...]
Action = tuple[str, str, bytes, int, str]
"""User, action, digest, points and request id."""


class Server(EmbeddedValkey):
    """The embedded server, or another program with the same settings."""

    def __init__(self, folder: Path, program: Path | None) -> None:
        # Without rewrites, which would take CPU time at any moment.
        settings = {
            "appendfsync": "no",
            "auto-aof-rewrite-percentage": "0",
            "lazyfree-lazy-user-del": "no",  # memory is compared before and after a DEL
        }
        super().__init__(folder, maxmemory_bytes=0, settings=settings)
        self._other = program

    def _find_program(self) -> Path:
        return self._other or super()._find_program()


class Bench:
    """One server, its boards, and the script."""

    def __init__(self, url: str, *, other: bytes | None) -> None:
        self.client = redis.Redis.from_url(url, socket_timeout=600)
        self.shas: dict[str, Any] = {
            way: self.client.script_load(text)
            for way, text in [(SUBMIT, resources.script("submit")), (OTHER, other)]
            if text is not None
        }
        self._sent = 0
        pool = self.client.connection_pool
        self._connection: Connection = pool.get_connection()  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def version(self) -> str:
        """The name and version of the server."""
        facts = self.client.info("server")
        known = facts.get("valkey_version")
        return f"Valkey {known}" if known else f"Redis {facts['redis_version']}"

    def cpu_s(self) -> float:
        """Return the CPU time of the server, user and system."""
        facts = self.client.info("cpu")
        return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])

    def memory(self) -> int:
        """Return the memory that the server has allocated for data."""
        return int(self.client.info("memory")["used_memory"])

    def load(self, board: str, members: int) -> float:
        """Open a board with members, and fill its dedup window; return the bytes per member."""
        keys = PartitionKeys(Partition(board))
        self.client.hset(
            keys.meta,
            mapping={"epoch": 1, "seq": 0, "state": "open", "layout": str(LAYOUT), "public": 1},
        )
        self.client.xgroup_create(keys.events, GROUP, id="0", mkstream=True)
        before = self.memory()
        self._load_members(keys.board, members)
        per_member = (self.memory() - before) / members
        self._load_window(keys)
        return per_member

    def _load_members(self, key: str, members: int) -> None:
        pages: list[Command] = []
        for first in range(0, members, PAGE):
            words: list[Any] = ["ZADD", key]
            for number in range(first, min(first + PAGE, members)):
                score = number * 7919 % SCORES
                words += (score * SLOT_COUNT + SLOT_COUNT - 1 - number // SCORES, user_of(number))
            pages.append(tuple(words))
            if len(pages) == 50:
                self.send(pages)
                pages = []
        self.send(pages)

    def _load_window(self, keys: PartitionKeys) -> None:
        generation = int(time.time() // LAYOUT.seen_seconds)
        pages: list[Command] = []
        for moment in (generation, generation - 1):
            for shard in range(LAYOUT.seen_shards):
                for key in (keys.dedup_shard(moment, shard), plain_key(keys, moment, shard)):
                    words: list[Any] = ["HSET", key]
                    for _ in range(REMEMBERED):
                        words += (os.urandom(16), "10:123456:1234567")
                    pages += [tuple(words), ("EXPIRE", key, 2 * LAYOUT.seen_seconds)]
        self.send(pages)

    def send(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write; return their replies."""
        if not commands:
            return []
        self._connection.send_packed_command(self._connection.pack_commands(commands))
        return [self._connection.read_response() for _ in commands]

    def make_actions(self, board: str, users: Sequence[str]) -> list[Action]:
        """Return an action of each user that was never sent."""
        made: list[Action] = []
        for user in users:
            self._sent += 1
            action = f"win:{self._sent:036}"
            digest = digest_of(board, user, action)
            made.append((user, action, digest, 10, f"{self._sent:032x}"))
        return made

    def submit(self, board: str, actions: Sequence[Action], way: str = SUBMIT) -> list[Command]:
        """Return one call of a script, as the api's dispatcher sends it."""
        generation = int(time.time() // LAYOUT.seen_seconds)
        given = [
            (ScoreAction(user, action, delta, request_id=request), digest)
            for user, action, digest, delta, request in actions
        ]
        name, _, *rest = submit_command(Partition(board), LAYOUT, generation, 100_000_000, given)
        return [(name, self.shas[way], *rest)]

    def plain(self, board: str, actions: Sequence[Action]) -> list[Command]:
        """Return the four plain commands of each action."""
        keys = PartitionKeys(Partition(board))
        generation = int(time.time() // LAYOUT.seen_seconds)
        commands: list[Command] = []
        for user, action, digest, delta, request in actions:
            seq = self._sent
            key = plain_key(keys, generation, shard_of(digest, LAYOUT.seen_shards))
            fields = ("q", seq, "u", user, "a", action, "d", delta, "s", 123_456, "e", 1)
            commands += (
                ("ZINCRBY", keys.board, delta * SLOT_COUNT, user),
                ("XADD", f"{keys.events}:plain", "*", *fields, "t", request),
                ("HSET", key, digest, f"{delta}:123456:{seq}"),
                ("PUBLISH", keys.changes, f"1:{seq}"),
            )
        return commands

    def measure(
        self, board: str, members: int, batch: int, kind: str, way: str, count: int
    ) -> float:
        """Send ``count`` actions in batches of one way; return the CPU µs of each."""
        make: Callable[[str, Sequence[Action]], list[Command]] = (
            self.plain if way == PLAIN else partial(self.submit, way=way)
        )
        count = max(count // batch, 1) * batch
        first = self._sent
        if kind == "new":
            users = [f"new|{first + number:029x}" for number in range(count)]
        else:
            users = [user_of((first + number) * 104_729 % members) for number in range(count)]
        actions = self.make_actions(board, users)
        batches = [make(board, actions[start : start + batch]) for start in range(0, count, batch)]
        if kind == "replay":
            for commands in batches:
                self.send(commands)
        packed = [self._connection.pack_commands(commands) for commands in batches]
        before_s = self.cpu_s()
        for commands, data in zip(batches, packed, strict=True):
            self._connection.send_packed_command(data)
            replies = [self._connection.read_response() for _ in commands]
            if way != PLAIN:
                wanted = b"replayed" if kind == "replay" else b"applied"
                assert all(row[0] == wanted for row in replies[0])
        used_s = self.cpu_s() - before_s
        keys = PartitionKeys(Partition(board))
        if kind == "new":
            self.send([("ZREM", keys.board, *users)])
        self.client.xtrim(keys.events, 0, approximate=False)
        self.client.xtrim(f"{keys.events}:plain", 0, approximate=False)
        return used_s / count * 1e6

    def action_memory(self) -> dict[str, float]:
        """Return the bytes of an action in the dedup window and in the stream."""
        board, users = "memory", 20_000
        keys = PartitionKeys(Partition(board))
        self.client.hset(
            keys.meta,
            mapping={"epoch": 1, "seq": 0, "state": "open", "layout": str(LAYOUT), "public": 1},
        )
        for first in range(0, MEMORY_ACTIONS, 64):
            numbers = range(first, min(first + 64, MEMORY_ACTIONS))
            actions = self.make_actions(board, [user_of(number % users) for number in numbers])
            self.send(self.submit(board, actions))
        full = self.memory()
        self.client.delete(keys.events)
        without_stream = self.memory()
        self.client.delete(*self.client.scan_iter(f"{keys.tag}:seen:*", count=1000))
        without_window = self.memory()
        self.client.delete(keys.board, keys.meta)
        return {
            "waiting": (full - without_stream) / MEMORY_ACTIONS,
            "remembered": (without_stream - without_window) / MEMORY_ACTIONS,
        }


def user_of(number: int) -> str:
    """Return the user with a number, as identity providers name users."""
    return f"auth0|{number:024x}"


def plain_key(keys: PartitionKeys, generation: int, shard: int) -> str:
    """Return the hash to which the plain commands write."""
    return f"{keys.dedup_shard(generation, shard)}:plain"


@contextmanager
def bench(program: Path | None, *, other: bytes | None) -> Iterator[Bench]:
    """Start a server in a temporary folder, without a limit of memory."""
    folder = Path(tempfile.mkdtemp(prefix="scoreboard-bench-"))
    try:
        with Server(folder / "server", program) as server:
            yield Bench(server.url, other=other)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure_server(
    recorder: Recorder,
    program: Path | None,
    sizes: Sequence[int],
    batches: Sequence[int],
    *,
    actions: int,
    rounds: int,
    other: bytes | None,
) -> None:
    """Measure one server."""
    with bench(program, other=other) as stage:
        server = {"server": stage.version}
        sys.stderr.write(f"{stage.version}\n")
        for state, used in stage.action_memory().items():
            recorder.add("memory", f"action, {state}", server, "memory", "B", used)
        for size in sizes:
            began_s = time.monotonic()
            used = stage.load(f"b{size}", size)
            recorder.add("memory", "member", server | {"members": size}, "memory", "B", used)
            sys.stderr.write(f"{size:,} members in {time.monotonic() - began_s:.0f} s\n")
        for sync in SYNCS:
            stage.client.config_set("appendfsync", sync)
            for size in sizes:
                for batch in batches:
                    # A batch with an fsync takes a millisecond of waiting, whatever its size.
                    count = min(actions, batch * 400) if sync == "always" else actions
                    cell = server | {"appendfsync": sync, "members": size, "batch": batch}
                    for users in KINDS:
                        _measure_cell(recorder, stage, cell, users, count, rounds)


def _measure_cell(
    recorder: Recorder, stage: Bench, cell: dict[str, Any], users: str, count: int, rounds: int
) -> None:
    ways = [*stage.shas, *([] if users == "replay" else [PLAIN])]
    size, batch = cell["members"], cell["batch"]
    for number in range(rounds + 1):  # the first round warms up
        for way in ways if number % 2 else reversed(ways):
            with recorder.measurement():
                used_us = stage.measure(f"b{size}", size, batch, users, way, count)
            if number:
                parameters = cell | {"users": users}
                recorder.add("actions", way, parameters, "Redis CPU", "µs", used_us)


def report(figures: Figures) -> None:
    """Print the figures, ratios first."""
    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in figures.rows:
        if row.work == "memory":
            server, *rest = row.parameters.values()
            members = f" of a board of {rest[0]:,}" if rest else ""
            click.echo(f"{server}: {row.variant}{members}: {row.median:.0f} bytes")
        else:
            cells.setdefault(tuple(row.parameters.values()), {})[row.variant] = row
    others = [way for way in (PLAIN, OTHER) if any(way in rows for rows in cells.values())]
    heads = ["server", "appendfsync", "members", "batch", "users"]
    heads += [f"ratio to {way}" for way in others] + [f"{way}, µs" for way in (SUBMIT, *others)]
    click.echo(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for names, rows in cells.items():
        ours = rows[SUBMIT].values
        shown = [f"{name:,}" if isinstance(name, int) else name for name in names]
        for way in others:
            theirs = rows[way].values if way in rows else []
            shown.append(_figure([one / two for one, two in zip(ours, theirs, strict=False)], 2))
        shown += [_figure(rows[way].values if way in rows else [], 1) for way in (SUBMIT, *others)]
        click.echo(f"| {' | '.join(shown)} |")
    click.echo(f"foreign CPU: {max(figures.foreign):.0%} of the machine at most")


def _figure(values: Sequence[float], digits: int) -> str:
    """Return a median with its minimum and maximum."""
    if not values:
        return ""
    median = statistics.median(values)
    return f"{median:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


@click.command()
@click.option(
    "--server",
    "programs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="A server program to measure besides the embedded one; by default redis-server of PATH.",
)
@click.option(
    "--other",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another version of submit.lua to measure in the same rounds.",
)
@click.option("--members", default=",".join(map(str, SIZES)), help="Sizes of boards, by comma.")
@click.option("--batches", default=",".join(map(str, BATCHES)), help="Sizes of batches, by comma.")
@click.option("--actions", default=6400, help="Actions of each measurement.")
@click.option("--rounds", default=3, help="Measurements of each kind; the median is shown.")
@click.option("--quick", is_flag=True, help="Small boards and few actions, to try the program.")
@click.option("--json", "json_file", type=click.Path(), help="Write the figures to this file.")
def main(
    programs: Sequence[Path],
    other: Path | None,
    members: str,
    batches: str,
    actions: int,
    rounds: int,
    quick: bool,
    json_file: str | None,
) -> None:
    """Compare submit.lua with four plain commands."""
    if quick:
        members, batches, actions, rounds = "1000,20000", "1,16", 320, 1
    if not programs and (found := shutil.which("redis-server")):
        programs = [Path(found)]
    recorder = Recorder("lua", redis=metadata.version("redis"))
    for program in (None, *programs):
        measure_server(
            recorder,
            program,
            [int(size) for size in members.split(",")],
            [int(batch) for batch in batches.split(",")],
            actions=actions,
            rounds=rounds,
            other=other.read_bytes() if other else None,
        )
    report(recorder.figures)
    if json_file:
        recorder.write(json_file)


if __name__ == "__main__":
    main()
