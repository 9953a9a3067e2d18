"""The load generator against the api through a proxy: open and closed loops, lost connections."""

import asyncio

import msgspec
import pytest

from cli.bench.generator.http_load import NOT_REPEATED, Address, HttpLoad, Plan
from cli.bench.generator.measurement import LOST, UNREADABLE
from cli.bench.generator.requests import Reads, Updates, User
from scoreboard.errors import Unavailable
from tests.support.fakes.proxy import MakeProxy, Proxy
from tests.support.servers.api import ApiClient, StartApi

pytestmark = pytest.mark.slow

RATE = 200
CONNECTIONS = 8
STALL_S = 1.0


async def read_nothing() -> dict[str, float]:
    return {}


def plan(port: int, *, rate: float | None, duration_s: float = 3.0) -> Plan:
    return Plan(
        Address("127.0.0.1", port, "bench"),
        connections=CONNECTIONS,
        warm_up_s=0.3,
        duration_s=duration_s,
        rate=rate,
    )


def updates(client: ApiClient, run: str = "run") -> Updates:
    users = [
        User(name, client.bearer(name)["Authorization"].removeprefix("Bearer "))
        for name in (f"user-{number}" for number in range(20))
    ]
    return Updates("bench", users, board=None, run=run)


async def run_with_stall(load: HttpLoad, proxy: Proxy) -> None:
    """Run a load while the server stalls for ``STALL_S`` in the middle of it."""

    loop = asyncio.get_running_loop()
    restored: list[asyncio.Task[None]] = []
    # By the clock, as the load itself: the stall must lie within the measured window.
    loop.call_later(1.3, proxy.freeze)
    loop.call_later(1.3 + STALL_S, lambda: restored.append(loop.create_task(proxy.restore())))
    await load.run(read_nothing, asyncio.Event())
    await restored[0]


async def test_an_open_loop_shows_a_stall_in_every_request_that_was_due(
    start_api: StartApi, make_proxy: MakeProxy
) -> None:
    client = await start_api(rate_limit="gateway")
    proxy = await make_proxy(client.port)
    load = HttpLoad(plan(proxy.port, rate=RATE), updates(client))
    await run_with_stall(load, proxy)
    found = load.measurement
    assert found.total == RATE * 3
    assert found.outcomes["applied"] == found.total
    # The requests due in the stall waited half of it on average: a third of all, so p90 shows it.
    summary = found.latencies.summary()
    assert summary.max_ms > 900 * STALL_S
    assert summary.percentiles_ms["p90"] > 500 * STALL_S


async def test_a_closed_loop_shows_a_stall_once_for_each_connection(
    start_api: StartApi, make_proxy: MakeProxy
) -> None:
    client = await start_api(rate_limit="gateway")
    proxy = await make_proxy(client.port)
    load = HttpLoad(plan(proxy.port, rate=None), updates(client))
    await run_with_stall(load, proxy)
    found = load.measurement
    summary = found.latencies.summary()
    assert summary.max_ms > 900 * STALL_S
    # One slow request for each connection is then less than a tenth of all.
    assert found.outcomes["applied"] > 20 * CONNECTIONS
    assert summary.percentiles_ms["p90"] < 300 * STALL_S


