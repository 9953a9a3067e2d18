"""The api on real sockets: slow and broken clients, an unavailable Redis, shutdown."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from api.app import create_app
from api.server import bind, serve
from scoreboard.model import Board, Layout, Partition
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.store.keys import PartitionKeys
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy
from tests.support.servers.api import (
    LEADERBOARD_PATH,
    UPDATE_PATH,
    ApiClient,
    StartApi,
    api_settings,
    open_boards,
)
from tests.support.servers.stores import EmbeddedValkey, OwnValkey

pytestmark = pytest.mark.slow


async def talk(client: ApiClient, data: bytes, *, end: bool = False) -> bytes:
    """Send bytes over a new connection; return what the server sends until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    try:
        writer.write(data)
        if end:
            writer.write_eof()
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def head(client: ApiClient, *lines: str, user: str = "alice") -> bytes:
    token = client.bearer(user)["Authorization"]
    fixed = ["Host: a", "Content-Type: application/json", f"Authorization: {token}"]
    return "\r\n".join([f"POST {UPDATE_PATH} HTTP/1.1", *fixed, *lines, "", ""]).encode()


def status_and_problem(answer: bytes) -> tuple[int, dict[str, Any]]:
    start, _, body = answer.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(body)


async def test_pipelined_requests_get_responses_in_order(start_api: StartApi) -> None:
    client = await start_api()
    requests = b""
    for number in (1, 2):
        body = b'{"userId":"alice","actionId":"win:%d"}' % number
        close = ("Connection: close",) if number == 2 else ()
        requests += head(client, f"Content-Length: {len(body)}", *close) + body
    answers = await talk(client, requests)
    assert [part.split(b",")[0] for part in answers.split(b'"newScore":')[1:]] == [b"10", b"20"]


async def test_a_response_to_head_has_no_body(start_api: StartApi) -> None:
    client = await start_api()
    answer = await client.head(LEADERBOARD_PATH)
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) > 0
    assert (await client.get(LEADERBOARD_PATH)).status_code == 200


async def test_a_body_with_a_too_large_content_length_is_refused_immediately(
    start_api: StartApi,
) -> None:
    client = await start_api()
    answer = await talk(client, head(client, "Content-Length: 16385", "Connection: close"))
    status, problem = status_and_problem(answer)
    assert (status, problem["type"]) == (413, "/docs/problems/body-too-large")


async def test_a_chunked_body_is_limited_while_it_arrives(start_api: StartApi) -> None:
    client = await start_api()
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    request = head(client, "Transfer-Encoding: chunked", "Connection: close") + chunk * 5
    status, problem = status_and_problem(await talk(client, request))
    assert (status, problem["type"]) == (413, "/docs/problems/body-too-large")


async def test_a_chunked_body_within_the_limit_is_accepted(start_api: StartApi) -> None:
    client = await start_api()
    body = b'{"userId":"alice","actionId":"win:1"}'
    halves = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:10], body[10:]))
    request = head(client, "Transfer-Encoding: chunked", "Connection: close")
    answer = await talk(client, request + halves + b"0\r\n\r\n")
    assert b'"newScore":10' in answer


async def test_a_body_that_does_not_arrive_is_refused_in_time(start_api: StartApi) -> None:
    client = await start_api(body_timeout_s=0.3)
    began_s = time.monotonic()
    request = head(client, "Content-Length: 30", "Connection: close") + b'{"userId"'
    status, problem = status_and_problem(await talk(client, request))
    assert (status, problem["type"]) == (400, "/docs/problems/malformed")
    assert "0.3 s" in problem["detail"]
    assert time.monotonic() - began_s < 30
    assert client.api.router.in_flight == 0


async def test_a_head_that_does_not_arrive_ends_the_connection(start_api: StartApi) -> None:
    client = await start_api(body_timeout_s=0.3)
    for start in (b"", b"POST /api/scores/update HTTP/1.1\r\nHost:"):
        assert await talk(client, start) == b""


async def test_input_that_is_not_http_gets_a_problem(start_api: StartApi) -> None:
    client = await start_api()
    status, problem = status_and_problem(await talk(client, b"\x16\x03\x01 nonsense\r\n\r\n"))
    assert (status, problem["type"]) == (400, "/docs/problems/malformed")


async def test_a_repeated_header_is_refused(start_api: StartApi) -> None:
    client = await start_api()
    body = b'{"userId":"alice","actionId":"win:1"}'
    twice = client.bearer("bob")["Authorization"]
    lines = (f"Authorization: {twice}", f"Content-Length: {len(body)}", "Connection: close")
    status, problem = status_and_problem(await talk(client, head(client, *lines) + body))
    assert (status, "authorization" in problem["detail"]) == (400, True)


