"""The live page when there is no live board to show: loading, empty, stale, lost, refused."""

from http import HTTPStatus

import pytest
from playwright.async_api import Page, expect

from tests.support.clients.browser import Guard, OpenPage
from tests.support.eventually import eventually_async
from tests.support.fakes.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def state_is(page: Page, state: str) -> None:
    await expect(page.locator("html")).to_have_attribute("data-state", state)


async def freeze(page: Page) -> None:
    """Let the page's time pass only where the test says so."""
    await page.clock.pause_at(await page.evaluate("Date.now() / 1000 + 1"))


async def test_before_the_first_board_the_page_says_that_it_is_connecting(
    open_page: OpenPage,
    stage: Stage,
):
    stage.greet = False

    page = await open_page(stage.url)

    await expect(page.locator("#connection")).to_have_text("Connecting")
    await expect(page.locator(".skeleton")).to_be_visible()
    await expect(page.locator(".row")).to_have_count(0)


async def test_an_empty_board_invites_the_first_player_in(open_page: OpenPage, stage: Stage):
    await stage.show()
    page = await open_page(stage.url)
    await expect(page.locator("#panel-title")).to_have_text("No scores yet")
    await expect(page.locator(".skeleton")).to_be_hidden()

    await stage.show(("alice", 10))

    await expect(page.locator(".row")).to_have_count(1)
    await expect(page.locator(".panel")).to_be_hidden()


async def test_stale_is_said_and_the_last_board_stays(open_page: OpenPage, stage: Stage):
    await stage.show(("alice", 10))
    page = await open_page(stage.url)
    await state_is(page, "live")

    await stage.send(type="status", state="stale", reason="redis")

    await expect(page.locator("#connection")).to_have_text("Paused")
    await expect(page.locator("#detail")).to_contain_text("may be outdated")
    await expect(page.locator(".row .name")).to_have_text("alice")
    await expect(page.locator("#rows")).to_have_css("opacity", "0.55")

    await stage.send(type="status", state="live")

    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator("#rows")).to_have_css("opacity", "1")


async def test_a_short_loss_is_not_worth_a_word(open_page: OpenPage, stage: Stage):
    await stage.show(("alice", 10))
    page = await open_page(stage.url, clock=True, random=0)
    await state_is(page, "live")
    await freeze(page)
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

    await stage.close_viewers(1012)

    async def tries_again():
        await page.clock.run_for(50)
        return await page.evaluate("opened")

    await eventually_async(tries_again)
    await eventually_async(lambda: stage.viewers)
    await stage.show(("alice", 20))

    await expect(page.locator(".row .score")).to_have_text("20")
    assert set(await page.evaluate("states")) == {"live"}


async def test_a_lost_server_is_said_counted_down_and_followed_again(
    open_page: OpenPage,
    stage: Stage,
    guard: Guard,
):
    guard.expect_lost_server()
    await stage.show(("alice", 10), seq=5)
    page = await open_page(stage.url, clock=True, random=1)
    await state_is(page, "live")

    await stage.stop_streamer()
    await page.clock.fast_forward(1_600)
    await state_is(page, "reconnecting")
    await expect(page.locator("#detail")).to_contain_text("Connection lost")
    await expect(page.locator(".row .name")).to_have_text("alice")

    stage.seq = 4
    stage.rows = []
    await stage.start_streamer()
    await page.clock.fast_forward(31_000)
    await state_is(page, "live")
    await expect(page.locator(".row .name")).to_have_text("alice")

    await stage.show(("bob", 20), seq=6)
    await expect(page.locator(".row .name")).to_have_text("bob")


async def test_nobody_has_to_wait_for_the_next_try(
    open_page: OpenPage,
    stage: Stage,
    guard: Guard,
):
    guard.expect_lost_server()
    await stage.show(("alice", 10))
    page = await open_page(stage.url, clock=True, random=1)
    await state_is(page, "live")
    await stage.stop_streamer()
    await page.clock.fast_forward(8_000)
    await state_is(page, "reconnecting")
    await freeze(page)
    await stage.start_streamer()

    await page.get_by_role("button", name="Try now").click()

    await state_is(page, "live")


async def test_a_full_server_is_left_alone(open_page: OpenPage, stage: Stage):
    await stage.show(("alice", 10))
    page = await open_page(stage.url, clock=True)
    await state_is(page, "live")

    await stage.close_viewers(1013)
    await page.clock.fast_forward(2_000)

    await expect(page.locator("#detail")).to_contain_text("The server is full")
    await expect(page.locator("#retry")).to_be_hidden()


async def test_a_forbidden_board_stops_and_can_be_tried_again(open_page: OpenPage, stage: Stage):
    await stage.show(("alice", 10))
    page = await open_page(stage.url)
    await state_is(page, "live")

    await stage.close_viewers(4403)
    await expect(page.locator("#detail")).to_contain_text("not allowed to watch")

    await page.get_by_role("button", name="Try now").click()
    await state_is(page, "live")


