"""Sign-in and scoring on the live page, with `scoreboard up`.

Server errors are simulated by intercepting the browser's requests; the rest is real.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from tests.support.clients.browser import OpenPage, PageGuard, keep_screenshot
from tests.support.eventually import eventually_async
from tests.support.servers.up import Up, run_up

pytestmark = pytest.mark.asyncio(loop_scope="session")

UPDATE = "**/api/scores/update"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    yield from run_up(tmp_path_factory.mktemp("up") / "data")


@pytest.fixture(scope="module")
def private_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    yield from run_up(tmp_path_factory.mktemp("private") / "data", "--private")


async def sign_in(page: Page, name: str) -> None:
    await page.get_by_role("button", name="Sign in to play").click()
    await page.get_by_label("Player name").fill(name)
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.locator(".player-name")).to_have_text(name)


async def press(page: Page) -> None:
    await page.locator(".player-score").click()


async def press_disabled(page: Page) -> None:
    """Click a disabled button, and check that nothing is sent."""
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    await page.locator(".player-score").click(force=True)
    assert sent == []


async def wait_for_text(page: Page, text: str) -> None:
    await expect(page.locator(".player-news")).to_contain_text(text)


def row_of(page: Page, name: str) -> Any:
    return page.locator(".row").filter(has=page.get_by_text(name, exact=True))


async def test_player_signs_in_and_scores(open_page: OpenPage, up: Up):
    page = await open_page(up["api"])
    await sign_in(page, "alice")
    assert page.url == up["api"] + "/"

    await press(page)
    await wait_for_text(page, "Your score is 10.")
    await press(page)
    await wait_for_text(page, "Your score is 20.")

    await expect(row_of(page, "alice").locator(".score")).to_have_text("20")
    await keep_screenshot(page, "signed-in")
    await page.reload()
    await expect(page.locator(".player-name")).to_have_text("alice")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("button", name="Sign in to play")).to_be_focused()
    await page.reload()
    await expect(page.get_by_role("button", name="Sign in to play")).to_be_visible()
    assert await page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])") == (
        "[{},{}]"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_longest_name_fits_a_phone(open_page: OpenPage, up: Up, scheme: str):
    page = await open_page(up["api"], viewport={"width": 320, "height": 640}, color_scheme=scheme)
    await sign_in(page, "w" * 128)
    await press(page)
    await wait_for_text(page, "Your score is")
    width = await page.evaluate("document.documentElement.scrollWidth")
    await keep_screenshot(page, f"signed-in-phone-{scheme}")
    assert width <= 320


async def test_sign_in_returns_to_the_same_page(open_page: OpenPage, up: Up):
    address = up["api"] + "/?board=main#rows"
    page = await open_page(address)
    await sign_in(page, "bob")
    assert page.url == address


async def test_rate_limit_is_shown_and_ends(open_page: OpenPage, up: Up, guard: PageGuard):
    guard.expect_lost_server()  # the clock advances further than the live connection allows
    page = await open_page(up["api"], clock=True)
    await sign_in(page, "carol")
    for score in range(10, 101, 10):
        await press(page)
        await wait_for_text(page, f"Your score is {score}.")

    await press(page)

    await wait_for_text(page, "Rate limit reached")
    button = page.locator(".player-score")
    await expect(button).to_have_text(re.compile(r"^Score again in [1-6]?\d s$"))
    await expect(button).to_have_attribute("aria-disabled", "true")
    await keep_screenshot(page, "limit-reached")
    await press_disabled(page)
    await expect(row_of(page, "carol").locator(".score")).to_have_text("100")
    await page.clock.run_for(61_000)
    await wait_for_text(page, "You can score again.")
    await expect(button).to_have_text("Score!")


async def test_action_without_a_response_is_resent_and_counts_once(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect("Failed to load resource")
    page = await open_page(up["api"])
    await sign_in(page, "dave")
    sent: list[str] = []

    async def fail(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or "{}")["actionId"])
        if len(sent) == 1:
            await route.abort()
        elif len(sent) == 2:
            # The action counts, but its response is lost.
            await route.fetch()
            await route.abort()
        elif len(sent) == 3:
            await route.fulfill(status=503, headers={"Retry-After": "1"}, body="{}")
        else:
            await route.continue_()

    await page.route(UPDATE, fail)
    await press(page)

    await wait_for_text(page, "Trying again; it counts once.")
    await wait_for_text(page, "Your score is 10.")
    assert len(sent) == 4
    assert len(set(sent)) == 1
    await press(page)
    await wait_for_text(page, "Your score is 20.")
    assert len(set(sent)) == 2


async def test_click_after_the_last_attempt_resends_the_same_action(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect_lost_server()
    page = await open_page(up["api"], clock=True)
    await sign_in(page, "erin")
    sent: list[str] = []

    async def fail(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or "{}")["actionId"])
        await route.abort()

    await page.route(UPDATE, fail)
    await press(page)

    async def has_stopped_retrying() -> bool:
        await page.clock.run_for(2_000)
        return "Press again" in await page.locator(".player-news").inner_text()

    await eventually_async(has_stopped_retrying)
    await page.unroute(UPDATE)
    async with page.expect_request(UPDATE) as request:
        await press(page)
    await wait_for_text(page, "Your score is 10.")
    assert json.loads((await request.value).post_data or "{}")["actionId"] == sent[0]


async def test_token_rejected_by_the_server_ends_the_sign_in(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect("401")
    page = await open_page(up["api"])
    await sign_in(page, "frank")

    async def refuse(route: Route) -> None:
        await route.fulfill(status=401, body="{}")

    await page.route(UPDATE, refuse)
    await press(page)
    await wait_for_text(page, "Your sign-in has expired.")
    await expect(page.get_by_role("button", name="Sign in to play")).to_be_focused()


async def test_sign_in_ends_when_its_token_expires(open_page: OpenPage, up: Up, guard: PageGuard):
    guard.expect_lost_server()
    page = await open_page(up["api"], clock=True)
    await sign_in(page, "grace")
    await page.clock.fast_forward("59:40")
    await expect(page.locator(".player-name")).to_have_text("grace")
    await page.clock.fast_forward("00:20")
    await wait_for_text(page, "Your sign-in has expired.")


async def test_invalid_name_is_asked_again_and_cancel_returns(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect("422")
    page = await open_page(up["api"])
    await page.get_by_role("button", name="Sign in to play").click()
    field = page.get_by_label("Player name")
    await expect(field).to_be_focused()
    await field.fill("no spaces")
    await field.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("Use 1 to 128")
    await expect(page.get_by_label("Player name")).to_have_attribute("aria-invalid", "true")
    await keep_screenshot(page, "sign-in")
    await page.get_by_role("button", name="Cancel").click()
    await wait_for_text(page, "The sign-in was cancelled.")
    assert page.url == up["api"] + "/"


@pytest.mark.parametrize("answer", ["code=stolen&state=guessed", "error=server_error&state=x"])
async def test_response_to_another_tab_is_rejected(open_page: OpenPage, up: Up, answer: str):
    page = await open_page(f"{up['api']}/?board=main&{answer}")
    await wait_for_text(page, "This sign-in was not started in this tab.")
    assert page.url == up["api"] + "/?board=main"
    await expect(page.get_by_role("button", name="Sign in to play")).to_be_visible()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"state": "another"}, "not started in this tab"),
        ({"iss": "http://127.0.0.1:1"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"code": "another"}, "did not return a token"),
    ],
)
async def test_tampered_response_is_rejected(
    open_page: OpenPage, up: Up, guard: PageGuard, changed: dict[str, str | None], sentence: str
):
    guard.expect("400")
    page = await open_page(up["api"])
    await page.add_init_script(
        f"""const changed = {json.dumps(changed)};
        const address = new URL(location.href);
        if (address.searchParams.has("code")) {{
          for (const [name, value] of Object.entries(changed)) {{
            if (value === null) address.searchParams.delete(name);
            else address.searchParams.set(name, value);
          }}
          history.replaceState(null, "", address);
        }}"""
    )
    await page.get_by_role("button", name="Sign in to play").click()
    await page.get_by_label("Player name").fill("mallory")
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await wait_for_text(page, sentence)
    await expect(page.get_by_role("button", name="Sign in to play")).to_be_visible()
    assert page.url == up["api"] + "/"


async def test_private_board_is_shown_only_while_signed_in(
    open_page: OpenPage, private_up: Up, guard: PageGuard
):
    guard.expect_lost_server()  # and 401
    page = await open_page(private_up["api"])
    await expect(page.locator("#panel-text")).to_contain_text("Sign in to watch this board")
    await sign_in(page, "alice")
    await expect(page.locator("html")).to_have_attribute("data-state", "live")
    await press(page)
    await expect(row_of(page, "alice").locator(".score")).to_have_text("10")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.locator("#panel-text")).to_contain_text("Sign in to watch this board")
    await expect(page.locator(".row")).to_have_count(0)
