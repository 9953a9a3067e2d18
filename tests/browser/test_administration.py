"""The administrator's page, with `scoreboard up`.

Lost responses and a switched-off API are simulated by intercepting the browser's requests; the rest
is real.
"""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from playwright.async_api import Page, Route, expect

from cli.target import read_state_file
from scoreboard.security.tokens import ADMIN, READ, UPDATE, UPDATE_ANY, LocalIssuer
from tests.support.clients.browser import CONTRAST, OpenPage, PageGuard, keep_screenshot
from tests.support.eventually import eventually_async
from tests.support.servers.up import Up, run_up

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARKUP = '<img src=x onerror="document.title=1">'
VIEWS = [
    "boards",
    "seasons/main",
    "standings/main",
    "players",
    "players/rob/main",
    "acts",
    "held",
    "audit",
    "health",
]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    yield from run_up(tmp_path_factory.mktemp("up") / "data")


def issuer_folder(up: Up) -> Path:
    return Path(up["settings"]["SCOREBOARD_JWKS_FILE"]).parent


def token(up: Up, subject: str, *scopes: str) -> str:
    issuer = LocalIssuer.load(issuer_folder(up))
    return issuer.issue(subject, list(scopes), 3600, audience="scoreboard")


async def score(up: Up, user_id: str, *points: int, board: str = "main") -> None:
    """Count actions of a user, named USER:0 and so on."""
    headers = {"Authorization": f"Bearer {token(up, 'arena', UPDATE_ANY)}"}
    async with httpx.AsyncClient(base_url=up["api"], headers=headers, timeout=30) as client:
        for number, one in enumerate(points):
            action = {"userId": user_id, "actionId": f"{user_id}:{number}", "points": one}
            answer = await client.post(f"/api/scores/update?board={board}", json=action)
            assert answer.status_code == 200, answer.text


async def score_of(up: Up, user_id: str, *, board: str = "main") -> int | None:
    """Return the user's score; None if the user is not on the board."""
    async with httpx.AsyncClient(base_url=up["api"], timeout=30) as client:
        answer = await client.get(f"/api/scores/users/{user_id}?board={board}")
    if answer.status_code == 404:
        return None
    assert answer.status_code == 200, answer.text
    return answer.json()["score"]


async def read(up: Up, path: str, **query: str) -> Any:
    """Read from the api as an administrator."""
    headers = {"Authorization": f"Bearer {token(up, 'carla', ADMIN)}"}
    async with httpx.AsyncClient(base_url=up["api"], headers=headers, timeout=30) as client:
        return (await client.get(path, params=query)).raise_for_status().json()


async def make_board(page: Page, name: str, **chosen: str) -> None:
    await page.get_by_text("New board").click()
    await page.get_by_label("Name").fill(name)
    for label, option in chosen.items():
        await page.get_by_label(label, exact=True).select_option(option)
    await page.get_by_role("button", name="Make the board").click()
    await expect(page.locator("#message")).to_have_text(f"Board {name} is open.")


async def sign_in(page: Page, up: Up, view: str = "boards") -> None:
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_label("Administrator").fill("admin")
    password = (issuer_folder(up) / "admin-password").read_text()
    await page.get_by_label("Password").fill(password)
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.locator("#who-name")).to_have_text("admin")
    await expect(page.locator("#message")).to_be_empty()
    await show(page, view)


async def show(page: Page, view: str) -> None:
    await page.evaluate("(view) => { location.hash = `#/${view}`; }", view)
    await expect(page.locator("#view")).to_have_attribute("data-address", f"#/{view}")


async def fill_in(page: Page, act: str, **fields: str) -> Any:
    """Open the dialog of an act, fill it in and show the preview; return the dialog."""
    await page.get_by_role("button", name=act, exact=True).click()
    dialog = page.get_by_role("dialog")
    for label, text in fields.items():
        await dialog.get_by_label(label.replace("_", " ")).fill(text)
    await dialog.get_by_role("button", name="Preview").click()
    await expect(dialog.get_by_text("Nothing is changed yet.")).to_be_visible()
    return dialog


async def confirm(dialog: Any, text: str) -> None:
    await dialog.get_by_role("button", name=text).click()
    await expect(dialog.get_by_text("is done (act")).to_be_visible()
    await dialog.get_by_role("button", name="Close").click()
    await expect(dialog).to_have_count(0)


