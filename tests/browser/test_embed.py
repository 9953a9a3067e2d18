"""The board in a frame of another page and over a video, and the API from a page elsewhere."""

from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Frame, Page, expect

from scoreboard.security.tokens import READ
from tests.support.clients.browser import OpenPage, PageGuard, keep_screenshot
from tests.support.clients.firefox import OpenTab
from tests.support.eventually import eventually_async
from tests.support.fakes.site import FakeSite
from tests.support.servers.system import System

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONTROLS = "a, button, input, select, textarea, form, [tabindex]"
ELEVEN = [(f"user{number}", 100 - number) for number in range(1, 11)]


async def frame_of(page: Page) -> Frame:
    async def found() -> Frame | None:
        return next(iter(page.main_frame.child_frames), None)

    return await eventually_async(found)


def origin_of(site: FakeSite) -> str:
    return site.foreign_url.removesuffix("/foreign.html")


async def test_a_page_of_a_listed_origin_shows_the_board(open_page: OpenPage, site: FakeSite):
    site.frame_origins = origin_of(site)
    site.framed = f"{site.url}embed?board=main&rows=3&theme=dark"
    await site.send_board(*ELEVEN)
    page = await open_page(site.foreign_url)
    frame = await frame_of(page)
    await expect(frame.locator(".row")).to_have_count(3)
    await expect(frame.locator("html")).to_have_css("color-scheme", "dark")
    await expect(frame.locator("#state")).to_have_text("Live")
    assert await frame.locator(CONTROLS).count() == 0
    await keep_screenshot(page, "embed")
    assert [handshake.board for handshake in site.handshakes] == ["main"]


async def test_another_page_cannot_show_the_board(
    open_page: OpenPage, site: FakeSite, guard: PageGuard
):
    guard.expect("frame-ancestors|Failed to load resource")
    site.framed = f"{site.url}embed"
    page = await open_page(site.foreign_url)
    frame = await frame_of(page)

    async def is_blocked() -> bool:
        return frame.url.startswith("chrome-error:")

    await eventually_async(is_blocked)
    assert site.handshakes == []


@pytest.mark.parametrize("path", ["", "overlay"])
async def test_the_other_pages_are_never_in_a_frame(
    open_page: OpenPage, site: FakeSite, guard: PageGuard, path: str
):
    guard.expect("frame-ancestors|Failed to load resource")
    site.frame_origins = "*"
    site.framed = f"{site.url}{path}"
    page = await open_page(site.foreign_url)
    frame = await frame_of(page)

    async def is_blocked() -> bool:
        return frame.url.startswith("chrome-error:")

    await eventually_async(is_blocked)


@pytest.mark.parametrize("path", ["embed", "overlay"])
async def test_names_are_shown_as_text(open_page: OpenPage, site: FakeSite, path: str):
    evil = '<img src=x onerror="document.title=1">'
    await site.send_board(("alice", 1200), (evil, 5))
    page = await open_page(f"{site.url}{path}")
    await expect(page.locator(".name")).to_have_text(["alice", evil])
    await expect(page.locator(".score")).to_have_text(["1,200", "5"])
    site.rows[0]["name"] = "<b>Ada</b>"
    site.seq += 1
    await site.send(**site.board_message())
    await expect(page.locator(".name")).to_have_text(["<b>Ada</b>", evil])
    assert await page.locator("img, b").count() == 0


@pytest.mark.parametrize("path", ["embed", "overlay"])
async def test_a_bad_name_of_a_board_connects_nowhere(
    open_page: OpenPage, site: FakeSite, path: str
):
    page = await open_page(f"{site.url}{path}?board=%3Cscript%3Ealert(1)%3C/script%3E")
    await expect(page.locator("html")).to_have_attribute("data-state", "stopped")
    assert site.handshakes == []
    note = "There is no board with this name." if path == "embed" else ""
    assert (await page.locator("#note, #rows").last.inner_text()).strip() == note


@pytest.mark.parametrize(
    ("status", "note"),
    [
        (HTTPStatus.NOT_FOUND, "There is no board with this name."),
        (HTTPStatus.UNAUTHORIZED, "This board is private."),
    ],
)
async def test_a_refused_board_is_explained_and_tried_again(
    open_page: OpenPage, site: FakeSite, guard: PageGuard, status: HTTPStatus, note: str
):
    guard.expect_lost_server()
    site.board = "weekly"
    site.reject_status = site.api_status = status
    page = await open_page(f"{site.url}embed?board=weekly", clock=True)

    await expect(page.locator("#note")).to_have_text(note)
    await expect(page.locator("#state")).to_have_text("Not connected")
    assert "/api/scores/leaderboard?limit=1&board=weekly" in site.requests
    assert len(site.handshakes) == 1
    site.reject_status = None
    await site.send_board(("alice", 10))
    await page.clock.run_for(60_000)

    await expect(page.locator(".name")).to_have_text("alice")
    await expect(page.locator("#note")).to_be_hidden()


