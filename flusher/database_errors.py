"""What an error of PostgreSQL means to a flusher. Used by the writer alone.

The distinction that matters: a row that can never be stored is parked, everything else is tried
again. A wrong schema looks like a bad row at first sight (a missing ledger partition is a check
violation), and taken for one it would empty the stream into dead_events.
"""

from enum import Enum
from typing import Final

import psycopg

AWAY_CLASSES: Final = ("08", "53", "57P")
AWAY: Final = frozenset({"25006", "25P03"})
"""Read only (a standby), and a session ended for idling in its transaction."""
CONTENTION: Final = frozenset({"40001", "40P01", "55P03", "57014"})
SCHEMA_CLASSES: Final = ("42", "3F")
POISON_CLASSES: Final = ("22", "23")
CHECK_VIOLATION: Final = "23514"


class ErrorClass(Enum):
    """What to do about an error."""

    AWAY = "connect anew, for ever"
    CONTENTION = "the same batch again"
    POISON = "find the row and park it"
    SCHEMA = "stop and alert"


def classify(error: psycopg.Error) -> ErrorClass:  # noqa: PLR0911 (a table, row by row)
    """Classify an error by its SQLSTATE."""
    state = error.sqlstate
    if state is None:
        # The driver's own: a value it cannot write, or a connection that is gone.
        return ErrorClass.POISON if isinstance(error, psycopg.DataError) else ErrorClass.AWAY
    if state in CONTENTION:
        return ErrorClass.CONTENTION
    if state in AWAY or state.startswith(AWAY_CLASSES):
        return ErrorClass.AWAY
    if state == CHECK_VIOLATION and not error.diag.constraint_name:
        return ErrorClass.SCHEMA  # "no partition of relation found for row"
    if state.startswith(SCHEMA_CLASSES):
        return ErrorClass.SCHEMA
    if state.startswith(POISON_CLASSES):
        return ErrorClass.POISON
    return ErrorClass.AWAY