async def test_a_view_that_is_opened_during_the_sign_in_keeps_what_is_typed(
    open_page: OpenPage, up: Up
):
    page = await open_page(up["api"] + "/admin")
    answer = asyncio.Event()

    async def wait(route: Route) -> None:
        await answer.wait()
        await route.continue_()

    await page.route("**/api/admin/boards?limit=1", wait)
    await sign_in(page, up, "players")
    await page.get_by_label("Player").fill("ro")
    async with page.expect_response("**/api/admin/boards?limit=1"):
        answer.set()
    await page.get_by_role("button", name="Search").click()
    await expect(page.locator("#view")).to_have_attribute("data-address", "#/players?query=ro")


async def test_administrator_finds_bans_and_restores_a_player(open_page: OpenPage, up: Up):
    await score(up, "rob", 30, 20)
    await score(up, "sue", 40)

    async def is_known() -> bool:
        return bool((await read(up, "/api/admin/users", query="ro"))["users"])

    await eventually_async(is_known)
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up, "players")
    await page.get_by_label("Player").fill("ro")
    await page.get_by_role("button", name="Search").click()
    await page.get_by_role("link", name="rob").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("rob")

    dialog = await fill_in(page, "Ban", Reason=MARKUP)
    await expect(dialog.get_by_role("table", name="Score and rank of rob")).to_contain_text("50")
    assert await score_of(up, "rob") == 50
    await keep_screenshot(page, "administration-preview")
    await confirm(dialog, "Ban: rob on main")

    assert await score_of(up, "rob") is None
    acts = page.get_by_role("table", name="Acts")
    await expect(acts).to_contain_text(MARKUP)
    await expect(page.get_by_text("banned", exact=True)).to_be_visible()
    await show(page, "audit")
    await expect(page.get_by_role("table", name="Audit log")).to_contain_text("sub:admin")
    await show(page, "acts?userId=rob")
    dialog = await fill_in(page, "Undo: Ban of rob on main", Reason="not a bot")
    await confirm(dialog, "Undo: rob on main")

    assert await score_of(up, "rob") == 50
    await expect(acts).to_contain_text("undone")
    assert page.url.startswith(up["api"] + "/admin#/acts")


async def test_a_correction_whose_response_is_lost_is_done_once(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect("Failed to load resource")
    await score(up, "tom", 50)
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up, "players/tom/main")
    dialog = await fill_in(page, "Correct the score", Points_to_add="-20", Reason="a bug")
    sent: list[str] = []

    async def lose(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or "{}")["id"])
        if len(sent) == 1:
            await route.fetch()
            await route.abort()
        else:
            await route.continue_()

    await page.route("**/api/admin/acts", lose)
    button = dialog.get_by_role("button", name="Correct score: tom on main")
    await button.click()
    await expect(dialog.get_by_text("Press again: the act is done once.")).to_be_visible()
    await confirm(dialog, "Correct score: tom on main")

    assert await score_of(up, "tom") == 30
    assert len(sent) == 2
    assert len(set(sent)) == 1
    await expect(page.get_by_role("table", name="Scores by board")).to_contain_text("30")


async def test_a_changed_act_needs_another_preview(open_page: OpenPage, up: Up):
    await score(up, "uma", 50)
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up, "players/uma/main")
    dialog = await fill_in(page, "Correct the score", Points_to_add="-20", Reason="a bug")

    await dialog.get_by_label("Points to add").fill("-30")

    await expect(dialog.get_by_role("button", name="Correct score")).to_be_hidden()
    await expect(dialog.get_by_role("heading", name="Preview")).to_have_count(0)
    await dialog.get_by_role("button", name="Preview").click()
    await confirm(dialog, "Correct score: uma on main")
    assert await score_of(up, "uma") == 20


async def test_actions_are_voided_one_by_one_and_by_time(open_page: OpenPage, up: Up):
    await score(up, "vic", 1, 2, 4)
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up, "players/vic/main")
    await page.get_by_text("The same as a table").click()
    dialog = await fill_in(page, "Void vic:1", Reason="sent by a bot")
    await confirm(dialog, "Void action: vic on main")
    assert await score_of(up, "vic") == 5
    # The refreshed view replaces the open table.
    await expect(page.get_by_role("table", name="Acts")).to_contain_text("sent by a bot")
    await page.get_by_text("The same as a table").click()
    history = page.get_by_role("table", name="History of the score")
    await expect(history.get_by_role("row")).to_have_count(5)
    # The act itself is undone, not voided.
    await expect(history.get_by_role("button")).to_have_count(3)

    window = {"From": "2020-01-01T00:00", "Until,_not_included": "2020-01-02T00:00"}
    await page.get_by_role("button", name="Void actions of a time", exact=True).click()
    dialog = page.get_by_role("dialog")
    for label in window:  # of all actions that are shown
        await expect(dialog.get_by_label(label.replace("_", " "))).not_to_have_value("")
    await dialog.get_by_label("Reason").fill("bot")
    await dialog.get_by_role("button", name="Preview").click()
    await expect(dialog.get_by_text("Takes back 2 actions")).to_be_visible()
    await confirm(dialog, "Void actions of a time: vic on main")
    assert await score_of(up, "vic") == 0
    undo = page.get_by_role("button", name="Undo: Void actions of a time of vic on main")
    await undo.click()
    await dialog.get_by_label("Reason").fill("no bot")
    await dialog.get_by_role("button", name="Preview").click()
    await confirm(dialog, "Undo: vic on main")
    assert await score_of(up, "vic") == 5
    await expect(undo).to_have_count(0)


