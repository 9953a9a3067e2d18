"""Errors map to answers, all of them; messages are read strictly; codes say what comes next."""

from collections.abc import Iterator

import pytest

from scoreboard.endings import ENDINGS, CloseCode
from scoreboard.errors import (
    Broken,
    Forbidden,
    KeysUnavailable,
    Malformed,
    Overloaded,
    ScoreboardError,
    ScriptFailed,
    Unauthenticated,
    UnknownBoard,
)
from streamer.protocol import Auth, Sync, decode, refusal_of


def every_error(kind: type[ScoreboardError] = ScoreboardError) -> Iterator[type[ScoreboardError]]:
    if kind.__module__ == "scoreboard.errors":
        yield kind
    for child in kind.__subclasses__():
        yield from every_error(child)


@pytest.mark.parametrize(
    "kind",
    sorted(set(every_error()), key=lambda kind: kind.__name__),
    ids=lambda kind: kind.__name__,
)
def test_every_error_has_an_answer_that_gives_nothing_away(kind: type[ScoreboardError]) -> None:
    refusal = refusal_of(kind("detail of the inside"))

    assert 400 <= refusal.status <= 503
    assert refusal.code == kind.code
    if issubclass(kind, Broken):
        assert refusal.status == 500
        assert "inside" not in refusal.detail


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (Unauthenticated(), 401, ("WWW-Authenticate", "Bearer")),
        (
            Unauthenticated("", reason="signature"),
            401,
            ("WWW-Authenticate", 'Bearer error="invalid_token"'),
        ),
        (
            Forbidden("", scope="read:leaderboard"),
            403,
            ("WWW-Authenticate", 'Bearer error="insufficient_scope", scope="read:leaderboard"'),
        ),
    ],
)
def test_a_refused_token_says_how_to_do_better(
    error: ScoreboardError, status: int, header: tuple[str, str]
) -> None:
    refusal = refusal_of(error)

    assert refusal.status == status
    assert refusal.headers == (header,)


def test_what_may_succeed_later_says_when() -> None:
    assert refusal_of(Overloaded()).retry_after_s >= 1
    assert refusal_of(KeysUnavailable()).retry_after_s == 5
    assert refusal_of(UnknownBoard()).retry_after_s == 0
    assert refusal_of(ScriptFailed()).retry_after_s == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type":"sync"}', Sync()),
        ('{"type":"auth","token":"abc"}', Auth("abc")),
        ('{"token":"abc","type":"auth","later":[{"a":1}]}', Auth("abc")),
        ('{"type":"sync","type":"sync"}', Sync()),
    ],
)
def test_messages_are_read_and_unknown_fields_ignored(text: str, message: object) -> None:
    assert decode(text) == message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"sync"',
        "{",
        "{}",
        '{"type":"leaderboard"}',
        '{"type":1}',
        '{"type":"auth"}',
        '{"type":"auth","token":""}',
        '{"type":"auth","token":7}',
        '{"type":"auth","token":"' + "x" * 4097 + '"}',
        '{"type":"sync","n":NaN}',
        '{"type":"sync","n":Infinity}',
        "[" * 1000 + "]" * 1000,
        '{"type":"sync","deep":' + "[" * 2000 + "]" * 2000 + "}",
        '{"type":"sync"} {"type":"sync"}',
        "9" * 4000,
    ],
    ids=lambda text: text[:24],
)
def test_what_is_no_message_is_malformed_and_not_repeated(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode(text)

    assert "x" * 9 not in caught.value.detail
    assert len(caught.value.detail) < 100


def test_every_code_says_why_and_who_should_come_back_and_when() -> None:
    assert set(ENDINGS) == set(CloseCode)
    for code, ending in ENDINGS.items():
        assert 0 < len(ending.reason.encode()) <= 123, code
        least, most = ending.delay_ms
        assert 0 <= least <= most
        if not ending.reconnect:
            assert most == 0
