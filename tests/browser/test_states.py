"""The live page without a live board: loading, empty, stale, disconnected, rejected."""

from http import HTTPStatus

import pytest
from playwright.async_api import Page, expect

from tests.support.clients.browser import OpenPage, PageGuard, stop_clock
from tests.support.eventually import eventually_async
from tests.support.fakes.site import FakeSite

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def wait_for_state(page: Page, state: str) -> None:
    await expect(page.locator("html")).to_have_attribute("data-state", state)


async def test_page_shows_connecting_before_the_first_board(
    open_page: OpenPage,
    site: FakeSite,
):
    site.sends_snapshot = False

    page = await open_page(site.url)

    await expect(page.locator("#connection")).to_have_text("Connecting")
    await expect(page.locator(".skeleton")).to_be_visible()
    await expect(page.locator(".row")).to_have_count(0)


async def test_empty_board_shows_a_text_until_the_first_score(open_page: OpenPage, site: FakeSite):
    await site.send_board()
    page = await open_page(site.url)
    await expect(page.locator("#panel-title")).to_have_text("No scores yet")
    await expect(page.locator(".skeleton")).to_be_hidden()

    await site.send_board(("alice", 10))

    await expect(page.locator(".row")).to_have_count(1)
    await expect(page.locator(".panel")).to_be_hidden()


async def test_stale_board_is_marked_and_stays(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 10))
    page = await open_page(site.url)
    await wait_for_state(page, "live")

    await site.send(type="status", state="stale", reason="redis")

    await expect(page.locator("#connection")).to_have_text("Paused")
    await expect(page.locator("#detail")).to_contain_text("may be outdated")
    await expect(page.locator(".row .name")).to_have_text("alice")
    await expect(page.locator("#rows")).to_have_css("filter", "grayscale(1)")

    await site.send(type="status", state="live")

    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator("#rows")).to_have_css("filter", "none")


async def test_short_reconnection_is_not_shown(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 10))
    page = await open_page(site.url, clock=True, random=0)
    await wait_for_state(page, "live")
    await stop_clock(page)
    await page.evaluate("""
      window.states = [];
      new MutationObserver(() => states.push(document.documentElement.dataset.state))
        .observe(document.documentElement, { attributeFilter: ["data-state"] });
      window.opened = 0;
      window.WebSocket = class extends WebSocket {
        constructor(...values) {
          super(...values);
          opened += 1;
        }
      }; 0
    """)

    await site.close_viewers(1012)

    async def has_reconnected():
        await page.clock.run_for(50)
        return await page.evaluate("opened")

    await eventually_async(has_reconnected)
    await eventually_async(lambda: site.viewers)
    await site.send_board(("alice", 20))

    await expect(page.locator(".row .score")).to_have_text("20")
    assert set(await page.evaluate("states")) == {"live"}


async def test_lost_connection_shows_a_countdown_and_recovers(
    open_page: OpenPage,
    site: FakeSite,
    guard: PageGuard,
):
    guard.expect_lost_server()
    await site.send_board(("alice", 10), seq=5)
    page = await open_page(site.url, clock=True, random=1)
    await wait_for_state(page, "live")

    await site.stop_streamer()
    await page.clock.fast_forward(1_600)
    await wait_for_state(page, "reconnecting")
    await expect(page.locator("#detail")).to_contain_text("Connection lost")
    await expect(page.locator(".row .name")).to_have_text("alice")

    site.seq = 4
    site.rows = []
    await site.start_streamer()
    await page.clock.fast_forward(31_000)
    await wait_for_state(page, "live")
    await expect(page.locator(".row .name")).to_have_text("alice")

    await site.send_board(("bob", 20), seq=6)
    await expect(page.locator(".row .name")).to_have_text("bob")


async def test_retry_button_reconnects_at_once(
    open_page: OpenPage,
    site: FakeSite,
    guard: PageGuard,
):
    guard.expect_lost_server()
    await site.send_board(("alice", 10))
    page = await open_page(site.url, clock=True, random=1)
    await wait_for_state(page, "live")
    await site.stop_streamer()
    await page.clock.run_for(1_600)
    await wait_for_state(page, "reconnecting")
    await stop_clock(page)
    button = page.get_by_role("button", name="Try now")
    await expect(button).to_be_visible()
    await site.start_streamer()

    await button.click()

    await wait_for_state(page, "live")


async def test_full_server_offers_no_retry_button(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 10))
    page = await open_page(site.url, clock=True)
    await wait_for_state(page, "live")

    await site.close_viewers(1013)
    await page.clock.fast_forward(2_000)

    await expect(page.locator("#detail")).to_contain_text("The server is full")
    await expect(page.locator("#retry")).to_be_hidden()