async def test_a_player_is_banned_before_the_first_action_and_unbanned(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect("Failed to load resource")
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up, "players")
    await page.get_by_label("Player").fill("mallory")
    await page.get_by_role("button", name="Search").click()
    await page.get_by_role("link", name="Show this id").click()
    await expect(page.get_by_text("The player has no score on any board.")).to_be_visible()
    await page.get_by_label("Another board").fill("main")
    await page.get_by_role("button", name="Show", exact=True).click()
    dialog = await fill_in(page, "Ban", Reason="known from another game")
    await confirm(dialog, "Ban: mallory on main")
    await expect(page.get_by_text("banned", exact=True)).to_be_visible()
    headers = {"Authorization": f"Bearer {token(up, 'arena', UPDATE_ANY)}"}
    async with httpx.AsyncClient(base_url=up["api"], headers=headers, timeout=30) as client:
        action = {"userId": "mallory", "actionId": "win:1", "points": 5}
        answer = await client.post("/api/scores/update", json=action)
        assert answer.json()["type"].endswith("/banned"), answer.text
    dialog = await fill_in(page, "Unban", Reason="a mistake")
    await confirm(dialog, "Unban: mallory on main")
    await expect(page.get_by_text("banned", exact=True)).to_have_count(0)
    await expect(page.get_by_role("button", name="Ban", exact=True)).to_be_visible()


async def test_the_audit_log_is_filtered_and_paged(open_page: OpenPage, up: Up):
    await score(up, "ike", 500)
    headers = {"Authorization": f"Bearer {token(up, 'carla', ADMIN)}"}
    async with httpx.AsyncClient(base_url=up["api"], headers=headers, timeout=60) as client:
        for number in range(27):
            change = {"public": bool(number % 2)}
            answer = await client.patch("/api/admin/boards/main", json=change)
            assert answer.status_code == 200, answer.text
            change = {
                "limits": {"pointsPerAction": 1000 + number, "pointsPerWindow": 0, "windowS": 0}
            }
            answer = await client.patch("/api/admin/boards/main", json=change)
            assert answer.status_code == 200, answer.text
        none = {"pointsPerAction": 0, "pointsPerWindow": 0, "windowS": 0}
        await client.patch("/api/admin/boards/main", json={"public": True, "limits": none})
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up, "audit")
    await page.get_by_label("Actor").fill("sub:carla")
    await page.get_by_label("Board").fill("main")
    await page.get_by_role("button", name="Show", exact=True).click()
    rows = page.get_by_role("table", name="Audit log").locator("tbody tr")
    await expect(rows).to_have_count(50)
    await expect(rows.first).to_contain_text("board limit")
    await page.get_by_role("button", name="Show more").click()
    await expect(rows).to_have_count(56)
    await page.get_by_label("Action").fill("board publish")
    await page.get_by_role("button", name="Show", exact=True).click()
    await expect(rows).to_have_count(28)
    await page.get_by_label("Player").fill("nobody")
    await page.get_by_role("button", name="Show", exact=True).click()
    await expect(page.get_by_text("There is nothing to show.")).to_be_visible()


async def test_a_refused_act_is_explained_in_the_dialog(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect("Failed to load resource")
    await score(up, "wim", 5)
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up, "players/wim/main")
    await page.get_by_role("button", name="Correct the score").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Points to add").fill("-6")
    await dialog.get_by_label("Reason").fill("too much")
    await dialog.get_by_role("button", name="Preview").click()
    await expect(dialog.locator(".message[data-mood=trouble]")).not_to_be_empty()
    await expect(dialog.get_by_role("button", name="Correct score")).to_be_hidden()
    await dialog.press("Escape")
    await expect(dialog).to_have_count(0)
    assert await score_of(up, "wim") == 5


