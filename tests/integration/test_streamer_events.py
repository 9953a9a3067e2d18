"""The event stream: the messages to viewers as server-sent events, without WebSocket."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from math import inf
from typing import Any

import httpx
import pytest

from api.endpoints.sse import Admission, EventChannel, EventStream
from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.broadcast.messages import Leaderboard
from scoreboard.model import Action, Board, Partition, Row
from scoreboard.runtime.settings import load
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.security.tokens import Caller
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import BOARDS, PartitionKeys
from scoreboard.store.store import Store
from tests.support.asyncapi import check_message
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import MakeToken
from tests.support.servers.api import ApiClient, StartApi

PATH = "/api/scores/stream"
PRIVATE = Board(is_public=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 0.3)


class Events:
    """A strict parser of server-sent events."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.last_id = ""
        self._lines = answer.aiter_lines()

    async def next(self, kind: str | None = None, within_s: float = 30.0) -> dict[str, Any]:
        """Read until the next event (of a type)."""
        async with asyncio.timeout(within_s):
            name, data = "", ""
            async for line in self._lines:
                field, _, value = line.partition(": ")
                match field:
                    case "event":
                        name = value
                    case "id":
                        self.last_id = value
                    case "data":
                        data = value
                    case "" if data:
                        message = json.loads(data)
                        assert message["type"] == name
                        check_message(message)
                        if kind in {None, name}:
                            return message
                        name, data = "", ""
                    case _:
                        assert line in {"", "retry: 3000"}
        raise AssertionError("the stream ended")

    async def end(self, within_s: float = 30.0) -> dict[str, Any]:
        """Read until the end; return the preceding ``bye``."""
        bye = await self.next("bye", within_s)
        async with asyncio.timeout(within_s):
            async for line in self._lines:
                assert not line
        return bye


Listen = Callable[..., AbstractAsyncContextManager[Events]]


@asynccontextmanager
async def listening(client: ApiClient, **request: Any) -> AsyncIterator[Events]:
    async with client.stream("GET", request.pop("path", PATH), **request) as answer:
        if answer.status_code != 200:
            await answer.aread()
        assert answer.status_code == 200, answer.text
        yield Events(answer)


def ended(reason: str) -> float:
    labels = {"reason": reason}
    return REGISTRY.get_sample_value("scoreboard_event_streams_ended_total", labels) or 0.0


async def test_stream_sends_the_board_then_every_change(start_api: StartApi) -> None:
    client = await start_api()
    async with listening(client) as events:
        assert events.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert events.answer.headers["cache-control"] == "no-store"
        first = await events.next()
        assert first["type"] == "leaderboard"
        assert events.last_id == f"{first['epoch']}-{first['seq']}"

        await client.update("alice", "win:1")
        board = await events.next("leaderboard")

    assert board["leaderboard"] == [{"rank": 1, "userId": "alice", "score": 10}]
    assert events.last_id == f"{board['epoch']}-{board['seq']}"


async def test_duration_of_writing_a_board_to_its_streams_sets_the_pace() -> None:
    channel = EventChannel("main")
    admission = Admission("main", "192.0.2.7", None, inf, CloseCode.RESTART, "")
    written: list[bytes] = []

    async def write(data: bytes) -> None:
        time.sleep(0.01)  # noqa: ASYNC251  # pace: of a process that is busy writing
        written.append(data)

    async with asyncio.TaskGroup() as tasks:
        streams = [EventStream(admission, channel) for _ in range(5)]
        for stream in streams:
            channel.streams.add(stream)
            tasks.create_task(stream.run(write, 60.0))
        await eventually_async(lambda: len(written) == 5)
        channel.publish(Leaderboard("main", 1, 1, 0, ()))
        await eventually_async(lambda: len(written) == 10)
        assert channel.least_gap_s >= 0.05
        for stream in streams:
            stream.finish(CloseCode.RESTART)