async def test_forbidden_board_stops_and_can_be_retried(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 10))
    page = await open_page(site.url)
    await wait_for_state(page, "live")

    await site.close_viewers(4403)
    await expect(page.locator("#detail")).to_contain_text("not allowed to watch")

    await page.get_by_role("button", name="Try now").click()
    await wait_for_state(page, "live")


@pytest.mark.parametrize(
    ("api_status", "title"),
    [
        (HTTPStatus.NOT_FOUND, "No such board"),
        (HTTPStatus.UNAUTHORIZED, "This board is private"),
        (HTTPStatus.FORBIDDEN, "This board is private"),
    ],
)
async def test_rejected_handshake_is_explained_by_the_api(
    open_page: OpenPage,
    site: FakeSite,
    guard: PageGuard,
    api_status: HTTPStatus,
    title: str,
):
    guard.expect_lost_server()
    site.reject_status = HTTPStatus.FORBIDDEN
    site.api_status = api_status

    page = await open_page(f"{site.url}?board=weekly")

    await expect(page.locator("#panel-title")).to_have_text(title)
    await expect(page.locator("#connection")).to_have_text("Not connected")
    can_restart = title == "This board is private"
    await expect(page.locator("#restart")).to_be_visible(visible=can_restart)


async def test_stopped_page_restarts_on_click(
    open_page: OpenPage,
    site: FakeSite,
    guard: PageGuard,
):
    guard.expect_lost_server()
    site.reject_status = HTTPStatus.UNAUTHORIZED
    site.api_status = HTTPStatus.UNAUTHORIZED
    page = await open_page(site.url)
    await expect(page.locator("#panel-title")).to_have_text("This board is private")
    site.reject_status = None
    await site.send_board(("alice", 10))

    await page.get_by_role("button", name="Try again").click()

    await expect(page.locator(".row .name")).to_have_text("alice")


async def test_unreachable_server_is_retried(
    open_page: OpenPage,
    site: FakeSite,
    guard: PageGuard,
):
    guard.expect_lost_server()
    site.reject_status = HTTPStatus.SERVICE_UNAVAILABLE
    site.api_status = HTTPStatus.SERVICE_UNAVAILABLE
    page = await open_page(site.url, clock=True)
    await wait_for_state(page, "reconnecting")
    await expect(page.locator(".skeleton")).to_be_visible()
    site.reject_status = None
    await site.send_board(("alice", 10))

    await page.clock.fast_forward(31_000)

    await expect(page.locator(".row .name")).to_have_text("alice")


async def test_invalid_board_name_is_not_requested(open_page: OpenPage, site: FakeSite):
    page = await open_page(f"{site.url}?board=%3Cb%3EBoo")

    await expect(page.locator("#panel-title")).to_have_text("No such board")
    assert site.handshakes == []


async def test_board_in_the_page_url_is_followed(
    open_page: OpenPage,
    site: FakeSite,
):
    site.board = "weekly"
    await site.send_board(("alice", 10))

    page = await open_page(f"{site.url}?board=weekly")

    await expect(page.locator("#board-name")).to_have_text("weekly")
    await expect(page).to_have_title("weekly · Scoreboard")
    assert [handshake.board for handshake in site.handshakes] == ["weekly"]


@pytest.mark.parametrize("config", [{"ws": ""}, {}])
async def test_default_streamer_address_is_the_same_origin(
    open_page: OpenPage,
    site: FakeSite,
    config: dict,
):
    site.config = config
    await site.send_board(("alice", 10))
    await site.stop_streamer()

    page = await open_page(site.url)

    await expect(page.locator(".row .name")).to_have_text("alice")


async def test_age_of_the_last_change_is_shown(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 10))
    page = await open_page(site.url, clock=True)
    detail = page.locator("#detail")
    await wait_for_state(page, "live")
    await stop_clock(page)

    await site.send_board(("alice", 20))
    await expect(detail).to_have_text("Last change just now")
    await page.clock.fast_forward(20_000)
    await expect(detail).to_have_text("Last change 20 s ago")
    await site.send(type="heartbeat", board="main", epoch=1, seq=2, at=0)
    await page.clock.fast_forward(30_000)
    await site.send(type="heartbeat", board="main", epoch=1, seq=2, at=0)
    await page.clock.fast_forward(30_000)

    await expect(detail).to_have_text("Last change 1 min ago")


async def test_snapshot_is_dated_by_the_server(open_page: OpenPage, site: FakeSite):
    site.sends_snapshot = False
    page = await open_page(site.url, clock=True)
    await eventually_async(lambda: site.viewers)

    now_ms = await page.evaluate("Date.now()")
    await site.send(**site.board_message(seq=1, at=now_ms - 3 * 3_600_000 - 1))

    await expect(page.locator("#detail")).to_have_text("Last change 3 h ago")