async def test_an_interrupted_act_is_completed(open_page: OpenPage, up: Up):
    await score(up, "yan", 50)
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up, "players/yan/main")
    table = page.get_by_role("table", name="History of the score")
    await page.get_by_text("The same as a table").click()
    await expect(table).to_contain_text("yan:0")  # committed
    flusher = up["pids"]["flusher"]
    os.kill(flusher, signal.SIGSTOP)
    try:
        dialog = await fill_in(page, "Correct the score", Points_to_add="-20", Reason="a bug")
        await dialog.get_by_role("button", name="Correct score: yan on main").click()
        await expect(dialog.get_by_text("PostgreSQL has not confirmed it yet")).to_be_visible()
        await dialog.get_by_role("button", name="Close").click()
        await show(page, "acts?state=pending")
        await expect(page.get_by_role("table", name="Acts")).to_contain_text("a bug")
    finally:
        os.kill(flusher, signal.SIGCONT)

    complete = page.get_by_role("button", name="Complete: Correct score of yan on main")
    await complete.click()

    await expect(page.locator("#message")).to_have_text("The act is complete.")
    await expect(complete).to_have_count(0)
    assert await score_of(up, "yan") == 30


async def test_boards_are_made_changed_and_archived(open_page: OpenPage, up: Up):
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up)
    await make_board(page, "weekly", Actions="best")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="weekly"))
    await expect(row).to_contain_text("best value counts, highest first")

    for press, after in [("Make private", "token holders"), ("Archive", "archived")]:
        await row.get_by_role("button", name=press).click()
        await page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
        await expect(row).to_contain_text(after)
    await expect(page.locator("#message")).to_have_text("Board weekly is changed.")
    await keep_screenshot(page, "administration-boards")


async def test_a_board_is_made_with_cron_seasons_limits_and_a_memory(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect("Failed to load resource")
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up)
    await page.get_by_text("New board").click()
    form = page.locator("form.form")
    await expect(form.get_by_label("Cron expression")).to_be_hidden()
    await expect(form.get_by_label("Time zone of the seasons")).to_be_hidden()
    await form.get_by_label("Actions", exact=True).select_option("best")
    for hidden in ("Who may lower a score", "Limit: points of a user in a time"):
        await expect(form.get_by_label(hidden)).to_be_hidden()
    await form.get_by_label("Actions", exact=True).select_option("add")
    await form.get_by_label("Name").fill("mondays")
    await form.get_by_label("Seasons", exact=True).select_option("cron")
    await form.get_by_label("Cron expression").fill("0 6 * *")
    await page.get_by_role("button", name="Make the board").click()
    trouble = page.locator("#message[data-mood=trouble]")
    await expect(trouble).to_contain_text("five fields")
    await expect(trouble).to_be_in_viewport()
    await form.get_by_label("Cron expression").fill("0 6 * * 1")
    await form.get_by_label("Time zone of the seasons").fill("Europe/Berlin")
    await form.get_by_label("Remember actions for").fill("48")
    await form.get_by_label("Limit: points of an action").fill("50")
    await form.get_by_label("Limit: points of a user in a time").fill("200")
    await form.get_by_label("Length of this time in seconds").fill("3600")
    await keep_screenshot(page, "administration-new-board")
    await page.get_by_role("button", name="Make the board").click()
    await expect(page.locator("#message")).to_have_text("Board mondays is open.")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="mondays"))
    for words in (
        "seasons cron:0 6 * * 1 in Europe/Berlin",
        "at most 50 points an action, at most 200 in 3,600 s",
        "actions remembered for 172,800 s",
    ):
        await expect(row).to_contain_text(words)


async def test_a_private_board_is_read_beyond_a_page(open_page: OpenPage, up: Up):
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up)
    await make_board(page, "hidden", Seasons="weekly", **{"Readable by": "false"})
    headers = {"Authorization": f"Bearer {token(up, 'arena', UPDATE_ANY)}"}
    async with httpx.AsyncClient(base_url=up["api"], headers=headers, timeout=30) as client:
        for first in (0, 90):
            updates = [
                {"userId": f"u{one}", "actionId": "a:1", "points": 1000 - one, "board": "hidden"}
                for one in range(first, first + 90)
            ]
            sent = await client.post("/api/scores/updates", json={"updates": updates})
            assert sent.status_code == 200, sent.text

    async def is_known() -> bool:
        return bool((await read(up, "/api/admin/boards/hidden/seasons"))["seasons"])

    await eventually_async(is_known)
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="hidden"))
    await row.get_by_role("link", name="Standings").click()
    rows = page.get_by_role("table", name="Standings of hidden").locator("tbody tr")
    await expect(rows).to_have_count(100)
    await expect(page.get_by_text("180 players")).to_be_visible()
    await page.get_by_role("button", name="Show more").click()
    await expect(rows).to_have_count(180)
    await expect(rows.nth(179)).to_contain_text("u179")
    await expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    await show(page, "seasons/hidden")
    await page.get_by_role("table", name="Seasons of hidden").get_by_role("link").first.click()
    await expect(page.get_by_role("table", name="Standings of").locator("tbody tr")).to_have_count(
        100
    )


