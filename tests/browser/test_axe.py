"""axe finds nothing in the pages: light and dark, at the sizes of a phone and a desk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.support.clients.axe import violations
from tests.support.clients.browser import OpenPage
from tests.support.clients.pages import PLAYERS, Scene, show_scene
from tests.support.fakes.site import FakeSite
from tests.support.servers.up import Up, run_up

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 900}}
everywhere = pytest.mark.parametrize(
    "options",
    [
        pytest.param({"viewport": size, "color_scheme": scheme}, id=f"{name}-{scheme}")
        for name, size in SIZES.items()
        for scheme in ("light", "dark")
    ],
)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    yield from run_up(tmp_path_factory.mktemp("up") / "data")


@everywhere
async def test_axe_finds_nothing_on_the_page(
    open_page: OpenPage, site: FakeSite, options: dict[str, Any]
):
    page = await show_scene(open_page, site, Scene("?player=me"), options)
    assert await violations(page) == []


@everywhere
async def test_axe_finds_nothing_on_the_wall(
    open_page: OpenPage, site: FakeSite, options: dict[str, Any]
):
    page = await show_scene(open_page, site, Scene("?wall=1"), options)
    assert await violations(page) == []


@everywhere
async def test_axe_finds_nothing_in_the_share_dialog(
    open_page: OpenPage, site: FakeSite, options: dict[str, Any]
):
    page = await show_scene(open_page, site, Scene(""), options)
    await page.get_by_role("button", name="Share").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    assert await violations(page) == []


@pytest.mark.parametrize("state", ["stale", "stopped", "empty"])
async def test_axe_finds_nothing_in_other_states(open_page: OpenPage, site: FakeSite, state: str):
    await site.send_board(*([] if state == "empty" else PLAYERS))
    page = await open_page(f"{site.url}{'?board=%20' if state == 'stopped' else ''}")
    if state == "stale":
        await expect(page.locator(".row")).to_have_count(10)
        await site.send(type="status", state="stale")
    shown = {"stale": "Paused", "stopped": "Not connected", "empty": "Live"}[state]
    await expect(page.locator("#connection")).to_have_text(shown)
    await settle(page)
    assert await violations(page) == []


@everywhere
async def test_axe_finds_nothing_on_the_administrators_page(
    open_page: OpenPage, up: Up, options: dict[str, Any]
):
    page = await open_page(up["api"] + "/admin", **options)
    await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    assert await violations(page) == []
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_label("Administrator").fill("admin")
    folder = Path(up["settings"]["SCOREBOARD_JWKS_FILE"]).parent
    await page.get_by_label("Password").fill((folder / "admin-password").read_text())
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.locator("#who-name")).to_have_text("admin")
    for view in ("boards", "players", "health"):
        await page.evaluate("(view) => { location.hash = `#/${view}`; }", view)
        await expect(page.locator("#view")).to_have_attribute("data-address", f"#/{view}")
        assert await violations(page) == [], view


async def settle(page: Page) -> None:
    await page.evaluate("""
      Promise.allSettled(document.getAnimations()
        .filter(({ effect }) => effect.getTiming().iterations !== Infinity)
        .map((animation) => { animation.finish(); return animation.finished; }))
    """)
