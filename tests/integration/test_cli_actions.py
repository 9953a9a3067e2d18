"""`scoreboard action`: the catalogue in PostgreSQL, its copy in Redis, and the notification."""

import json

import psycopg
import redis

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
