"""Accessibility, themes, narrow screens and hostile user ids on the live page."""

import pytest
from playwright.async_api import Page, expect

from tests.support.clients.browser import CONTRAST, OpenPage, PageGuard
from tests.support.fakes.site import FakeSite

pytestmark = pytest.mark.asyncio(loop_scope="session")

PLAYERS = [
    ("nova", 12_480),
    ("9f1c2d34-5b6a-4c7d-8e9f-0a1b2c3d4e5f", 11_930),
    ("kestrel", 11_925),
    ("ada.lovelace", 9_410),
    ("mikado", 8_720),
    ("auth0|64ab31", 8_015),
    ("juno_77", 7_640),
    ("orbit", 6_990),
    ("tern", 6_120),
    ("wren@example.com", 5_875),
]
HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 1">',
    '"><svg onload=window.hacked=1>',
    "\u202egnirts desrever",
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦🏴‍☠️🦄",
    "Z̷̪̈́a̶̙͝l̸̰͛g̴͔̈́o̷̜͠" * 4,
    "x" * 128,
    "a b\tc\u00a0d\u200b",
    "{{constructor.constructor('window.hacked=1')()}}",
]


async def wait_until_live(page: Page) -> None:
    await expect(page.locator("html")).to_have_attribute("data-state", "live")


# --- screen readers -------------------------------------------------------------------------------


async def test_accessibility_tree_is_a_list_with_rank_name_and_points(
    open_page: OpenPage,
    site: FakeSite,
):
    await site.send_board(("alice", 1_200), ("bob", 20))

    page = await open_page(site.url)

    await wait_until_live(page)
    await expect(page.get_by_role("main")).to_match_aria_snapshot("""
      - region "Top 10":
        - list "Top 10":
          - listitem: Rank 1 alice 1,200 points
          - listitem: Rank 2 bob 20 points
    """)
    await expect(page.get_by_role("banner").get_by_role("heading", level=1)).to_have_text("Top 10")
    await expect(page.get_by_role("banner").get_by_role("status")).to_have_text("Live")


async def test_changes_are_announced_at_intervals(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30), ("bob", 20))
    page = await open_page(site.url, clock=True)
    news = page.locator("#news")
    await expect(news).to_have_attribute("aria-live", "polite")
    await expect(news).to_have_text("alice leads with 30 points.")
    await page.evaluate("""
      window.announcements = [];
      new MutationObserver(() => announcements.push(document.querySelector("#news").textContent))
        .observe(document.querySelector("#news"), { childList: true }); 0
    """)

    await site.send_board(("bob", 35), ("alice", 30))
    await site.send_board(("bob", 35), ("alice", 30), ("carol", 5))
    await site.send_board(("bob", 36), ("carol", 33), ("alice", 30))
    await expect(page.locator(".row")).to_have_count(3)
    assert await page.evaluate("announcements") == []
    await page.clock.fast_forward(10_000)

    await expect(news).to_have_text("bob takes the lead with 36 points. carol enters at 2.")
    assert len(await page.evaluate("announcements")) == 1


async def test_scores_without_rank_changes_are_not_announced(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30), ("bob", 20))
    page = await open_page(site.url, clock=True)
    news = page.locator("#news")
    await expect(news).to_have_text("alice leads with 30 points.")

    await site.send_board(("alice", 31), ("bob", 21))
    await expect(page.locator(".row .score").first).to_have_text("31")
    await page.clock.fast_forward(10_000)
    await expect(news).to_have_text("alice leads with 30 points.")
    await site.send_board(("bob", 40), ("alice", 31))

    await expect(news).to_have_text("bob takes the lead with 40 points.")


# --- keyboard, theme, contrast --------------------------------------------------------------------


async def test_theme_follows_the_system_until_the_user_chooses(
    open_page: OpenPage,
    site: FakeSite,
):
    page = await open_page(site.url, color_scheme="dark")
    root, button = page.locator("html"), page.get_by_role("button", name="Dark theme")
    await expect(root).to_have_attribute("data-theme", "dark")
    await expect(button).to_have_attribute("aria-pressed", "true")

    await page.emulate_media(color_scheme="light")
    await expect(root).to_have_attribute("data-theme", "light")

    await button.click()
    await expect(root).to_have_attribute("data-theme", "dark")
    await page.reload()
    await expect(root).to_have_attribute("data-theme", "dark")
    await expect(button).to_have_attribute("aria-pressed", "true")

    await button.click()
    await page.emulate_media(color_scheme="dark")
    await expect(root).to_have_attribute("data-theme", "dark")