@pytest.mark.parametrize("rows", [10, 5, 1])
@pytest.mark.parametrize("size", [(600, 400), (1920, 1080), (800, 300)])
async def test_the_overlay_is_as_large_as_its_rows_allow(
    open_page: OpenPage, site: FakeSite, size: tuple[int, int], rows: int
):
    await site.send_board(*((f"player{number}", 100 - number) for number in range(10)))
    viewport = {"width": size[0], "height": size[1]}
    page = await open_page(f"{site.url}overlay?rows={rows}", viewport=viewport)
    await expect(page.locator(".row")).to_have_count(rows)
    last = await page.locator(".row").last.bounding_box()
    assert last is not None
    assert last["y"] + last["height"] <= size[1]


async def test_opaque_ids_have_a_short_form(open_page: OpenPage, site: FakeSite):
    await site.send_board(("9f1c2d34-5b6a-4c7d-8e9f-0a1b2c3d4e5f", 10))
    page = await open_page(f"{site.url}overlay")
    await expect(page.locator(".name")).to_have_text("Player 4E5F")


async def test_the_embedded_board_shows_its_state(
    open_page: OpenPage, site: FakeSite, guard: PageGuard
):
    guard.expect_lost_server()
    page = await open_page(f"{site.url}embed")
    await expect(page.locator("#note")).to_have_text("No scores yet")
    await site.send_board(("alice", 10))
    await expect(page.locator("#note")).to_be_hidden()
    await site.send(type="status", state="stale")
    await expect(page.locator("#state")).to_have_text("Paused")
    await site.stop_streamer()
    await expect(page.locator("#state")).to_have_text("Reconnecting")
    await expect(page.locator(".name")).to_have_text("alice")


async def test_the_overlay_is_transparent_and_readable(open_page: OpenPage, site: FakeSite):
    await site.send_board(*ELEVEN)
    page = await open_page(f"{site.url}overlay?rows=4&align=right&user=user2&board=main")
    await expect(page.locator(".row")).to_have_count(4)
    await expect(page.locator(".is-user .name")).to_have_text("user2")
    for element in ("html", "body", ".row >> nth=0"):
        await expect(page.locator(element)).to_have_css("background-color", "rgba(0, 0, 0, 0)")
    await expect(page.locator(".row").first).to_have_css("justify-content", "flex-end")
    await expect(page.locator(".row").first).to_have_css("paint-order", "stroke")
    assert await page.locator(CONTROLS).count() == 0
    await keep_screenshot(page, "overlay")


@pytest.mark.parametrize("query", ["rows=0", "rows=11", "rows=x", "align=up&rows=1e1", ""])
async def test_invalid_parameters_have_their_defaults(
    open_page: OpenPage, site: FakeSite, query: str
):
    await site.send_board(*ELEVEN)
    page = await open_page(f"{site.url}overlay?{query}")
    await expect(page.locator(".row")).to_have_count(10)
    await expect(page.locator("html")).to_have_attribute("data-align", "left")


async def test_the_overlay_shows_nothing_of_a_lost_connection(
    open_page: OpenPage, site: FakeSite, guard: PageGuard
):
    guard.expect_lost_server()
    await site.send_board(("alice", 10))
    page = await open_page(f"{site.url}overlay")
    await expect(page.locator(".name")).to_have_text("alice")
    before = await page.inner_text("body")
    await site.stop_streamer()
    await expect(page.locator("html")).to_have_attribute("data-state", "reconnecting")
    assert await page.inner_text("body") == before
    await site.start_streamer()
    await site.send_board(("bob", 20))
    await expect(page.locator(".name")).to_have_text("bob")


# Reads the board with a token (which needs a preflight request), a header of the response, an
# error, and the first event of the stream.
READ_FROM_ELSEWHERE = """
(async () => {
  const headers = { Authorization: "Bearer TOKEN" };
  const read = await fetch("API/api/scores/leaderboard", { headers });
  const refused = await fetch("API/api/scores/leaderboard?limit=x", { headers });
  const events = new EventSource("API/api/scores/stream");
  const event = await new Promise((resolve) => events.addEventListener("leaderboard", resolve));
  events.close();
  return {
    origin: location.origin,
    status: read.status,
    etag: read.headers.get("ETag") !== null,
    problem: (await refused.json()).status,
    board: JSON.parse(event.data).board,
  };
})()
"""


async def test_a_page_of_a_listed_origin_uses_the_api_in_both_browsers(
    open_page: OpenPage, open_tab: OpenTab, site: FakeSite, guard: PageGuard, tmp_path: Path
):
    guard.expect("Failed to load resource")  # the refused request
    expected: dict[str, Any] = {"origin": origin_of(site), "status": 200, "etag": True}
    with System(tmp_path / "system", origins=origin_of(site)) as system:
        script = READ_FROM_ELSEWHERE.replace("API", system.api)
        script = script.replace("TOKEN", system.token("alice", READ))
        expected |= {"problem": 422, "board": "main"}
        assert await (await open_page(site.foreign_url)).evaluate(script) == expected
        assert await (await open_tab(site.foreign_url)).evaluate(script.strip()) == expected
        unlisted = await open_page(f"{site.url}foreign.html")  # another host, so another origin
        read = f"fetch('{system.api}/api/scores/leaderboard').then(() => 'read', () => 'refused')"
        guard.expect("Failed to load resource|CORS policy")
        assert await unlisted.evaluate(read) == "refused"
