"""Where the channels of a cluster are asked for, as answers about the slots arrive."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store import partition_subscription
from scoreboard.store.cluster import Address
from scoreboard.store.partition_subscription import PartitionSubscription

ONE, TWO = ("one", 7000), ("two", 7000)
A, B = "sb:{a:0}:changes", "sb:{b:0}:changes"


class Link:
    """In place of a subscription at one server: channels are confirmed when the test says so."""

    made: list["Link"]

    def __init__(self, settings: Settings, channels: Iterable[str], **options: Any) -> None:
        self.address: Address = options["sharded_at"]
        self.moved: Callable[[str], None] = options["on_moved"]
        self.down: Callable[[], None] = options["on_down"]
        self.wanted = set(channels)
        self.confirmed: set[str] = set()
        self.is_up = False
        self.made.append(self)

    def want(self, channels: Iterable[str]) -> None:
        self.wanted |= set(channels)

    def drop(self, channels: Iterable[str]) -> None:
        self.wanted -= set(channels)
        self.confirmed -= set(channels)

    def hears(self, channels: Iterable[str]) -> bool:
        return self.is_up and self.confirmed.issuperset(channels)

    def confirm(self) -> None:
        self.is_up = True
        self.confirmed = set(self.wanted)


class Slots:
    """What a server would answer about the slots."""

    def __init__(self) -> None:
        self.owners: dict[str, Address] = {}

    def owner_of(self, channel: str) -> Address | None:
        return self.owners.get(channel)


class Placed:
    """A subscription on a cluster whose links are those of above."""

    def __init__(self) -> None:
        self.slots: Any = Slots()
        self.lost: list[str] = []

    def open(self, *channels: str) -> PartitionSubscription:
        return PartitionSubscription(
            Settings(redis_url=Secret("redis+cluster://one")),
            channels,
            name="test",
            on_heard=lambda _: None,
            on_lost=self.lost.extend,
        )

    def answer(self, subscription: PartitionSubscription, **owners: Address) -> None:
        """Let a server answer who owns the slots of boards."""
        self.slots.owners = {f"sb:{{{board}:0}}:changes": one for board, one in owners.items()}
        subscription._place(subscription._confirmed_moves(self.slots))


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Placed:
    made = Placed()
    Link.made = []
    monkeypatch.setattr(partition_subscription, "Subscription", Link)
    monkeypatch.setattr(partition_subscription, "make_slot_map", lambda *_, **__: made.slots)
    return made


def links() -> dict[Address, set[str]]:
    return {link.address: link.wanted for link in Link.made}


def at(address: Address) -> Link:
    """Return the newest link to a server."""
    return [link for link in Link.made if link.address == address][-1]


def test_channels_wait_until_the_owners_are_known(placed: Placed) -> None:
    subscription = placed.open(A, B)
    assert links() == {}

    placed.answer(subscription, a=ONE)
    assert links() == {ONE: {A}}
    assert subscription.unheard([A, B]) == [A, B]

    Link.made[0].confirm()
    placed.answer(subscription, a=ONE, b=TWO)
    assert links() == {ONE: {A}, TWO: {B}}
    assert subscription.unheard([A, B]) == [B]
    assert subscription.servers_of([A, B]) == {ONE, TWO}
    assert placed.lost == []


def test_one_answer_does_not_move_a_channel_that_is_heard(placed: Placed) -> None:
    """A server that does not know of a move yet names the owner before it."""
    subscription = placed.open(A)
    placed.answer(subscription, a=ONE)
    Link.made[0].confirm()

    placed.answer(subscription, a=TWO)
    placed.answer(subscription, a=ONE)
    placed.answer(subscription, a=TWO)
    assert subscription.hears([A])

    placed.answer(subscription, a=TWO)
    assert links()[TWO] == {A}
    assert placed.lost == [A]


def test_one_answer_moves_a_channel_that_is_not_heard(placed: Placed) -> None:
    subscription = placed.open(A, B)
    placed.answer(subscription, a=ONE, b=ONE)
    (link,) = Link.made
    link.confirm()
    link.moved(A)
    assert placed.lost == [A]
    assert link.wanted == {B}

    placed.answer(subscription, a=TWO, b=ONE)
    assert links() == {ONE: {B}, TWO: {A}}


def test_a_server_without_channels_is_left(placed: Placed) -> None:
    subscription = placed.open(A, B)
    placed.answer(subscription, a=ONE, b=TWO)
    left = at(ONE)
    left.confirm()
    subscription.drop([A])
    assert not subscription.is_up

    subscription.want([A])
    assert at(ONE) is not left
    assert links() == {ONE: {A}, TWO: {B}}


def test_a_lost_server_is_reported_with_its_channels(placed: Placed) -> None:
    subscription = placed.open(A, B)
    placed.answer(subscription, a=ONE, b=TWO)
    at(TWO).down()
    assert placed.lost == [B]
