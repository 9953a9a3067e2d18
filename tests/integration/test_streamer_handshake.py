"""Opening handshakes over real sockets: acceptance, rejection, limits.

The validation of the request is tested in tests/unit/test_streamer_handshake.py.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from websockets.asyncio.client import connect as websockets_connect
from websockets.typing import Subprotocol

from scoreboard.model import Board
from scoreboard.runtime.telemetry import REGISTRY
from streamer.handshake.admission import ATTEMPTS_PER_VIEWER
from tests.support.clients.smuggling import HEADS
from tests.support.clients.viewer import (
    CLOSE,
    PING,
    TEXT,
    Closed,
    Connect,
    HttpResponse,
    RawViewer,
    StartStreamer,
    masked_frame,
    request_bytes,
)
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import MakeToken

Handshake = Callable[..., Awaitable[HttpResponse]]

PRIVATE = Board(is_public=False)


def accepted() -> float:
    labels = {"result": "accepted"}
    return REGISTRY.get_sample_value("scoreboard_ws_handshakes_total", labels) or 0.0


async def test_connection_header_of_a_gateway_is_accepted(
    start_streamer: StartStreamer, handshake: Handshake
) -> None:
    running = await start_streamer()

    answer = await handshake(
        running.port, drop=("Connection",), headers=[("connection", "keep-alive, Upgrade")]
    )

    assert answer.status == 101
    assert answer.headers["sec-websocket-accept"] == "Bz3qJYTGdOe8gUSpLosEdiLKDrk="
    assert "sec-websocket-protocol" not in answer.headers
    assert "sec-websocket-extensions" not in answer.headers


async def test_standard_client_connects_without_compression_and_with_the_plain_subprotocol(
    start_streamer: StartStreamer, make_token: MakeToken
) -> None:
    running = await start_streamer(board=PRIVATE)
    token = make_token()

    async with websockets_connect(
        f"ws://127.0.0.1:{running.port}/ws/scoreboard",
        subprotocols=[Subprotocol(f"bearer.{token}"), Subprotocol("scoreboard.v1")],
        compression="deflate",
    ) as client:
        board = json.loads(await client.recv())

        assert client.subprotocol == "scoreboard.v1"
        assert not client.protocol.extensions
        assert board["type"] == "leaderboard"
        assert client.response is not None
        assert token not in str(client.response.headers)


async def test_plain_get_returns_426_and_closes(
    start_streamer: StartStreamer,
) -> None:
    running = await start_streamer()
    viewer = await RawViewer.open(running.port)
    await viewer.send(b"GET /ws/scoreboard?board=me HTTP/1.1\r\nHost: a\r\nX-Echo: me\r\n\r\n")

    answer = await viewer.answer()

    assert answer.status == 426
    assert answer.problem["type"] == "/docs/problems/upgrade-required"
    assert b"me" not in answer.body.replace(b"scoreboard", b"")
    assert await viewer.eof() == b""
    viewer.close()
    await running.wait_until_empty()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"HEAD /ws/scoreboard HTTP/1.1", b"405 Method Not Allowed"),
        (b"HEAD //ws/scoreboard HTTP/1.1", b"400 Bad Request"),
        (b"HEAD /ws/scoreboard HTTP/3.0", b"505 HTTP Version Not Supported"),
    ],
)
async def test_head_request_is_rejected_without_a_body(
    start_streamer: StartStreamer, request_line: bytes, status: bytes
) -> None:
    running = await start_streamer()
    viewer = await RawViewer.open(running.port)
    rest = request_bytes(method="HEAD").partition(b"\r\n")[2]
    await viewer.send(request_line + b"\r\n" + rest)

    answer = await viewer.eof()
    viewer.close()

    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert answer.endswith(b"\r\n\r\n")


async def test_second_request_after_a_rejected_one_is_not_answered(
    start_streamer: StartStreamer,
) -> None:
    running = await start_streamer()
    before = accepted()
    viewer = await RawViewer.open(running.port)
    await viewer.send(request_bytes("/nowhere") + request_bytes())

    assert (await viewer.answer()).status == 404
    await viewer.send(request_bytes())

    assert await viewer.eof() == b""
    assert accepted() == before
    viewer.close()
    await running.wait_until_empty()


async def test_frames_sent_with_the_request_are_answered_after_the_101(
    start_streamer: StartStreamer,
) -> None:
    running = await start_streamer()
    viewer = await RawViewer.open(running.port)
    await viewer.send(request_bytes() + masked_frame(PING, b"early"))

    assert (await viewer.answer()).status == 101
    board = await viewer.frame()
    pong = await viewer.frame()

    assert board.message["type"] == "leaderboard"
    assert pong.payload == b"early"
    viewer.close()


async def test_frames_sent_with_the_request_wait_for_the_token_check(
    start_streamer: StartStreamer, make_token: MakeToken
) -> None:
    running = await start_streamer(board=PRIVATE)
    viewer = await RawViewer.open(running.port)
    request = request_bytes(token=make_token())
    await viewer.send(request + masked_frame(PING, b"early"))

    assert (await viewer.answer()).status == 101
    assert (await viewer.frame()).opcode == TEXT
    assert (await viewer.frame()).payload == b"early"
    viewer.close()


async def test_slow_handshake_is_dropped(start_streamer: StartStreamer) -> None:
    running = await start_streamer(handshake_timeout_s=0.4)
    viewer = await RawViewer.open(running.port)
    began_s = time.monotonic()
    with suppress(OSError):
        for byte in request_bytes():
            await viewer.send(bytes([byte]))
            await asyncio.sleep(0.05)  # pace: interval of the attack

    assert await viewer.eof() == b""
    assert time.monotonic() - began_s < 8
    viewer.close()
    await running.wait_until_empty()


async def test_oversized_head_is_rejected_while_it_arrives(
    start_streamer: StartStreamer, handshake: Handshake
) -> None:
    running = await start_streamer()

    answer = await handshake(running.port, raw=b"GET / HTTP/1.1\r\nX: " + b"y" * 60_000)

    assert answer.status == 431
    await running.wait_until_empty()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /ws/scoreboard\r\n\r\n",
        b"GET /ws/scoreboard HTTP/2\r\nHost: a\r\n\r\n",
        request_bytes(headers=[("Transfer-Encoding", "chunked")]),
        request_bytes(headers=[("Content-Length", "5")]),
        request_bytes(headers=[("Sec-WebSocket-Protocol", "scoreboard.v1, b(ad")]),
        request_bytes().replace(b"Host:", b"Host :"),
        request_bytes("/ws/scoreboard\xe9"),
    ],
    ids=["tls", "no version", "http/2", "chunked", "body", "list", "header", "path"],
)
async def test_invalid_request_returns_400_without_repeating_it(
    start_streamer: StartStreamer, handshake: Handshake, raw: bytes
) -> None:
    running = await start_streamer()

    answer = await handshake(running.port, raw=raw)

    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert answer.problem["type"] == "/docs/problems/malformed"
    await running.wait_until_empty()


async def test_ambiguous_heads_are_rejected(
    start_streamer: StartStreamer, handshake: Handshake
) -> None:
    running = await start_streamer()

    answers = {name: (await handshake(running.port, raw=raw)).status for name, raw in HEADS.items()}

    assert {name: status for name, status in answers.items() if status != 400} == {}


async def test_private_board_requires_a_token_with_the_scope(
    start_streamer: StartStreamer, handshake: Handshake, make_token: MakeToken
) -> None:
    running = await start_streamer(board=PRIVATE)

    none = await handshake(running.port)
    scopeless = await handshake(running.port, token=make_token(scope="update:score"))
    good = await handshake(running.port, token=make_token())

    assert (none.status, scopeless.status, good.status) == (401, 403, 101)
    assert none.headers["www-authenticate"] == 'Bearer realm="scoreboard"'
    assert 'scope="read:leaderboard"' in scopeless.headers["www-authenticate"]


async def test_response_carries_the_request_id(
    start_streamer: StartStreamer, handshake: Handshake
) -> None:
    running = await start_streamer()
    given = [("X-Request-Id", "client-01"), ("X-Kong-Request-Id", "gateway-1")]

    granted = await handshake(running.port, headers=given)
    refused = await handshake(running.port, "/nowhere", headers=given)
    unreadable = await handshake(running.port, raw=b"nonsense\r\n\r\n")

    assert granted.headers["x-request-id"] == "gateway-1"
    assert refused.headers["x-request-id"] == "gateway-1"
    assert refused.problem["request_id"] == "gateway-1"
    assert unreadable.headers["x-request-id"] == unreadable.problem["request_id"] != ""


async def test_forged_gateway_headers_are_ignored(
    start_streamer: StartStreamer, handshake: Handshake, make_token: MakeToken
) -> None:
    running = await start_streamer(board=PRIVATE)
    forged = [
        ("X-Consumer-Username", "alice"),
        ("X-Authenticated-Userid", "alice"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("Cookie", f"token={make_token()}"),
    ]

    by_header = await handshake(running.port, headers=forged)
    by_url = await handshake(running.port, f"/ws/scoreboard?token={make_token()}")

    assert (by_header.status, by_url.status) == (401, 400)
    assert by_url.problem["detail"] == "This path does not support the parameter token"


async def test_unloaded_board_returns_503_and_unknown_board_404(
    start_streamer: StartStreamer, handshake: Handshake
) -> None:
    running = await start_streamer(boards="main,weekly")
    await running.store.write_boards([Board()])

    weekly = await handshake(running.port, "/ws/scoreboard?board=weekly")
    other = await handshake(running.port, "/ws/scoreboard?board=other")

    assert weekly.status == 503
    assert int(weekly.headers["retry-after"]) > 0
    assert other.status == 404


# Each limit, its response, and the release of its counts.


async def test_full_process_returns_503(
    start_streamer: StartStreamer, connect: Connect, handshake: Handshake
) -> None:
    running = await start_streamer(viewers=2)
    viewers = [await connect(running.port) for _ in range(2)]

    refused = await handshake(running.port)

    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 0
    for viewer in viewers:
        viewer.close()
    await running.wait_until_empty()
    assert (await handshake(running.port)).status == 101


async def test_process_that_fills_up_during_a_token_check_returns_503(
    start_streamer: StartStreamer,
    connect: Connect,
    make_token: MakeToken,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = await start_streamer(viewers=1)
    checking, resume = asyncio.Event(), asyncio.Event()
    verify = running.streamer.verifier.verify

    async def slow(token: str) -> Any:
        checking.set()
        await resume.wait()
        return await verify(token)

    monkeypatch.setattr(running.streamer.verifier, "verify", slow)
    late = await RawViewer.open(running.port)
    await late.send(request_bytes(token=make_token()))
    await checking.wait()
    viewer = await connect(running.port)
    resume.set()

    assert (await late.answer()).status == 503
    for one in (late, viewer):
        one.close()
    await running.wait_until_empty()


async def test_viewers_per_address_are_limited(
    start_streamer: StartStreamer, connect: Connect, handshake: Handshake
) -> None:
    running = await start_streamer(viewers_per_address=2, trusted_hops="127.0.0.0/8")
    forwarded = [("X-Forwarded-For", "203.0.113.9")]
    viewers = [await connect(running.port, headers=forwarded) for _ in range(2)]

    refused = await handshake(running.port, headers=forwarded)
    other = await handshake(running.port, headers=[("X-Forwarded-For", "203.0.113.10")])

    assert (refused.status, other.status) == (429, 101)
    viewers[0].close()
    await eventually_async(lambda: running.viewers == 2)
    assert (await handshake(running.port, headers=forwarded)).status == 101


async def test_viewers_per_user_are_limited(
    start_streamer: StartStreamer, connect: Connect, handshake: Handshake, make_token: MakeToken
) -> None:
    running = await start_streamer(viewers_per_subject=2)
    viewers = [await connect(running.port, token=make_token("alice")) for _ in range(2)]

    alice = await handshake(running.port, token=make_token("alice"))
    bob = await handshake(running.port, token=make_token("bob"))

    assert (alice.status, bob.status) == (429, 101)
    for viewer in viewers:
        viewer.close()
    await eventually_async(lambda: running.viewers == 1)
    assert (await handshake(running.port, token=make_token("alice"))).status == 101


async def test_rate_of_new_viewers_is_limited(
    start_streamer: StartStreamer, handshake: Handshake
) -> None:
    running = await start_streamer(new_viewers_burst=3, new_viewers_per_second=1)

    answers = [await handshake(running.port) for _ in range(6)]

    assert [one.status for one in answers[:3]] == [101, 101, 101]
    assert answers[5].status == 503
    assert 1 <= int(answers[5].headers["retry-after"]) <= 10


@asynccontextmanager
async def silent(port: int, sources: Iterable[str]) -> AsyncIterator[list[RawViewer]]:
    """Open connections that send nothing, one per source address."""
    viewers: list[RawViewer] = []
    try:
        for source in sources:
            viewers.append(await RawViewer.open(port, source=source))  # noqa: PERF401
        yield viewers
    finally:
        for viewer in viewers:
            viewer.close()


async def count_closed(viewers: list[RawViewer]) -> int:
    """Return the number of connections that the server has closed."""
    found = await asyncio.gather(*map(is_closed, viewers))
    return sum(found)


async def is_closed(viewer: RawViewer) -> bool:
    try:
        return await viewer.eof(0.2) == b""
    except TimeoutError:
        return False


async def test_pending_connections_per_address_are_limited(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    """Incident: one address with silent connections blocked all viewers."""
    running = await start_streamer(viewers_per_address=3)

    async with silent(running.port, ["127.0.0.2"] * 10) as connections:
        assert await count_closed(connections) == 7

        (await connect(running.port)).close()
    await running.wait_until_empty()


@pytest.mark.parametrize("sent", [b"", b"GET /ws/scoreboard HTTP/1.1\r\nHost: a\r\n"])
async def test_pending_handshakes_of_many_addresses_do_not_block_viewers(
    start_streamer: StartStreamer, connect: Connect, sent: bytes
) -> None:
    running = await start_streamer(handshakes=20)
    sources = [f"127.0.0.{number}" for number in range(2, 62)]

    async with silent(running.port, sources) as connections:
        for one in connections[-20:]:
            await one.send(sent)
        for _ in range(30):
            (await connect(running.port)).close()
        assert len(running.streamer.manager.connections) <= 21
        assert await count_closed(connections[:40]) == 40, "the oldest are evicted"
    await running.wait_until_empty()


async def test_rejected_peers_that_stay_connected_do_not_block_viewers(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(handshakes=20)
    sources = [f"127.0.0.{number}" for number in range(2, 42)]

    async with silent(running.port, sources) as connections:
        for one in connections:
            with suppress(OSError):
                await one.send(request_bytes("/nowhere"))
        for _ in range(5):
            (await connect(running.port)).close()
        assert len(running.streamer.manager.connections) <= 21
    await running.wait_until_empty()


async def test_pending_handshakes_of_a_trusted_hop_are_not_limited(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(viewers_per_address=3, trusted_hops="127.0.0.2")

    async with silent(running.port, ["127.0.0.2"] * 30) as connections:
        await eventually_async(lambda: len(running.streamer.manager.connections) == 30)
        for number, one in enumerate(connections):
            forwarded = [("X-Forwarded-For", f"203.0.113.{number}")]
            await one.send(request_bytes(headers=forwarded))
        for one in connections:
            assert (await one.answer()).status == 101
    await running.wait_until_empty()


async def test_address_above_the_attempt_rate_is_dropped_without_affecting_others(
    start_streamer: StartStreamer, connect: Connect, handshake: Handshake
) -> None:
    running = await start_streamer(viewers_per_address=2)
    answered = 0
    for _ in range(20):
        viewer = await RawViewer.open(running.port, source="127.0.0.2")
        with suppress(OSError, Closed):
            await viewer.send(request_bytes("/nowhere"))
            answered += (await viewer.answer()).status == 404
        viewer.close()
        await running.wait_until_empty()

    assert answered == 2 * ATTEMPTS_PER_VIEWER
    (await connect(running.port)).close()


async def test_address_behind_a_trusted_hop_above_the_attempt_rate_gets_429(
    start_streamer: StartStreamer, handshake: Handshake
) -> None:
    running = await start_streamer(viewers_per_address=2, trusted_hops="127.0.0.0/8")
    forwarded = [("X-Forwarded-For", "203.0.113.9")]

    statuses = [
        (await handshake(running.port, "/ws/scoreboard?board=main", headers=forwarded)).status
        for _ in range(20)
    ]

    assert statuses == [101] * 2 + [429] * 18
    answer = await handshake(running.port, headers=forwarded)
    assert "too often" in answer.problem["detail"]
    assert (await handshake(running.port)).status == 101


async def test_address_at_its_limit_does_not_use_the_process_rate(
    start_streamer: StartStreamer, connect: Connect, handshake: Handshake
) -> None:
    """Incident: the rate was charged first, so rejected attempts of one address blocked others."""
    running = await start_streamer(
        viewers_per_address=3,
        new_viewers_burst=5,
        new_viewers_per_second=1,
        trusted_hops="127.0.0.0/8",
    )
    forwarded = [("X-Forwarded-For", "203.0.113.9")]
    viewers = [await connect(running.port, headers=forwarded) for _ in range(3)]

    refused = [(await handshake(running.port, headers=forwarded)).status for _ in range(12)]

    assert refused == [429] * 12
    assert (await handshake(running.port)).status == 101
    for viewer in viewers:
        viewer.close()


async def test_invalid_tokens_do_not_use_the_process_rate_or_the_address_limit(
    start_streamer: StartStreamer, handshake: Handshake, make_token: MakeToken
) -> None:
    running = await start_streamer(
        viewers_per_address=8, new_viewers_burst=2, new_viewers_per_second=1
    )
    bad = make_token(aud="another")

    refused = [(await handshake(running.port, token=bad)).status for _ in range(6)]

    assert refused == [401] * 6
    assert (await handshake(running.port)).status == 101


async def test_viewer_is_counted_until_its_connection_has_ended(
    start_streamer: StartStreamer, connect: Connect, handshake: Handshake
) -> None:
    """A closing connection holds a file descriptor, so it counts."""
    running = await start_streamer(viewers=1)
    viewer = await connect(running.port)
    await viewer.send(masked_frame(CLOSE, b"\x03\xe8"))
    assert await viewer.closed() == 1000
    await eventually_async(lambda: running.viewers == 0)

    assert (await handshake(running.port)).status == 503

    viewer.close()
    await running.wait_until_empty()
    assert (await handshake(running.port)).status == 101


async def test_disconnect_during_a_token_check_releases_all_resources(
    start_streamer: StartStreamer, make_token: MakeToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start_streamer(board=PRIVATE, handshake_timeout_s=0.3)
    checking, resume, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    verify = running.streamer.verifier.verify

    async def slow(token: str) -> Any:
        checking.set()
        await resume.wait()
        ended.set()
        return await verify(token)

    monkeypatch.setattr(running.streamer.verifier, "verify", slow)
    viewer = await RawViewer.open(running.port)
    await viewer.send(request_bytes(token=make_token()))
    await checking.wait()

    assert await viewer.eof() == b""
    await running.wait_until_empty()
    resume.set()
    await ended.wait()

    await running.wait_until_empty()
    viewer.close()


async def test_token_check_without_keys_returns_503(
    start_streamer: StartStreamer, handshake: Handshake, make_token: MakeToken, tmp_path: Any
) -> None:
    running = await start_streamer(jwks_file=tmp_path / "missing.json")

    answer = await handshake(running.port, token=make_token())

    assert answer.status == 503
    assert answer.problem["type"] == "/docs/problems/keys-unavailable"
    assert int(answer.headers["retry-after"]) > 0
