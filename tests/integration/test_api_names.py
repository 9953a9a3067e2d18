"""Names in the ranking: read from PostgreSQL, without delaying the ranking."""

import asyncio
import time
from typing import Any

import httpx
import psycopg
import pytest

from scoreboard.ledger import name_cache
from scoreboard.ledger.name_cache import WAIT_S, WAITING_MAX
from tests.support.data.ledger import Counted, write_history
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy, Proxy
from tests.support.repository import ROOT
from tests.support.servers.api import LEADERBOARD_PATH, ApiClient, StartApi

LONGEST_S = 8.0
"""Less than the time limit of a query; the rest is for a busy machine."""


def name_users(database_url: str, **names: str) -> None:
    write_history(database_url, [Counted(user, f"win:{user}", 10, 1.0) for user in names])
    with psycopg.connect(database_url) as connection:
        for user, name in names.items():
            connection.execute("UPDATE users SET name = %s WHERE external_id = %s", (name, user))


async def named(client: ApiClient) -> tuple[dict[str, str | None], float]:
    began_s = time.monotonic()
    answer = await client.get(LEADERBOARD_PATH, params={"names": "true"})
    assert answer.status_code == 200
    rows = answer.json()["leaderboard"]
    return {row["userId"]: row.get("name") for row in rows}, time.monotonic() - began_s


@pytest.fixture
async def proxy(make_proxy: MakeProxy, postgres_server: Any) -> Proxy:
    return await make_proxy(postgres_server.port)


async def test_the_ranking_includes_names_on_request(
    start_api: StartApi, database_url: str
) -> None:
    name_users(database_url, alice="Alice", bob="Bob")
    client = await start_api(database_url=database_url)
    for user in ("alice", "bob", "carol"):
        await client.update(user)

    assert (await named(client))[0] == {"alice": "Alice", "bob": "Bob", "carol": None}
    plain = (await client.get(LEADERBOARD_PATH)).json()["leaderboard"]
    assert all("name" not in row for row in plain)


async def test_metadata_is_returned_with_the_names(
    start_api: StartApi, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_cache, "FRESH_S", 0.001)
    name_users(database_url, alice="Alice", bob="Bob")
    client = await start_api(database_url=database_url)

    def set_metadata(user: str, metadata: str | None) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "UPDATE users SET metadata = %s WHERE external_id = %s", (metadata, user)
            )

    async def read(path: str = LEADERBOARD_PATH, **params: str) -> httpx.Response:
        answer = await client.get(path, params={"names": "true", **params})
        assert answer.status_code == 200
        return answer

    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE users SET name = NULL WHERE external_id = 'bob'")
    for user in ("alice", "bob", "carol"):
        await client.update(user)
    set_metadata("alice", "{}")
    set_metadata("bob", '{"team":"red","level":1e300}')
    first = await read()
    alice, bob, carol = first.json()["leaderboard"]
    assert (alice["name"], "metadata" in alice) == ("Alice", False)
    assert ("name" in bob, bob["metadata"]) == (False, {"team": "red", "level": 1e300})
    assert carol.keys() == {"rank", "userId", "score"}
    friends = (await read("/api/scores/users", ids="bob,alice")).json()["users"]
    assert [row.get("metadata") for row in friends] == [None, bob["metadata"]]
    plain = (await client.get(LEADERBOARD_PATH)).json()["leaderboard"]
    assert all("metadata" not in row for row in plain)
    set_metadata("bob", '{"team":"blue"}')
    second = await read()
    assert second.json()["leaderboard"][1]["metadata"] == {"team": "blue"}
    assert first.headers["etag"] != second.headers["etag"]


def test_the_times_after_an_erasure_are_documented() -> None:
    text = (ROOT / "docs/how-to/data-protection.md").read_text()
    fresh, kept = name_cache.FRESH_S, name_cache.KEPT_S / 60

    assert f"{fresh:.0f} seconds; up to {kept:.0f} minutes while PostgreSQL is unreachable" in text


