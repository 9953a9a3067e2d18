"""How commands speak: data on stdout, as a table or as JSON; messages and progress on stderr.

Every command prints through here. Colours and bars appear on a terminal only (rich follows
NO_COLOR); elsewhere progress is a plain line now and then.
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
from scoreboard.runtime.telemetry import setup_logging

LINE_EVERY_S: Final = 5.0
"""Time between two progress lines where there is no terminal."""


class OutputError(InternalError):
    """Stdout cannot be written: it is closed, its disk is full, or nobody reads it any more."""

    code = "output-failed"
    title = "The output could not be written"


def prepare_streams(*, is_debug: bool) -> None:
    """Make stdout take any character, and send the logs of libraries to stderr, with --debug."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (for as long as the process lives)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale may know ASCII alone
    setup_logging("cli", level="debug", form="console", environment="")
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.DEBUG if is_debug else logging.CRITICAL)


def print_message(message: str) -> None:
    """Tell the operator something, on stderr; silent with --quiet."""
    if not _is_quiet():
        write_stderr(message)


def write_stderr(message: str) -> None:
    """Write lines to stderr; where nobody can read them, the command goes on."""
    try:
        click.echo("\n".join(map(escape_unsafe, message.split("\n"))), err=True)
    except OSError:
        redirect_to_devnull(sys.stderr)


def redirect_to_devnull(stream: TextIO | None) -> None:
    """Send what a stream still holds nowhere, or Python complains again when it closes it."""
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # pyright: ignore[reportOptionalMemberAccess]


def write_stdout(text: str | bytes) -> None:
    """Write data to stdout at once.

    Raises OutputError.
    """
    if sys.stdout is None:
        raise OutputError("stdout is closed")
    try:
        click.echo(text, nl=False)
    except OSError as error:
        raise OutputError(error.strerror or type(error).__name__) from error


def confirm(question: str) -> None:
    """Go on only if the operator at the terminal says so.

    Raises OperatorMistake where there is nobody to ask, click.Abort at a no.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise OperatorMistake("This asks before it goes on: give --yes where there is no terminal")
    click.confirm(question, abort=True, err=True)


def print_json(data: object) -> None:
    """Print one line of JSON on stdout, at once; in UTF-8, whatever the locale says."""
    write_stdout(msgspec.json.encode(data) + b"\n")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of data on stdout, at once."""
    write_stdout("".join(f"{line}\n" for line in lines))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows on stdout: a table on a terminal, tab-separated without a head elsewhere."""
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
    """Make a console that prints what it is given: no markup, no emoji codes, no own colours.

    A name such as `[/b]` or `:smile:` is a name.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a stream is a terminal; one that was closed before the start is None."""
    return stream is not None and stream.isatty()


@contextmanager
def progress() -> Iterator[ReportProgress]:
    """Give what long work reports its steps to: bars on a terminal, else a line every 5 s."""
    if _is_quiet():
        yield lambda _step, _done, _total: None
    elif is_terminal(sys.stderr):
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
        self._said_at_s = time.monotonic()

    def report(self, step: str, done: int, total: int) -> None:
        if time.monotonic() - self._said_at_s >= LINE_EVERY_S:
            self._said_at_s = time.monotonic()
            write_stderr(f"{step}: {done} of {total}" if total else f"{step}: {done}")


def _is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("quiet"))
