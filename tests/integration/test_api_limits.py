"""The api's own limit on updates: sliding, exact for parallel requests, reported in headers."""

import asyncio

from tests.support.servers.api import StartApi


async def test_the_eleventh_update_in_a_minute_returns_429_with_retry_after(
    start_api: StartApi,
) -> None:
    client = await start_api(rate_limit="app")
    for left in range(9, -1, -1):
        answer = await client.update(action=f"win:{left}")
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == '"default";q=10;w=60'
        assert answer.headers["ratelimit"].startswith(f'"default";r={left};t=')
    answer = await client.update(action="win:11")
    assert (answer.status_code, answer.json()["type"]) == (429, "/docs/problems/rate-limited")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["ratelimit"].startswith('"default";r=0;t=')
    assert (await client.update("bob")).status_code == 200  # the limit is per user


async def test_parallel_updates_never_exceed_the_rate_limit(start_api: StartApi) -> None:
    client = await start_api(rate_limit="app")
    answers = await asyncio.gather(*(client.update(action=f"win:{n}") for n in range(30)))
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 20


async def test_two_processes_share_one_limit(start_api: StartApi) -> None:
    clients = [await start_api(rate_limit="app"), await start_api(open=(), rate_limit="app")]
    statuses = [(await clients[n % 2].update(action=f"win:{n}")).status_code for n in range(12)]
    assert statuses == [200] * 10 + [429] * 2


async def test_replays_count_against_the_limit_and_invalid_requests_do_not(
    start_api: StartApi,
) -> None:
    client = await start_api(rate_limit="app", updates_per_minute=2)
    for _ in range(5):
        assert (await client.update("alice", "bad id")).status_code == 422
        assert (await client.update("bob", headers=client.bearer("alice"))).status_code == 403
    assert (await client.update()).status_code == 200
    assert (await client.update()).json()["replayed"] is True
    assert (await client.update()).status_code == 429


async def test_game_servers_have_a_separate_limit_or_none(start_api: StartApi) -> None:
    client = await start_api(rate_limit="app", updates_per_minute=1)
    server = client.bearer("server-1", "update:score:any")
    for number in range(5):
        answer = await client.update(f"user{number}", headers=server)
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers
    limited = await start_api(open=(), rate_limit="app", trusted_updates_per_minute=3)
    statuses = [
        (await limited.update(f"user{n}", "x:1", headers=server)).status_code for n in range(4)
    ]
    assert statuses == [200, 200, 200, 429]


async def test_the_api_does_not_limit_behind_a_gateway(start_api: StartApi) -> None:
    client = await start_api(rate_limit="gateway", updates_per_minute=1)
    for number in range(3):
        answer = await client.update(action=f"win:{number}")
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers
