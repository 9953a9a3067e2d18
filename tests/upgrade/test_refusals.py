"""Which schema of a later version the services of the previous release refuse."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
import redis

from cli.embedded.ports import find_free_port
from cli.running.service import Service
from scoreboard.ledger.boards import insert_board
from scoreboard.ledger.pool import connect
from scoreboard.model import Action, Board, Layout, Limits, Receipt, Rules
from scoreboard.recovery.reseed import SESSION, reseed
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.tokens import LOCAL_ISSUER, READ, UPDATE_ANY, LocalIssuer
from tests.support.clients.scripts import KEYS, Scripts
from tests.support.eventually import eventually, eventually_async
from tests.support.servers.flushers import act, flushing, is_drained, query, store_of
from tests.upgrade.versions import Version, add_migration, copy, current, previous

SEASONS = Rules(season="monthly", time_zone="UTC")
LEAGUE = Board("league", Layout(rules=SEASONS))


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


@pytest.mark.parametrize("rules", [Rules("best", "lowest", points="stated"), SEASONS], ids=str)
def test_the_previous_release_applies_nothing_to_a_board_with_rules(
    rules: Rules, redis_url: str
) -> None:
    """It would add a value to the score, pack scores of the other order wrongly, or mix seasons."""
    with redis.Redis.from_url(redis_url) as client:
        scripts = Scripts(client, is_real=True)
        scripts.use_rules(rules)
        scripts.open(season="2026:0:4000000000" if rules.season else "")
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


class OldServices:
    """Processes of the previous release on the test's servers."""

    def __init__(self, redis_url: str, database_url: str, folder: Path) -> None:
        self._folder = folder
        self.issuer = LocalIssuer.create(folder / "issuer")
        self._environment = {
            **previous().environment,
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "SCOREBOARD_JWKS_FILE": str(self.issuer.jwks_file),
            "SCOREBOARD_ISSUER": LOCAL_ISSUER,
            "SCOREBOARD_RATE_LIMIT": "gateway",
            "SCOREBOARD_UNKNOWN_KINDS": "default",
            "SCOREBOARD_API_METRICS_PORT": "0",
            "SCOREBOARD_UNSAFE_REDIS": "true",
        }

    def environment(self, boards: str, port: int) -> dict[str, str]:
        """Return the environment of a service for boards."""
        return self._environment | {
            "SCOREBOARD_BOARDS": boards,
            "SCOREBOARD_API_PORT": str(port),
            "SCOREBOARD_FLUSHER_METRICS_PORT": str(port),
        }

    def log(self, role: str) -> str:
        """Return what the processes of a service have logged."""
        return (self._folder / f"{role}.log").read_text()

    @contextmanager
    def running(self, role: str, boards: str = "main") -> Iterator[int]:
        """Run a service for boards; yield its port when it is alive."""
        port = find_free_port()
        service = Service(
            role,
            ["-P", "-m", role],
            self.environment(boards, port),
            self._folder / f"{role}.log",
            ready_url=f"http://127.0.0.1:{port}/health/live",
        )
        service.start()
        try:
            eventually(lambda: not service.probe_ready())
            yield port
        finally:
            service.stop()


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


@pytest.fixture
def old_services(redis_url: str, database_url: str, tmp_path: Path) -> OldServices:
    return OldServices(redis_url, database_url, tmp_path)


async def make(settings: Settings, *boards: Board) -> None:
    """Create boards with this version, and open them."""
    connection = await connect(settings, name="test", autocommit=True, **SESSION)
    try:
        async with store_of(settings) as store:
            for board in boards:
                await insert_board(connection, board)
                await reseed(store, connection, board, [0], actor="test")
    finally:
        await connection.close()


async def test_an_api_of_the_previous_release_answers_503_for_a_board_with_seasons(
    settings: Settings, old_services: OldServices
) -> None:
    """One that runs already serves the other boards; an update of this version counts."""
    await make(settings, Board())
    token = old_services.issuer.issue("game-server", [UPDATE_ANY, READ], 3600)
    with old_services.running("api", "main,league") as port:
        await make(settings, LEAGUE)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/api/scores",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
        ) as client:
            for board, status in (("main", 200), ("league", 503)):
                body = {"userId": "ann", "actionId": "win:1"}
                update = await client.post("/update", params={"board": board}, json=body)
                read = await client.get("/leaderboard", params={"board": board})
                assert (update.status_code, read.status_code) == (status, status), board
        action = Action("ann", "win:1", 7, rules=SEASONS)
        [receipt] = await act(settings, action, board="league")
    assert isinstance(receipt, Receipt)
    assert (receipt.score, receipt.replayed) == (7, False)


async def test_a_flusher_of_the_previous_release_counts_nothing_of_a_board_with_seasons(
    settings: Settings, old_services: OldServices
) -> None:
    """It would count the actions without a season. One that runs already serves other boards."""
    await make(settings, Board())
    with old_services.running("flusher", "main,league") as port:
        await act(settings, Action("ann", "win:1", 5))
        await eventually_async(lambda: is_drained(settings))
        await make(settings, LEAGUE)
        await act(settings, Action("ann", "win:1", 7, rules=SEASONS), board="league")
        await eventually_async(lambda: "0021_create_seasons" in old_services.log("flusher"))
        await act(settings, Action("ann", "win:2", 5))
        await eventually_async(lambda: is_drained(settings))
        assert not is_drained(settings, "league")
        assert port
        async with flushing(msgspec.structs.replace(settings, boards=("league",))):
            await eventually_async(lambda: is_drained(settings, "league"))
    rows = query(settings, "SELECT board, season, delta FROM score_events ORDER BY board")
    [(season,)] = query(settings, "SELECT season FROM seasons")
    assert rows == [("league", season, 7), ("main", None, 5), ("main", None, 5)]
    scores = query(settings, "SELECT board, score FROM scores ORDER BY board")
    assert scores == [(f"league@{season}", 7), ("main", 10)]
    assert query(settings, "SELECT 1 FROM dead_events") == []


@pytest.mark.parametrize("role", ["api", "flusher"])
async def test_the_previous_release_does_not_start_beside_a_board_with_seasons(
    role: str, settings: Settings, old_services: OldServices
) -> None:
    """Also after a rollback, and only from the first of these boards on."""
    await make(settings, Board())
    with old_services.running(role):
        pass
    await make(settings, LEAGUE)

    done = previous().start(role, **old_services.environment("main", find_free_port()))

    assert done.returncode == 1
    assert "0021_create_seasons" in done.stderr
    assert "update this service" in done.stderr


def test_the_previous_release_ignores_limits(redis_url: str) -> None:
    """So limits are set when no service of it is left."""
    with redis.Redis.from_url(redis_url) as client:
        scripts = Scripts(client, is_real=True)
        scripts.open()
        limits = str(Limits(per_action=10))
        scripts.run("configure", [KEYS.meta, KEYS.changes], 1, "open", limits)
        keys, args = scripts.submit_call(("ann", "1", 11))
        for key in (KEYS.banned, KEYS.gained):
            keys.remove(key)  # it does not know these keys
        text = (previous().folder / "lua/submit.lua").read_text()

        [row] = client.eval(text, len(keys), *keys, *args)

        assert row[:4] == [b"applied", 11, 11, 1]
        assert scripts.submit(("ann", "1", 11)) == [["replayed", 11, 11, 1]]
