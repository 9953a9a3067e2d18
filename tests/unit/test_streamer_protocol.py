"""Strict parsing of viewers' messages, and the table of close codes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Opcode

from scoreboard.broadcast.close_codes import CLOSE_REASONS, CloseCode
from scoreboard.errors import Malformed
from scoreboard.runtime.settings import Secret, Settings
from streamer.connection.inbound import Parser, read_pong
from streamer.protocol import Auth, Subscribe, Sync, Unsubscribe, decode
from tests.support.clients.viewer import PING, PONG, masked_frame


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type":"sync"}', Sync()),
        ('{"type":"auth","token":"abc"}', Auth("abc")),
        ('{"token":"abc","type":"auth","later":[{"a":1}]}', Auth("abc")),
        ('{"type":"sync","type":"sync"}', Sync()),
        ('{"type":"sync","board":"weekly"}', Sync("weekly")),
        ('{"type":"subscribe","board":"weekly"}', Subscribe("weekly")),
        (
            '{"type":"subscribe","board":"weekly","rows":100,"offset":1000000,"colour":"red"}',
            Subscribe("weekly", 100, 1_000_000),
        ),
        (
            '{"type":"subscribe","board":"league","season":"2026-W48"}',
            Subscribe("league", season="2026-W48"),
        ),
        ('{"type":"unsubscribe","board":"weekly"}', Unsubscribe("weekly")),
    ],
)
def test_valid_messages_are_decoded_and_unknown_fields_ignored(text: str, message: object) -> None:
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
        '{"type":"subscribe"}',
        '{"type":"subscribe","board":"No Board"}',
        '{"type":"subscribe","board":"weekly","rows":9}',
        '{"type":"subscribe","board":"weekly","rows":101}',
        '{"type":"subscribe","board":"weekly","offset":-1}',
        '{"type":"subscribe","board":"weekly","offset":1000001}',
        '{"type":"subscribe","board":"weekly","offset":1e400}',
        '{"type":"subscribe","board":"weekly","season":""}',
        '{"type":"unsubscribe","board":7}',
        '{"type":"sync","n":NaN}',
        '{"type":"sync","n":Infinity}',
        "[" * 1000 + "]" * 1000,
        '{"type":"sync","deep":' + "[" * 2000 + "]" * 2000 + "}",
        '{"type":"sync"} {"type":"sync"}',
        "9" * 4000,
    ],
    ids=lambda text: text[:24],
)
def test_invalid_message_is_malformed_and_not_repeated(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode(text)

    assert "x" * 9 not in caught.value.detail
    assert len(caught.value.detail) < 100


def test_every_close_code_has_a_valid_reason_and_delay() -> None:
    assert set(CLOSE_REASONS) == set(CloseCode)
    for code, ending in CLOSE_REASONS.items():
        assert 0 < len(ending.reason.encode()) <= 123, code
        least, most = ending.delay_ms
        assert 0 <= least <= most
        if not ending.reconnect:
            assert most == 0


PONGS = st.builds(masked_frame, st.just(PONG), st.binary(max_size=130))
CUT = st.builds(lambda frame, size: frame[:size], PONGS, st.integers(0, 20))


@given(PONGS | CUT | st.builds(bytes.__add__, PONGS, PONGS) | st.binary(max_size=12))
@example(masked_frame(PONG, b"k"))
@example(masked_frame(PING, b"k"))
@example(masked_frame(PONG, b"k", fin=False))
@example(masked_frame(PONG, b"k", rsv=4))
@example(masked_frame(PONG, b"k", mask=False))
@example(masked_frame(PONG, b"k", length=300))
def test_a_lone_pong_is_read_as_by_the_websockets_library(data: bytes) -> None:
    parser = Parser(Settings(redis_url=Secret("redis://test")))
    parser.receive_data(data)
    frames = parser.events_received()
    is_complete = not parser.reader.buffer and parser.parser_exc is None

    payload = read_pong(data)

    if len(frames) == 1 and frames[0].opcode is Opcode.PONG and is_complete:  # type: ignore[union-attr]
        assert payload == bytes(frames[0].data)  # type: ignore[union-attr]
    else:
        assert payload is None
