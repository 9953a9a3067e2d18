"""The element <score-board> in Chromium, on a streamer that tests control."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.clients.js.package_folder import Package
from tests.clients.js.pages import serve
from tests.support.clients.browser import OpenPage, PageGuard
from tests.support.eventually import eventually_async
from tests.support.fakes.site import FakeSite

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

Show = Callable[..., Awaitable[Page]]
PAGE = """<!doctype html>
<html lang="{lang}"><meta charset="utf-8"><title>Page</title><link rel="icon" href="data:,">
<script type="module" src="page.js"></script>
<body>{body}</body></html>
"""


@pytest.fixture
def show(package: Package, site: FakeSite, open_page: OpenPage, tmp_path: Path) -> Iterator[Show]:
    """Return a function that opens a page with some HTML; ``SRC`` is the streamer's address."""
    (tmp_path / "client").symlink_to(package.built / "dist")
    with serve(tmp_path, site.ws_url.removesuffix("/ws/scoreboard")) as url:

        async def show_(
            body: str, *, script: str = "", only: str = "", lang: str = "en", **options: Any
        ) -> Page:
            page = PAGE.format(lang=lang, body=body.replace("SRC", site.ws_url))
            (tmp_path / "index.html").write_text(page)
            (tmp_path / "page.js").write_text(only or f'{script}\nimport "./client/element.js";\n')
            return await open_page(f"{url}/", **options)

        yield show_


def place(**changes: object) -> dict[str, object]:
    return {
        "type": "place",
        "board": "main",
        "epoch": 1,
        "seq": 1,
        "at": 1,
        "userId": "zoe",
        "rank": 1_023,
        "score": 5,
        "total": 2_000,
        "toNext": 1_500,
        "toTop": 2_000,
        "above": [{"rank": 1_022, "userId": "yan", "name": "Yan", "score": 1_505}],
        "below": [{"rank": 1_024, "userId": "walt", "score": 4}],
    } | changes


async def is_watched(site: FakeSite, *user_ids: str) -> None:
    async def check() -> bool:
        watched = [message for message in site.received if message["type"] == "watch"]
        assert watched[-1:] == [{"type": "watch", "userIds": list(user_ids)}]
        return True

    await eventually_async(check)


async def test_it_shows_a_live_board_as_a_list(show: Show, site: FakeSite) -> None:
    await site.send_board(("alice", 1_200), ("bob", 70))
    page = await show('<score-board src="SRC" user="bob"></score-board>')
    rows = page.get_by_role("list", name="Leaderboard").get_by_role("listitem")

    await expect(rows).to_have_text(["1alice1,200", "2bob70"])
    await site.send_board(("bob", 2_000), ("alice", 1_200))

    await expect(rows).to_have_text(["1bob2,000", "2alice1,200"])
    await expect(page.locator("score-board [aria-current=true]")).to_have_text("1bob2,000")
    await expect(page.get_by_role("status")).to_have_text("")


async def test_names_are_only_ever_text(show: Show, site: FakeSite) -> None:
    evil = "<img src=x onerror=alert(1)>"
    site.rows = [{"rank": 1, "userId": "eve", "name": evil, "score": 1}]
    page = await show('<score-board src="SRC" user="zoe"></score-board>')

    await expect(page.get_by_role("listitem")).to_have_text([f"1{evil}1"])
    await site.send(**place(name=evil, above=[], below=[]))

    await expect(page.get_by_role("list", name="Your place")).to_have_text(f"1,023{evil}5")
    assert await page.locator("score-board img").count() == 0


async def test_names_that_arrive_later_are_shown(show: Show, site: FakeSite) -> None:
    await site.send_board(("alice", 10))
    page = await show('<score-board src="SRC"></score-board>')
    await expect(page.get_by_role("listitem")).to_have_text(["1alice10"])

    site.rows[0]["name"] = "Alice"
    await site.send(**site.board_message())

    await expect(page.get_by_role("listitem")).to_have_text(["1Alice10"])


async def test_the_place_of_a_user_outside_of_the_rows_is_shown(show: Show, site: FakeSite) -> None:
    await site.send_board(("alice", 2_005))
    page = await show('<score-board src="SRC" user="zoe"></score-board>')
    await is_watched(site, "zoe")

    await site.send(**place())

    rows = page.get_by_role("list", name="Your place").get_by_role("listitem")
    await expect(rows).to_have_text(["1,022Yan1,505", "1,023zoe5", "1,024walt4"])
    await expect(page.locator("score-board [aria-current=true]")).to_have_text("1,023zoe5")
    await expect(page.locator("score-board")).to_contain_text("1,500 points to the next rank")

    await site.send_board(("zoe", 3_000), ("alice", 2_005))
    await site.send(**place(seq=2, rank=1, score=3_000, toNext=None, above=[], below=[]))

    await expect(page.get_by_role("list", name="Your place")).to_be_hidden()
    await expect(page.locator("score-board [aria-current=true]")).to_have_text("1zoe3,000")