async def test_held_actions_are_released_and_voided(open_page: OpenPage, up: Up):
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up)
    await make_board(page, "cups")
    await page.get_by_role("button", name="Limits: cups").click()
    await page.get_by_role("dialog").get_by_label("Points of an action").fill("50")
    await page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="cups"))
    await expect(row).to_contain_text("at most 50 points an action")
    await score(up, "zoe", 60, 70, 20, board="cups")
    assert await score_of(up, "zoe", board="cups") == 20

    async def are_held() -> bool:
        return len((await read(up, "/api/admin/held", board="cups"))["held"]) == 2

    await eventually_async(are_held)
    await show(page, "held?board=cups")
    await keep_screenshot(page, "administration-held")
    dialog = await fill_in(page, "Release zoe:0 of zoe on cups", Reason="it was a final")
    await confirm(dialog, "Release: zoe on cups")
    assert await score_of(up, "zoe", board="cups") == 80

    await page.get_by_role("button", name="Void zoe:1 of zoe on cups").click()
    await page.get_by_role("dialog").get_by_label("Reason").fill("sent by\na bot")
    await page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    await expect(page.locator("#message")).to_have_text("The action is voided.")
    await expect(page.get_by_text("There is nothing to show.")).to_be_visible()
    await show(page, "held?state=voided")
    await expect(page.get_by_role("table", name="Held actions")).to_contain_text("zoe:1")
    assert await score_of(up, "zoe", board="cups") == 80


async def test_an_action_held_in_an_ended_season_counts_in_the_current_one_if_that_is_chosen(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect("Failed to load resource")
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up)
    await make_board(page, "weeks", Seasons="weekly")
    await page.get_by_role("button", name="Limits: weeks").click()
    await page.get_by_role("dialog").get_by_label("Points of an action").fill("50")
    await page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="weeks"))
    await expect(row).to_contain_text("at most 50 points an action")
    await score(up, "zoe", 60, board="weeks")

    async def is_held() -> bool:
        return bool((await read(up, "/api/admin/held", board="weeks"))["held"])

    await eventually_async(is_held)
    running = read_state_file(issuer_folder(up).parent)
    assert running is not None
    with psycopg.connect(running.database) as connection:
        connection.execute("UPDATE held_actions SET season = '2026-W01' WHERE board = 'weeks'")
    await show(page, "held?board=weeks")
    await page.get_by_role("button", name="Release zoe:0 of zoe on weeks").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Reason").fill("it was a final")
    await dialog.get_by_role("button", name="Preview").click()
    await expect(dialog.get_by_role("status")).to_contain_text("is of season 2026-W01")
    await dialog.get_by_label("Count in the current season").check()
    await dialog.get_by_role("button", name="Preview").click()
    await expect(dialog.get_by_text("Nothing is changed yet.")).to_be_visible()
    await confirm(dialog, "Release: zoe on weeks")
    assert await score_of(up, "zoe", board="weeks") == 60


async def hold(page: Page, up: Up, board: str, **points: list[int]) -> None:
    """Make a board with a limit of 50 points, and let actions of users exceed it."""
    await show(page, "boards")
    await make_board(page, board)
    await page.get_by_role("button", name=f"Limits: {board}").click()
    await page.get_by_role("dialog").get_by_label("Points of an action").fill("50")
    await page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=board, exact=True))
    await expect(row).to_contain_text("at most 50 points an action")
    for user_id, numbers in points.items():
        await score(up, user_id, *numbers, board=board)

    async def are_held() -> bool:
        held = (await read(up, "/api/admin/held", board=board, limit="100"))["held"]
        return len(held) == sum(map(len, points.values()))

    await eventually_async(are_held)


