"""Report the error of a command: one line on stderr and an exit code.

Invariants: the line contains no password; every exit code is in docs/reference/cli.md.
"""

import os
import select
import sys
import traceback
from typing import Final

import click
import psycopg
import redis.exceptions

from cli.output import OutputError, is_log_json, redirect_to_devnull, write_stderr
from scoreboard.errors import (
    ClientError,
    DatabaseUnavailable,
    Forbidden,
    NotFound,
    ScoreboardError,
    Unauthenticated,
    Unavailable,
    WaitTimeout,
)
from scoreboard.runtime.connection_urls import driver_error, error_text, extract_passwords
from scoreboard.runtime.lifecycle import DeadlinePassed
from scoreboard.runtime.telemetry import get_logger, redact

_log: Final = get_logger(__name__)

EXIT_CODES: Final[tuple[tuple[type[ScoreboardError], int], ...]] = (
    (NotFound, 3),
    (Unauthenticated, 4),
    (Forbidden, 4),
    (ClientError, 5),
    (WaitTimeout, 75),
    (Unavailable, 69),
    (OutputError, 74),
    (ScoreboardError, 1),
)
"""The first class that matches sets the exit code; 2 is click's, for a wrong command line."""

_OUTDATED: Final = "The database schema is outdated (run scoreboard db migrate)"

DRIVERS: Final[tuple[tuple[type[Exception], str, int], ...]] = (
    (psycopg.errors.InsufficientPrivilege, "Permission denied by PostgreSQL", 4),
    (psycopg.errors.ReadOnlySqlTransaction, "The database is read-only", 5),
    (
        psycopg.errors.UndefinedTable,
        _OUTDATED,
        1,
    ),
    (
        psycopg.errors.UndefinedColumn,
        _OUTDATED,
        1,
    ),
    (
        psycopg.errors.UndefinedFunction,
        _OUTDATED,
        1,
    ),
    (psycopg.OperationalError, "PostgreSQL is unreachable", 69),
    (psycopg.Error, "PostgreSQL rejected a statement", 1),
    (redis.exceptions.NoPermissionError, "Permission denied by Redis", 4),
    (redis.exceptions.ReadOnlyError, "This Redis server is a read-only replica", 5),
    (redis.exceptions.ConnectionError, "Redis is unreachable", 69),
    (redis.exceptions.TimeoutError, "Redis is unreachable", 69),
    (redis.exceptions.RedisError, "Redis rejected a command", 1),
)
"""Errors of drivers, raised directly or as the cause of a ScoreboardError: first match wins."""

FILE_FAILED: Final = 74
"""A file or stdout could not be read or written (EX_IOERR)."""

HIDDEN_MIN: Final = 4
"""Shorter passwords are not replaced in messages: they would match parts of ordinary words."""


def report(error: Exception, *, is_debug: bool = False) -> int:
    """Print the line that describes an error and return its exit code."""
    if isinstance(error, click.ClickException):
        if is_log_json():
            _log.error("command_failed", reason=error.format_message())
            return error.exit_code
        try:
            error.show()
        except OSError:
            redirect_to_devnull(sys.stderr)
        return error.exit_code
    if isinstance(error, OSError | OutputError):
        is_reader_gone = _is_reader_gone()
        redirect_to_devnull(sys.stdout)
        if is_reader_gone:
            return 0  # the reader of stdout needs no more
    line, code = explain(error)
    if is_log_json():
        _log.error("command_failed", reason=line)
        return code
    write_stderr(f"scoreboard: {line}")
    if is_debug:
        for part in traceback.format_exception(error):
            for text in part.splitlines():
                write_stderr(_without_passwords(text))
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """Return the line, without passwords, and the exit code of an error."""
    line, code = _explain(error)
    return _without_passwords(line), code


def _explain(error: BaseException) -> tuple[str, int]:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ScoreboardError):
        return _explain_scoreboard_error(error)
    if isinstance(error, DeadlinePassed):
        return "The command did not stop in time", exit_code_of(WaitTimeout())
    words = error_text(error)
    for kind, title, code in DRIVERS:
        if isinstance(error, kind):
            return f"{title}: {words}", code
    if isinstance(error, OSError) and error.strerror:
        where = f" {os.fsdecode(error.filename)}" if error.filename is not None else ""
        return f"Cannot read or write{where}: {error.strerror}", FILE_FAILED
    what = f"{type(error).__name__}: {words}"
    return f"Internal error: {what} (scoreboard --debug prints the traceback)", 1


def _explain_scoreboard_error(error: ScoreboardError) -> tuple[str, int]:
    cause = driver_error(error) if isinstance(error, Unavailable) else None
    if cause is None:
        detail = detail_of(error)
        details = [error.title, *([detail] if detail != error.title else [])]
        return ": ".join(details), exit_code_of(error)
    row = next((row for row in DRIVERS if isinstance(cause, row[0])), None)
    title, code = row[1:] if row else (error.title, exit_code_of(error))
    if isinstance(error, DatabaseUnavailable):
        return f"{title}: {error.detail}", code  # the detail contains the cause
    words = error_text(cause)
    if words in error.detail:
        return f"{title}: {error.detail}", code
    detail = f" {error.detail}:" if error.detail not in {error.title, ""} else ""
    return f"{title}:{detail} {words}", code


def detail_of(error: ScoreboardError) -> str:
    """Return the detail of an error, with what to do at the command line."""
    hint = error.hint if isinstance(error, ClientError) else ""
    return f"{error.detail}; {hint}" if hint else error.detail


def exit_code_of(error: ScoreboardError) -> int:
    """Return the exit code of a ScoreboardError."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def _without_passwords(text: str) -> str:
    for password in extract_passwords(*(os.environ.get(name, "") for name in _ADDRESSES)):
        if len(password) >= HIDDEN_MIN:
            text = text.replace(password, "***")
    return redact(text)


_ADDRESSES: Final = ("REDIS_URL", "DATABASE_URL")


def _is_reader_gone() -> bool:
    """Return whether stdout is a pipe or a socket whose reader has closed it."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(happened & (select.POLLERR | select.POLLHUP) for _, happened in poll.poll(0))