async def test_last_event_id_of_the_current_board_skips_it(start_api: StartApi) -> None:
    client = await start_api()
    await client.update("alice", "win:1")
    async with listening(client) as events:
        await events.next("leaderboard")
        held = events.last_id

    async with listening(client, headers={"Last-Event-ID": held}) as again:
        assert (await again.next())["type"] == "heartbeat"
        await client.update("bob", "win:1")
        assert len((await again.next("leaderboard"))["leaderboard"]) == 2
    async with listening(client, headers={"Last-Event-ID": held}) as behind:
        assert (await behind.next())["type"] == "leaderboard"
    async with listening(client, headers={"Last-Event-ID": "nonsense"}) as other:
        assert (await other.next())["type"] == "leaderboard"


async def test_heartbeats_are_sent_when_idle(start_api: StartApi) -> None:
    client = await start_api(heartbeat_s=0.2)
    async with listening(client) as events:
        board = await events.next("leaderboard")

        heartbeat = await events.next("heartbeat")

    assert (heartbeat["epoch"], heartbeat["seq"]) == (board["epoch"], board["seq"])


async def test_private_board_requires_a_token_with_the_scope(start_api: StartApi) -> None:
    client = await start_api(open=(PRIVATE,))

    none = await client.get(PATH)
    scopeless = await client.get(PATH, headers=client.bearer(scope="update:score"))
    bad = await client.get(PATH, headers=client.bearer(aud="other"))
    async with listening(client, headers=client.bearer()) as events:
        assert (await events.next())["type"] == "leaderboard"

    assert (none.status_code, scopeless.status_code, bad.status_code) == (401, 403, 401)
    for answer in (none, scopeless, bad):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", PATH, 405),
        ("GET", f"{PATH}?board=unknown", 404),
        ("GET", f"{PATH}?board=main&board=weekly", 400),
        ("GET", f"{PATH}?board=", 404),
        ("GET", f"{PATH}?token=abc", 400),
        ("GET", f"{PATH}?board=weekly", 503),
    ],
)
async def test_invalid_stream_request_returns_a_problem(
    start_api: StartApi, redis_url: str, method: str, path: str, status: int
) -> None:
    async with make_client(load({"REDIS_URL": redis_url}), name="test") as redis_client:
        await Store(redis_client).write_boards([Board()])
    client = await start_api(boards="main,weekly")

    answer = await client.request(method, path, headers={"X-Request-ID": "abcdefgh-1"})

    assert answer.status_code == status
    assert answer.json()["status"] == status
    assert answer.json()["request_id"] == "abcdefgh-1"


async def test_stream_ends_when_its_token_expires(start_api: StartApi) -> None:
    client = await start_api(open=(PRIVATE,))
    exp = int(time.time()) + 2
    async with listening(client, headers=client.bearer(exp=exp)) as events:
        bye = await events.end()

    assert bye["code"] == 4401
    assert exp - 0.2 <= time.time() < exp + 1.5


async def test_stream_ends_at_its_maximum_age_and_can_reconnect(start_api: StartApi) -> None:
    client = await start_api(event_stream_s=0.5)
    async with listening(client) as events:
        bye = await events.end()

    assert (bye["code"], bye["reconnect"]) == (1012, True)