async def test_selected_actions_are_released_with_one_reason_each_once(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect("Failed to load resource")
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up)
    await hold(page, up, "rally", kim=[60, 70, 80], lea=[90])
    await show(page, "held?board=rally")
    await expect(page.get_by_role("button", name="Release selected")).to_be_disabled()
    await page.get_by_label("All shown").check()
    await page.get_by_label("Select kim:1 of kim on rally").uncheck()
    await expect(page.get_by_text("3 selected")).to_be_visible()
    await page.get_by_role("button", name="Release selected").click()
    dialog = page.get_by_role("dialog", name="Release 3 actions")
    await expect(dialog).to_contain_text("3 actions of 2 players on 1 board, +230 points in all")
    await dialog.get_by_label("Reason").fill("it was a\nfinal")
    await dialog.get_by_role("button", name="Preview").click()
    await expect(dialog.locator(".message")).to_have_text("Nothing is changed yet. 3 ready.")
    await expect(dialog.get_by_role("row").nth(3)).to_contain_text("90")
    assert await score_of(up, "kim", board="rally") is None
    await keep_screenshot(page, "administration-bulk")

    # Somebody else decides about the last one, and the answer to the first is lost.
    [last] = (await read(up, "/api/admin/held", board="rally", userId="lea"))["held"]
    headers = {"Authorization": f"Bearer {token(up, 'carla', ADMIN)}"}
    async with httpx.AsyncClient(base_url=up["api"], headers=headers) as client:
        body = {"reason": "a bot"}
        (await client.post(f"/api/admin/held/{last['id']}/void", json=body)).raise_for_status()
    sent: list[str] = []

    async def lose(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or "{}")["id"])
        if len(sent) == 1:
            await route.fetch()
            await route.abort()
        else:
            await route.continue_()

    await page.route("**/api/admin/acts", lose)
    await dialog.get_by_role("button", name="Release 3 actions").click()
    await expect(dialog.locator(".message")).to_have_text("2 done, 1 refused.")
    await expect(dialog.get_by_role("row").nth(3)).to_contain_text("was voided by sub:carla before")
    assert len(sent) == 4
    assert len(set(sent)) == 3
    await dialog.get_by_role("button", name="Close").click()
    assert await score_of(up, "kim", board="rally") == 140
    await expect(page.get_by_role("row")).to_have_count(2)  # the heading, and the one left out
    acts = (await read(up, "/api/admin/acts", board="rally"))["acts"]
    assert [(act["kind"], act["reason"]) for act in acts] == [("release", "it was a final")] * 2


async def test_many_held_actions_are_paged_filtered_and_voided(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect("Failed to load resource")
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up)
    await hold(page, up, "crowd", pia=[60] * 52, quy=[70])
    await show(page, "held?board=crowd")
    rows = page.get_by_role("table", name="Held actions").locator("tbody tr")
    await expect(rows).to_have_count(50)
    await page.get_by_role("button", name="Show more").click()
    await expect(rows).to_have_count(53)

    # A change of one row keeps the pages that are shown.
    await page.get_by_role("button", name="Void quy:0 of quy on crowd").click()
    await page.get_by_role("dialog").get_by_label("Reason").fill("sent by a bot")
    await page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    await expect(rows).to_have_count(52)
    await page.get_by_label("All shown").check()
    await page.get_by_role("button", name="Void selected").click()
    dialog = page.get_by_role("dialog", name="Void 52 actions")
    await dialog.get_by_label("Reason").fill("a bot")
    await dialog.get_by_role("button", name="Preview").click()
    refused: list[str] = []

    async def refuse(route: Route) -> None:
        refused.append(route.request.url)
        if len(refused) == 3:
            problem = {"title": "Too many requests", "status": 429}
            await route.fulfill(status=429, headers={"Retry-After": "1"}, json=problem)
        else:
            await route.continue_()

    await page.route("**/api/admin/held/*/void", refuse)
    await dialog.get_by_role("button", name="Void 52 actions").click()
    await expect(dialog.locator(".message")).to_have_text("52 done.")
    assert len(refused) == 53
    await dialog.get_by_role("button", name="Close").click()
    await expect(page.get_by_text("There is nothing to show.")).to_be_visible()

    await page.get_by_label("State").select_option("any")
    await page.get_by_label("Player").fill("quy")
    await page.get_by_label("Limit").select_option("action")
    await page.get_by_label("Since").fill("2020-01-01T00:00:00")
    await page.get_by_role("button", name="Show", exact=True).click()
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("voided by sub:admin: sent by a bot")
    await expect(page.get_by_label("All shown")).to_be_hidden()
    await page.get_by_label("Limit").select_option("window")
    await page.get_by_role("button", name="Show", exact=True).click()
    await expect(page.get_by_text("There is nothing to show.")).to_be_visible()


