"""Invalid input from viewers, its close codes, and its isolation from other viewers."""

import asyncio
import struct
from contextlib import suppress
from typing import Any

import pytest

from scoreboard.broadcast.close_codes import CLOSE_REASONS, CloseCode
from tests.support.clients.viewer import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Connect,
    RawViewer,
    StartStreamer,
    masked_frame,
)
from tests.support.eventually import eventually_async

pytestmark = pytest.mark.slow


def close_frame(code: int | None, reason: bytes = b"") -> bytes:
    return masked_frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (masked_frame(TEXT, b"{}", mask=False), 1002),
        (masked_frame(TEXT, b"{}", rsv=4), 1002),
        (masked_frame(3, b""), 1002),
        (masked_frame(11, b""), 1002),
        (masked_frame(PING, b"", fin=False), 1002),
        (masked_frame(PING, b"x" * 126), 1002),
        (masked_frame(CONTINUATION, b"x"), 1002),
        (masked_frame(TEXT, b"{", fin=False) + masked_frame(TEXT, b"}"), 1002),
        (masked_frame(TEXT, b"", length=2**63), 1009),
        (masked_frame(TEXT, b"", length=2**62), 1009),
        (masked_frame(TEXT, b"x" * 5120), 1009),
        (
            masked_frame(TEXT, b"x" * 4000, fin=False) + masked_frame(CONTINUATION, b"x" * 1000),
            1009,
        ),
        (masked_frame(TEXT, b"", fin=False) + masked_frame(CONTINUATION, b"", fin=False) * 8, 1009),
        (
            masked_frame(TEXT, b"{", fin=False) + masked_frame(CONTINUATION, b" ", fin=False) * 12,
            1009,
        ),
        (masked_frame(BINARY, b"{}"), 1003),
        (masked_frame(BINARY, b"", fin=False), 1003),
        (masked_frame(TEXT, b"\xff\xfe"), 1007),
        (masked_frame(TEXT, b'{"type":"\xed\xa0\x80"}'), 1007),
        (masked_frame(TEXT, b"\xe2\x82", fin=False) + masked_frame(CONTINUATION, b"("), 1007),
        (masked_frame(CLOSE, b"x" * 126), 1002),
        (masked_frame(CLOSE, b"", fin=False), 1002),
        (masked_frame(CLOSE, b"\x03"), 1002),
        (masked_frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
    ],
    ids=[
        "unmasked",
        "reserved bit",
        "reserved opcode",
        "reserved control opcode",
        "fragmented ping",
        "long ping",
        "lone continuation",
        "text in text",
        "length 2^63",
        "length 2^62",
        "5 KiB",
        "5 KiB in two",
        "empty continuations",
        "many fragments",
        "binary",
        "fragmented binary",
        "not UTF-8",
        "surrogate",
        "split character",
        "long close",
        "fragmented close",
        "close too short",
        "close reason",
    ],
)
async def test_invalid_frame_closes_with_the_right_code(
    start_streamer: StartStreamer, connect: Connect, sent: bytes, code: int
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)

    await viewer.send(sent)

    assert await viewer.closed() == code
    assert await viewer.eof() == b"", "the server closes after its close frame"
    viewer.close()
    await running.wait_until_empty()


@pytest.mark.parametrize(
    "code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535]
)
async def test_reserved_close_code_is_a_protocol_error(
    start_streamer: StartStreamer, connect: Connect, code: int
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)

    await viewer.send(close_frame(code))

    assert await viewer.closed() == 1002


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999, None]
)
async def test_close_frame_is_echoed_with_its_code(
    start_streamer: StartStreamer, connect: Connect, code: int | None
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next()

    await viewer.send(masked_frame(CLOSE, b"" if code is None else struct.pack("!H", code)))

    assert await viewer.closed() == (code or 1005)
    viewer.close()
    await running.wait_until_empty()


async def test_fragments_with_a_ping_between_form_one_message(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next("leaderboard")

    await viewer.send(masked_frame(TEXT, b'{"type":', fin=False))
    await viewer.send(masked_frame(PING, b"mid"))
    await viewer.send(masked_frame(CONTINUATION, b'"sync"}'))

    frames = [await viewer.frame(), await viewer.frame()]

    assert sorted(frame.opcode for frame in frames) == [TEXT, PONG]
    assert b"mid" in {frame.payload for frame in frames}


FIRST_FRAGMENT = masked_frame(TEXT, b"{", fin=False)
NEARLY_FULL = masked_frame(TEXT, b"{" + b" " * 4599, fin=False)


@pytest.mark.parametrize(
    "first_fragment", [FIRST_FRAGMENT, NEARLY_FULL], ids=["short", "nearly full"]
)
@pytest.mark.parametrize(
    "payload", [b"", struct.pack("!H", 1000), struct.pack("!H", 4999) + b"x" * 123]
)
async def test_close_between_fragments_is_echoed(
    start_streamer: StartStreamer, connect: Connect, first_fragment: bytes, payload: bytes
) -> None:
    """RFC 6455, 5.4 and 5.5.1: a control frame may arrive between fragments, and is answered."""
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next("leaderboard")

    await viewer.send(first_fragment + masked_frame(CLOSE, payload))

    assert await viewer.close_payload() == payload
    assert await viewer.eof() == b""
    viewer.close()
    await running.wait_until_empty()


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"\x03", 1002), (struct.pack("!H", 1005), 1002), (struct.pack("!H", 1000) + b"\xff", 1007)],
    ids=["too short", "reserved", "not UTF-8"],
)
async def test_invalid_close_between_fragments_is_a_protocol_error(
    start_streamer: StartStreamer, connect: Connect, payload: bytes, code: int
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)

    await viewer.send(FIRST_FRAGMENT + masked_frame(CLOSE, payload))

    assert await viewer.closed() == code
    assert await viewer.eof() == b""