async def test_clients_that_disconnect_during_a_request_leak_nothing(
    start_api: StartApi, make_proxy: MakeProxy, valkey_server: EmbeddedValkey, redis_url: str
) -> None:
    proxy = await make_proxy(valkey_server.port)
    client = await start_api(
        url=proxy.through(redis_url), redis_timeout_s=1, redis_connect_timeout_s=1
    )
    await client.update("alice", "first:1")
    proxy.freeze()
    writers = []
    for number in range(60):
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        body = b'{"userId":"alice","actionId":"left:%d"}' % number
        request = head(client, f"Content-Length: {len(body)}") + body
        # A third disconnects in the head, a third in the body, a third while waiting.
        writer.write(request[: (100, len(request) - 5, len(request))[number % 3]])
        writers.append(writer)
    await eventually_async(lambda: client.api.router.in_flight >= 20)
    for writer in writers:
        writer.transport.abort()
    await proxy.restore()
    await eventually_async(lambda: client.api.router.in_flight == 0)
    await eventually_async(
        lambda: (
            not [
                task for task in asyncio.all_tasks() if "Connection._serve" in repr(task.get_coro())
            ]
        )
    )
    assert not client.api._dispatcher.waiting
    assert (await client.update("alice", "after:1")).status_code == 200


async def test_requests_over_the_limit_return_503(
    start_api: StartApi, make_proxy: MakeProxy, valkey_server: EmbeddedValkey, redis_url: str
) -> None:
    proxy = await make_proxy(valkey_server.port)
    client = await start_api(url=proxy.through(redis_url), requests_in_flight=3, redis_timeout_s=2)
    await client.update("alice", "first:1")
    proxy.freeze()
    held = [asyncio.ensure_future(client.update("alice", f"held:{n}")) for n in range(3)]
    await eventually_async(lambda: client.api.router.in_flight == 3)
    answer = await client.update("alice", "beyond:1")
    assert (answer.status_code, answer.json()["type"]) == (503, "/docs/problems/overloaded")
    assert answer.headers["retry-after"] == "1"
    assert (await client.get("/health/live")).status_code == 200
    await proxy.restore()
    assert {answer.status_code for answer in await asyncio.gather(*held)} == {200}


async def test_requests_that_wait_for_their_body_do_not_count_as_in_flight(
    start_api: StartApi,
) -> None:
    client = await start_api(requests_in_flight=2)
    await client.update("alice", "first:1")
    body = b'{"userId":"mallory","actionId":"slow:1"}'
    request = head(client, f"Content-Length: {len(body)}", "Connection: close", user="mallory")
    slow = [await asyncio.open_connection("127.0.0.1", client.port) for _ in range(8)]
    for _, writer in slow:
        writer.write(request + body[:1])
    await eventually_async(lambda: client.api.router.waiting == len(slow))

    assert (await client.update("alice", "next:1")).status_code == 200
    assert (await client.get(LEADERBOARD_PATH)).status_code == 200

    for _, writer in slow:
        writer.write(body[1:])
    async with asyncio.timeout(30):
        answers = [await reader.read() for reader, _ in slow]
    for _, writer in slow:
        writer.close()
    statuses = {int(answer.split()[1]) for answer in answers}
    assert 200 in statuses
    assert statuses <= {200, 503}
    assert (client.api.router.in_flight, client.api.router.waiting) == (0, 0)


async def test_whole_bodies_do_not_exceed_the_limit_of_requests(
    start_api: StartApi, make_proxy: MakeProxy, valkey_server: EmbeddedValkey, redis_url: str
) -> None:
    proxy = await make_proxy(valkey_server.port)
    client = await start_api(url=proxy.through(redis_url), requests_in_flight=3, redis_timeout_s=2)
    await client.update("alice", "first:1")
    body = b'{"userId":"alice","actionId":"slow:1"}'
    request = head(client, f"Content-Length: {len(body)}", "Connection: close")
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(request + body[:1])
    await eventually_async(lambda: client.api.router.waiting == 1)
    proxy.freeze()
    held = [asyncio.ensure_future(client.update("alice", f"held:{n}")) for n in range(3)]
    await eventually_async(lambda: client.api.router.in_flight == 3)

    writer.write(body[1:])
    async with asyncio.timeout(30):
        status, problem = status_and_problem(await reader.read())
    writer.close()

    assert (status, problem["type"]) == (503, "/docs/problems/overloaded")
    await proxy.restore()
    assert {answer.status_code for answer in await asyncio.gather(*held)} == {200}