async def test_an_erased_name_is_not_returned_while_the_database_is_away(
    start_api: StartApi, database_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cached name was returned as long as PostgreSQL was away, also if it was erased since."""
    name_users(database_url, alice="Alice")
    monkeypatch.setattr(name_cache, "FRESH_S", 0.001)
    client = await start_api(database_url=proxy.through(database_url))
    await client.update("alice")
    assert (await named(client))[0] == {"alice": "Alice"}
    proxy.freeze()
    assert (await named(client))[0] == {"alice": "Alice"}, "outdated, and better than none"

    monkeypatch.setattr(name_cache, "KEPT_S", 0.002)

    assert (await named(client))[0] == {"alice": None}


async def test_an_unresponsive_database_delays_the_ranking_by_a_quarter_of_a_second_at_most(
    start_api: StartApi, database_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incident: a database that took the query and did not answer cost 10 s and a 503."""
    name_users(database_url, alice="Alice", bob="Bob")
    client = await start_api(
        database_url=proxy.through(database_url), requests_in_flight=WAITING_MAX + 8
    )
    await client.update("alice")
    assert (await named(client))[0] == {"alice": "Alice"}
    await client.update("bob")
    proxy.freeze()

    rows, took_s = await named(client)

    assert rows == {"alice": "Alice", "bob": None}, "only the known name is included"
    assert WAIT_S <= took_s < LONGEST_S
    assert WAIT_S == 0.25
    monkeypatch.setattr(name_cache, "WAIT_S", LONGEST_S)
    for _ in range(5):
        assert (await named(client))[1] < LONGEST_S, "later reads do not wait for the database"
    await proxy.restore()

    async def is_named() -> bool:
        return (await named(client))[0] == {"alice": "Alice", "bob": "Bob"}

    await eventually_async(is_named)


async def test_an_unresponsive_database_occupies_few_requests(
    start_api: StartApi, database_url: str, proxy: Proxy
) -> None:
    client = await start_api(
        database_url=proxy.through(database_url),
        requests_in_flight=WAITING_MAX + 8,
        redis_timeout_s=10,
    )
    for number in range(60):
        await client.update(f"user{number}", headers=client.bearer("server", "update:score:any"))
    proxy.freeze()

    # Different windows, so that the reads are not combined.
    async with asyncio.timeout(60):
        answers: list[httpx.Response] = []
        for start in range(0, 60, 4):  # fewer at once than requests_in_flight minus WAITING_MAX
            answers += await asyncio.gather(
                *(
                    client.get(
                        LEADERBOARD_PATH, params={"names": "true", "limit": 1, "offset": offset}
                    )
                    for offset in range(start, start + 4)
                )
            )

    assert {answer.status_code for answer in answers} == {200}


async def test_the_number_of_requests_that_wait_for_names_is_limited(
    start_api: StartApi, database_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first wait that times out ends all others; on a busy machine the reads arrive late.
    monkeypatch.setattr(name_cache, "WAIT_S", 20.0)
    monkeypatch.setattr(name_cache, "LOOKUP_S", 20.0)
    client = await start_api(
        database_url=proxy.through(database_url), requests_in_flight=WAITING_MAX + 100
    )
    for number in range(60):
        await client.update(f"user{number}", headers=client.bearer("server", "update:score:any"))
    proxy.freeze()

    reads = [
        asyncio.ensure_future(
            client.get(LEADERBOARD_PATH, params={"names": "true", "limit": 1, "offset": offset})
        )
        for offset in range(60)
    ]
    await eventually_async(lambda: sum(read.done() for read in reads) == 60 - WAITING_MAX)
    assert client.api._names._waiting == WAITING_MAX

    await proxy.restore()
    assert {answer.status_code for answer in await asyncio.gather(*reads)} == {200}


async def test_readiness_answers_in_time_while_the_database_is_unresponsive(
    start_api: StartApi, database_url: str, proxy: Proxy
) -> None:
    client = await start_api(database_url=proxy.through(database_url))
    assert (await client.get("/health/ready")).status_code == 200
    proxy.freeze()
    client.api.health._database._expires_at_s = 0.0
    began_s = time.monotonic()

    answer = await client.get("/health/ready")

    assert answer.json()["checks"]["database"]["state"] == "down"
    assert time.monotonic() - began_s < LONGEST_S


async def test_an_unresponsive_database_does_not_delay_the_shutdown(
    start_api: StartApi, database_url: str, proxy: Proxy
) -> None:
    client = await start_api(database_url=proxy.through(database_url))
    await client.update("alice")
    proxy.freeze()
    await named(client)
    began_s = time.monotonic()

    client.stop.set()
    await asyncio.wait({client.served}, timeout=30)

    assert client.served.done()
    assert time.monotonic() - began_s < LONGEST_S
