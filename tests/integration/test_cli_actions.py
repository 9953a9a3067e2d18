"""`scoreboard action`: the catalogue in PostgreSQL, its copy in Redis, and the notification."""

import json
from pathlib import Path

import jwt
import psycopg
import redis

from cli.target import ISSUER_DIR
from scoreboard.security.local_issuer import LocalProver
from scoreboard.store.keys import ACTIONS, ACTIONS_CHANGED
from tests.support.clients.commands import Run


def test_action_set_writes_audits_mirrors_and_announces(
    command: Run, redis_url: str, database_url: str
) -> None:
    with (
        redis.Redis.from_url(redis_url, decode_responses=True) as client,
        client.pubsub() as listener,
    ):
        listener.subscribe(ACTIONS_CHANGED)
        assert listener.get_message(timeout=30)["type"] == "subscribe"

        assert command("action", "set", "win", "50").code == 0

        assert listener.get_message(timeout=30)["type"] == "message"
        assert client.hget(ACTIONS, "win") == "50"
    with psycopg.connect(database_url) as connection:
        audited = connection.execute("SELECT action, detail FROM audit_log").fetchall()
    assert audited == [("action set", {"kind": "win", "points": 50})]


def test_a_disabled_kind_has_0_points_until_set_again(command: Run, redis_url: str) -> None:
    command("action", "set", "win", "50")

    assert command("action", "disable", "win").code == 0

    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        assert client.hget(ACTIONS, "win") == "0"
        assert command("action", "list").out == "win\t50\tno\n"
        command("action", "set", "win", "5")
        assert client.hget(ACTIONS, "win") == "5"
    (listed,) = json.loads(command("action", "list", "--json").out)
    assert (listed["kind"], listed["points"], listed["enabled"]) == ("win", 5, True)


def test_if_missing_does_not_change_an_existing_kind(command: Run, redis_url: str) -> None:
    assert command("action", "set", "win", "10", "--if-missing").code == 0
    command("action", "set", "win", "50")

    again = command("action", "set", "win", "10", "--if-missing")

    assert again.code == 0
    assert "was not changed" in again.err
    assert command("action", "list").out == "win\t50\tyes\n"
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        assert client.hget(ACTIONS, "win") == "50"


def test_invalid_kinds_and_points_are_rejected(command: Run) -> None:
    assert command("action", "set", "a:b", "5").code == 2
    assert command("action", "set", "win", "0").code == 2
    assert command("action", "set", "win", "1000001").code == 2
    assert command("action", "disable", "unknown").code == 3
    assert command("action", "list").out == ""


def test_an_unreachable_redis_reports_that_the_change_was_saved(command: Run, monkeypatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    done = command("action", "set", "win", "50")

    assert done.code == 69
    assert "run the command again" in done.err
    assert command("action", "list").out == "win\t50\tyes\n"


def test_the_rules_of_a_kind_are_written_audited_mirrored_and_shown(
    command: Run, redis_url: str, database_url: str
) -> None:
    command("board", "create", "weekly")
    options = ("--scope", "scores:raid", "--board", "weekly", "--proof")

    assert command("action", "set", "raid", "50", *options).code == 0

    rules = {"scope": "scores:raid", "boards": ["weekly"], "proof": True}
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        held = client.hgetall(ACTIONS)
        assert (held["raid"], json.loads(held["raid:rules"])) == ("50", rules)
    with psycopg.connect(database_url) as connection:
        (detail,) = connection.execute(
            "SELECT detail FROM audit_log WHERE action = 'action set'"
        ).fetchone() or [None]
    assert detail == {"kind": "raid", "points": 50, **rules}
    counts = "with scope scores:raid; with a proof; on weekly"
    assert command("action", "list").out == f"raid\t50\t{counts}\n"
    shown = json.loads(command("action", "show", "raid", "--json").out)
    assert {
        name: shown[name] for name in ("points", "enabled", "scope", "boards", "needs_proof")
    } == {
        "points": 50,
        "enabled": True,
        "scope": "scores:raid",
        "boards": ["weekly"],
        "needs_proof": True,
    }
    assert (
        "scope\tscores:raid\nboards\tweekly\nproof\trequired\n"
        in command("action", "show", "raid").out
    )


def test_rules_stay_until_they_are_removed(command: Run, redis_url: str) -> None:
    """Otherwise new points would let players invent actions."""
    command("board", "create", "weekly")
    command("action", "set", "raid", "50", "--scope", "scores:raid", "--board", "weekly", "--proof")
    command("action", "set", "raid", "60")
    command("action", "disable", "raid")
    command("action", "set", "raid", "70")
    assert "with scope scores:raid; with a proof; on weekly" in command("action", "list").out

    assert (
        command("action", "set", "raid", "70", "--no-scope", "--no-proof", "--no-board").code == 0
    )

    assert command("action", "list").out == "raid\t70\tyes\n"
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        assert set(client.hgetall(ACTIONS)) == {":version", "raid"}


def test_rules_that_cannot_be_are_rejected(command: Run) -> None:
    for number in range(9):
        command("board", "create", f"b{number}")
    boards = [word for number in range(9) for word in ("--board", f"b{number}")]

    assert command("action", "set", "raid", "5", *boards).code == 2
    assert command("action", "set", "raid", "5", "--board", "b1", "--board", "b1").code == 2
    assert command("action", "set", "raid", "5", "--board", "b1", "--no-board").code == 2
    assert command("action", "set", "raid", "5", "--scope", "a", "--no-scope").code == 2
    assert command("action", "set", "raid", "5", "--scope", "two words").code == 2
    assert command("action", "set", "raid", "5", "--scope", "").code == 2
    assert command("action", "set", "raid", "5", "--scope", "x" * 65).code == 2
    assert command("action", "set", "raid", "5", "--board", "unknown").code == 3
    assert command("action", "show", "raid").code == 3
    assert command("action", "list").out == ""
    assert command("action", "set", "raid", "5", *boards[:16]).code == 0


def test_a_proof_is_signed_with_the_key_of_the_data_folder(command: Run, tmp_path: Path) -> None:
    options = ("--user", "alice", "--action", "raid:1", "--points", "5")
    folder = ("--data-dir", str(tmp_path))
    assert command("proof", "sign", *options, *folder).code == 5
    prover = LocalProver.create(tmp_path / ISSUER_DIR)

    done = command("proof", "sign", *options, "--board", "main", *folder)

    assert done.code == 0
    jwk = jwt.PyJWK(json.loads(prover.key_set)["keys"][0])
    claims = jwt.decode(done.out.strip(), jwk, algorithms=["ES256"], audience="scoreboard")
    assert claims["exp"] - claims["iat"] == 300
    assert {name: claims[name] for name in ("sub", "actionId", "points", "boards")} == {
        "sub": "alice",
        "actionId": "raid:1",
        "points": 5,
        "boards": ["main"],
    }
    assert command("proof", "sign", *options, "--ttl", "601", *folder).code == 2
