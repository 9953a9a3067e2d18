"""Pictures of the pages in `.artifacts/`; `make screenshots` copies those of the documentation.

Only `make screenshots` runs this file: its name is not that of a test.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import expect

from scoreboard.security.tokens import UPDATE_ANY, LocalIssuer
from tests.support.clients.browser import OpenPage, keep_screenshot
from tests.support.clients.pages import Scene, show_scene
from tests.support.fakes.site import FakeSite
from tests.support.servers.up import Up, run_up

pytestmark = pytest.mark.asyncio(loop_scope="session")

DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}}
LIGHT: dict[str, Any] = {"color_scheme": "light"}
DARK: dict[str, Any] = {"color_scheme": "dark"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    yield from run_up(tmp_path_factory.mktemp("up") / "data")


@pytest.mark.parametrize(
    ("name", "scene", "options"),
    [
        ("live-page", Scene("?player=me", moment=True), LIGHT | DESK),
        ("live-page-dark", Scene("?player=me"), DARK | DESK),
        ("live-page-phone", Scene("?player=me"), LIGHT | PHONE),
        ("live-page-phone-dark", Scene("", moment=True), DARK | PHONE),
        ("wall", Scene("?wall=1", moment=True), DARK | DESK),
        ("wall-light", Scene("?wall=1"), LIGHT | {"viewport": {"width": 1920, "height": 1080}}),
        ("wall-phone", Scene("?wall=1"), DARK | PHONE),
    ],
)
async def test_pictures_of_the_page_are_saved(
    open_page: OpenPage, site: FakeSite, name: str, scene: Scene, options: dict[str, Any]
):
    page = await show_scene(open_page, site, scene, options)

    path = await keep_screenshot(page, name, animations="allow")

    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(("name", "player"), [("share", ""), ("share-place", "?player=me")])
async def test_pictures_of_the_share_card_are_saved(
    open_page: OpenPage, site: FakeSite, name: str, player: str
):
    page = await show_scene(open_page, site, Scene(player), LIGHT | DESK)
    await page.get_by_role("button", name="Share").click()
    await expect(page.get_by_role("dialog").get_by_role("img")).to_be_visible()

    path = await keep_screenshot(page, name, animations="allow")

    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "options"), [("admin-desk", LIGHT | DESK), ("admin-phone", DARK | PHONE)]
)
async def test_pictures_of_the_administrators_page_are_saved(
    open_page: OpenPage, up: Up, name: str, options: dict[str, Any]
):
    folder = Path(up["settings"]["SCOREBOARD_JWKS_FILE"]).parent
    token = LocalIssuer.load(folder).issue("arena", [UPDATE_ANY], 600, audience="scoreboard")
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=up["api"], headers=headers, timeout=30) as client:

        async def count(number: int) -> None:
            action = {"userId": "kestrel", "actionId": f"win:{number}", "points": 10 + number % 7}
            (await client.post("/api/scores/update", json=action)).raise_for_status()

        await asyncio.gather(*(count(number) for number in range(12)))
    page = await open_page(up["api"] + "/admin", **options)
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_label("Administrator").fill("admin")
    await page.get_by_label("Password").fill((folder / "admin-password").read_text())
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.locator("#who-name")).to_have_text("admin")
    await page.evaluate("location.hash = '#/players/kestrel/main'")
    address = "#/players/kestrel/main"
    await expect(page.locator("#view")).to_have_attribute("data-address", address)

    path = await keep_screenshot(page, name)

    assert path.stat().st_size > 10_000
