"""Classifies PostgreSQL errors by SQLSTATE for the writer.

A row that can never be stored becomes a dead letter; after every other error the batch is retried.
A wrong schema can look like a bad row (a missing ledger partition is a check violation); treated as
one it would move the whole stream to dead_events.
"""

from enum import Enum
from typing import Final

import psycopg

UNAVAILABLE_CLASSES: Final = ("08", "53", "57P")
UNAVAILABLE: Final = frozenset({"25006", "25P03"})
"""Read-only transaction (a standby), and idle-in-transaction timeout."""
CONTENTION: Final = frozenset({"40001", "40P01", "55P03", "57014"})
SCHEMA_CLASSES: Final = ("42", "3F")
POISON_CLASSES: Final = ("22", "23")
CHECK_VIOLATION: Final = "23514"


class ErrorClass(Enum):
    """How to handle an error."""

    UNAVAILABLE = "reconnect, without a limit"
    CONTENTION = "retry the batch"
    POISON = "find the row and make it a dead letter"
    SCHEMA = "stop and alert"


def classify(error: psycopg.Error) -> ErrorClass:  # noqa: PLR0911 (one return per rule)
    """Classify an error by its SQLSTATE."""
    state = error.sqlstate
    if state is None:
        # Raised by the driver: a value it cannot write, or a lost connection.
        return ErrorClass.POISON if isinstance(error, psycopg.DataError) else ErrorClass.UNAVAILABLE
    if state in CONTENTION:
        return ErrorClass.CONTENTION
    if state in UNAVAILABLE or state.startswith(UNAVAILABLE_CLASSES):
        return ErrorClass.UNAVAILABLE
    if state == CHECK_VIOLATION and not error.diag.constraint_name:
        return ErrorClass.SCHEMA  # "no partition of relation found for row"
    if state.startswith(SCHEMA_CLASSES):
        return ErrorClass.SCHEMA
    if state.startswith(POISON_CLASSES):
        return ErrorClass.POISON
    return ErrorClass.UNAVAILABLE
