"""configure.lua, and what the other scripts do with an archived board."""

import pytest
import redis

from scoreboard.model import SLOT_COUNT, pack
from scoreboard.store.keys import GROUP
from tests.support.clients.scripts import KEYS, LAYOUT, Scripts, text

from .conftest import on_the_real_server

SWAP = [KEYS.board, KEYS.shadow, KEYS.events, KEYS.meta, KEYS.changes]
NAMES = [KEYS.meta, KEYS.changes]


def facts(scripts: Scripts) -> dict[str, str]:
    return {text(key): text(value) for key, value in scripts.client.hgetall(KEYS.meta).items()}


def test_both_properties_are_set_and_announced_once(opened: Scripts) -> None:
    opened.submit(("alice", "1", 5))
    before = facts(opened)
    listener = opened.client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(KEYS.changes)
    listener.get_message(timeout=1)

    assert opened.run("configure", NAMES, 0, "archived", "") == 1
    assert facts(opened) == before | {"public": "0", "state": "archived"}
    message = listener.get_message(timeout=5)
    assert message is not None
    assert text(message["data"]) == "1:1:board"

    assert opened.run("configure", NAMES, 0, "archived", "") == 0
    assert opened.run("configure", NAMES, 1, "open", "") == 1
    assert facts(opened) == before
    assert listener.get_message(timeout=5) is not None
    assert listener.get_message(timeout=0) is None
    listener.close()


def test_an_archived_board_accepts_no_action_and_keeps_its_keys(opened: Scripts) -> None:
    opened.submit(("alice", "1", 5))
    opened.run("configure", NAMES, 1, "archived", "")
    before = opened.snapshot()

    for action in (("alice", "1", 5), ("bob", "2", 7)):
        with pytest.raises(redis.ResponseError, match=r"^ARCHIVED "):
            opened.submit(action)
    assert opened.snapshot() == before

    opened.run("configure", NAMES, 1, "open", "")
    assert opened.submit(("alice", "1", 5)) == [["replayed", 5, 5, 1]]
    assert opened.submit(("alice", "2", 5)) == [["applied", 5, 10, 2]]


def test_a_partition_that_is_empty_or_fenced_is_not_configured(scripts: Scripts) -> None:
    assert scripts.refuses("configure", NAMES, 1, "archived", "").startswith("UNINIT ")
    scripts.open()
    scripts.client.hset(KEYS.meta, "state", "fenced")
    before = scripts.snapshot()
    assert scripts.refuses("configure", NAMES, 1, "open", "").startswith("FENCED ")
    assert scripts.snapshot() == before


@pytest.mark.parametrize(
    "args",
    [
        *((2, "open", ""), (1, "fenced", ""), ("", "open", ""), (1, "", ""), (1, "open")),
        *((1, "open", "5"), (1, "open", "5:5"), (1, "open", "a:b:c"), (1, "open", "-1:0:0")),
    ],
    ids=str,
)
def test_wrong_arguments_change_nothing(opened: Scripts, args: tuple[object, ...]) -> None:
    before = opened.snapshot()
    assert opened.refuses("configure", NAMES, *args).startswith("BADARG ")
    assert opened.snapshot() == before


@on_the_real_server
def test_an_archived_board_stays_archived_in_a_reseed(opened: Scripts) -> None:
    opened.run("configure", NAMES, 1, "archived", "")
    opened.fence("T")
    opened.run("restore", [KEYS.meta, KEYS.shadow], "T", 1, pack(9, SLOT_COUNT - 1), "alice")
    args = ("T", 2, 9, "0-0", GROUP, str(LAYOUT), 1, 1)
    assert opened.refuses("open", SWAP, *args, "closed").startswith("BADARG ")
    assert opened.run("open", SWAP, *args, "archived") == 1
    assert facts(opened)["state"] == "archived"
    with pytest.raises(redis.ResponseError, match=r"^ARCHIVED "):
        opened.submit(("bob", "1", 7))