async def test_requests_that_never_find_a_connection_are_counted_as_unsent(
    start_api: StartApi, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.bench.generator.http_load.TIMEOUT_S", 0.5)
    client = await start_api(rate_limit="gateway")
    proxy = await make_proxy(client.port)
    load = HttpLoad(plan(proxy.port, rate=RATE, duration_s=1.5), updates(client))
    loop = asyncio.get_running_loop()
    loop.call_later(0.6, proxy.freeze)  # and it never answers again
    await load.run(read_nothing, asyncio.Event())
    found = load.measurement
    assert found.total == RATE * 1.5
    assert found.unsent > 100
    assert found.outcomes["timeout"] >= CONNECTIONS
    assert found.error_share > 0.5


async def test_an_unknown_outcome_is_found_by_repeating_the_action(
    start_api: StartApi, make_proxy: MakeProxy
) -> None:
    client = await start_api(rate_limit="gateway")
    proxy = await make_proxy(client.port)
    load = HttpLoad(plan(proxy.port, rate=RATE, duration_s=1.5), updates(client))
    asyncio.get_running_loop().call_later(0.8, proxy.cut)
    await load.run(read_nothing, asyncio.Event())
    found = load.measurement
    assert found.outcomes["applied"] + found.outcomes[LOST] == found.total
    # Some actions may have been applied although the answer was lost; now each is for certain.
    again = await load.send_each(found.unknown)
    assert set(again) <= {"applied", "replayed"}
    assert again.total() == len(found.unknown)


async def test_a_stop_ends_the_window_with_what_was_measured(start_api: StartApi) -> None:
    client = await start_api(rate_limit="gateway")
    load = HttpLoad(plan(client.port, rate=RATE, duration_s=60), updates(client))
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(1.0, stop.set)
    first, last = await load.run(read_nothing, stop)
    assert last.at_s - first.at_s < 30
    assert load.measurement.outcomes["applied"] > 0
    assert load.measurement.unsent == 0


async def test_a_stop_in_the_warm_up_leaves_an_empty_window(start_api: StartApi) -> None:
    client = await start_api(rate_limit="gateway")
    given = msgspec.structs.replace(plan(client.port, rate=RATE, duration_s=60), warm_up_s=60)
    load = HttpLoad(given, updates(client))
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, stop.set)
    await load.run(read_nothing, stop)
    assert load.measurement.window.end_s == load.measurement.window.begin_s
    assert load.measurement.total == 0


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 2 k\r\ncontent-length: x\r\n\r\n"]
)
async def test_an_answer_that_is_not_http_is_counted_and_does_not_end_the_run(
    answer: bytes,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(4096):
                writer.write(answer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        work = Updates("bench", [User("u", "t")], board=None, run="run")
        load = HttpLoad(plan(port, rate=20, duration_s=0.5), work)
        await load.run(read_nothing, asyncio.Event())
    assert set(load.measurement.outcomes) <= {UNREADABLE, LOST}
    assert load.measurement.outcomes[UNREADABLE] > 0


async def test_repeating_requests_ends_in_time_if_the_server_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cli.bench.generator.http_load.REPEAT_S", 0.3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            pass
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        work = Updates("bench", [User("u", "t")], board=None, run="run")
        load = HttpLoad(plan(port, rate=20), work)
        async with asyncio.timeout(5):
            assert await load.send_each(range(100)) == {NOT_REPEATED: 100}


async def test_refusals_are_named_by_their_problems(start_api: StartApi) -> None:
    client = await start_api(rate_limit="app", updates_per_minute=1)
    load = HttpLoad(plan(client.port, rate=RATE, duration_s=1.0), updates(client))
    await load.run(read_nothing, asyncio.Event())
    assert load.measurement.outcomes == {"429 rate-limited": RATE}


async def test_reads_succeed(start_api: StartApi) -> None:
    client = await start_api(rate_limit="gateway")
    await client.update("alice", "win:1")
    users = [User("alice", "")]
    load = HttpLoad(
        plan(client.port, rate=RATE, duration_s=1.0),
        Reads("bench", users, board=None, leaderboard_share=0.5),
    )
    await load.run(read_nothing, asyncio.Event())
    assert load.measurement.outcomes == {"ok": RATE}


async def test_an_address_without_a_listener_is_an_error(unused_tcp_port: int) -> None:
    load = HttpLoad(plan(unused_tcp_port, rate=RATE), Reads("x", [User("a", "")], board=None,
                                                            leaderboard_share=1))  # fmt: skip
    with pytest.raises(Unavailable, match="No connection to"):
        await load.run(read_nothing, asyncio.Event())