async def test_an_unreachable_redis_is_reported_quickly_and_reconnected(
    start_api: StartApi, make_proxy: MakeProxy, valkey_server: EmbeddedValkey, redis_url: str
) -> None:
    proxy = await make_proxy(valkey_server.port)
    client = await start_api(url=proxy.through(redis_url))
    assert (await client.update("alice", "win:1")).status_code == 200
    proxy.refuse()
    for _ in range(3):
        began_s = time.monotonic()
        update, read = await client.update("alice", "win:2"), await client.get(LEADERBOARD_PATH)
        assert time.monotonic() - began_s < 5
        assert (update.status_code, read.status_code) == (503, 503)
        assert update.json()["type"] == "/docs/problems/redis-unavailable"
        assert update.headers["retry-after"]

    async def ready() -> int:
        return (await client.get("/health/ready")).status_code

    async def is_ready(status: int) -> bool:
        return await ready() == status

    await eventually_async(lambda: is_ready(503))
    await proxy.restore()
    await eventually_async(lambda: is_ready(200))
    assert (await client.update("alice", "win:2")).json()["newScore"] == 20
    assert (await client.get(LEADERBOARD_PATH)).json()["leaderboard"][0]["score"] == 20


async def test_a_lost_reply_has_an_unknown_outcome_and_a_repeat_applies_once(
    start_api: StartApi, make_proxy: MakeProxy, valkey_server: EmbeddedValkey, redis_url: str
) -> None:
    proxy = await make_proxy(valkey_server.port)
    client = await start_api(url=proxy.through(redis_url), redis_timeout_s=0.4)
    await client.update("alice", "win:1")
    proxy.freeze()
    began_s = time.monotonic()
    answer = await client.update("alice", "win:2")
    assert (answer.status_code, answer.json()["type"]) == (503, "/docs/problems/outcome-unknown")
    assert "same actionId" in answer.json()["detail"]
    assert time.monotonic() - began_s < 5
    await proxy.restore()

    async def is_applied() -> bool:
        return (await client.update("alice", "win:2")).status_code == 200

    await eventually_async(is_applied)
    assert (await client.update("alice", "win:2")).json() == {
        "success": True,
        "newScore": 20,
        "replayed": True,
    }


async def test_an_api_started_without_redis_waits_for_it(
    start_api: StartApi, make_proxy: MakeProxy, valkey_server: EmbeddedValkey, redis_url: str
) -> None:
    proxy = await make_proxy(valkey_server.port)
    url = proxy.through(redis_url)
    await start_api()  # opens the board
    proxy.refuse()
    client = await start_api(open=(), url=url)
    assert (await client.update()).status_code == 503
    ready = (await client.get("/health/ready")).json()
    assert ready["status"] == "not ready"
    assert ready["checks"]["redis"]["state"] == "down"
    await proxy.restore()

    async def works() -> bool:
        return (await client.update()).status_code == 200

    await eventually_async(works)


async def test_the_metrics_port_says_ready_only_while_the_api_listens(
    redis_url: str, jwks_file: Path
) -> None:
    """The metrics port is served earlier; traffic would be refused meanwhile."""
    await open_boards(redis_url)
    settings = api_settings(redis_url, jwks_file)
    api = create_app(settings)
    listener, stop, started = bind("127.0.0.1", 0), StopEvent(5), asyncio.Event()

    async def loaded() -> bool:
        return (await api.health.ready()).status == "ready"

    async with api.running():
        await eventually_async(loaded)
        assert (await api.health.readiness())[0] is False

        served = asyncio.create_task(serve(api, settings, listener, stop, started=started.set))
        await asyncio.wait_for(started.wait(), 10)
        assert (await api.health.readiness())[0] is True
        stop.set()
        await asyncio.wait_for(served, 10)
        assert (await api.health.readiness())[0] is False


async def test_readiness_reports_each_dependency(
    start_api: StartApi, own_valkey: OwnValkey, database_url: str
) -> None:
    server = own_valkey()
    client = await start_api(url=server.url, database_url=database_url)

    async def ready(status: int, check: str, state: str) -> bool:
        answer = await client.get("/health/ready")
        return (answer.status_code, answer.json()["checks"][check]["state"]) == (status, state)

    await eventually_async(lambda: ready(200, "keys", "up"))
    assert await ready(200, "durability", "safe")
    assert await ready(200, "catalogue", "up")
    assert await ready(200, "database", "up")
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("appendfsync", "everysec")
    client.api.health._durability._expires_at_s = 0.0
    assert await ready(503, "durability", "unsafe")


