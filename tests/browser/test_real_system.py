"""The live page on the real system, while api, streamer and Valkey stop and start."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from tests.support.clients.browser import OpenPage, PageGuard
from tests.support.eventually import eventually_async
from tests.support.servers.system import System

pytestmark = pytest.mark.asyncio(loop_scope="session")

# A reconnect may wait for 30 s, and under load a service takes some seconds to start.
TIMEOUT_MS = 45_000

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Return one system for this module; each test adds players with higher scores."""
    with System(tmp_path_factory.mktemp("page") / "system") as made:
        yield made


class GameServer:
    """A game server that reports scores."""

    def __init__(self, system: System, client: httpx.AsyncClient) -> None:
        self._system = system
        self._client = client

    async def score(self, user_id: str, points: int) -> int:
        """Update a score over HTTP, repeating the action until it succeeds; return the score."""
        action = {"userId": user_id, "actionId": f"win:{next(_numbers)}", "points": points}

        async def is_applied():
            answer = await self._client.post("/api/scores/update", json=action)
            assert answer.status_code == 200, answer.text
            return answer.json()

        return (await eventually_async(is_applied))["newScore"]


@pytest_asyncio.fixture(loop_scope="session")
async def game_server(system: System) -> AsyncIterator[GameServer]:
    headers = system.game_server()
    async with httpx.AsyncClient(base_url=system.api, headers=headers, timeout=30) as client:
        yield GameServer(system, client)


async def top_of(page: Page, count: int) -> list[list[str]]:
    rows = await page.evaluate("""
      [...document.querySelectorAll("#rows > .row")].map((row) =>
        [".rank", ".name", ".score"].map((part) => row.querySelector(part).textContent))
    """)
    return rows[:count]


async def wait_for_rows(page: Page, *rows: list[str]) -> None:
    async def check():
        assert await top_of(page, len(rows)) == list(rows)
        return True

    await eventually_async(check, within_s=TIMEOUT_MS / 1000)


async def wait_for_state(page: Page, state: str) -> None:
    root = page.locator("html")
    await expect(root).to_have_attribute("data-state", state, timeout=TIMEOUT_MS)


async def position_of(page: Page) -> tuple[int, int]:
    return tuple(
        await page.evaluate("""
          (({ epoch, seq }) => [Number(epoch), Number(seq)])
            (document.querySelector("#rows").dataset)
        """)
    )


async def test_page_follows_updates(open_page: OpenPage, system: System, game_server: GameServer):
    await game_server.score("first-alice", 100)
    page = await open_page(f"{system.api}/")
    await wait_for_rows(page, ["1", "first-alice", "100"])

    await game_server.score("first-bob", 70)
    await wait_for_rows(page, ["1", "first-alice", "100"], ["2", "first-bob", "70"])
    await game_server.score("first-bob", 40)
    await game_server.score("first-carol", 100)

    await wait_for_rows(
        page,
        ["1", "first-bob", "110"],
        ["2", "first-alice", "100"],
        ["3", "first-carol", "100"],
    )


async def test_page_recovers_from_a_restart_of_the_streamer(
    open_page: OpenPage,
    system: System,
    game_server: GameServer,
    guard: PageGuard,
):
    guard.expect_lost_server()
    await game_server.score("second-alice", 1_000)
    page = await open_page(f"{system.api}/")
    await wait_for_rows(page, ["1", "second-alice", "1,000"])
    before = await position_of(page)

    await asyncio.to_thread(system.services["streamer"].stop)
    await game_server.score("second-bob", 2_000)
    await wait_for_state(page, "reconnecting")
    assert await top_of(page, 1) == [["1", "second-alice", "1,000"]]
    await asyncio.to_thread(system.services["streamer"].start)

    await wait_for_rows(page, ["1", "second-bob", "2,000"], ["2", "second-alice", "1,000"])
    await wait_for_state(page, "live")
    epoch, seq = await position_of(page)
    assert (epoch, seq) > before
    await game_server.score("second-alice", 5_000)
    await wait_for_rows(page, ["1", "second-alice", "6,000"])


async def test_page_recovers_from_a_killed_streamer(
    open_page: OpenPage,
    system: System,
    game_server: GameServer,
    guard: PageGuard,
):
    guard.expect_lost_server()
    await game_server.score("third-alice", 10_000)
    page = await open_page(f"{system.api}/")
    await wait_for_rows(page, ["1", "third-alice", "10,000"])

    await asyncio.to_thread(system.services["streamer"].kill)
    await game_server.score("third-alice", 1)
    await asyncio.to_thread(system.services["streamer"].start)

    await wait_for_rows(page, ["1", "third-alice", "10,001"])


async def test_page_shows_a_redis_outage_and_its_end(
    open_page: OpenPage,
    system: System,
    game_server: GameServer,
    guard: PageGuard,
):
    guard.expect_lost_server()  # the page may ask for the list of boards in the outage
    await game_server.score("fourth-alice", 100_000)
    page = await open_page(f"{system.api}/")
    await wait_for_rows(page, ["1", "fourth-alice", "100,000"])

    await asyncio.to_thread(system.valkey.stop)
    await wait_for_state(page, "stale")
    assert await top_of(page, 1) == [["1", "fourth-alice", "100,000"]]
    await asyncio.to_thread(system.valkey.start)

    await wait_for_state(page, "live")
    await game_server.score("fourth-bob", 200_000)
    await wait_for_rows(page, ["1", "fourth-bob", "200,000"], ["2", "fourth-alice", "100,000"])
