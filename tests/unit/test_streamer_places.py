"""Who watches whom: shared users, newest places only, a bound, and nothing left behind."""

import json
import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from scoreboard.model import Place, Row
from streamer.fanout.places import Places, PlaceWatch, WatchedPlaces, WatchedUser


class Viewer:
    """A viewer that records what it was sent; it takes nothing while held."""

    def __init__(self, places: Places, own: str | None = None) -> None:
        self.own = own
        self.watch = PlaceWatch(places, self, own)
        self.is_held = False
        self.received: list[bytes] = []

    def push_places(self) -> bool:
        if not self.is_held and (frames := self.watch.take()):
            self.received.append(frames)
        return not self.is_held


def place(seq: int, **fields: Any) -> Place:
    found = Place(epoch=1, seq=seq, total=1000, rank=20, score=100)
    return msgspec.structs.replace(found, **fields)


def books(limit: int = 100) -> tuple[Places, list[int]]:
    told: list[int] = []
    return Places(limit, lambda: told.append(1)), told


def user_of(places: Places, user_id: str, board: str = "main") -> WatchedUser:
    return places.boards[board].users[user_id]


def push(user: WatchedUser) -> None:
    for viewer in user.viewers:
        viewer.push_places()


def test_a_user_of_several_viewers_is_new_once_and_encoded_once() -> None:
    places, told = books()
    viewers = [Viewer(places) for _ in range(3)]
    for viewer in viewers:
        assert viewer.watch.replace("main", ("ada",))
    assert (places.count, len(told)) == (1, 1)
    found = places.next_new(64)
    assert found is not None
    _, users = found
    assert [user.user_id for user in users] == ["ada"]
    assert places.next_new(64) is None

    assert users[0].accept(place(1), 7)
    push(users[0])
    assert len({viewer.received[0] for viewer in viewers}) == 1
    late = Viewer(places)
    assert late.watch.replace("main", ("ada",))
    late.push_places()
    assert late.received == viewers[0].received, "the place is known"
    assert places.next_new(64) is None


def test_new_users_are_read_in_parts_and_boards_take_turns() -> None:
    places, _ = books()
    viewer, other = Viewer(places), Viewer(places)
    viewer.watch.replace("main", [f"user{number}" for number in range(5)])
    other.watch.replace("golf", ["ada"])
    parts: list[tuple[str, list[str]]] = []
    while found := places.next_new(2):
        parts.append((found[0].name, [user.user_id for user in found[1]]))
    assert parts == [
        ("main", ["user0", "user1"]),
        ("golf", ["ada"]),
        ("main", ["user2", "user3"]),
        ("main", ["user4"]),
    ]


@pytest.mark.parametrize(
    ("fields", "is_news"),
    [
        ({}, False),
        ({"seq": 9}, False),
        ({"total": 1010}, False),
        ({"total": 1011}, True),
        ({"total": 989}, True),
        ({"epoch": 2, "seq": 0}, True),
        ({"rank": 21}, True),
        ({"rank": None, "score": None}, True),
        ({"score": 101}, True),
        ({"to_next": 4}, True),
        ({"to_top": 4}, True),
        ({"above": (Row(19, "bob", 104),)}, True),
        ({"below": (Row(21, "bob", 90),)}, True),
        ({"seq": 4, "rank": 3}, False),
        ({"epoch": 0, "seq": 99, "rank": 3}, False),
    ],
)
def test_a_place_is_sent_if_it_is_newer_and_shows_something_else(
    fields: dict[str, Any], *, is_news: bool
) -> None:
    user = WatchedUser(WatchedPlaces("main"), "ada")
    held = place(5, to_next=3, to_top=50)
    assert user.accept(held, 0)
    before = user.frame
    assert user.accept(msgspec.structs.replace(held, **fields), 0) is is_news
    assert (user.frame is not before) is is_news


def test_a_held_viewer_gets_only_the_newest_place() -> None:
    places, _ = books()
    viewer = Viewer(places)
    viewer.watch.replace("main", ["ada", "bob"])
    ada, bob = user_of(places, "ada"), user_of(places, "bob")
    viewer.is_held = True
    for seq in range(1, 9):
        ada.accept(place(seq, score=seq), 0)
        assert viewer.push_places() is False
    bob.accept(place(8), 0)
    viewer.is_held = False
    viewer.push_places()
    assert viewer.received == [ada.frame + bob.frame]
    assert places.sent == 2
    message = json.loads(ada.frame[4:])
    assert (message["type"], message["score"], message["userId"]) == ("place", 8, "ada")
    assert "toNext" not in message
    viewer.push_places()
    assert len(viewer.received) == 1


