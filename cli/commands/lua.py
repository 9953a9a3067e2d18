"""`scoreboard lua`: list the Redis scripts, and print the command that runs one, for load tests.

Only scripts that read and `submit` can be called by hand: the others are steps of a protocol, whose
caller holds a lock or a fence. Nothing that is printed is secret.
"""

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import hiredis
from msgspec import Struct

from cli.output import print_json, print_lines, print_message, print_table, write_stdout
from cli.parameters import ACTION_ID, USER_ID
from cli.target import (
    REDIS_URL,
    board_option,
    board_or_default,
    data_dir_option,
    json_option,
    load_settings,
)
from scoreboard.errors import NotFound, OperatorMistake
from scoreboard.model import (
    AROUND_MAX,
    PACKED_MAX,
    PAGE_MAX,
    PARTITIONS_MAX,
    POINTS_MAX,
    Action,
    Layout,
    Partition,
    digest_of,
    partition_of,
)
from scoreboard.runtime.connection_urls import parse_cluster_url
from scoreboard.runtime.settings import Settings
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import submit_command
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.pipelined_connection import Command
from scoreboard.store.scripts import Script, load_everywhere, script_command
from scoreboard.store.store import Store

_RESEED: Final = "is a step of `scoreboard reseed`, which holds a lock and a fence meanwhile"
REFUSED: Final[Mapping[str, str]] = {
    "trim": "acknowledges entries of the stream; what PostgreSQL does not have would be lost",
    "repair": "is a step of `scoreboard repair`, which compares Redis with the ledger under a lock",
    "act": "needs the row of its act and an audit row; use `scoreboard score correct`",
    "fence": _RESEED,
    "restore": _RESEED,
    "exclude": _RESEED,
    "remember": _RESEED,
    "retire": _RESEED,
    "open": _RESEED,
    "stage": "is a step of `scoreboard board reshard`, which holds a lock",
    "release": "is a step of `scoreboard board reshard`, which holds a lock",
    "configure": "copies what PostgreSQL has; use `scoreboard board set` or `board archive`",
    "turn": "ends the season by Redis's clock; the flusher does so when it is over",
    "mirror": "replaces the catalogue of actions; use `scoreboard action set`",
    "viewers": "counts the viewers of a process; streamers call it",
    "rate_limit": "counts against the limit of a caller; send requests to the api",
}
"""Why a script cannot be called by hand."""

CALLABLE: Final = ("submit", "leaderboard", "standing", "neighbours", "history")
FORMATS: Final = ("redis-cli", "valkey-cli", "args", "resp", "json")

_PLAIN: Final = re.compile(rb"[A-Za-z0-9_]+")
_NOT_PRINTED: Final = re.compile(rb"[^ !#-\[\]-~]")
"""What redis-cli needs escaped within quotes: quotes, backslashes, and all but printable ASCII."""
_PURPOSE: Final = re.compile(rb"-- \w+: (.+)")

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Target(Struct, frozen=True):
    """What the options of every call say; ``load``: also load the script."""

    settings: Settings
    board: str
    form: str
    load: bool


class CallGroup(click.Group):
    """The scripts that can be called; for the others, the error says why not."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a script.

        Raises OperatorMistake for a script that cannot be called by hand.
        """
        if cmd_name in REFUSED:
            raise OperatorMistake(f"{cmd_name} cannot be called by hand: it {REFUSED[cmd_name]}")
        return super().get_command(ctx, cmd_name)


@click.group()
def lua() -> None:
    """Show the Redis scripts, and print the command that runs one.

    \b
    Example:
      scoreboard lua call leaderboard --limit 10
    """  # noqa: D301


cluster_option = click.option(
    "--cluster", "for_cluster", is_flag=True, help="The scripts as Redis Cluster gets them."
)


@lua.command(name="list")
@cluster_option
@json_option
def list_scripts(*, for_cluster: bool, as_json: bool) -> None:
    """List the scripts with their SHA-1, by which the server knows them."""
    found = [
        {
            "name": name,
            "sha": (script := _load(name, for_cluster=for_cluster)).sha,
            "callable": name in CALLABLE,
            "purpose": _purpose_of(script),
        }
        for name in (*CALLABLE, *REFUSED)
    ]
    if as_json:
        print_json(found)
    else:
        rows = [
            (one["name"], one["sha"], "yes" if one["callable"] else "no", one["purpose"])
            for one in found
        ]
        print_table(("script", "sha", "lua call", "purpose"), rows)