async def test_a_stopped_dialog_leaves_the_rest_undecided(open_page: OpenPage, up: Up):
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up)
    await hold(page, up, "halt", ria=[60, 70, 80])
    await show(page, "held?board=halt")
    await page.get_by_label("All shown").check()
    await page.get_by_role("button", name="Void selected").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Reason").fill("a bot")
    await dialog.get_by_role("button", name="Preview").click()
    arrived, let_go = asyncio.Event(), asyncio.Event()

    async def wait(route: Route) -> None:
        arrived.set()
        await let_go.wait()
        await route.continue_()

    await page.route("**/api/admin/held/*/void", wait)
    await dialog.get_by_role("button", name="Void 3 actions").click()
    await arrived.wait()
    await dialog.press("Escape")
    await expect(dialog).to_be_visible()  # while something is sent
    await dialog.get_by_role("button", name="Stop").click()
    let_go.set()
    await expect(dialog.locator(".message")).to_have_text("1 done, 2 ready.")
    await dialog.get_by_role("button", name="Close").click()
    table = page.get_by_role("table", name="Held actions")
    await expect(table.locator("tbody tr")).to_have_count(2)


async def test_seasons_of_a_board_are_listed_with_their_standings(open_page: OpenPage, up: Up):
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up)
    await make_board(page, "league", Seasons="weekly")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="league"))
    await expect(row).to_contain_text("seasons weekly in UTC")
    await score(up, "ann", 30, board="league")
    await score(up, "ben", 40, board="league")

    async def is_known() -> bool:
        return bool((await read(up, "/api/scores/seasons", board="league"))["seasons"])

    await eventually_async(is_known)
    await row.get_by_role("link", name="Seasons").click()
    seasons = page.get_by_role("table", name="Seasons of league")
    await expect(seasons).to_contain_text("open")
    await keep_screenshot(page, "administration-seasons")
    await seasons.get_by_role("link").first.click()
    standings = page.get_by_role("table", name="Standings of")
    await expect(standings.get_by_role("row").nth(1)).to_contain_text("ben")
    await standings.get_by_role("link", name="ann").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("ann")
    dialog = await fill_in(page, "Correct the score", Points_to_add="20", Reason="a bug")
    await confirm(dialog, "Correct score: ann on league")
    assert await score_of(up, "ann", board="league") == 50


async def test_the_plot_is_read_by_keyboard_and_as_a_table(open_page: OpenPage, up: Up):
    await score(up, "xia", 10, 20, 30)
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up, "players/xia/main")
    plot = page.get_by_role("group", name="Plot of the score")
    await plot.focus()
    await page.keyboard.press("ArrowLeft")
    await expect(page.locator(".reading")).to_contain_text("60 points (+30) by xia:2")
    await page.keyboard.press("Home")
    await expect(page.locator(".reading")).to_contain_text("10 points (+10) by xia:0")
    await expect(plot).to_contain_text("Score in points")
    await expect(plot).to_contain_text("Time, ")
    await page.get_by_text("The same as a table").click()
    rows = page.get_by_role("table", name="History of the score").get_by_role("row")
    assert [await row.inner_text() for row in await rows.all()][1].split("\t")[1:4] == [
        "xia:2", "+30", "60",
    ]  # fmt: skip


async def test_health_is_refreshed_while_it_is_visible(
    open_page: OpenPage, up: Up, guard: PageGuard
):
    guard.expect_lost_server()
    page = await open_page(up["api"] + "/admin", clock=True)
    await sign_in(page, up, "health")
    await expect(page.get_by_role("table", name="Health of the boards")).to_contain_text("main")
    async with page.expect_response("**/api/admin/status"):
        await page.clock.run_for(2_000)
    await page.evaluate("""() => {
      Object.defineProperty(document, "hidden", { value: true, configurable: true });
    }""")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    await page.clock.run_for(20_000)
    assert len(sent) <= 1  # the one that was on its way
    async with page.expect_response("**/api/admin/status"):
        await page.evaluate("""() => {
          delete document.hidden;
          document.dispatchEvent(new Event("visibilitychange"));
        }""")


