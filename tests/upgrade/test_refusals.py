"""Which schema of a later version the services of the previous release refuse."""

import subprocess
import sys
from pathlib import Path

import pytest
import redis

from scoreboard.model import Limits, Rules
from scoreboard.security.tokens import LOCAL_ISSUER, LocalIssuer
from tests.support.clients.scripts import KEYS, Scripts
from tests.upgrade.versions import Version, add_migration, copy, current, previous


@pytest.fixture(scope="module")
def contracting(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Return a version whose migration removes what the previous release uses."""
    folder = tmp_path_factory.mktemp("contracting")
    copy(folder)
    statements = ["ALTER TABLE scores RENAME COLUMN actions TO counted;"]
    add_migration(folder, "rename_actions", compatible_from=None, statements=statements)
    return Version("contracting", folder)


@pytest.mark.parametrize("role", ["api", "flusher"])
def test_a_service_refuses_a_schema_that_it_cannot_use(
    role: str, contracting: Version, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    done = contracting.run("db", "migrate", DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr

    for version in (previous(), current()):
        done = version.start(
            role,
            REDIS_URL=redis_url,
            DATABASE_URL=database_url,
            SCOREBOARD_JWKS_FILE=str(LocalIssuer.create(tmp_path / version.name).jwks_file),
            SCOREBOARD_ISSUER=LOCAL_ISSUER,
            SCOREBOARD_API_PORT="0",
            SCOREBOARD_API_METRICS_PORT="0",
            SCOREBOARD_FLUSHER_METRICS_PORT="0",
        )

        assert done.returncode == 1
        assert contracting.migrations()[-1] in done.stderr
        assert "update this service" in done.stderr
    done = previous().run("db", "migrate", DATABASE_URL=database_url)
    assert done.returncode == 1
    assert "update this service" in done.stderr


def test_the_previous_release_applies_nothing_to_a_board_with_rules(redis_url: str) -> None:
    """It would add a value to the score, and pack scores of the other order wrongly."""
    with redis.Redis.from_url(redis_url) as client:
        scripts = Scripts(client, is_real=True)
        scripts.use_rules(Rules("best", "lowest", points="stated"))
        scripts.open()
        before = scripts.snapshot()
        keys, args = scripts.submit_call(("alice", "win:1", 10))
        for key in (KEYS.banned, KEYS.gained):
            keys.remove(key)  # it does not know these keys
        text = (previous().folder / "lua/submit.lua").read_text()

        with pytest.raises(redis.ResponseError, match="UNINIT"):
            client.eval(text, len(keys), *keys, *args)

        assert scripts.snapshot() == before


def test_the_previous_release_keeps_a_held_action_as_a_dead_letter() -> None:
    fields = {
        "q": "1",
        "u": "ann",
        "a": "1",
        "d": "500",
        "s": "0",
        "e": "1",
        "k": "h",
        "l": "action",
    }
    program = (
        "from scoreboard.events import decode\n"
        f"fields = {{k.encode(): v.encode() for k, v in {fields!r}.items()}}\n"
        "print(decode(b'1-0', fields).reason)"
    )

    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=previous().environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "unknown kind of event\n"


def test_the_previous_release_counts_no_repeat_of_a_held_action(redis_url: str) -> None:
    """It answers that the action was counted, with the score without it."""
    with redis.Redis.from_url(redis_url) as client:
        scripts = Scripts(client, is_real=True)
        scripts.open()
        limits = str(Limits(per_action=10))
        scripts.run("configure", [KEYS.meta, KEYS.changes], 1, "open", limits)
        scripts.submit(("ann", "1", 5), ("ann", "2", 11))
        before = scripts.snapshot()
        keys, args = scripts.submit_call(("ann", "2", 11, 1))
        for key in (KEYS.banned, KEYS.gained):
            keys.remove(key)  # it does not know these keys
        text = (previous().folder / "lua/submit.lua").read_text()

        [row] = client.eval(text, len(keys), *keys, *args)

        assert row[:4] == [b"replayed", 11, 5, 2]
        assert scripts.snapshot() == before
