"""The rights of the deployed users and roles: sufficient for each service, and no more.

The users come from deploy/docker/users.acl, the roles from postgres-roles.sql, and their rights
from sql/grants.sql.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from websockets.sync.client import connect as connect_viewer
from websockets.typing import Subprotocol

from scoreboard.ledger import migrations
from scoreboard.model import Board, Layout, Partition, Place, Row, pack, partition_of
from scoreboard.runtime import resources
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.boards import Boards
from scoreboard.store.client import make_client
from scoreboard.store.keys import GROUP, PartitionKeys, viewers_key
from tests.support.eventually import eventually
from tests.support.servers.deployed import KEYS, PASSWORD, Deployed, is_committed, play
from tests.support.servers.rights import as_user
from tests.support.servers.system import run_command


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    made = Deployed(tmp_path_factory.mktemp("rights"))
    try:
        yield made
    finally:
        made.close()


# Required rights --------------------------------------------------------------------------------


def test_updates_and_reads_work_with_the_deployed_rights(deployed: Deployed) -> None:
    deployed.refused()
    deployed.run("user", "set", "alice", "--name", "Alice", "--email", "alice@example.org")
    address = f"{deployed.system.ws}?board=main"
    with connect_viewer(
        address, subprotocols=[Subprotocol("scoreboard.v1")], open_timeout=30
    ) as viewer:
        viewer.recv(timeout=30)

        assert play(deployed, "alice", "win:1")["newScore"] == 10
        assert play(deployed, "bob", "win:1", 25)["newScore"] == 25

        def shows_both() -> bool:
            message = json.loads(viewer.recv(timeout=30))
            rows = message.get("leaderboard", [])
            return [(row["userId"], row.get("name")) for row in rows] == [
                ("bob", None),
                ("alice", "Alice"),
            ]

        eventually(shows_both)
    board = deployed.ask("/api/scores/leaderboard?names=true")["leaderboard"]
    assert [row.get("name") for row in board] == [None, "Alice"]
    assert deployed.ask("/api/scores/users/alice?around=1")["rank"] == 2
    assert [one["name"] for one in deployed.ask("/api/boards")["boards"]] == ["main"]
    assert deployed.ask("/api/boards/main")["state"] == "open"
    eventually(lambda: is_committed(deployed))
    token = deployed.system.token("alice")
    history = deployed.ask("/api/scores/users/alice/history", token=token)["history"]
    assert [(row["actionId"], row["score"]) for row in history] == [("win:1", 10)]
    assert deployed.refused() == []


def test_status_backup_and_the_continuous_verification_work_with_the_deployed_rights(
    deployed: Deployed,
) -> None:
    deployed.refused()
    deployed.run("backup", "record", "s3://backups/1", "--check", "restored")
    ports = {
        name: text
        for name, text in deployed.system.variables["flusher"].items()
        if name.endswith("METRICS_PORT")
    }

    def checks() -> dict[str, dict[str, str]]:
        done = run_command(
            "status", "--json", "--interval", "0.1", **deployed.environment("operator"), **ports
        )
        return json.loads(done.stdout)["checks"]

    eventually(lambda: checks()["drift main"]["state"] == "none", within_s=20)
    found = checks()
    assert not {name: one for name, one in found.items() if one.get("advice")}
    assert found["backup"]["state"] == "recent"
    assert found["dead letters"]["state"] == "none"
    assert deployed.refused() == []


def test_the_flusher_corrects_stores_dead_letters_and_reseeds(deployed: Deployed) -> None:
    deployed.refused()
    assert play(deployed, "carol", "late:1", 5)["newScore"] == 5
    eventually(lambda: is_committed(deployed))

    def counts_again() -> bool:
        return not play(deployed, "carol", "late:1", 5)["replayed"]

    eventually(counts_again, every_s=0.3)
    eventually(
        lambda: deployed.owner.execute(
            "SELECT 1 FROM rejected_events WHERE reason = 'correction'"
        ).fetchone(),
    )
    deployed.admin.xadd(KEYS.events, {"hello": "world"})
    eventually(lambda: deployed.owner.execute("SELECT 1 FROM dead_events").fetchone())
    deployed.admin.xgroup_destroy(KEYS.events, GROUP)
    play(deployed, "carol", "win:2", 5)
    eventually(lambda: is_committed(deployed))
    epoch = int(deployed.admin.hget(KEYS.meta, "epoch") or 0)
    deployed.admin.hset(KEYS.meta, "seq", 1)  # as a Redis with older data
    eventually(lambda: int(deployed.admin.hget(KEYS.meta, "epoch") or 0) > epoch)
    eventually(lambda: deployed.admin.hget(KEYS.meta, "state") == "open")
    assert deployed.refused() == []


def test_an_operator_can_run_every_command(deployed: Deployed, tmp_path: Path) -> None:
    deployed.refused()
    play(deployed, "dave", "win:1", 30)
    eventually(lambda: is_committed(deployed))
    users = tmp_path / "users.csv"
    users.write_text("userId,name,email\ndave,Dave,dave@example.org\n")
    deployed.run("user", "import", str(users))
    assert "dave@example.org" in deployed.run("user", "show", "dave")
    for what in (("user", "dave"), ("board", "main"), ("ledger",)):
        deployed.run("export", *what, "--output", str(tmp_path / "export"))
    deployed.run("user", "erase", "dave", "--yes")
    deployed.run("user", "import", str(users))
    assert "dave@example.org" not in deployed.run("user", "show", "dave")
    deployed.run("audit", "list", "--user", "dave")
    deployed.run("action", "set", "win", "15")
    deployed.run("action", "disable", "win")
    deployed.run("action", "list")
    deployed.run("board", "create", "weekly", "--partitions", "2")
    deployed.run("reseed", "--board", "weekly")
    # A trigger with the rights of the owner raises what older versions must know.
    deployed.run("board", "create", "weeks", "--season", "weekly", "--time-zone", "UTC")
    deployed.run("board", "list")
    boards = tmp_path / "boards.toml"
    boards.write_text("[boards.daily]\npublic = false\n")
    deployed.run("board", "apply", str(boards))
    deployed.run("board", "set", "daily", "--public")
    deployed.run("board", "archive", "daily")
    deployed.run("board", "show", "daily")
    deployed.run("board", "export")
    deployed.run("board", "delete", "daily", "--yes")
    deployed.run("board", "top")
    deployed.run("db", "status")
    deployed.admin.zadd(KEYS.board, {"dave": pack(31, 5), "unknown": pack(3, 5)})
    deployed.run("repair", "--yes")
    deployed.run("verify", "--sample", "20")
    for number in json.loads(deployed.run("dead", "list", "--json")):
        deployed.run("dead", "discard", str(number["id"]), "--reason", "invalid", "--yes")
    deployed.admin.xadd(KEYS.events, {"u": "dave", "a": "lost:1", "d": "many", "q": "x"})
    eventually(lambda: json.loads(deployed.run("dead", "list", "--json")))
    [entry] = json.loads(deployed.run("dead", "list", "--json"))
    deployed.run("dead", "apply", str(entry["id"]), "--delta", "5", "--yes")
    deployed.run("board", "reshard", "weekly", "--partitions", "3", "--yes")
    deployed.run("board", "reshard", "weekly", "--partitions", "1", "--yes")
    with psycopg.connect(deployed.environment("operator")["DATABASE_URL"]) as operator:
        operator.execute("UPDATE boards SET seen_shards = 32 WHERE board = 'weekly'")
    deployed.run("reseed", "--board", "weekly")
    deployed.run("reseed", "--force", "--yes")
    assert deployed.admin.hget("sb:{weekly:1}:meta", "state") == "retired"
    assert deployed.refused() == []


def test_the_api_can_wait_for_replicas(deployed: Deployed) -> None:
    with as_redis(deployed, "api") as client:
        assert client.execute_command("INCR", "sb:pulse") >= 1
        assert client.execute_command("WAIT", 0, 10) == 0


# Refused rights ---------------------------------------------------------------------------------

SERVICES = ("api", "streamer", "flusher", "operator")
FORBIDDEN = [
    ("SCRIPT", "FLUSH"),
    ("FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('f', function() return 1 end)"),
    ("EVAL", "return 1", "0"),
    ("CONFIG", "SET", "appendfsync", "no"),
    ("CONFIG", "REWRITE"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("ACL", "LIST"),
    ("SHUTDOWN",),
    ("REPLICAOF", "NO", "ONE"),
    ("SAVE",),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("MONITOR",),
    ("SLOWLOG", "GET"),
    ("CLUSTER", "FAILOVER"),
    ("CLUSTER", "RESET"),
    ("PSYNC", "?", "-1"),
    ("GET", "other"),
    ("SET", "other", "1"),
    ("DEL", "sb:limit:x"),
    ("PUBLISH", "other", "x"),
    ("SUBSCRIBE", "other"),
]


def as_redis(deployed: Deployed, user: str) -> redis.Redis:
    return redis.Redis.from_url(deployed.environment(user)["REDIS_URL"], decode_responses=True)


@pytest.mark.parametrize("command", FORBIDDEN, ids=lambda words: " ".join(words[:2]))
@pytest.mark.parametrize("user", SERVICES)
def test_no_user_of_valkey_has_the_right(
    deployed: Deployed, user: str, command: tuple[str, ...]
) -> None:
    with as_redis(deployed, user) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("api", ("DEL", KEYS.events)),
        ("api", ("XTRIM", KEYS.events, "MAXLEN", "0")),
        ("api", ("XGROUP", "DESTROY", KEYS.events, GROUP)),
        ("api", ("UNLINK", KEYS.events)),
        ("api", ("UNLINK", KEYS.meta)),
        ("api", ("HSET", "sb:actions", "win", "1000")),
        ("api", ("SET", "sb:limit:x", "0")),
        ("streamer", ("CONFIG", "GET", "appendfsync")),
        ("streamer", ("HSET", KEYS.meta, "state", "open")),
        ("streamer", ("ZADD", KEYS.board, "1", "alice")),
        ("streamer", ("PUBLISH", KEYS.changes, "9:9")),
        ("streamer", ("HGETALL", "sb:actions")),
        ("flusher", ("XGROUP", "DESTROY", KEYS.events, GROUP)),
        ("flusher", ("XDEL", KEYS.events, "1-1")),
        ("flusher", ("INCR", "sb:pulse")),
        ("operator", ("XREADGROUP", "GROUP", GROUP, "x", "STREAMS", KEYS.events, ">")),
        ("operator", ("XGROUP", "DESTROY", KEYS.events, GROUP)),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_a_user_of_valkey_does_not_have_the_rights_of_another(
    deployed: Deployed, user: str, command: tuple[str, ...]
) -> None:
    with as_redis(deployed, user) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


def test_a_script_of_the_streamer_cannot_write(deployed: Deployed) -> None:
    """It may load scripts, but a script has only the rights of its user."""
    text = "return redis.call('HSET', KEYS[1], 'state', 'fenced')"
    with as_redis(deployed, "streamer") as client:
        digest = client.script_load(text)
        for command in ("EVALSHA", "EVALSHA_RO"):
            with pytest.raises(redis.exceptions.ResponseError):
                client.execute_command(command, digest, 1, KEYS.meta)
    assert deployed.admin.hget(KEYS.meta, "state") == "open"


def test_the_streamer_may_count_its_viewers_and_the_api_too(deployed: Deployed) -> None:
    for user, total in (("streamer", 3), ("api", 6)):
        with as_redis(deployed, user) as client:
            digest = client.script_load(resources.script("viewers").decode())
            assert client.evalsha(digest, 1, viewers_key("main"), user, 3, 16) == total
    with as_redis(deployed, "streamer") as client:
        digest = client.script_load(resources.script("viewers").decode())
        for key in (KEYS.meta, KEYS.banned, "sb:actions"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.evalsha(digest, 1, key, "streamer", 3, 16)


def test_places_are_read_with_the_rights_of_the_streamer(deployed: Deployed) -> None:
    """On several partitions, which need every script and command that there is for places."""
    board = Board("spread", Layout(partitions=2))
    for number in range(2):
        keys = PartitionKeys(Partition("spread", number))
        facts = {"epoch": 1, "seq": 0, "state": "open", "layout": str(board.layout), "public": 1}
        deployed.admin.hset(keys.meta, mapping=facts)
    home = PartitionKeys(Partition("spread", partition_of("alice", 2)))
    other = PartitionKeys(Partition("spread", 1 - partition_of("alice", 2)))
    deployed.admin.zadd(home.board, {"alice": pack(10, 1)})
    deployed.admin.zadd(other.board, {"bob": pack(25, 1)})

    async def read() -> list[Place]:
        url = Secret(deployed.environment("streamer")["REDIS_URL"])
        async with make_client(Settings(redis_url=url), name="test") as client:
            boards = Boards(client)
            top = await boards.leaderboard("spread", offset=9, limit=1)
            return await boards.places("spread", ["alice", "nobody"], around=2, top=top)

    alice, nobody = asyncio.run(read())
    assert (alice.rank, alice.to_next, alice.above) == (2, 15, (Row(1, "bob", 25),))
    assert (nobody.rank, nobody.total) == (None, 2)


def test_seasons_end_and_are_frozen_with_the_rights_of_the_services(deployed: Deployed) -> None:
    keys, now = PartitionKeys(Partition("league")), int(time.time())
    first, second = f"A:{now - 9}:{now - 1}", f"B:{now - 1}:{now + 99}"
    names = [keys.board, keys.events, keys.meta, keys.changes, keys.banned]
    for user in ("api", "flusher", "operator"):
        facts = {"epoch": 1, "seq": 0, "state": "open", "season": first}
        deployed.admin.hset(keys.meta, mapping=facts)
        deployed.admin.zadd(keys.board, {"alice": 1})
        with as_redis(deployed, user) as client:
            digest = client.script_load(resources.script("turn").decode())
            assert client.evalsha(digest, 5, *names, first, second) == ["turned", second]
        assert not deployed.admin.exists(keys.board)
        deployed.admin.unlink(keys.meta, keys.events)
    deployed.owner.execute(
        "INSERT INTO boards (board, partitions, seen_seconds, seen_shards, is_public, season,"
        " time_zone) VALUES ('league', 1, 1, 1, true, 'daily', 'UTC')"
    )
    row = {"board": "league", "season": "A", "name": "league@A", "start_s": 1, "end_s": 2}
    steps = [
        ("operator", "open_season", {}),
        ("flusher", "open_season", {}),
        ("flusher", "insert_season_turn", {"part": 0, "epoch": 1, "seq": 1}),
        ("flusher", "select_seasons_to_freeze", {"limit": 9}),
        ("flusher", "freeze_season", {}),
        ("api", "select_seasons", {"limit": 9, "before": None}),
        ("api", "select_season", {}),
        ("api", "select_season_standings", {"offset": 0, "limit": 9}),
        ("api", "select_season_standing", {"user_id": "alice"}),
        ("api", "select_season_standings_of", {"users": ["alice"]}),
        ("api", "select_season_score_rank", {"score": 1, "is_lowest_best": False}),
        ("operator", "select_seasons", {"limit": 9, "before": None}),
        ("operator", "select_newest_season", {}),
        ("operator", "ask_season_revision", {"reason": "test"}),
        ("flusher", "select_seasons_to_revise", {"limit": 9}),
        ("flusher", "revise_season", {"is_forced": False}),
        ("operator", "revise_season", {"is_forced": True}),
        ("flusher", "count_held_actions", {}),
    ]
    for role, query, more in steps:
        with psycopg.connect(deployed.environment(role)["DATABASE_URL"]) as connection:
            connection.execute(resources.query(query), {**row, **more})
    frozen = "SELECT count(*) FROM seasons WHERE board = 'league' AND frozen_at IS NOT NULL"
    assert deployed.owner.execute(frozen).fetchone() == (1,)
    assert deployed.owner.execute("SELECT max(revisions) FROM seasons").fetchone() == (2,)


def test_a_detached_ledger_is_read_and_verified_with_the_rights_of_the_services(
    deployed: Deployed,
) -> None:
    owner = {**deployed.environment("operator"), "DATABASE_URL": deployed.system.postgres.url}
    for words in (("separate", "cup"), ("detach", "cup", "--yes")):
        if words[0] == "detach":
            deployed.run("board", "create", "cup")
            deployed.run("board", "archive", "cup")
        done = run_command("ledger", *words, **owner)
        assert done.returncode == 0, done.stderr
    assert "detached" in deployed.run("ledger", "list")
    row = {"board": "cup", "scores": "cup", "season": None, "users": None, "limit": 9}
    for role, query in (
        ("api", "is_ledger_detached"),
        ("flusher", "check_sums"),
        ("flusher", "check_density"),
        ("operator", "check_sums"),
    ):
        with psycopg.connect(deployed.environment(role)["DATABASE_URL"]) as connection:
            connection.execute(resources.query(query), {**row, "part": 0, "epoch": 1, "seq": 0})


REFUSED_TO_ALL = [
    "UPDATE score_events SET delta = 1",
    "DELETE FROM score_events",
    "TRUNCATE score_events",
    "DELETE FROM score_events_0",
    "SELECT 1 FROM detached.some_table",
    "CREATE TABLE detached.mine (id INT)",
    "DELETE FROM score_sums",
    "UPDATE ledger_partitions SET detached_at = NULL",
    "UPDATE audit_log SET actor = 'x'",
    "DELETE FROM audit_log",
    "TRUNCATE audit_log",
    "DELETE FROM scores",
    "DELETE FROM users",
    "DELETE FROM boards",
    "DELETE FROM actions",
    "DELETE FROM dead_events",
    "DELETE FROM rejected_events",
    "DELETE FROM flush_state",
    "UPDATE users SET external_id = 'x'",
    "UPDATE score_events_0 SET delta = 1",
    "CREATE TABLE public.mine (id INT)",
    "ALTER TABLE scores ADD COLUMN x INT",
    "DROP TABLE dead_events",
    "CREATE ROLE other",
    "ALTER TABLE score_events DISABLE TRIGGER ALL",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT rolpassword FROM pg_authid",
]
API_REFUSED = [
    "SELECT email FROM users",
    "SELECT * FROM users",
    "SELECT 1 FROM scores",
    "SELECT * FROM score_events",
    "SELECT request_id FROM score_events",
    "SELECT 1 FROM score_events_0",
    "SELECT 1 FROM audit_log",
    "INSERT INTO users VALUES (gen_random_uuid(), 'x')",
    "INSERT INTO score_events_0 DEFAULT VALUES",
    "UPDATE users SET name = 'x'",
    "CREATE TEMP TABLE mine (id INT)",
]
STREAMER_REFUSED = [
    "SELECT id FROM users",
    "SELECT metadata FROM users",
    "SELECT created_at FROM users",
    "SELECT 1 FROM score_events",
    "SELECT 1 FROM seasons",
    "SELECT 1 FROM ledger_partitions",
    "SELECT 1 FROM boards",
    "SELECT 1 FROM schema_compatibility",
]
FLUSHER_REFUSED = [
    "SELECT email FROM users",
    "SELECT name FROM users",
    "UPDATE users SET name = 'x'",
    "INSERT INTO users VALUES (gen_random_uuid(), 'x', 'name')",
    "UPDATE actions SET points = 100",
    "UPDATE boards SET partitions = 1",
    "INSERT INTO boards VALUES ('x', 1, 1, 1, true)",
    "SELECT actor FROM audit_log",
    "SELECT detail FROM audit_log",
    "UPDATE dead_events SET resolved_at = now()",
    "UPDATE rejected_events SET delta = 1",
    "UPDATE scores SET board = 'x'",
]


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        *((role, one) for role in SERVICES for one in REFUSED_TO_ALL),
        *((role, one) for role in ("api", "streamer") for one in API_REFUSED),
        *(("streamer", one) for one in STREAMER_REFUSED),
        *(("flusher", one) for one in FLUSHER_REFUSED),
        ("operator", "UPDATE dead_events SET raw = ''"),
        ("operator", "UPDATE rejected_events SET delta = 1"),
    ],
)
def test_a_role_of_postgresql_does_not_have_the_right(
    deployed: Deployed, role: str, statement: str
) -> None:
    url = deployed.environment(role)["DATABASE_URL"]
    with (
        psycopg.connect(url) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE score_events SET delta = 1",
        "DELETE FROM score_events",
        "DELETE FROM score_events_others",
        "DELETE FROM score_events_0",
        "DELETE FROM score_events_1",
        "DELETE FROM score_events_2",
        "DELETE FROM score_events_3",
        "TRUNCATE score_events",
        "TRUNCATE score_events_others",
        "TRUNCATE score_events_1",
        "UPDATE audit_log SET actor = 'x'",
        "TRUNCATE audit_log",
    ],
)
def test_ledger_and_audit_log_are_append_only_for_the_owner(
    deployed: Deployed, statement: str
) -> None:
    count = "SELECT count(*) FROM score_events"
    if deployed.owner.execute(count).fetchone() == (0,):  # this test runs alone
        play(deployed, "ledger", "a-row")
        eventually(lambda: deployed.owner.execute(count).fetchone() != (0,))
    before = deployed.owner.execute(count).fetchone()
    if "DELETE FROM score_events_" in statement:
        table = statement.rpartition(" ")[2]
        row = deployed.owner.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        if row == (0,):
            return  # without a row there is nothing to refuse
    with pytest.raises(psycopg.errors.RaiseException, match="append only"):
        deployed.owner.execute(statement.encode())
    assert deployed.owner.execute(count).fetchone() == before


def test_a_migration_revokes_additional_rights(deployed: Deployed) -> None:
    deployed.owner.execute("GRANT ALL ON score_events, users TO scoreboard_api")

    migrations.migrate(deployed.system.postgres.url)

    url = deployed.environment("api")["DATABASE_URL"]
    for statement in ("DELETE FROM score_events", "SELECT email FROM users"):
        with (
            psycopg.connect(url) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement.encode())


# The rotator ------------------------------------------------------------------------------------

HASH = hashlib.sha256(b"rotated").hexdigest()


def test_the_rotator_changes_a_password_of_valkey(deployed: Deployed) -> None:
    deployed.refused()
    with as_redis(deployed, "rotator") as rotator, as_redis(deployed, "streamer") as streamer:
        assert rotator.execute_command("ACL", "WHOAMI") == "rotator"
        streamer.ping()
        rotator.execute_command("ACL", "SETUSER", "streamer", f"#{HASH}")
        assert HASH in str(rotator.execute_command("ACL", "GETUSER", "streamer"))
        url = as_user(deployed.system.valkey.url, "streamer", "rotated")
        with redis.Redis.from_url(url) as changed:
            assert changed.ping()
        rotator.execute_command("ACL", "SETUSER", "streamer", f"!{HASH}")
        with pytest.raises(redis.exceptions.ResponseError, match="not configured to use an ACL"):
            rotator.execute_command("ACL", "SAVE")  # this server has no file of users
        assert rotator.execute_command("CLIENT", "KILL", "USER", "streamer") >= 1
    assert deployed.refused() == []


@pytest.mark.parametrize(
    "command",
    [
        *(words for words in FORBIDDEN if words[:2] != ("CLIENT", "KILL")),
        ("ACL", "DELUSER", "api"),
        ("ACL", "LOAD"),
        ("ACL", "LOG"),
        ("ACL", "USERS"),
        ("ACL", "GENPASS"),
        ("CONFIG", "GET", "*"),
        ("CLIENT", "LIST"),
        ("INFO",),
        ("HGETALL", KEYS.meta),
        ("ZRANGE", KEYS.board, "0", "1"),
        ("SUBSCRIBE", KEYS.changes),
        ("PUBLISH", KEYS.changes, "9:9"),
        ("SCRIPT", "LOAD", "return 1"),
        ("EVALSHA", "0" * 40, "0"),
        ("MODULE", "LIST"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_the_rotator_may_do_nothing_else_in_valkey(
    deployed: Deployed, command: tuple[str, ...]
) -> None:
    with (
        as_redis(deployed, "rotator") as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*command)


def test_valkey_cannot_limit_acl_setuser_to_passwords(deployed: Deployed) -> None:
    """What docs/reference/credentials.md says about the rotator; change both together."""
    with as_redis(deployed, "rotator") as rotator:
        rotator.execute_command("ACL", "SETUSER", "streamer", "+get")
        rotator.execute_command("ACL", "SETUSER", "streamer", "-get")


VERIFIER = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$c3RvcmVk:c2VydmVy"


@pytest.fixture
def rotator(deployed: Deployed) -> Iterator[psycopg.Connection[Any]]:
    url = deployed.environment("rotator")["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def set_password(rotator: psycopg.Connection[Any], login: str, password: str | None) -> None:
    verifier = None
    if password is not None:
        verifier = rotator.pgconn.encrypt_password(
            password.encode(), login.encode(), b"scram-sha-256"
        ).decode()
    rotator.execute("SELECT set_login_password(%s, %s)", (login, verifier))


@pytest.mark.parametrize("service", [*SERVICES, "rotator"])
def test_the_rotator_sets_and_removes_passwords_of_logins(
    deployed: Deployed, rotator: psycopg.Connection[Any], service: str
) -> None:
    login = f"scoreboard_{service}_b"
    url = as_user(deployed.system.postgres.url, login, "rotated")

    set_password(rotator, login, "rotated")

    with psycopg.connect(url) as connection:
        usable = connection.execute(
            "SELECT pg_has_role(%s, 'USAGE')", (f"scoreboard_{service}",)
        ).fetchone()
        assert usable == (True,)
    set_password(rotator, login, None)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_each_login_of_the_rotator_changes_the_other(deployed: Deployed) -> None:
    first, second = "scoreboard_rotator_a", "scoreboard_rotator_b"
    url = deployed.environment("rotator")["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as rotator:
        set_password(rotator, second, "second")
    with psycopg.connect(
        as_user(deployed.system.postgres.url, second, "second"), autocommit=True
    ) as rotator:
        set_password(rotator, first, PASSWORD)
    with psycopg.connect(url, autocommit=True) as rotator:
        set_password(rotator, second, None)


def test_the_rotator_ends_sessions_of_one_login(
    deployed: Deployed, rotator: psycopg.Connection[Any]
) -> None:
    url = deployed.environment("operator")["DATABASE_URL"]
    with psycopg.connect(url) as session:
        seen = rotator.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'scoreboard_operator_a'"
        ).fetchone()
        ended = rotator.execute("SELECT end_login_sessions('scoreboard_operator_a')").fetchone()
        assert seen == ended
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    found = rotator.execute(
        "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'scoreboard_api_b'"
    ).fetchone()
    assert found == (True,)


@pytest.mark.parametrize(
    "statement",
    [
        *REFUSED_TO_ALL,
        *API_REFUSED,
        "SELECT name FROM users",
        "SELECT 1 FROM actions",
        "SELECT 1 FROM boards",
        "SELECT 1 FROM flush_state",
        "SELECT 1 FROM _yoyo_migration",
        "ALTER ROLE scoreboard SUPERUSER",
        "ALTER ROLE scoreboard PASSWORD 'x'",
        "ALTER ROLE scoreboard_rotator_a SUPERUSER",
        "ALTER ROLE scoreboard_rotator_a CREATEROLE",
        "ALTER ROLE scoreboard_api_a PASSWORD 'x'",
        "ALTER ROLE scoreboard_api_a NOLOGIN",
        "ALTER ROLE scoreboard_api_a SUPERUSER",
        "DROP ROLE scoreboard_api_b",
        "GRANT scoreboard_api TO scoreboard_rotator_a",
        "GRANT scoreboard_api_a TO scoreboard_rotator_a",
        "GRANT scoreboard_rotator TO scoreboard_api_a",
        "SET ROLE scoreboard_api",
        "SET ROLE scoreboard_operator_a",
        "SET ROLE scoreboard",
        "SET SESSION AUTHORIZATION scoreboard",
        "CREATE DATABASE other",
        "SELECT set_login_password('scoreboard', NULL)",
        "SELECT set_login_password('scoreboard_api', NULL)",
        "SELECT set_login_password('postgres', NULL)",
        "SELECT set_login_password('x; DROP TABLE users', NULL)",
        "SELECT set_login_password(NULL, NULL)",
        "SELECT end_login_sessions('scoreboard')",
        "SELECT end_login_sessions(NULL)",
        "ALTER FUNCTION set_login_password SECURITY INVOKER",
        "DROP FUNCTION set_login_password",
        "ALTER FUNCTION end_login_sessions OWNER TO scoreboard_rotator",
    ],
)
def test_the_rotator_may_do_nothing_else_in_postgresql(
    rotator: psycopg.Connection[Any], statement: str
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rotator.execute(statement.encode())


def test_the_rotator_ends_no_session_by_its_number(
    deployed: Deployed, rotator: psycopg.Connection[Any]
) -> None:
    number = deployed.owner.info.backend_pid
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rotator.execute("SELECT pg_terminate_backend(%s)", (number,))
    assert deployed.owner.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    "verifier", ["plain", "", "md5" + "0" * 32, VERIFIER + "\n", VERIFIER + "'; DROP TABLE users"]
)
def test_only_verifiers_are_set_as_passwords(
    rotator: psycopg.Connection[Any], verifier: str
) -> None:
    with pytest.raises(psycopg.errors.InvalidPassword):
        rotator.execute("SELECT set_login_password('scoreboard_api_b', %s)", (verifier,))


def test_a_login_that_became_a_superuser_is_not_changed(
    deployed: Deployed, rotator: psycopg.Connection[Any]
) -> None:
    deployed.owner.execute("ALTER ROLE scoreboard_api_b SUPERUSER")
    try:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            set_password(rotator, "scoreboard_api_b", "x")
    finally:
        deployed.owner.execute("ALTER ROLE scoreboard_api_b NOSUPERUSER")


def test_functions_of_the_rotator_ignore_its_temporary_objects(
    deployed: Deployed, rotator: psycopg.Connection[Any]
) -> None:
    """They run with the owner's rights, so a name must not lead to an object of the caller."""
    deployed.owner.execute("GRANT TEMPORARY ON DATABASE scoreboard TO scoreboard_rotator")
    try:
        rotator.execute("CREATE TEMP VIEW pg_roles AS SELECT 'scoreboard'::name AS rolname,"
                        " true AS rolcanlogin, false AS rolsuper")  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            set_password(rotator, "scoreboard", "x")
    finally:
        deployed.owner.execute("REVOKE TEMPORARY ON DATABASE scoreboard FROM scoreboard_rotator")


@pytest.mark.parametrize("role", SERVICES)
@pytest.mark.parametrize(
    "statement",
    ["SELECT set_login_password('scoreboard_api_b', NULL)",
     "SELECT end_login_sessions('scoreboard_api_b')"],
)  # fmt: skip
def test_services_cannot_use_the_functions_of_the_rotator(
    deployed: Deployed, role: str, statement: str
) -> None:
    url = deployed.environment(role)["DATABASE_URL"]
    with (
        psycopg.connect(url) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


# The tests themselves ---------------------------------------------------------------------------


def test_refusals_are_noticed_at_all(deployed: Deployed) -> None:
    """What the tests above rely on: a refused command is in Valkey's log."""
    deployed.refused()
    with as_redis(deployed, "api") as client, pytest.raises(redis.exceptions.ResponseError):
        client.execute_command("KEYS", "*")
    eventually(lambda: "api: keys" in deployed.refused())