async def test_health_shows_viewers_and_refusals(open_page: OpenPage, up: Up):
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up, "health")
    viewers = page.locator(".tile").filter(has_text="Viewers").locator("dd")
    await expect(viewers).to_have_text("0")
    processes = page.get_by_role("table", name="Processes")
    await expect(processes.get_by_role("row")).to_have_count(4)

    live = await open_page(up["api"])
    await expect(viewers).to_have_text("1")
    async with httpx.AsyncClient(base_url=up["api"]) as client:
        for _ in range(3):
            headers = {"Authorization": "Bearer none"}
            assert (await client.get("/api/admin/acts", headers=headers)).status_code == 401
    refused = page.locator(".tile").filter(has_text="Refused in").locator("dd")
    await expect(refused).to_have_text("3")
    refusals = page.get_by_role("table", name="Refusals")
    await expect(refusals).to_contain_text("token ")
    await expect(refusals).not_to_contain_text("held")  # which are accepted
    await keep_screenshot(page, "administration-health")
    await live.goto(up["api"] + "/admin")  # which has no live board
    await expect(viewers).to_have_text("0")

    flusher, streamer = up["pids"]["flusher"], up["pids"]["streamer"]
    os.kill(streamer, signal.SIGSTOP)
    os.kill(flusher, signal.SIGSTOP)
    try:
        await expect(viewers).to_have_text("at least 0")
        await expect(processes.get_by_text("does not answer")).to_have_count(2)
        await expect(processes.get_by_text("unknown")).to_have_count(5)
        await expect(refused).to_have_text("at least 3")
    finally:
        os.kill(streamer, signal.SIGCONT)
        os.kill(flusher, signal.SIGCONT)
    await expect(viewers).to_have_text("0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_texts_have_enough_contrast(open_page: OpenPage, up: Up, scheme: str):
    await score(up, "rob", 30, 20)
    page = await open_page(up["api"] + "/admin", color_scheme=scheme)
    await sign_in(page, up, "players/rob/main")
    for selector in ("main a", ".hint", ".badge", ".button.danger", "#leave", ".views a", "td a"):
        if await page.locator(selector).count():
            assert await page.evaluate(CONTRAST, selector) >= 4.5, selector


@pytest.mark.parametrize("view", VIEWS)
async def test_every_view_has_labels_and_fits_a_phone(open_page: OpenPage, up: Up, view: str):
    await score(up, "rob", 30, 20)
    viewport = {"width": 320, "height": 640}
    page = await open_page(up["api"] + "/admin", viewport=viewport, color_scheme="dark")
    await sign_in(page, up, view)
    await keep_screenshot(page, f"administration-phone-{view.partition('/')[0]}")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320
    unnamed = await page.evaluate("""() =>
      [...document.querySelectorAll("input, select, textarea")]
        .filter((one) => one.labels.length === 0).map((one) => one.name)""")
    assert unnamed == []


async def test_wrong_password_is_asked_again(open_page: OpenPage, up: Up, guard: PageGuard):
    guard.expect("422")
    page = await open_page(up["api"] + "/admin")
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_label("Administrator").fill("admin")
    await page.get_by_label("Password").fill("wrong")
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.locator("#message")).to_have_text("The sign-in was cancelled.")
    await expect(page.get_by_role("navigation")).to_be_hidden()


async def test_account_without_the_scope_is_told_so(open_page: OpenPage, up: Up, guard: PageGuard):
    guard.expect("403")
    page = await open_page(up["api"] + "/admin")
    stored = json.dumps({"token": token(up, "alice", UPDATE, READ)})
    await page.evaluate(
        "(text) => sessionStorage.setItem('scoreboard.administrator.token', text)", stored
    )
    await page.reload()
    await expect(page.locator("#view")).to_contain_text("needs the scope admin:scores")
    await expect(page.get_by_role("navigation")).to_be_hidden()


async def test_switched_off_api_is_explained(open_page: OpenPage, up: Up, guard: PageGuard):
    guard.expect("404")
    page = await open_page(up["api"] + "/admin")

    async def answer(route: Route) -> None:
        await route.fulfill(status=404, json={"title": "Not found", "status": 404})

    await page.route("**/api/admin/**", answer)
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_label("Administrator").fill("admin")
    await page.get_by_label("Password").fill((issuer_folder(up) / "admin-password").read_text())
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.locator("#view")).to_contain_text("SCOREBOARD_ADMIN_API=false")


async def test_sign_out_ends_the_session_and_players_do_not_share_it(open_page: OpenPage, up: Up):
    page = await open_page(up["api"] + "/admin")
    await sign_in(page, up)
    await page.get_by_role("link", name="Live page").click()
    await expect(page.get_by_role("button", name="Sign in to play")).to_be_visible()
    await page.go_back()
    await expect(page.locator("#who-name")).to_have_text("admin")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    await expect(page.get_by_role("table")).to_have_count(0)
    assert await page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])") == (
        "[{},{}]"
    )