@lua.command()
@click.argument("name")
@cluster_option
def show(name: str, *, for_cluster: bool) -> None:
    """Print the text of script NAME; its first lines explain keys, arguments and replies.

    \b
    Example:
      scoreboard lua show submit | redis-cli -x SCRIPT LOAD
    """  # noqa: D301
    if name not in {*CALLABLE, *REFUSED}:
        raise NotFound(f"Unknown script {name}; see scoreboard lua list")
    write_stdout(_load(name, for_cluster=for_cluster).text)


def _load(name: str, *, for_cluster: bool) -> Script:
    script = Script.load(name)
    return script.sharded if for_cluster else script


@lua.group(cls=CallGroup)
def call() -> None:
    """Print the command that runs a script now.

    \b
    Formats:
      redis-cli   a line for the shell; valkey-cli is the same for Valkey
      args        a line for the prompt or the standard input of redis-cli
      resp        the bytes of the Redis protocol
      json        one object; bytes that are no text are {"hex": …}

    Keys, generation and layout are those of the running system. The command sends nothing, except
    with --load.

    \b
    Examples:
      scoreboard lua call submit --user load-1 --action win:1 --points 5
      scoreboard lua call leaderboard --format args | redis-cli
    """  # noqa: D301


def _target_options(function: _Function) -> _Function:
    for option in reversed(
        (
            board_option,
            click.option("--format", "form", type=click.Choice(FORMATS), default=FORMATS[0],
                         show_default=True, help="Form of the command."),
            click.option("--load", is_flag=True, help="Load the script on the server first."),
            data_dir_option,
        )
    ):  # fmt: skip
        function = option(function)
    return function


@call.command()
@click.option("--user", type=USER_ID, required=True, help="Id of the user.")
@click.option("--action", type=ACTION_ID, required=True, help="Id of the action.")
@click.option("--points", type=click.IntRange(1, POINTS_MAX), required=True,
              help="Points of the action.")  # fmt: skip
