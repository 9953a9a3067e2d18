"""Log files of the services of `up` have a size limit."""

import stat
from pathlib import Path

import pytest

from cli.running.log_rotation import rotate_if_large


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "api.log"


def test_a_large_log_is_copied_and_truncated(log: Path) -> None:
    with log.open("ab", buffering=0) as child:
        child.write(b"x" * 11)
        assert rotate_if_large(log, 10)
        child.write(b"next")

    assert log.read_bytes() == b"next"
    before = log.with_name("api.log.1")
    assert before.read_bytes() == b"x" * 11
    assert stat.S_IMODE(before.stat().st_mode) == 0o600


def test_a_small_or_missing_log_is_not_changed(log: Path) -> None:
    assert not rotate_if_large(log, 10)
    log.write_bytes(b"x" * 10)
    assert not rotate_if_large(log, 10)
    assert list(log.parent.iterdir()) == [log]


def test_a_log_that_cannot_be_copied_is_truncated(log: Path) -> None:
    # On a full disk there is no room for a copy; the log is lost.
    log.write_bytes(b"x" * 11)
    log.with_name("api.log.1").mkdir()

    assert rotate_if_large(log, 10)

    assert log.read_bytes() == b""