async def test_a_user_without_a_score_is_told_so(show: Show, site: FakeSite) -> None:
    page = await show('<score-board src="SRC" user="zoe"></score-board>')
    await is_watched(site, "zoe")

    await site.send(
        type="place",
        board="main",
        epoch=1,
        seq=1,
        userId="zoe",
        rank=None,
        score=None,
        total=0,
    )

    await expect(page.locator("score-board")).to_contain_text("You have no score yet.")


async def test_a_lost_connection_is_shown_and_ends(
    show: Show, site: FakeSite, guard: PageGuard
) -> None:
    guard.expect_lost_server()
    await site.send_board(("alice", 10))
    page = await show('<score-board src="SRC"></score-board>', random=0)
    await expect(page.get_by_role("listitem")).to_have_text(["1alice10"])

    await site.stop_streamer()
    await expect(page.get_by_role("status")).to_have_text("Connection lost. Reconnecting…")
    await expect(page.get_by_role("listitem")).to_have_text(["1alice10"])
    await site.start_streamer()
    await expect(page.get_by_role("status")).to_have_text("")
    await site.send_board(("alice", 20))

    await expect(page.get_by_role("listitem")).to_have_text(["1alice20"])


async def test_a_board_without_rows_and_a_stale_one_are_named(show: Show, site: FakeSite) -> None:
    page = await show('<score-board src="SRC"></score-board>')
    await expect(page.get_by_role("status")).to_have_text("No scores yet.")

    await site.send(type="status", state="stale", reason="unreachable")

    await expect(page.get_by_role("status")).to_have_text("The scores may be out of date.")


async def test_a_board_that_may_not_be_read_asks_to_sign_in(show: Show, site: FakeSite) -> None:
    site.close_at_once = 4401
    page = await show('<score-board src="SRC"></score-board>')

    await expect(page.get_by_role("status")).to_have_text("Sign in to see the board.")


async def test_attributes_select_what_is_shown(show: Show, site: FakeSite) -> None:
    site.board = "weekly"
    await site.send_board(("alice", 3), ("bob", 2), ("carol", 1))
    page = await show('<score-board src="SRC" board="weekly" rows="2"></score-board>')
    await expect(page.get_by_role("listitem")).to_have_text(["1alice3", "2bob2"])

    await page.evaluate("document.querySelector('score-board').setAttribute('rows', '25')")
    await expect(page.get_by_role("listitem")).to_have_count(3)
    site.board = "daily"
    await page.evaluate("document.querySelector('score-board').setAttribute('board', 'daily')")
    await site.send_board(("dave", 9))

    await expect(page.get_by_role("listitem")).to_have_text(["1dave9"])
    assert [handshake.path for handshake in site.handshakes] == [
        "/ws/scoreboard?board=weekly",
        "/ws/scoreboard?rows=25&board=weekly",
        "/ws/scoreboard?rows=25&board=daily",
    ]


async def test_elements_share_a_connection_and_moving_one_keeps_it(
    show: Show, site: FakeSite
) -> None:
    await site.send_board(("alice", 1))
    element = '<score-board src="SRC" user="{}"></score-board>'
    page = await show(f"<main>{element.format('zoe')}{element.format('yan')}</main><aside></aside>")
    await expect(page.get_by_role("listitem")).to_have_text(["1alice1", "1alice1"])
    await is_watched(site, "zoe", "yan")

    await page.evaluate(
        "document.querySelector('aside').append(...document.querySelectorAll('score-board'))"
    )
    await site.send_board(("alice", 2))
    await expect(page.get_by_role("listitem")).to_have_text(["1alice2", "1alice2"])
    assert len(site.handshakes) == 1
    await page.evaluate("document.querySelector('aside').remove()")

    async def is_closed() -> bool:
        assert not site.viewers
        return True

    await eventually_async(is_closed)


async def test_another_user_is_marked_at_once(show: Show, site: FakeSite) -> None:
    await site.send_board(("alice", 2), ("bob", 1))
    page = await show('<score-board src="SRC" user="alice"></score-board>')
    marked = page.locator("score-board [aria-current=true]")
    await expect(marked).to_have_text("1alice2")

    await page.evaluate("document.querySelector('score-board').setAttribute('user', 'bob')")

    await expect(marked).to_have_text("2bob1")
    assert len(site.handshakes) == 1


async def test_an_element_that_is_added_later_has_the_board_at_once(
    show: Show, site: FakeSite
) -> None:
    await site.send_board(("alice", 1))
    page = await show('<score-board src="SRC"></score-board>')
    await expect(page.get_by_role("listitem")).to_have_text(["1alice1"])

    await page.evaluate("document.body.append(document.querySelector('score-board').cloneNode())")

    await expect(page.get_by_role("listitem")).to_have_text(["1alice1", "1alice1"])
    assert len(site.handshakes) == 1


