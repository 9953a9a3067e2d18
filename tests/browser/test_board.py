"""The rows of the live page: order, animations, limits."""

import pytest
from playwright.async_api import Page, expect

from tests.support.clients.browser import OpenPage
from tests.support.eventually import eventually_async
from tests.support.fakes.site import FakeSite

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Records the classes that each row has had, and the texts beside its score.
RECORD = """
  window.seen = [];
  window.texts = [];
  new MutationObserver((changes) => {
    for (const { target } of changes) {
      if (!target.classList?.contains("row")) continue;
      for (const name of target.classList) {
        if (name !== "row") seen.push(`${target.dataset.user} ${name}`);
      }
    }
  }).observe(document.querySelector("#rows"), { subtree: true, attributeFilter: ["class"] });
  new MutationObserver((changes) => {
    for (const { target, addedNodes } of changes) {
      if (!target.matches?.(".gain, .move") || addedNodes.length === 0) continue;
      texts.push(`${target.closest(".row").dataset.user} ${addedNodes[0].data}`);
    }
  }).observe(document.querySelector("#rows"), { subtree: true, childList: true });
"""


async def rows_of(page: Page) -> list[list[str]]:
    """Return rank, player and score of each row, from the top."""
    return await page.evaluate("""
      [...document.querySelectorAll("#rows > .row")].map((row) =>
        [".rank", ".name", ".score"].map((part) => row.querySelector(part).textContent))
    """)


async def wait_for_rows(page: Page, *rows: list[str]) -> None:
    async def check():
        got = await rows_of(page)
        assert got == list(rows)
        return True

    await eventually_async(check)


async def recorded_classes(page: Page) -> set[str]:
    return set(await page.evaluate("seen"))


async def test_page_shows_the_current_board(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 1234567), ("bob", 20), ("carol", 0))

    page = await open_page(site.url)

    await wait_for_rows(page, ["1", "alice", "1,234,567"], ["2", "bob", "20"], ["3", "carol", "0"])
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator("#board-name")).to_have_text("main")
    await expect(page.locator("#rows")).to_have_attribute("data-seq", "1")


async def test_page_follows_scores_ranks_and_entries(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30), ("bob", 20), ("carol", 10))
    page = await open_page(site.url)
    await wait_for_rows(page, ["1", "alice", "30"], ["2", "bob", "20"], ["3", "carol", "10"])

    await site.send_board(("carol", 45), ("alice", 30), ("dave", 25))

    await wait_for_rows(page, ["1", "carol", "45"], ["2", "alice", "30"], ["3", "dave", "25"])


async def test_burst_ends_with_its_last_board(open_page: OpenPage, site: FakeSite):
    page = await open_page(site.url)
    await expect(page.locator("#connection")).to_have_text("Live")

    names = ["alice", "bob", "carol", "dave"]
    for turn in range(60):
        shifted = names[turn % 4 :] + names[: turn % 4]
        await site.send_board(*((name, 100 + turn - place) for place, name in enumerate(shifted)))

    await wait_for_rows(
        page,
        ["1", "dave", "159"],
        ["2", "alice", "158"],
        ["3", "bob", "157"],
        ["4", "carol", "156"],
    )
    await expect(page.locator(".is-sliding")).to_have_count(0)


async def test_older_board_is_ignored(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30), seq=10)
    page = await open_page(site.url)
    await wait_for_rows(page, ["1", "alice", "30"])

    await site.send_board(("alice", 20), seq=9)
    await site.send_board(("bob", 40), seq=11)

    await wait_for_rows(page, ["1", "bob", "40"])
    assert await page.evaluate("document.querySelector('#rows').dataset.seq") == "11"


async def test_rows_keep_their_element_while_they_move(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30), ("bob", 20))
    page = await open_page(site.url)
    await wait_for_rows(page, ["1", "alice", "30"], ["2", "bob", "20"])
    await page.evaluate("document.querySelector('[data-user=bob]').mark = 'the same'")

    await site.send_board(("bob", 40), ("alice", 30))

    await wait_for_rows(page, ["1", "bob", "40"], ["2", "alice", "30"])
    assert await page.evaluate("document.querySelector('[data-user=bob]').mark") == "the same"


async def test_moved_rows_slide_from_their_old_positions_and_changed_scores_flash(
    open_page: OpenPage,
    site: FakeSite,
):
    await site.send_board(("alice", 30), ("bob", 20), ("carol", 10))
    page = await open_page(site.url)
    await wait_for_rows(page, ["1", "alice", "30"], ["2", "bob", "20"], ["3", "carol", "10"])
    await page.evaluate(RECORD)
    await page.evaluate("""
      window.slides = {};
      const animate = Element.prototype.animate;
      Element.prototype.animate = function (frames, options) {
        if (options.id === "slide") slides[this.dataset.user] = frames[0].transform;
        return animate.call(this, frames, options);
      }; 0
    """)

    await site.send_board(("bob", 35), ("alice", 30), ("carol", 10))
    await wait_for_rows(page, ["1", "bob", "35"], ["2", "alice", "30"], ["3", "carol", "10"])

    assert await recorded_classes(page) == {
        "bob is-flashing",
        "bob is-sliding",
        "bob is-rising",
        "alice is-sliding",
    }
    # A row's own height, so no layout is read.
    assert await page.evaluate("slides") == {
        "bob": "translateY(100%)",
        "alice": "translateY(-100%)",
    }
    assert set(await page.evaluate("texts")) == {"bob +15", "bob ▲ 1", "alice ▼ 1"}
    await expect(page.locator(".is-sliding, .is-rising, .is-flashing")).to_have_count(0)
    await expect(page.locator(".gain:not(:empty), .move:not(:empty)")).to_have_count(0)


async def test_first_board_is_not_animated(open_page: OpenPage, site: FakeSite):
    site.sends_snapshot = False
    page = await open_page(site.url)
    await page.evaluate(RECORD)
    await eventually_async(lambda: site.viewers)

    await site.send_board(("alice", 30), ("bob", 20))

    await wait_for_rows(page, ["1", "alice", "30"], ["2", "bob", "20"])
    assert await recorded_classes(page) == set()


async def test_reduced_motion_disables_row_animations(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30), ("bob", 20))
    page = await open_page(site.url, reduced_motion="reduce")
    await wait_for_rows(page, ["1", "alice", "30"], ["2", "bob", "20"])
    await page.evaluate(RECORD)

    await site.send_board(("bob", 40), ("alice", 30), ("carol", 5))
    await wait_for_rows(page, ["1", "bob", "40"], ["2", "alice", "30"], ["3", "carol", "5"])

    assert await recorded_classes(page) == {"bob is-flashing"}
    moving = await page.evaluate("""
      document.getAnimations().flatMap((animation) => animation.effect.getKeyframes())
        .filter((frame) => frame.transform && frame.transform !== "none").length
    """)
    assert moving == 0


async def test_more_than_ten_rows_are_not_shown(open_page: OpenPage, site: FakeSite):
    await site.send_board(*((f"player-{number}", 100 - number) for number in range(12)))

    page = await open_page(site.url)

    await expect(page.locator(".row")).to_have_count(10)


async def test_same_player_has_the_same_sprite_everywhere(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 3), ("bob", 2))
    drawn = []
    for _ in range(2):
        page = await open_page(site.url)
        await expect(page.locator(".row")).to_have_count(2)
        script = "[...document.querySelectorAll('.sprite')].map((sprite) => sprite.outerHTML)"
        drawn.append(await page.evaluate(script))

    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]