async def test_theme_is_set_before_the_first_paint(open_page: OpenPage, site: FakeSite):
    page = await open_page(site.url, color_scheme="light")
    await page.evaluate("localStorage.setItem('scoreboard.theme', 'dark')")
    await page.add_init_script("""
      new MutationObserver(() => {
        if (document.body) window.themeAtBody ??= document.documentElement.dataset.theme;
      }).observe(document, { childList: true, subtree: true });
    """)

    await page.reload()

    assert await page.evaluate("themeAtBody") == "dark"


async def test_page_works_with_the_keyboard_and_shows_the_focus(
    open_page: OpenPage,
    site: FakeSite,
):
    await site.send_board(("alice", 10))
    page = await open_page(site.url)
    await wait_until_live(page)

    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Share")).to_be_focused()
    await page.keyboard.press("Tab")
    button = page.get_by_role("button", name="Dark theme")
    await expect(button).to_be_focused()
    await expect(button).to_have_css("outline-style", "solid")
    before = await page.locator("html").get_attribute("data-theme")
    await page.keyboard.press("Enter")

    await expect(page.locator("html")).not_to_have_attribute("data-theme", before)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Wall")).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="API")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_contrast_is_sufficient(
    open_page: OpenPage,
    site: FakeSite,
    guard: PageGuard,
    scheme: str,
):
    await site.send_board(*PLAYERS[:5])
    page = await open_page(site.url, color_scheme=scheme)
    await wait_until_live(page)
    await page.evaluate("""
      for (const move of document.querySelectorAll(".move")) move.dataset.direction = "down";
      document.querySelector("[data-rank='2'] .move").dataset.direction = "up"; 0
    """)

    words = [
        *("h1", "#connection", "#board-name", "#detail", ".columns span", "footer a"),
        *(".name", ".score", ".gain", "[data-rank='2'] .move", "[data-rank='3'] .move"),
        "[data-rank='4'] .rank",
    ]
    contrasts = {word: await page.evaluate(CONTRAST, word) for word in words}
    await site.send(type="status", state="stale")
    await expect(page.locator("html")).to_have_attribute("data-state", "stale")
    contrasts["#detail when stale"] = await page.evaluate(CONTRAST, "#detail")

    assert {word: ratio for word, ratio in contrasts.items() if ratio < 4.5} == {}


# --- narrow screens, hostile names ---------------------------------------------------------------


@pytest.mark.parametrize("width_px", [320, 390, 560])
async def test_narrow_screens_have_no_overflow(
    open_page: OpenPage,
    site: FakeSite,
    width_px: int,
):
    await site.send_board(*((name, 2**31 - 1 - place) for place, name in enumerate(HOSTILE)))
    page = await open_page(site.url, viewport={"width": width_px, "height": 640})
    await expect(page.locator(".row")).to_have_count(10)

    await site.send(type="status", state="stale")
    await expect(page.locator("#connection")).to_have_text("Paused")

    widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll_px, client_px = await page.evaluate(widths)
    assert scroll_px <= client_px
    overlapping = await page.evaluate("""
      [...document.querySelectorAll(".row")].filter((row) => {
        const name = row.querySelector(".name").getBoundingClientRect();
        const score = row.querySelector(".score").getBoundingClientRect();
        return name.width < 40 || name.right > score.left || score.right > innerWidth;
      }).map((row) => row.dataset.user)
    """)
    assert overlapping == []


async def test_user_ids_are_rendered_as_text(open_page: OpenPage, site: FakeSite):
    await site.send_board(*((name, 100 - place) for place, name in enumerate(HOSTILE)))

    page = await open_page(site.url)
    await expect(page.locator(".row")).to_have_count(10)

    names = await page.evaluate("""
      [...document.querySelectorAll(".name")]
        .map((name) => [name.textContent, name.title, name.dir])
    """)
    assert names == [[name, name, "auto"] for name in HOSTILE]
    assert await page.evaluate("window.hacked") is None
    assert (
        await page.evaluate("document.querySelectorAll('.name *, main script, main img').length")
        == 0
    )
    heights = await page.evaluate("""
      [...document.querySelectorAll(".row")].map((row) => Math.round(row.offsetHeight))
    """)
    assert len(set(heights)) == 1
    long = page.locator(".name", has_text="xxx")
    clipped = await long.evaluate("(name) => name.scrollWidth > name.clientWidth")
    assert clipped
    await expect(long).to_have_css("text-overflow", "ellipsis")