async def test_the_place_of_the_tokens_holder_needs_no_attribute(
    show: Show, site: FakeSite
) -> None:
    elements = '<score-board src="SRC"></score-board>'
    page = await show(elements)
    await expect(page.get_by_role("status")).to_have_text("No scores yet.")

    await site.send(**place())

    await expect(page.locator("score-board [aria-current=true]")).to_have_text("1,023zoe5")
    assert [message for message in site.received if message["type"] == "watch"] == []


async def test_tokens_and_texts_are_properties_also_before_the_definition(
    show: Show, site: FakeSite
) -> None:
    # Imports of a module run before its own statements: this one must wait for them.
    script = """
      const board = document.querySelector("score-board");
      board.tokenProvider = () => "secret";
      board.texts = { empty: "Noch keine Punkte." };
      await import("./client/element.js");
    """
    page = await show('<score-board src="SRC"></score-board>', only=script, lang="de")

    await expect(page.get_by_role("status")).to_have_text("Noch keine Punkte.")
    await site.send_board(("alice", 1_200))

    await expect(page.get_by_role("listitem")).to_have_text(["1alice1.200"])
    assert site.handshakes[-1].token == "secret"
    assert "secret" not in await page.content()


async def test_another_provider_of_tokens_is_another_connection(show: Show, site: FakeSite) -> None:
    script = 'document.querySelector("score-board").tokenProvider = () => "alice";'
    page = await show('<score-board src="SRC"></score-board>', script=script)
    await expect(page.get_by_role("status")).to_have_text("No scores yet.")

    await page.evaluate("document.querySelector('score-board').tokenProvider = () => 'bob'")

    async def is_bob() -> bool:
        assert [handshake.token for handshake in site.handshakes] == ["alice", "bob"]
        assert len(site.viewers) == 1
        return True

    await eventually_async(is_bob)


async def test_ids_that_nobody_reads_are_short(show: Show, site: FakeSite) -> None:
    user_id = "018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f11"
    await site.send_board((user_id, 10))
    page = await show('<score-board src="SRC"></score-board>')

    await expect(page.get_by_role("listitem")).to_have_text(["1Player 9F1110"])
    await expect(page.locator("score-board bdi")).to_have_attribute("title", user_id)


async def test_its_theme_is_that_of_the_page_and_not_that_of_the_system(
    show: Show, site: FakeSite
) -> None:
    await site.send_board(("alice", 1))
    page = await show('<score-board src="SRC"></score-board>', color_scheme="dark")
    element = page.locator("score-board")

    await expect(element).to_have_css("background-color", "rgb(255, 255, 255)")
    await page.evaluate("document.documentElement.style.colorScheme = 'dark'")
    await expect(element).to_have_css("background-color", "rgb(18, 18, 18)")


async def test_events_tell_the_page(show: Show, site: FakeSite) -> None:
    await site.send_board(("alice", 1))
    script = """
      window.events = [];
      for (const type of ["board", "place", "status", "error"]) {
        document.querySelector("score-board").addEventListener(type, ({ detail }) => {
          events.push([type, detail.seq ?? detail.state ?? detail.code]);
        });
      }
    """
    page = await show('<score-board src="SRC" user="zoe"></score-board>', script=script)
    await is_watched(site, "zoe")

    await site.send(**place())
    await site.send(type="error", code="too-many-watched")

    await page.wait_for_function("events.some(([type]) => type === 'error')")
    assert await page.evaluate("events") == [
        ["status", "connecting"],
        ["status", "live"],
        ["board", 1],
        ["place", 1],
        ["error", "too-many-watched"],
    ]


async def test_an_invalid_address_is_an_error(show: Show) -> None:
    script = """
      document.querySelector("score-board").addEventListener("error", ({ detail }) => {
        document.title = detail.code;
      });
    """
    page = await show('<score-board src="ftp://nowhere"></score-board>', script=script)

    await expect(page).to_have_title("address")
    await expect(page.get_by_role("status")).to_have_text("The board cannot be shown.")


async def test_pages_style_it(show: Show, site: FakeSite, tmp_path: Path) -> None:
    await site.send_board(("alice", 1))
    script = """
      const sheet = new CSSStyleSheet();
      sheet.replaceSync(`
        score-board { --score-board-background: rgb(1, 2, 3); }
        score-board::part(name) { color: rgb(4, 5, 6); }
      `);
      document.adoptedStyleSheets = [sheet];
    """
    page = await show(
        '<score-board src="SRC" theme="dark"><h2 slot="title">Top</h2></score-board>', script=script
    )
    await expect(page.get_by_role("listitem")).to_have_count(1)
    element = page.locator("score-board")

    await expect(page.get_by_role("heading", name="Top")).to_be_visible()
    await expect(element).to_have_css("background-color", "rgb(1, 2, 3)")
    await expect(element).to_have_css("color-scheme", "dark")
    await expect(element.locator("[part=name]")).to_have_css("color", "rgb(4, 5, 6)")