def test_the_limit_counts_distinct_users_and_refuses_whole_requests() -> None:
    places, _ = books(limit=6)
    first, second = Viewer(places), Viewer(places)
    assert first.watch.replace("main", ["a", "b"])
    assert second.watch.replace("main", ["b", "c"])
    assert not second.watch.replace("main", ["b", "c", "d"])
    assert not second.watch.replace("main", ["d", "e"]), "b stays watched by the other"
    assert places.boards["main"].users.keys() == {"a", "b", "c"}
    assert second.watch.replace("main", ["a", "d"]), "one is freed"
    assert not first.watch.replace("golf", ["a", "b", "c"]), "users of another board are others"
    assert places.count == 3
    refused, _ = books(limit=0)
    assert not Viewer(refused).watch.replace("main", ["a"])
    assert refused.boards == {}


def test_users_that_are_named_leave_half_of_the_limit_to_viewers_that_watch_themselves() -> None:
    places, _ = books(limit=4)
    named, ada, bob, eve = (Viewer(places, own) for own in (None, "ada", "bob", "eve"))
    assert named.watch.replace("main", ["x", "y"])
    assert not named.watch.replace("main", ["x", "y", "z"])
    assert ada.watch.replace("main", ["ada"])
    assert bob.watch.replace("main", ["bob"])
    assert not eve.watch.replace("main", ["eve"]), "the whole limit"
    assert not ada.watch.replace("main", ["ada", "z"]), "its own and one that it names"
    assert named.watch.replace("main", ["ada", "bob"]), "they are watched by themselves"
    assert ada.watch.replace("main", ["ada", "z"])
    bob.watch.close()
    named.watch.close()
    ada.watch.close()
    assert (places.count, places._owned, places.boards) == (0, 0, {})


def test_a_new_viewer_gets_no_name_that_is_not_known_any_more() -> None:
    places, _ = books()
    names = {"ada": "Ada"}
    places.known = lambda user_ids, _: {one: names[one] for one in user_ids if one in names}
    first = Viewer(places)
    first.watch.replace("main", ["ada"])
    ada = user_of(places, "ada")
    ada.accept(place(1), 0, places.known)
    assert first.push_places()
    names.clear()

    late = Viewer(places)
    late.watch.replace("main", ["ada"])
    late.push_places()

    assert b"Ada" in first.received[0]
    assert b"Ada" not in late.received[0]
    assert places.take_renamed() == [ada], "the others are sent it too"
    assert places.take_renamed() == []


def test_a_place_is_encoded_again_only_if_it_shows_the_user_and_other_names() -> None:
    user = WatchedUser(WatchedPlaces("main"), "ada")
    asked: list[dict[str, str]] = []
    names = {"bob": "Bob"}

    def known(_: object, shown: Mapping[str, str]) -> Mapping[str, str]:
        asked.append(dict(shown))
        return names

    user.accept(place(1, above=(Row(19, "bob", 104),)), 0, known)
    assert not user.rename({"eve"}, known)
    assert not user.rename({"bob"}, known)
    assert asked == [{}, {"bob": "Bob"}], "what it shows is told to the cache"
    names = {"bob": "Robert"}
    assert user.rename({"bob"}, known)
    assert b"Robert" in user.frame


def test_nothing_is_left_after_any_order_of_requests() -> None:
    choose = random.Random(5)
    places, _ = books(limit=12)
    owns = [None, *(f"user{number}" for number in range(1, 10))]
    viewers = [Viewer(places, choose.choice(owns)) for _ in range(20)]
    wants: dict[Viewer, tuple[str, frozenset[str]]] = {}
    for _ in range(3000):
        viewer = choose.choice(viewers)
        if choose.random() < 0.2:
            viewer.watch.close()
            wants.pop(viewer, None)
        else:
            board = choose.choice(("main", "golf"))
            ids = [f"user{choose.randint(1, 9)}" for _ in range(choose.randint(0, 5))]
            if viewer.watch.replace(board, ids):
                wants[viewer] = (board, frozenset(ids))
        if choose.random() < 0.3:
            places.next_new(2)
        expected = {(board, user) for board, ids in wants.values() for user in ids}
        held = {(name, user) for name, one in places.boards.items() for user in one.users}
        assert held == expected
        assert places.count == len(expected) <= 12
        owned = {(board, viewer.own) for viewer, (board, ids) in wants.items() if viewer.own in ids}
        assert places._owned == len(owned)
        for name, one in places.boards.items():
            for user_id, user in one.users.items():
                assert bool(user.owners) is ((name, user_id) in owned)
                assert user.viewers == {
                    viewer for viewer, (of, ids) in wants.items() if of == name and user_id in ids
                }
    for viewer in viewers:
        viewer.watch.close()
    assert (places.boards, places.count, places.next_new(1)) == ({}, 0, None)
    assert places._owned == 0
