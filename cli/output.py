"""Output of the commands: data on stdout, as a table or JSON; messages and progress on stderr.

Colours and progress bars appear on a terminal only (rich honours NO_COLOR); elsewhere progress is
a plain line every few seconds.
"""

import io
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TextIO

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.text import escape_unsafe
from scoreboard.errors import InternalError, OperatorMistake
from scoreboard.recovery.reseed import ReportProgress
from scoreboard.runtime.telemetry import get_logger, setup_logging

LEVELS: Final = ("debug", "info", "warning", "error")

_log: Final = get_logger(__name__)

LINE_EVERY_S: Final = 5.0
"""Time between two progress lines without a terminal."""


class OutputError(InternalError):
    """Stdout cannot be written: it is closed, its disk is full, or its reader has gone."""

    code = "output-failed"
    title = "The output could not be written"


def prepare_streams(*, is_debug: bool) -> None:
    """Let stdout accept any character and, with --debug, log the libraries' messages to stderr.

    With SCOREBOARD_LOG_FORMAT=json, stderr has log lines only, as that of the services.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (open until the process exits)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the locale may allow ASCII only
    if is_log_json():
        level = os.environ.get("SCOREBOARD_LOG_LEVEL") or "info"
        setup_logging(
            "cli",
            level="debug" if is_debug else level if level in LEVELS else "info",
            form="json",
            environment=os.environ.get("SCOREBOARD_ENVIRONMENT") or "development",
        )
        return
    setup_logging("cli", level="debug", form="console", environment="")
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.DEBUG if is_debug else logging.CRITICAL)


def is_log_json() -> bool:
    """Return whether messages and errors are log lines."""
    return os.environ.get("SCOREBOARD_LOG_FORMAT") == "json"


def print_message(message: str) -> None:
    """Print a message for the operator to stderr, unless --quiet is given."""
    if is_log_json():
        _log.info("message_printed", text=message)
    elif not _is_quiet():
        write_stderr(message)


def write_stderr(message: str) -> None:
    """Write lines to stderr; an error of the stream does not stop the command."""
    try:
        click.echo("\n".join(map(escape_unsafe, message.split("\n"))), err=True)
    except OSError:
        redirect_to_devnull(sys.stderr)


def redirect_to_devnull(stream: TextIO | None) -> None:
    """Redirect a broken stream to /dev/null, so that closing it at exit raises no second error."""
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # pyright: ignore[reportOptionalMemberAccess]


def write_stdout(text: str | bytes) -> None:
    """Write data to stdout and flush it.

    Raises OutputError.
    """
    if sys.stdout is None:
        raise OutputError("stdout is closed")
    try:
        click.echo(text, nl=False)
    except OSError as error:
        raise OutputError(error.strerror or type(error).__name__) from error


def confirm(question: str) -> None:
    """Ask the operator to confirm.

    Raises OperatorMistake without a terminal, click.Abort if the answer is no.
    """
    _require_terminal()
    click.confirm(question, abort=True, err=True)


def prompt(question: str) -> str:
    """Ask the operator for a line of text.

    Raises OperatorMistake without a terminal, click.Abort at its end.
    """
    _require_terminal()
    return str(click.prompt(question, type=str, err=True))


def _require_terminal() -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise OperatorMistake(
            "This command asks for confirmation; use --yes where stdin is not a terminal"
        )


def print_json(data: object) -> None:
    """Print one line of JSON to stdout and flush it; always in UTF-8."""
    write_stdout(msgspec.json.encode(data) + b"\n")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of data to stdout and flush them."""
    write_stdout("".join(f"{line}\n" for line in lines))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows to stdout: a table on a terminal, else tab-separated lines without a header."""
    cells = [["" if value is None else escape_unsafe(str(value)) for value in row] for row in rows]
    if not is_terminal(sys.stdout):
        print_lines("\t".join(row) for row in cells)
        return
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        is_number = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if is_number else "left")
    for row in cells:
        table.add_row(*row)
    console = plain_console()
    with console.capture() as captured:
        console.print(table)
    write_stdout(captured.get())


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console without markup, emoji codes and highlighting.

    A user's name such as `[/b]` or `:smile:` is printed as it is.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; None is a stream that was closed at the start."""
    return stream is not None and stream.isatty()


@contextmanager
def progress() -> Iterator[ReportProgress]:
    """Yield the function that reports progress: bars on a terminal, else a line every 5 s."""
    if _is_quiet():
        yield lambda _step, _done, _total: None
    elif is_terminal(sys.stderr) and not is_log_json():
        with _bars() as report:
            yield report
    else:
        yield _Lines().report


@contextmanager
def _bars() -> Iterator[ReportProgress]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=plain_console(stderr=True)) as bars:
        tasks = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield report


class _Lines:
    def __init__(self) -> None:
        self._printed_at_s = time.monotonic()

    def report(self, step: str, done: int, total: int) -> None:
        if time.monotonic() - self._printed_at_s >= LINE_EVERY_S:
            self._printed_at_s = time.monotonic()
            print_message(f"{step}: {done} of {total}" if total else f"{step}: {done}")


def _is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("quiet"))
