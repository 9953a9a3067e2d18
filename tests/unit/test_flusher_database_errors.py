"""Classification of SQLSTATEs: dead letter, retry, or stop."""

from unittest.mock import PropertyMock

import psycopg
import pytest
from psycopg import errors

from flusher.database_errors import ErrorClass, classify


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (psycopg.OperationalError("connection lost"), ErrorClass.UNAVAILABLE),
        (psycopg.InterfaceError("closed"), ErrorClass.UNAVAILABLE),
        (errors.AdminShutdown(), ErrorClass.UNAVAILABLE),
        (errors.IdleSessionTimeout(), ErrorClass.UNAVAILABLE),
        (errors.IdleInTransactionSessionTimeout(), ErrorClass.UNAVAILABLE),
        (errors.CannotConnectNow(), ErrorClass.UNAVAILABLE),
        (errors.DiskFull(), ErrorClass.UNAVAILABLE),
        (errors.TooManyConnections(), ErrorClass.UNAVAILABLE),
        (errors.ReadOnlySqlTransaction(), ErrorClass.UNAVAILABLE),
        (errors.InternalError_(), ErrorClass.UNAVAILABLE),
        (errors.DeadlockDetected(), ErrorClass.CONTENTION),
        (errors.SerializationFailure(), ErrorClass.CONTENTION),
        (errors.LockNotAvailable(), ErrorClass.CONTENTION),
        (errors.QueryCanceled(), ErrorClass.CONTENTION),
        (errors.NumericValueOutOfRange(), ErrorClass.POISON),
        (errors.ForeignKeyViolation(), ErrorClass.POISON),
        (psycopg.DataError("NUL"), ErrorClass.POISON),
        (errors.UndefinedTable(), ErrorClass.SCHEMA),
        (errors.UndefinedColumn(), ErrorClass.SCHEMA),
        (errors.InsufficientPrivilege(), ErrorClass.SCHEMA),
        (errors.InvalidSchemaName(), ErrorClass.SCHEMA),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_has_one_class(error: psycopg.Error, meaning: ErrorClass) -> None:
    assert classify(error) is meaning


@pytest.mark.parametrize(
    ("constraint", "meaning"), [("scores_score", ErrorClass.POISON), (None, ErrorClass.SCHEMA)]
)
def test_a_missing_ledger_partition_is_not_a_bad_row(
    constraint: str | None, meaning: ErrorClass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a check violation; treated as a bad row, the whole stream would become dead letters."""
    diagnosis = type("Diagnosis", (), {"constraint_name": constraint})()
    monkeypatch.setattr(psycopg.Error, "diag", PropertyMock(return_value=diagnosis))

    assert classify(errors.CheckViolation()) is meaning
