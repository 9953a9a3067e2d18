"""`scoreboard bench`: load a system and report latencies, outcomes and CPU time."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import uvloop
from msgspec import Struct
from msgspec.structs import replace

try:
    import hdrh.histogram  # noqa: F401 (cli.bench needs it)
except ModuleNotFoundError as error:
    raise click.ClickException(
        "scoreboard bench needs the package hdrhistogram: install scoreboard[bench]"
    ) from error

from cli.bench.generator.requests import User
from cli.bench.loads.api_loads import load_reads, load_updates
from cli.bench.loads.flush_load import load_flusher
from cli.bench.loads.script_load import ACTION_BYTES, load_scripts
from cli.bench.loads.viewer_load import load_viewers
from cli.bench.report.criteria import UNITS, Criterion, parse_criterion
from cli.bench.report.results import Result, describe, find_failures, format_ms
from cli.bench.system.boards import choose_board, clean, script_board, served_board
from cli.bench.system.own_system import own_system, remove_left_folders
from cli.bench.system.session import Options, Session, Target
from cli.bench.system.tokens import make_users
from cli.failures import explain
from cli.output import (
    OutputError,
    is_terminal,
    print_json,
    print_lines,
    print_message,
    print_table,
    progress,
    redirect_to_devnull,
)
from cli.parameters import BOARD, FILE, Number, Seconds
from cli.signals import SIGNALS, StopFlag, stop_on_signals
from cli.target import (
    DATA_DIR,
    STORE_URLS,
    data_dir_option,
    load_settings_to_change,
    operator_name,
    read_settings,
    read_state_file,
)
from scoreboard.errors import OperatorMistake
from scoreboard.ledger.load_tests import PREFIX, is_load_test_name
from scoreboard.model import Board
from scoreboard.recovery.reseed import ReportProgress, report_nothing
from scoreboard.runtime.sockets import raise_open_files_limit

OWN_BOARD: Final = f"{PREFIX}own"
CRITERIA_FAILED: Final = 1
INTERRUPTED: Final = 130
ALL_VIEWERS: Final = 200
SPARE_FILES: Final = 128
"""Open files of a run besides the sockets of its load."""

MEMORY_SHARE: Final = 0.25
"""Share of Redis's free memory that a load of the scripts may fill."""


