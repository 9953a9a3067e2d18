"""Errors about missing server programs name settings that `up` accepts."""

import pytest

from cli.embedded import binaries
from cli.running.plan import Plan, UpOptions
from scoreboard.errors import EmbeddedFailed, OperatorMistake


@pytest.mark.parametrize("find", [binaries.find_valkey, binaries.find_postgres])
def test_the_error_about_a_missing_program_names_both_addresses(
    find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incident: the advice was to set one address, and `up` refuses one without the other."""
    monkeypatch.setattr(binaries, "_package_folders", lambda _name: [])
    monkeypatch.setattr(binaries, "find_program", lambda _name: None)
    monkeypatch.setattr(binaries, "_postgres_folders", lambda: iter(()))

    with pytest.raises(EmbeddedFailed, match="set REDIS_URL and DATABASE_URL to use your own"):
        find()


def test_one_address_alone_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/x")
    monkeypatch.delenv("REDIS_URL", raising=False)

    with pytest.raises(OperatorMistake, match="set both"):
        Plan(UpOptions(data_dir=tmp_path))
