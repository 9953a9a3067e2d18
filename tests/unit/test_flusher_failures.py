"""What an SQLSTATE means: parked, tried again, or stopped for."""

from unittest.mock import PropertyMock

import psycopg
import pytest
from psycopg import errors

from flusher.failures import Meaning, meaning_of


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (psycopg.OperationalError("connection lost"), Meaning.AWAY),
        (psycopg.InterfaceError("closed"), Meaning.AWAY),
        (errors.AdminShutdown(), Meaning.AWAY),
        (errors.IdleSessionTimeout(), Meaning.AWAY),
        (errors.IdleInTransactionSessionTimeout(), Meaning.AWAY),
        (errors.CannotConnectNow(), Meaning.AWAY),
        (errors.DiskFull(), Meaning.AWAY),
        (errors.TooManyConnections(), Meaning.AWAY),
        (errors.ReadOnlySqlTransaction(), Meaning.AWAY),
        (errors.InternalError_(), Meaning.AWAY),
        (errors.DeadlockDetected(), Meaning.CONTENTION),
        (errors.SerializationFailure(), Meaning.CONTENTION),
        (errors.LockNotAvailable(), Meaning.CONTENTION),
        (errors.QueryCanceled(), Meaning.CONTENTION),
        (errors.NumericValueOutOfRange(), Meaning.POISON),
        (errors.ForeignKeyViolation(), Meaning.POISON),
        (psycopg.DataError("NUL"), Meaning.POISON),
        (errors.UndefinedTable(), Meaning.SCHEMA),
        (errors.UndefinedColumn(), Meaning.SCHEMA),
        (errors.InsufficientPrivilege(), Meaning.SCHEMA),
        (errors.InvalidSchemaName(), Meaning.SCHEMA),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_means_one_thing(error: psycopg.Error, meaning: Meaning) -> None:
    assert meaning_of(error) is meaning


@pytest.mark.parametrize(
    ("constraint", "meaning"), [("scores_score", Meaning.POISON), (None, Meaning.SCHEMA)]
)
def test_a_missing_ledger_partition_is_no_poison(
    constraint: str | None, meaning: Meaning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes as a check violation; taken for poison, the whole stream would be parked."""
    diagnosis = type("Diagnosis", (), {"constraint_name": constraint})()
    monkeypatch.setattr(psycopg.Error, "diag", PropertyMock(return_value=diagnosis))

    assert meaning_of(errors.CheckViolation()) is meaning