@pytest.mark.parametrize(
    ("api_status", "title"),
    [
        (HTTPStatus.NOT_FOUND, "No such board"),
        (HTTPStatus.UNAUTHORIZED, "This board is private"),
        (HTTPStatus.FORBIDDEN, "This board is private"),
    ],
)
async def test_a_refused_handshake_is_explained_by_the_api(
    open_page: OpenPage,
    stage: Stage,
    guard: Guard,
    api_status: HTTPStatus,
    title: str,
):
    guard.expect_lost_server()
    stage.refuse = HTTPStatus.FORBIDDEN
    stage.api_status = api_status

    page = await open_page(f"{stage.url}?board=weekly")

    await expect(page.locator("#panel-title")).to_have_text(title)
    await expect(page.locator("#connection")).to_have_text("Not connected")
    can_restart = title == "This board is private"
    await expect(page.locator("#restart")).to_be_visible(visible=can_restart)


async def test_a_stopped_page_starts_again_on_request(
    open_page: OpenPage,
    stage: Stage,
    guard: Guard,
):
    guard.expect_lost_server()
    stage.refuse = HTTPStatus.UNAUTHORIZED
    stage.api_status = HTTPStatus.UNAUTHORIZED
    page = await open_page(stage.url)
    await expect(page.locator("#panel-title")).to_have_text("This board is private")
    stage.refuse = None
    await stage.show(("alice", 10))

    await page.get_by_role("button", name="Try again").click()

    await expect(page.locator(".row .name")).to_have_text("alice")


async def test_a_server_out_of_reach_from_the_start_is_tried_again(
    open_page: OpenPage,
    stage: Stage,
    guard: Guard,
):
    guard.expect_lost_server()
    stage.refuse = HTTPStatus.SERVICE_UNAVAILABLE
    stage.api_status = HTTPStatus.SERVICE_UNAVAILABLE
    page = await open_page(stage.url, clock=True)
    await state_is(page, "reconnecting")
    await expect(page.locator(".skeleton")).to_be_visible()
    stage.refuse = None
    await stage.show(("alice", 10))

    await page.clock.fast_forward(31_000)

    await expect(page.locator(".row .name")).to_have_text("alice")


async def test_a_name_no_board_can_have_is_not_even_asked_for(open_page: OpenPage, stage: Stage):
    page = await open_page(f"{stage.url}?board=%3Cb%3EBoo")

    await expect(page.locator("#panel-title")).to_have_text("No such board")
    assert stage.handshakes == []


async def test_the_board_in_the_address_of_the_page_is_the_one_followed(
    open_page: OpenPage,
    stage: Stage,
):
    stage.board = "weekly"
    await stage.show(("alice", 10))

    page = await open_page(f"{stage.url}?board=weekly")

    await expect(page.locator("#board-name")).to_have_text("weekly")
    await expect(page).to_have_title("weekly · Scoreboard")
    assert [handshake.board for handshake in stage.handshakes] == ["weekly"]


@pytest.mark.parametrize("config", [{"ws": ""}, {}])
async def test_without_an_address_the_streamer_is_on_the_same_origin(
    open_page: OpenPage,
    stage: Stage,
    config: dict,
):
    stage.config = config
    await stage.show(("alice", 10))
    await stage.stop_streamer()

    page = await open_page(stage.url)

    await expect(page.locator(".row .name")).to_have_text("alice")


async def test_the_time_since_the_last_change_is_counted(open_page: OpenPage, stage: Stage):
    await stage.show(("alice", 10))
    page = await open_page(stage.url, clock=True)
    detail = page.locator("#detail")
    await state_is(page, "live")
    await freeze(page)

    await stage.show(("alice", 20))
    await expect(detail).to_have_text("Last change just now")
    await page.clock.fast_forward(20_000)
    await expect(detail).to_have_text("Last change 20 s ago")
    await stage.send(type="heartbeat", board="main", epoch=1, seq=2, at=0)
    await page.clock.fast_forward(30_000)
    await stage.send(type="heartbeat", board="main", epoch=1, seq=2, at=0)
    await page.clock.fast_forward(30_000)

    await expect(detail).to_have_text("Last change 1 min ago")


async def test_a_board_found_is_dated_by_the_server(open_page: OpenPage, stage: Stage):
    stage.greet = False
    page = await open_page(stage.url, clock=True)
    await eventually_async(lambda: stage.viewers)

    now_ms = await page.evaluate("Date.now()")
    await stage.send(**stage.frame(seq=1, at=now_ms - 3 * 3_600_000 - 1))

    await expect(page.locator("#detail")).to_have_text("Last change 3 h ago")
