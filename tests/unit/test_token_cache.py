"""The cache of verified tokens: its bounds, what it replaces, and what it drops."""

import gc
import time
import tracemalloc

import pytest

from scoreboard.security.signed_token import UPDATE, Caller
from scoreboard.security.token_cache import TokenCache

SCOPES = frozenset({UPDATE})


def caller_of(number: int, *, expires_at_s: float | None = None) -> Caller:
    expires_at_s = time.time() + 3600 if expires_at_s is None else expires_at_s
    return Caller(f"auth0|user{number:06d}", SCOPES, expires_at_s, "https://issuer.test/")


def token_of(number: int) -> bytes:
    return b"header.payload%d.signature" % number


def ask(cache: TokenCache, number: int) -> bool:
    """Return whether the token of a user is cached; cache it, as after a verification."""
    if cache.find(token_of(number)) is not None:
        return True
    cache.add(token_of(number), "kid", caller_of(number))
    return False


def test_users_who_come_in_turn_are_all_found_if_there_is_room() -> None:
    cache = TokenCache(1000)
    for number in range(1000):
        assert not ask(cache, number)
    for _ in range(2):
        assert all(ask(cache, number) for number in range(1000))


@pytest.mark.parametrize(
    ("users", "share"), [(1100, 0.75), (1500, 0.45), (2000, 0.3), (4000, 0.04)]
)
def test_beyond_the_bound_the_share_of_found_tokens_falls_gradually(
    users: int, share: float
) -> None:
    cache = TokenCache(1000)
    for _ in range(5):
        found = sum(ask(cache, number) for number in range(users))
        assert len(cache) <= 1000
    assert found >= share * users


def test_a_token_in_use_stays_while_many_others_come_once() -> None:
    cache = TokenCache(100)
    ask(cache, 0)
    lost = 0
    for number in range(1, 10_000):
        ask(cache, number)
        lost += not ask(cache, 0)
    assert lost == 0


def test_a_token_that_was_used_long_ago_is_replaced() -> None:
    cache = TokenCache(100)
    for _ in range(2):
        for number in range(100):
            ask(cache, number)
    for number in range(1000, 3000):
        for _ in range(2):
            ask(cache, number)
    assert sum(cache.find(token_of(number)) is not None for number in range(100)) < 10


def test_tokens_that_cannot_be_used_are_replaced_first(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TokenCache(8)
    now_s = time.time()
    for number in range(0, 8, 2):
        cache.add(token_of(number), "kid", caller_of(number, expires_at_s=now_s + 60))
        cache.add(token_of(number + 1), "kid", caller_of(number + 1))
    monkeypatch.setattr(time, "time", lambda: now_s + 60)
    for number in range(8, 12):
        cache.add(token_of(number), "kid", caller_of(number))
    assert all(cache.find(token_of(number)) for number in (1, 3, 5, 7, 8, 9, 10, 11))
    assert not any(cache.find(token_of(number)) for number in (0, 2, 4, 6))


def test_an_expired_token_is_dropped_and_stays_so_if_the_clock_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = TokenCache(4)
    caller = caller_of(1)
    cache.add(token_of(1), "kid", caller)
    monkeypatch.setattr(time, "time", lambda: caller.expires_at_s)
    assert cache.find(token_of(1)) is None
    monkeypatch.undo()
    assert cache.find(token_of(1)) is None
    assert len(cache) == 0


def test_an_entry_that_expired_and_came_back_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TokenCache(4)
    for _ in range(50):
        caller = caller_of(1)
        cache.add(token_of(1), "kid", caller)
        monkeypatch.setattr(time, "time", lambda at_s=caller.expires_at_s: at_s)
        assert cache.find(token_of(1)) is None
        monkeypatch.undo()
    assert len(cache._places) <= 4
    for number in range(2, 200):
        ask(cache, number)
    assert len(cache) <= 4


def test_the_tokens_of_a_removed_key_are_dropped_at_once_and_those_of_a_new_one_are_found() -> None:
    cache = TokenCache(8)
    cache.add(token_of(1), "old", caller_of(1))
    cache.add(token_of(2), "other", caller_of(2))
    cache.drop(frozenset({"old", "unknown"}))
    assert cache.find(token_of(1)) is None
    assert cache.find(token_of(2)) is not None
    cache.add(token_of(1), "old", caller_of(1))
    assert cache.find(token_of(1)) is not None


def test_the_same_token_added_twice_takes_one_place() -> None:
    cache = TokenCache(2)
    for _ in range(5):
        cache.add(token_of(1), "kid", caller_of(1))
    assert (len(cache), len(cache._places)) == (1, 1)


def test_no_part_of_a_token_is_kept() -> None:
    cache = TokenCache(8)
    token = b"a-header.a-payload-of-some-length.a-signature-of-some-length"
    cache.add(token, "kid", caller_of(1))
    kept = b"".join([*cache._entries, *cache._places])
    assert all(part not in kept for part in token.split(b"."))
    assert TokenCache(8)._digest(token) != cache._digest(token)


def test_an_entry_takes_less_than_400_bytes() -> None:
    count = 20_000
    gc.collect()
    tracemalloc.start()
    try:
        cache = TokenCache(count)
        for number in range(count):
            cache.add(token_of(number), "kid", caller_of(number))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / count < 400