class Criteria(click.ParamType):
    """A criterion of --fail-if."""

    name = "criterion"

    def convert(
        self,
        value: Any,  # noqa: ANN401 (as click declares it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Criterion:
        """Parse the criterion.

        Raises click.BadParameter.
        """
        if isinstance(value, Criterion):
            return value
        try:
            return parse_criterion(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Common(Struct, frozen=True, kw_only=True):
    """The options of every load."""

    rate: float
    closed: bool
    connections: int
    duration: float
    warm_up: float
    embedded: bool
    board: str | None
    api: str | None
    ws: str | None
    users: int
    token_file: Path | None
    trusted: bool
    json: Path | None
    fail_if: tuple[Criterion, ...]
    data_dir: Path

    @property
    def options(self) -> Options:
        """The options as the loads take them."""
        return Options(
            rate=None if self.closed else self.rate,
            connections=self.connections,
            duration_s=self.duration,
            warm_up_s=self.warm_up,
        )


Load = Callable[[Session, Common], Awaitable[None]]


def load_options(*, rate: float, connections: int = 64) -> Callable[[Callable[..., Any]], Any]:
    """Add the options of a load, with defaults for its kind, and pass them as ``common``."""
    options = [
        click.option("--rate", type=Number(0.1, 1_000_000), default=rate,
                     show_default=True, help="Operations per second, at intended times "
                     "(open loop)."),
        click.option("--closed", is_flag=True, help="Send the next request when the last one was "
                     "answered (closed loop); the latencies hide stalls."),
        click.option("--connections", type=click.IntRange(1, 4096), default=connections,
                     show_default=True, help="Maximum operations in flight."),
        click.option("--duration", type=Seconds(0.1, 86_400), default=10.0, show_default=True,
                     help="Measured seconds."),
        click.option("--warm-up", type=Seconds(0, 3600), default=2.0, show_default=True,
                     help="Seconds before, which are not measured."),
        click.option("--embedded", is_flag=True, help="Start a system for this run and remove it "
                     "afterwards.  [default if no system is named and none runs]"),
        click.option("--board", type=BOARD, help="Board for load tests, in SCOREBOARD_BOARDS.  "
                     f"[default: the first whose name begins with {PREFIX}]"),
        click.option("--api", help="Address of the api.  [default: that of the running "
                     "`scoreboard up`]"),
        click.option("--ws", help="Address of the streamer.  [default: as --api]"),
        click.option("--users", type=click.IntRange(1, 100_000), default=200, show_default=True,
                     help="Number of users."),
        click.option("--token-file", type=FILE, help="File of lines with a token, or with a "
                     "user and a token.  [default: tokens of the local issuer]"),
        click.option("--trusted", is_flag=True, help="Use one token with update:score:any of the "
                     "local issuer, as a game server."),
        click.option("--json", type=click.Path(path_type=Path, allow_dash=True), help="Write the "
                     "result as JSON to a file, or to stdout with -."),
        click.option("--fail-if", multiple=True, type=Criteria(), metavar="CRITERION",
                     help="Exit with 1 if this holds, such as 'p99>50ms'; repeatable. Figures: "
                     f"{', '.join(UNITS)}."),
        data_dir_option,
    ]  # fmt: skip

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        names = Common.__struct_fields__

        @wraps(command)
        def call(**given: Any) -> Any:  # noqa: ANN401 (click's)
            common = Common(**{name: given.pop(name) for name in names})
            return command(common=common, **given)

        for option in reversed(options):
            call = option(call)
        return call

    return decorate


@click.group()
def bench() -> None:
    """Load a system and report latencies, outcomes and CPU time.

    Loads run on boards of their own, whose names begin with bench-, and remove their data. Without
    a system in the environment or in the data folder, one is started for the run.

    Exit codes: 0 measured; 1 a --fail-if holds, or the load failed; 130 stopped by Ctrl-C.

    \b
    Examples:
      scoreboard bench all
      scoreboard bench http --rate 2000 --duration 60 --fail-if 'p99>50ms' --fail-if 'errors>0%'
      scoreboard bench lua --batch 16 --members 1000000 --closed --json result.json
      scoreboard bench clean
    """  # noqa: D301


@bench.command()
@load_options(rate=1000)
def http(*, common: Common) -> int:
    """Send updates to the api."""
    return run(common, _http, sockets=common.connections)


@bench.command()
@load_options(rate=1000)
@click.option("--mix", type=Number(0, 100), default=50.0, show_default=True,
              help="Percentage of reads that get the leaderboard; the others get the standing of "
              "a user.")  # fmt: skip
def read(*, common: Common, mix: float) -> int:
    """Read leaderboards and standings from the api."""
    return run(common, partial(_read, mix=mix), sockets=common.connections)


@bench.command()
@load_options(rate=10)
@click.option("--viewers", type=click.IntRange(1, 20_000), default=1000, show_default=True,
              help="Number of viewers.")  # fmt: skip
@click.option("--joins", type=Number(1, 10_000), default=250.0, show_default=True,
              help="Viewers that connect per second.")  # fmt: skip
def ws(*, common: Common, viewers: int, joins: float) -> int:
    """Show a board that changes to many viewers."""
    return run(common, partial(_ws, viewers=viewers, joins=joins), sockets=viewers)


@bench.command()
@load_options(rate=2000, connections=512)
@click.option("--burst", type=click.IntRange(0, 1_000_000), default=50_000, show_default=True,
              help="Actions of the burst after the run; 0 for none.")  # fmt: skip
def flush(*, common: Common, burst: int) -> int:
    """Measure how soon and how fast the flusher commits actions to PostgreSQL."""
    return run(common, partial(_flush, burst=burst))


@bench.command()
@load_options(rate=5000)
@click.option("--members", type=click.IntRange(1, 10_000_000), default=10_000, show_default=True,
              help="Members of the board.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Actions of one call.")  # fmt: skip
def lua(*, common: Common, members: int, batch: int) -> int:
    """Apply actions by the scripts, without the services."""
    if common.board is not None:
        raise click.UsageError("lua makes a board of its own in Redis: leave --board out")
    return run(common, partial(_lua, members=members, batch=batch), needs_services=False)


@bench.command(name="all")
@load_options(rate=500)
def all_(*, common: Common) -> int:
    """Run a short form of each load and print one table."""
    return run(common, _all, sockets=max(common.connections, ALL_VIEWERS))


@bench.command(name="clean")
@data_dir_option
def clean_(*, data_dir: Path) -> None:
    """Remove what killed load tests have left behind.

    Only boards that `scoreboard bench` made are touched, and folders of its own systems. A board in
    SCOREBOARD_BOARDS is emptied; one that is no longer there is removed.
    """
    lines = remove_left_folders()
    if _is_system_named(data_dir):
        settings = load_settings_to_change(data_dir)
        with progress() as report:
            lines += asyncio.run(clean(settings, actor=operator_name(), report=report))
    print_lines(lines)
    if not lines:
        print_message("Nothing is left of load tests")


# The loads ----------------------------------------------------------------------------------------


async def _http(session: Session, common: Common) -> None:
    async with _served(session, common) as board:
        await load_updates(session, board.name, _users(session, common, board))


async def _read(session: Session, common: Common, *, mix: float) -> None:
    async with _served(session, common) as board:
        users = _users(session, common, board)
        await load_reads(session, board, users, leaderboard_share=mix / 100)


async def _ws(session: Session, common: Common, *, viewers: int, joins: float) -> None:
    async with _served(session, common) as board:
        token = "" if board.is_public else _users(session, common, board)[0].token
        await load_viewers(session, board.name, viewers=viewers, joins_per_s=joins, token=token)


async def _flush(session: Session, common: Common, *, burst: int) -> None:
    async with _served(session, common) as board:
        await load_flusher(session, board.name, users=common.users, burst=burst)


async def _lua(session: Session, common: Common, *, members: int, batch: int) -> None:
    await _require_memory(session, common)
    async with script_board(session.target.settings, members=members) as board:
        await load_scripts(session, board, members=members, batch=batch)


async def _all(session: Session, common: Common) -> None:
    """Run every load, in the order of the parts of an update."""
    loads: list[tuple[Load, float]] = [
        (partial(_lua, members=10_000, batch=16), 8 * common.rate),
        (_http, common.rate),
        (partial(_read, mix=50.0), common.rate),
        (partial(_ws, viewers=ALL_VIEWERS, joins=200.0), 10.0),
        (partial(_flush, burst=10_000), common.rate),
    ]
    for load, rate in loads:
        if session.stop.is_set():
            break
        if session.options.rate is not None:
            session.options = replace(session.options, rate=rate)
        await load(session, common)


def _served(session: Session, common: Common) -> AbstractAsyncContextManager[Board]:
    settings = session.target.settings
    return served_board(settings, choose_board(settings, common.board), actor=operator_name())


def _users(session: Session, common: Common, board: Board) -> list[User]:
    return make_users(
        session.target,
        board.name,
        count=common.users,
        token_file=common.token_file,
        is_trusted=common.trusted,
    )


async def _require_memory(session: Session, common: Common) -> None:
    """Check that Redis has room for a load whose stream nothing flushes.

    Raises OperatorMistake.
    """
    if common.closed:
        return  # its rate is not known; the run ends with `busy` at the cap of the stream
    facts = await session.redis.info("memory")
    limit = int(facts.get("maxmemory", 0))
    needed = int(common.rate * (common.duration + common.warm_up)) * ACTION_BYTES
    if limit and needed > MEMORY_SHARE * (limit - int(facts["used_memory"])):
        raise OperatorMistake(
            f"The load would fill {needed >> 20} MiB of Redis, more than a quarter of what is "
            "free: use a lower --rate or a shorter --duration"
        )


# The run ------------------------------------------------------------------------------------------


def run(common: Common, load: Load, *, sockets: int = 0, needs_services: bool = True) -> int:
    """Run a load that opens a number of sockets and report it; return the exit code.

    What was measured is reported also if the rest of the run fails.
    """
    _require_json_writable(common.json)
    _require_open_files(sockets)
    results: list[Result] = []
    output_error: Exception | None = None
    try:
        with stop_on_signals() as stop, ExitStack() as stack:
            target = _find_target(common, stack, stop, needs_services=needs_services)
            report = stack.enter_context(progress()) if is_terminal(sys.stderr) else report_nothing
            was_stopped = _run_loop(target, common, load, report, results, stop=stop)
    finally:
        try:
            if results:
                _print_results(results, common)
        except (OSError, OutputError) as error:
            output_error = error  # it must not hide why the run ended
            if isinstance(error, OutputError):
                redirect_to_devnull(sys.stdout)
            print_message(explain(error)[0])
    failures = find_failures(results, common.fail_if)
    for failure in failures:
        print_message(f"Failed: {failure}")
    if was_stopped:
        if not results:
            print_message("The run was stopped before it measured anything")
        return INTERRUPTED
    if failures:
        return CRITERIA_FAILED
    return explain(output_error)[1] if output_error else 0


def _require_json_writable(path: Path | None) -> None:
    """Check that the result can be written, before the run instead of after it.

    Raises OperatorMistake.
    """
    if path is None or str(path) == "-":
        return
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OperatorMistake(f"--json: {path} cannot be written")


def _require_open_files(sockets: int) -> None:
    """Raise the limit on open files as far as the load needs it.

    Raises OperatorMistake.
    """
    needed = sockets + SPARE_FILES
    limit = raise_open_files_limit(needed)
    if limit < needed:
        raise OperatorMistake(
            f"The load needs {needed} open files, and the limit is {limit}: raise it with "
            "ulimit -n, or use fewer connections or viewers"
        )


def _run_loop(
    target: Target,
    common: Common,
    load: Load,
    report: ReportProgress,
    results: list[Result],
    *,
    stop: StopFlag,
) -> bool:
    """Run a load, add its results, and return whether it was stopped."""

    async def serve() -> bool:
        stop_load = asyncio.Event()
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if stop.is_set() and task is not None:
                task.cancel()  # what it made is still removed
            stop.set()
            stop_load.set()

        for number in handlers:
            loop.add_signal_handler(number, on_signal)
        if stop.is_set():
            return True
        show = partial(_show_share, report)
        async with Session.open(target, common.options, stop_load, show) as session:
            session.results = results
            await load(session, common)
            return stop_load.is_set()

    handlers = {
        number: handler
        for number in SIGNALS
        if (handler := signal.getsignal(number)) != signal.SIG_IGN
    }
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in handlers.items():  # the loop has removed them
            signal.signal(number, handler)


def _show_share(report: ReportProgress, step: str, share: float) -> None:
    report(step, min(round(share * 100), 100), 100)


def _find_target(
    common: Common, stack: ExitStack, stop: StopFlag, *, needs_services: bool
) -> Target:
    if common.embedded or not _is_system_named(common.data_dir):
        if not common.embedded:
            print_message("No system is named and none runs: starting one for this run")
        if common.board is not None and not is_load_test_name(common.board):
            raise OperatorMistake(f"The names of boards for load tests begin with {PREFIX}")
        data_dir, running = stack.enter_context(own_system(common.board or OWN_BOARD, stop))
        settings = read_settings({**running.settings, **running.addresses})
        name = "a system of its own"
    else:
        settings = load_settings_to_change(common.data_dir)
        data_dir = common.data_dir
        running = None if _are_stores_given() else read_state_file(data_dir)
        name = "the system of the environment" if running is None else f"the system of {data_dir}"
    api = common.api or (running.api if running else "")
    ws = common.ws or (running.ws if running else "")
    if needs_services and not api:
        raise OperatorMistake("Name the address of the api with --api, and of the streamer: --ws")
    return Target(
        settings=settings,
        name=name,
        api=api,
        ws=ws,
        pids={part: pid for part, pid in (running.pids if running else {}).items() if pid},
        data_dir=data_dir if running else None,
    )


def _are_stores_given() -> bool:
    return any(os.environ.get(name) for name in STORE_URLS)


def _is_system_named(data_dir: Path) -> bool:
    """Return whether the environment or a data folder names a system.

    A data folder other than the default is meant, also if nothing runs there.
    """
    return _are_stores_given() or data_dir != DATA_DIR or read_state_file(data_dir) is not None


def _print_results(results: list[Result], common: Common) -> None:
    """Print the results, then write the file of --json.

    Raises OutputError, OSError.
    """
    found = results[0] if len(results) == 1 else results
    if common.json is not None and str(common.json) == "-":
        print_json(found)
        return
    if len(results) > 1:
        print_table(
            ["load", "loop", "per s", "p50", "p99", "p99.9", "max", "errors", "CPU µs", "notes"],
            [_row(result) for result in results],
        )
        for mark in dict.fromkeys(f"{one.kind}: {mark}" for one in results for mark in one.marks):
            print_message(mark)
    else:
        lines = list(describe(results[0]))
        width = max(len(label) for label, _ in lines)
        print_lines(f"{label.ljust(width)}  {text}" for label, text in lines)
    if common.json is not None:
        document = msgspec.json.format(msgspec.json.encode(found)) + b"\n"
        try:
            common.json.write_bytes(document)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(common.json)) from error


def _row(result: Result) -> list[str]:
    figures = result.figures
    times = ["-" if (value := figures[name]) is None else format_ms(value)
             for name in ("p50", "p99", "p99.9", "max")]  # fmt: skip
    errors, cpu = figures["errors"], figures["cpu"]
    return [
        result.kind,
        result.loop,
        f"{result.rate:,.0f}",
        *times,
        "-" if errors is None else f"{errors:.2%}",
        "-" if cpu is None else f"{cpu * 1e3:,.0f}",
        str(len(result.marks) or ""),
    ]