async def test_ping_does_not_count_towards_the_size_of_a_fragmented_message(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next("leaderboard")

    await viewer.send(NEARLY_FULL + masked_frame(PING, b"p" * 125))

    assert (await viewer.frame()).payload == b"p" * 125
    await viewer.send(masked_frame(CONTINUATION, b"}"))
    assert (await viewer.next("error"))["code"] == "malformed"
    assert running.viewers == 1


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (masked_frame(TEXT, b"\xff"), 1007),
        (masked_frame(BINARY, b"{}"), 1003),
        (masked_frame(PING) * 30, 4429),
        (masked_frame(TEXT, b"x" * 4608, fin=False) + masked_frame(CONTINUATION, b"x"), 1009),
    ],
    ids=["not UTF-8", "binary", "flood", "too big"],
)
async def test_close_after_an_invalid_frame_is_ignored(
    start_streamer: StartStreamer, connect: Connect, broken: bytes, code: int
) -> None:
    """The first error decides the close code, even if a close frame follows in the same packet."""
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next("leaderboard")

    await viewer.send(broken + close_frame(1000))

    assert await viewer.closed(1.0) == code
    assert await viewer.eof(1.0) == b""


async def test_frames_after_a_close_are_ignored(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next("leaderboard")

    await viewer.send(
        close_frame(1000) + masked_frame(PING, b"late") + masked_frame(TEXT, b'{"type":"sync"}')
    )

    assert await viewer.closed() == 1000
    assert await viewer.eof() == b""


@pytest.mark.parametrize(
    "following",
    [b"", FIRST_FRAGMENT, masked_frame(PING, b"late"), masked_frame(TEXT, b'{"type":"sync"}')],
    ids=["close", "between fragments", "after a ping", "after a message"],
)
async def test_answer_to_a_server_close_ends_the_connection_at_once(
    start_streamer: StartStreamer, connect: Connect, following: bytes
) -> None:
    running = await start_streamer(viewer_age_s=0.3)
    viewer = await connect(running.port)
    assert await viewer.closed() == 1012
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    await viewer.send(following + close_frame(1012))

    await viewer.eof()
    assert loop.time() - began_s < 1.0, "before the timeout of the server"
    viewer.close()
    await running.wait_until_empty()


async def test_ping_after_a_server_close_is_answered(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    """RFC 6455, 5.5.2: a ping must be answered unless a close frame was received."""
    running = await start_streamer(viewer_age_s=0.3)
    viewer = await connect(running.port)
    assert await viewer.closed() == 1012

    await viewer.send(masked_frame(PING, b"still here"))

    assert (await viewer.frame()).payload == b"still here"


async def test_character_can_be_split_across_fragments(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next("leaderboard")
    message = '{"type":"sync","name":"€"}'.encode()
    cut = message.index("€".encode()) + 1

    await viewer.send(masked_frame(TEXT, message[:cut], fin=False))
    await viewer.send(masked_frame(CONTINUATION, message[cut:]))

    assert (await viewer.next())["type"] == "leaderboard"


async def test_sync_sends_the_current_board_again(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    first = await viewer.next("leaderboard")

    await viewer.send_json({"type": "sync", "unknown": [1]})

    assert await viewer.next("leaderboard") == first


@pytest.mark.parametrize(
    "message",
    [b"nonsense", b'{"type":"dance"}', b"[" * 1000, b'{"a":1,"a":2}', b"9" * 400, b"NaN"],
    ids=["text", "type", "depth", "double keys", "huge int", "NaN"],
)
async def test_unreadable_messages_are_errors_and_the_fourth_closes(
    start_streamer: StartStreamer, connect: Connect, message: bytes
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    for _ in range(3):
        await viewer.send(masked_frame(TEXT, message))
        assert (await viewer.next("error"))["code"] == "malformed"

    await viewer.send(masked_frame(TEXT, message))

    assert await viewer.closed() == 4400


async def flood(viewer: RawViewer, frame: bytes, count: int) -> None:
    with suppress(OSError):
        await viewer.send(frame * count)


@pytest.mark.parametrize(
    "frame",
    [
        masked_frame(PING, b""),
        masked_frame(PING, b"x" * 125),
        masked_frame(PONG, b""),
        masked_frame(TEXT, b'{"type":"sync"}'),
        masked_frame(TEXT, b'{"type":"auth","token":"x"}'),
    ],
    ids=["ping", "big ping", "pong", "sync", "auth"],
)
async def test_flood_of_any_frame_closes_with_4429_and_limited_answers(
    start_streamer: StartStreamer, connect: Connect, frame: bytes
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next("leaderboard")

    sending = asyncio.ensure_future(flood(viewer, frame, 50_000))
    code = await viewer.closed()

    # The server stops reading, so a TCP reset may discard its close frame.
    assert code in {4429, 1006}
    assert viewer.frames_read <= 40
    sending.cancel()
    viewer.close()
    await running.wait_until_empty()


async def test_burst_of_twenty_frames_is_accepted(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next("leaderboard")

    await viewer.send(masked_frame(PING, b"p") * 20)

    for _ in range(20):
        assert (await viewer.frame()).opcode == PONG
    assert running.viewers == 1


async def test_second_sync_within_a_second_closes_with_4429(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)

    await viewer.send_json({"type": "sync"})
    await viewer.send_json({"type": "sync"})

    assert await viewer.closed() == 4429


async def test_second_auth_within_ten_seconds_closes_with_4429(
    start_streamer: StartStreamer, connect: Connect, make_token: Any
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port, token=make_token())

    await viewer.send_json({"type": "auth", "token": "a.b.c"})
    await viewer.next("error")
    await viewer.send_json({"type": "auth", "token": "a.b.c"})

    assert await viewer.closed() == 4429


async def test_floods_do_not_delay_other_viewers(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    quiet = [await connect(running.port) for _ in range(20)]
    for viewer in quiet:
        await viewer.next("leaderboard")
    flooding = [await connect(running.port) for _ in range(10)]
    floods = [
        asyncio.ensure_future(flood(viewer, masked_frame(PING, b""), 20_000)) for viewer in flooding
    ]
    loop = asyncio.get_running_loop()
    channel = running.streamer.manager.hub.channel("main")

    took_s = []
    for _ in range(10):
        began_s = loop.time()
        channel.publish(channel.leaderboard, began_s, began_s)
        for viewer in quiet:
            await viewer.next("leaderboard")
        took_s.append(loop.time() - began_s)

    assert sorted(took_s)[len(took_s) // 2] < 1.0
    await eventually_async(lambda: running.viewers == len(quiet))
    for task in floods:
        task.cancel()


@pytest.mark.parametrize("how", ["half-close", "reset", "reset in mid-frame", "silent close"])
async def test_every_kind_of_disconnect_releases_all_resources(
    start_streamer: StartStreamer, connect: Connect, how: str
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)
    await viewer.next("leaderboard")

    match how:
        case "half-close":
            viewer.connection.shutdown(1)
            await viewer.eof()
        case "reset":
            viewer.reset()
        case "reset in mid-frame":
            await viewer.send(masked_frame(TEXT, b"x" * 100)[:20])
            viewer.reset()
        case _:
            viewer.close()

    await running.wait_until_empty()


async def test_viewer_that_does_not_answer_a_close_is_dropped(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(viewer_age_s=0.3)
    viewer = await connect(running.port)
    loop = asyncio.get_running_loop()

    assert await viewer.closed() == 1012
    began_s = loop.time()
    await viewer.eof()

    assert loop.time() - began_s < 3.0
    assert viewer.messages[-1]["type"] == "bye"
    assert viewer.messages[-1]["delay_ms"] == list(CLOSE_REASONS[CloseCode.RESTART].delay_ms)
    viewer.close()
    await running.wait_until_empty()
