"""How commands speak: data on stdout, as a table or as JSON; messages and progress on stderr.

Every command prints through here. Colours and bars appear on a terminal only (rich follows
NO_COLOR); elsewhere progress is a plain line now and then.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from scoreboard.errors import OperatorMistake
from scoreboard.reseed import Report

LINE_EVERY_S: Final = 5.0
"""Time between two progress lines where there is no terminal."""


def say(message: str) -> None:
    """Tell the operator something, on stderr; silent with --quiet."""
    if not _is_quiet():
        click.echo(message, err=True)


def confirm(question: str) -> None:
    """Go on only if the operator at the terminal says so.

    Raises OperatorMistake where there is nobody to ask, click.Abort at a no.
    """
    if not sys.stdin.isatty():
        raise OperatorMistake("This asks before it goes on: give --yes where there is no terminal")
    click.confirm(question, abort=True, err=True)


def print_json(data: object) -> None:
    """Print one line of JSON on stdout, at once."""
    click.echo(msgspec.json.encode(data).decode())
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows on stdout: a table on a terminal, tab-separated without a head elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join("" if value is None else str(value) for value in row))
        return
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        is_number = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    Console().print(table)


@contextmanager
def progress() -> Iterator[Report]:
    """Give what long work reports its steps to: bars on a terminal, else a line every 5 s."""
    if _is_quiet():
        yield lambda _step, _done, _total: None
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _Lines().report


@contextmanager
def _bars() -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
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
            click.echo(f"{step}: {done} of {total}", err=True)


def _is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("quiet"))