async def test_the_api_is_not_ready_while_no_board_is_loaded(
    start_api: StartApi, redis_url: str
) -> None:
    # Incident: it was ready on an emptied Redis, where every update and read returned 503.
    client = await start_api(open=(), boards="main,weekly")

    async def ready(status: int, **states: str) -> bool:
        client.api.health._board_states._expires_at_s = 0.0
        answer = await client.get("/health/ready")
        checks = answer.json()["checks"]
        found = {board: checks[f"board {board}"]["state"] for board in states}
        return (answer.status_code, found) == (status, states)

    assert await ready(503, main="uninitialised", weekly="uninitialised")
    assert (await client.update()).status_code == 503
    assert (await client.get(LEADERBOARD_PATH)).status_code == 503

    await open_boards(redis_url, Board("weekly", Layout(partitions=2)))
    assert await ready(200, main="uninitialised", weekly="open")
    await open_boards(redis_url, Board("main"))
    assert await ready(200, main="open", weekly="open")

    with redis.Redis.from_url(redis_url) as server:
        for number in range(2):
            server.hset(PartitionKeys(Partition("weekly", number)).meta, "state", "fenced")
        assert await ready(200, main="open", weekly="fenced")
        server.delete(PartitionKeys(Partition("weekly", 1)).meta)
        assert await ready(200, main="open", weekly="uninitialised")
        client.api.health._board_states._expires_at_s = 0.0
        found = (await client.get("/health/ready")).json()["checks"]["board weekly"]
        assert found["detail"] == "partitions 1 of 2"
        assert found["advice"] == "scoreboard reseed --board weekly"
        server.set(PartitionKeys(Partition("weekly", 0)).meta, "of another type")
        assert await ready(200, main="open", weekly="down")
        server.flushdb()
        assert await ready(503, main="uninitialised", weekly="uninitialised")


async def test_an_unreachable_database_is_reported_and_the_api_stays_ready(
    start_api: StartApi, make_proxy: MakeProxy, database_url: str, postgres_server: Any
) -> None:
    proxy = await make_proxy(postgres_server.port)
    client = await start_api(
        database_url=proxy.through(database_url), database_timeout_s=20, database_pool=1
    )
    assert (await client.get("/health/ready")).json()["checks"]["database"]["state"] == "up"
    proxy.refuse()
    client.api.health._database._expires_at_s = 0.0
    answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()["checks"]["database"]["state"]) == (200, "down")
    assert (await client.update()).status_code == 200
    began_s = time.monotonic()
    named = await client.get(LEADERBOARD_PATH, params={"names": "true"})
    assert named.status_code == 200
    assert time.monotonic() - began_s < 10


async def test_a_shutdown_finishes_requests_in_flight(
    start_api: StartApi, make_proxy: MakeProxy, valkey_server: EmbeddedValkey, redis_url: str
) -> None:
    proxy = await make_proxy(valkey_server.port)
    client = await start_api(url=proxy.through(redis_url), drain_notice_s=3, redis_timeout_s=30)
    await client.update("alice", "win:1")
    proxy.freeze()
    under_way = asyncio.ensure_future(client.update("alice", "win:2"))
    await eventually_async(lambda: client.api.router.in_flight == 1)
    client.stop.set()

    async def is_draining() -> bool:
        answer = await client.get("/health/ready")
        return (answer.status_code, answer.json()["status"]) == (503, "draining")

    await eventually_async(is_draining, within_s=3)

    async def is_closed() -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False) as other:
                await other.get(f"http://127.0.0.1:{client.port}/health/live")
        except httpx.ConnectError:
            return True
        return False

    await eventually_async(is_closed)
    assert not under_way.done()
    await proxy.restore()
    answer = await under_way
    assert (answer.status_code, answer.json()["newScore"]) == (200, 20)
    assert answer.headers["connection"] == "close"
    await asyncio.wait_for(client.served, 30)


@pytest.mark.parametrize("size", [1, 50])
async def test_the_same_action_sent_concurrently_is_applied_once(
    start_api: StartApi, size: int
) -> None:
    client = await start_api()
    answers = await asyncio.gather(*(client.update("alice", "win:1") for _ in range(size)))
    assert {answer.json()["newScore"] for answer in answers} == {10}
    assert [answer.json()["replayed"] for answer in answers].count(False) == 1