@_target_options
def submit(*, user: str, action: str, points: int, **options: Any) -> None:  # noqa: ANN401
    """Print the command that applies an action.

    Whoever sends it counts the action for real: the score changes, viewers see it, and the ledger
    keeps it. Use a board for load tests. The command is valid until its generation ends.
    """
    target = _target_of(**options)

    async def build(store: Store, layout: Layout) -> list[Command]:
        counted = Action(user, action, points, stated=True)
        partition = Partition(target.board, partition_of(user, layout.partitions))
        now_s = await store.now_s(partition)
        generation = int(now_s // layout.seen_seconds)
        ends_s = (generation + 1) * layout.seen_seconds
        until = datetime.fromtimestamp(ends_s, UTC)
        print_message(
            f"This counts for real on board {target.board}, and the ledger keeps it. Send it with "
            "the login of the api, which has all rights that the script needs. It is valid for "
            f"{ends_s - now_s:.0f} s, until {until:%FT%TZ}; then Redis replies BUCKET"
        )
        pairs = [(counted, digest_of(target.board, user, action))]
        cap = target.settings.stream_cap
        is_cluster = store.is_cluster
        return [submit_command(partition, layout, generation, cap, pairs, is_cluster=is_cluster)]

    _print_calls(target, "submit", build)


@call.command()
@click.option("--offset", type=click.IntRange(min=0), default=0, show_default=True,
              help="Number of rows to skip.")  # fmt: skip
@click.option("--limit", type=click.IntRange(0, PAGE_MAX), default=10, show_default=True,
              help="Number of rows.")  # fmt: skip
@_target_options
def leaderboard(*, offset: int, limit: int, **options: Any) -> None:  # noqa: ANN401
    """Print the command that reads rows of the ranking, one for each partition.

    The rows of a board of several partitions may all be in one of them. Each is therefore read from
    its first row.
    """
    target = _target_of(**options)

    async def build(_: Store, layout: Layout) -> list[Command]:
        args = [offset, limit] if layout.partitions == 1 else [0, offset + limit if limit else 0]
        return [
            _reading("leaderboard", Partition(target.board, number), args)
            for number in range(layout.partitions)
        ]

    _print_calls(target, "leaderboard", build)


@call.command()
@click.option("--user", type=USER_ID, required=True, help="Id of the user.")
@click.option("--around", type=click.IntRange(0, AROUND_MAX), default=0, show_default=True,
              help="Number of rows on each side.")  # fmt: skip
@_target_options
def standing(*, user: str, around: int, **options: Any) -> None:  # noqa: ANN401
    """Print the command that reads a user's rank in the user's partition."""
    target = _target_of(**options)

    async def build(_: Store, layout: Layout) -> list[Command]:
        partition = Partition(target.board, partition_of(user, layout.partitions))
        return [_reading("standing", partition, [user, around])]

    _print_calls(target, "standing", build)


@call.command()
@click.option("--packed", type=click.IntRange(0, PACKED_MAX), required=True,
              help="Packed score, from the reply of standing.")  # fmt: skip
@click.option("--wins", is_flag=True, help="An equal packed score ranks above.")
@click.option("--around", type=click.IntRange(0, 2 * AROUND_MAX), default=0, show_default=True,
              help="Number of rows on each side.")  # fmt: skip
@click.option("--partition", "number", type=click.IntRange(0, PARTITIONS_MAX - 1), required=True,
              help="Number of the partition to read.")  # fmt: skip
@_target_options
def neighbours(*, packed: int, wins: bool, around: int, number: int, **options: Any) -> None:  # noqa: ANN401
    """Print the command that counts the members of a partition above a score of another one."""
    target = _target_of(**options)

    async def build(_: Store, layout: Layout) -> list[Command]:
        if number >= layout.partitions:
            raise NotFound(f"Board {target.board} has {layout.partitions} partitions, from 0")
        args = [packed, int(wins), around]
        return [_reading("neighbours", Partition(target.board, number), args)]

    _print_calls(target, "neighbours", build)


@call.command()
@_target_options
def history(**options: Any) -> None:  # noqa: ANN401 (those of every call)
    """Print the command that reads the replication id of the server.

    In a cluster it is the server of the board's first partition.
    """
    target = _target_of(**options)

    async def build(_: Store, __: Layout) -> list[Command]:
        names = [PartitionKeys(Partition(target.board)).meta]
        return [script_command(Script.load("history"), names, [], reads=True)]

    _print_calls(target, "history", build)


def _target_of(*, board: str | None, form: str, load: bool, data_dir: Path) -> Target:
    settings = load_settings(data_dir, needs=[REDIS_URL])
    return Target(settings, board_or_default(settings, board), form, load)


def _reading(name: str, partition: Partition, args: Sequence[object]) -> Command:
    keys = PartitionKeys(partition)
    return script_command(Script.load(name), [keys.board, keys.meta], args, reads=True)


def _print_calls(
    target: Target, name: str, build: Callable[[Store, Layout], Awaitable[list[Command]]]
) -> None:
    """Print the commands that ``build`` returns for the layout of the board."""
    commands = asyncio.run(_build(target, name, build))
    if target.form == "resp":
        write_stdout(b"".join(map(_resp_of, commands)))
    elif target.form == "json":
        for one in commands:
            print_json({"script": name, "board": target.board, "command": list(map(_json_of, one))})
    elif target.form == "args":
        print_lines(" ".join(map(_quoted, one)) for one in commands)
    else:
        # Without --quoted-input an argument cannot contain the NUL bytes of a digest.
        follows = ["-c"] if parse_cluster_url(target.settings.redis_url.reveal()) else []
        start = [target.form, *follows, "--quoted-input"]
        print_lines(shlex.join([*start, *map(_quoted, one)]) for one in commands)
    if not target.load:
        print_message(f"If Redis replies NOSCRIPT: `scoreboard lua call {name} … --load`")


async def _build(
    target: Target, name: str, build: Callable[[Store, Layout], Awaitable[list[Command]]]
) -> list[Command]:
    async with make_client(target.settings, name="cli") as client:
        store = Store(client)
        layout = (await store.board(target.board)).layout
        if target.load:
            await load_everywhere(client, Script.load(name))
        return await build(store, layout)


def _quoted(word: str | bytes | int) -> str:
    """Return an argument in the syntax of redis-cli."""
    data = _bytes_of(word)
    if _PLAIN.fullmatch(data):
        return data.decode()
    return '"' + _NOT_PRINTED.sub(lambda found: b"\\x%02x" % found[0][0], data).decode() + '"'


def _bytes_of(word: str | bytes | int) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


def _resp_of(command: Command) -> bytes:
    words: Any = command  # the stub of hiredis allows a tuple of one
    return hiredis.pack_command(words)


def _json_of(word: str | bytes | int) -> object:
    return {"hex": word.hex()} if isinstance(word, bytes) else str(word)


def _purpose_of(script: Script) -> str:
    found = _PURPOSE.match(script.text)
    return found[1].decode() if found else ""