async def test_anonymous_streams_end_when_the_board_becomes_private(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api()
    async with listening(client) as anonymous, listening(client, headers=client.bearer()) as known:
        await anonymous.next("leaderboard")
        await known.next("leaderboard")
        redis = make_client(load({"REDIS_URL": redis_url}), name="test")
        await redis.hset(PartitionKeys(Partition("main")).meta, "public", "0")
        await redis.aclose()

        assert (await anonymous.end())["code"] == 4403
        await client.update("alice", "win:1")
        await known.next("leaderboard")


async def test_streams_are_limited_and_their_counts_released(start_api: StartApi) -> None:
    client = await start_api(
        event_streams=3,
        viewers_per_address=2,
        viewers_per_subject=1,
        trusted_hops="127.0.0.1",
    )

    def at(address: str) -> dict[str, str]:
        return {"X-Forwarded-For": address}

    alice = client.bearer("alice")
    async with listening(client, headers=at("203.0.113.1") | alice):
        same_user = await client.get(PATH, headers=at("203.0.113.2") | alice)
        async with listening(client, headers=at("203.0.113.1")):
            same_address = await client.get(PATH, headers=at("203.0.113.1"))
            async with listening(client, headers=at("203.0.113.2")):
                full = await client.get(PATH, headers=at("203.0.113.3"))

    assert (same_user.status_code, same_address.status_code, full.status_code) == (429, 429, 503)
    assert int(full.headers["retry-after"]) > 0
    await eventually_async(lambda: client.api._streams.count == 0)
    async with listening(client, headers=at("203.0.113.1") | alice) as events:
        await events.next("leaderboard")


async def test_streams_do_not_count_as_requests(start_api: StartApi) -> None:
    client = await start_api(requests_in_flight=1, request_timeout_s=0.3)
    async with listening(client) as events:
        await events.next("leaderboard")
        assert (await client.get("/api/scores/leaderboard")).status_code == 200
        await asyncio.sleep(0.6)  # pace: twice the request timeout
        await client.update("alice", "win:1")

        assert (await events.next("leaderboard"))["leaderboard"][0]["userId"] == "alice"


async def test_client_that_reads_nothing_is_dropped_and_uses_little_memory(
    start_api: StartApi,
) -> None:
    client = await start_api(slow_viewer_s=0.5)
    before = ended("too-slow")
    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.connect(("127.0.0.1", client.port))
        unread.sendall(f"GET {PATH} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        stream = client.api._streams
        await eventually_async(lambda: stream.count == 1)
        async with listening(client) as healthy:
            state = stream._watcher.states["main"]
            sent = 0

            async def flood() -> None:
                nonlocal sent
                while stream.count == 2:
                    sent += 1
                    rows = tuple(Row(n, "u" * 120, sent) for n in range(1, 11))
                    state.message = state.message.__class__("main", 1, sent, 1, rows)  # type: ignore[union-attr]
                    stream.board_changed(state, 0.0)
                    await asyncio.sleep(0.002)  # pace: of the writes

            async with asyncio.timeout(30):
                flooding = asyncio.ensure_future(flood())
                while not flooding.done():
                    await healthy.next("leaderboard")
        unread.settimeout(2)
        got = 0
        try:
            while data := unread.recv(65_536):
                got += len(data)
        except OSError:
            pass

    assert ended("too-slow") == before + 1
    assert got < 150_000, "boards were skipped, not queued"


async def test_shutdown_ends_streams_with_a_bye_without_delay(start_api: StartApi) -> None:
    client = await start_api(drain_s=40)
    async with listening(client) as first, listening(client) as second:
        await first.next("leaderboard")
        await second.next("leaderboard")
        began_s = time.monotonic()

        client.stop.set()
        byes = [await first.end(), await second.end()]

    await asyncio.wait({client.served}, timeout=30)
    assert client.served.done()
    assert time.monotonic() - began_s < 20
    assert {one["code"] for one in byes} == {1012}


async def test_stream_that_is_admitted_while_the_api_starts_to_drain_is_refused(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draining was checked only before the token: such a stream got no bye and delayed the stop."""
    client = await start_api(drain_s=2)
    verifier = client.api._verifier
    verify, is_verifying, may_verify = verifier.verify, asyncio.Event(), asyncio.Event()

    async def verify_slowly(token: str) -> Caller:
        is_verifying.set()
        await may_verify.wait()
        return await verify(token)

    monkeypatch.setattr(verifier, "verify", verify_slowly)
    opening = asyncio.create_task(client.get(PATH, headers=client.bearer()))
    await is_verifying.wait()

    client.stop.set()
    await client.api.health.draining.wait()
    may_verify.set()

    assert (await opening).status_code == 503


async def test_stream_is_stale_when_redis_is_emptied(start_api: StartApi, redis_url: str) -> None:
    client = await start_api()
    async with listening(client) as events:
        await events.next("leaderboard")
        redis = make_client(load({"REDIS_URL": redis_url}), name="test")
        await redis.flushall()
        await redis.aclose()

        status = await events.next("status")
        async with listening(client) as late:
            assert (await late.next())["type"] == "leaderboard"
            assert (await late.next())["state"] == "stale"

    assert status["reason"] == "uninitialised"


async def test_process_without_streams_does_not_read_redis_for_them(
    start_api: StartApi, redis_url: str
) -> None:
    await start_api()
    redis = make_client(load({"REDIS_URL": redis_url}), name="test")
    names = {one["name"] for one in await redis.client_list()}
    await redis.aclose()

    assert not any("stream" in name for name in names)


async def test_forged_identity_headers_are_ignored(
    start_api: StartApi, make_token: MakeToken
) -> None:
    client = await start_api(open=(PRIVATE,))

    answers = [
        await client.get(PATH, headers={"X-Consumer-Username": "alice"}),
        await client.get(f"{PATH}?token={make_token()}"),
        await client.get(PATH, headers={"Cookie": f"token={make_token()}"}),
    ]

    assert [one.status_code for one in answers] == [401, 400, 401]


async def test_stream_of_a_board_made_after_the_start(
    start_api: StartApi, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.IDLE_S", 0.1)
    monkeypatch.setattr("scoreboard.broadcast.watcher.DELETED_AFTER_S", 0.3)
    monkeypatch.setattr("scoreboard.store.board_directory.UNKNOWN_S", 0.1)
    client = await start_api()
    async with client.stream("GET", PATH, params={"board": "golf"}) as answer:
        assert answer.status_code == 503, "there is no list of boards"
    redis_client = make_client(load({"REDIS_URL": redis_url}), name="test")
    store = Store(redis_client)
    await open_board(store, Board("golf"), scores=[("ada", 10)])
    await store.write_boards([Board("golf")])
    watcher = client.api._streams.watcher
    params = {"board": "golf"}
    async with listening(client, params=params) as events:
        assert (await events.next("leaderboard"))["board"] == "golf"
        await eventually_async(lambda: watcher.hears("golf", 1))
        dispatcher = Dispatcher(load({"REDIS_URL": redis_url}))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(dispatcher.run())
            await dispatcher.submit("golf", Action("ada", "win:1", 5))
            dispatcher.close()
        assert (await events.next("leaderboard"))["leaderboard"][0]["score"] == 15

    await eventually_async(lambda: not watcher.hears("golf", 1))
    assert watcher.generation("golf") == 0
    assert "golf" not in client.api._streams._channels

    before = ended("4404")
    async with listening(client, params=params) as events:
        await events.next("leaderboard")
        await redis_client.hset(BOARDS, "chess", await redis_client.hget(BOARDS, "golf"))
        await redis_client.hdel(BOARDS, "golf")
        await redis_client.delete(*[key async for key in redis_client.scan_iter("sb:{golf:0}:*")])
        bye = await events.end()
    assert (bye["code"], bye["reconnect"]) == (4404, False)
    await eventually_async(lambda: ended("4404") == before + 1)
    assert (await client.get(PATH, params=params)).status_code == 404
    await redis_client.aclose()


async def test_streams_of_many_boards_end_with_the_api(start_api: StartApi, redis_url: str) -> None:
    client = await start_api(drain_s=2, watched_boards=3)
    redis_client = make_client(load({"REDIS_URL": redis_url}), name="test")
    store = Store(redis_client)
    boards = [Board(f"board-{number}") for number in range(4)]
    for board in boards:
        await open_board(store, board, scores=[("ada", 10)])
    await store.write_boards(boards)
    await redis_client.aclose()
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(listening(client, params={"board": board.name}))
            for board in boards[:3]
        ]
        refused = await client.get(PATH, params={"board": boards[3].name})
        assert refused.status_code == 503
        assert "limit of boards" in refused.json()["detail"]
        client.stop.set()
        for stream in streams:
            assert (await stream.end())["code"] == 1012
