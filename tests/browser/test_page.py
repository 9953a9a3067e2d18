"""The live page for its viewers: names, own place, moments, seasons, wall, share card, costs."""

import base64
import json
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.support.clients.browser import OpenPage, PageGuard, stop_clock
from tests.support.eventually import eventually_async
from tests.support.fakes.site import FakeSite

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEN = [(f"player-{number}", 1_000 - number) for number in range(10)]
SEASONS = {
    "seasons": [
        {"id": "2026-W48", "startsAt": 0, "endsAt": 1, "state": "open", "users": 0, "winners": []},
        {"id": "2026-W47", "startsAt": 0, "endsAt": 1, "state": "final", "users": 2, "winners": []},
    ]
}


async def send_place(site: FakeSite, **changes: Any) -> None:
    message = {
        "type": "place",
        "board": site.board,
        "epoch": site.epoch,
        "seq": site.seq,
        "at": 0,
        "userId": "me",
        "rank": 23,
        "score": 120,
        "total": 1_000_000,
        "toNext": 15,
        "toTop": 310,
        "above": [],
        "below": [],
    }
    await site.send(**(message | changes))


async def open_signed_in(open_page: OpenPage, site: FakeSite, user_id: str) -> Page:
    site.config = {"ws": site.ws_url, "oauth": {"issuer": site.url, "clientId": "page"}}
    page = await open_page(f"{site.url}blank.html")
    claims = base64.urlsafe_b64encode(json.dumps({"sub": user_id, "exp": 2**40}).encode()).decode()
    kept = json.dumps({"token": f"e30.{claims.rstrip('=')}.none"})
    await page.evaluate("(kept) => sessionStorage.setItem('scoreboard.sign-in.token', kept)", kept)
    await page.goto(site.url)
    return page


async def wait_until_watched(site: FakeSite, user_id: str) -> None:
    await eventually_async(lambda: {"type": "watch", "userIds": [user_id]} in site.received)


# --- names ----------------------------------------------------------------------------------------


async def test_names_are_shown_with_the_id_as_title(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30), ("bob", 20))
    site.rows[0]["name"] = "Ada <b>Lovelace</b>"

    page = await open_page(site.url)

    first = page.locator(".row .name").first
    await expect(first).to_have_text("Ada <b>Lovelace</b>")
    await expect(first).to_have_attribute("title", "Ada <b>Lovelace</b> (alice)")
    await expect(page.locator(".row .name").nth(1)).to_have_text("bob")


async def test_names_that_arrive_later_are_not_a_change(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30))
    page = await open_page(site.url, clock=True)
    await expect(page.locator(".row .name")).to_have_text("alice")
    await stop_clock(page)
    await page.clock.run_for(5_000)

    site.rows[0]["name"] = "Ada"
    await site.send(**site.board_message())

    await expect(page.locator(".row .name")).to_have_text("Ada")
    await expect(page.locator("#detail")).not_to_have_text("Last change just now")
    await expect(page.locator(".row .gain")).to_be_empty()


@pytest.mark.parametrize(
    ("user_id", "shown"),
    [
        ("9f1c2d34-5b6a-4c7d-8e9f-0a1b2c3d4e5f", "Player 4E5F"),
        ("01J9ZQ4T8B6W3M0000000ABCDE", "Player BCDE"),
        ("auth0|64ab31", "Player AB31"),
        ("google-oauth2|117032945712345678901", "Player 8901"),
        ("4f2a90c1b7d84e6f", "Player 4E6F"),
        ("ada.lovelace", "ada.lovelace"),
        ("wren@example.com", "wren@example.com"),
        ("juno_77", "juno_77"),
        ("deadbeef", "deadbeef"),
    ],
)
async def test_opaque_ids_have_a_short_form(
    open_page: OpenPage, site: FakeSite, user_id: str, shown: str
):
    await site.send_board((user_id, 30))
    page = await open_page(site.url)

    await expect(page.locator(".row .name")).to_have_text(shown)
    await expect(page.locator(".row .name")).to_have_attribute("title", user_id)


# --- the viewer's own place -----------------------------------------------------------------------


async def test_the_own_row_is_pinned_outside_the_top_10(open_page: OpenPage, site: FakeSite):
    await site.send_board(*TEN)
    page = await open_signed_in(open_page, site, "me")
    await wait_until_watched(site, "me")
    own = page.locator("#place")
    await expect(own).to_be_hidden()

    await send_place(site, name="Grace")

    await expect(own.locator(".name")).to_have_text("Grace")
    await expect(own.locator(".rank")).to_have_text("23")
    await expect(own.locator(".score")).to_have_text("120")
    await expect(own.locator(".note")).to_have_text(
        "You · 15 points to rank 22 · 310 points to the top 10 · 1,000,000 players"
    )
    await site.send_board(*TEN[:9], ("me", 900))

    await expect(own).to_be_hidden()
    await expect(page.locator("#rows .is-me .name")).to_have_text("me")
    await expect(page.locator("#rows .is-me .note")).to_have_text("You · New in the top 10")
    await expect(page.locator("#moment")).to_have_text("You are in the top 10")
    await site.send_board(*TEN)
    await send_place(site, rank=11, score=900, total=1, toNext=1, toTop=1)

    await expect(own.locator(".note")).to_have_text("You · 1 point to rank 10 · 1 player")
    await send_place(site, rank=12, score=991, total=12, toNext=0, toTop=0)

    await expect(own.locator(".note")).to_have_text(
        "You · level with rank 11 · level with rank 10 · 12 players"
    )


async def test_the_player_of_the_address_is_not_the_viewer(open_page: OpenPage, site: FakeSite):
    await site.send_board(*TEN)
    page = await open_page(f"{site.url}?player=me")
    await wait_until_watched(site, "me")
    own = page.get_by_label("Place of Grace")
    await send_place(site, name="Grace", rank=None, score=None, toNext=None, toTop=None)
    await expect(own).to_have_text("Grace has no score on this board yet.")

    await send_place(site, name="Grace")

    await expect(own.locator(".note")).to_have_text(
        "15 points to rank 22 · 310 points to the top 10 · 1,000,000 players"
    )
    await site.send_board(("me", 2_000), *TEN[:9])

    await expect(page.locator("#rows .is-me .note")).to_have_text("New leader")
    await expect(page.locator("#moment")).to_have_text("me takes the lead")


async def test_a_player_without_a_score_is_told_so(open_page: OpenPage, site: FakeSite):
    await site.send_board(*TEN)
    page = await open_signed_in(open_page, site, "me")
    await wait_until_watched(site, "me")

    await send_place(site, rank=None, score=None, toNext=None, toTop=None)

    own = page.get_by_label("Your place")
    await expect(own).to_have_text("You have no score on this board yet.")


async def test_the_pinned_row_stays_in_sight_on_a_phone(open_page: OpenPage, site: FakeSite):
    await site.send_board(*TEN)
    page = await open_page(f"{site.url}?player=me", viewport={"width": 390, "height": 500})
    await wait_until_watched(site, "me")
    await send_place(site)

    await expect(page.locator("#place")).to_be_in_viewport(ratio=1)


async def test_a_server_that_knows_no_places_costs_nothing(open_page: OpenPage, site: FakeSite):
    await site.send_board(*TEN)
    page = await open_page(f"{site.url}?player=player-3")
    await wait_until_watched(site, "player-3")

    await site.send(type="error", code="malformed", detail="unknown type")
    await site.send_board(("player-3", 2_000), *TEN[:3], *TEN[4:])

    await expect(page.locator("#rows .is-me .rank")).to_have_text("1")
    await expect(page.locator("#moment")).to_have_text("player-3 takes the lead")
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator("#viewers")).to_be_hidden()


# --- moments --------------------------------------------------------------------------------------


async def test_taking_the_lead_is_a_moment_with_a_crown(
    open_page: OpenPage, site: FakeSite, guard: PageGuard
):
    guard.expect_lost_server()  # the clock advances further than the live connection allows
    await site.send_board(("alice", 30), ("bob", 20))
    page = await open_page(site.url, clock=True)
    leader = page.locator(".row").first
    await expect(leader.locator(".crown")).to_be_visible()
    await expect(leader.locator(".note")).to_be_empty()

    await site.send_board(("bob", 35), ("alice", 30))

    await expect(page.locator("#moment")).to_have_text("bob takes the lead")
    await expect(leader.locator(".note")).to_have_text("New leader")
    await expect(page.locator(".crown:visible")).to_have_count(1)
    await page.clock.run_for(130_000)
    await expect(leader.locator(".note")).to_have_text("Leads for 2 min")


async def test_a_lead_from_before_the_page_is_at_least_as_long(
    open_page: OpenPage, site: FakeSite, guard: PageGuard
):
    guard.expect_lost_server()
    await site.send_board(("alice", 30), ("bob", 20))
    page = await open_page(site.url, clock=True)
    await expect(page.locator(".row")).to_have_count(2)

    await page.clock.run_for(65_000)

    await expect(page.locator(".row .note").first).to_have_text("Leads for 1 min or more")


async def test_entries_and_streaks_are_noted(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30), ("bob", 20))
    page = await open_page(site.url, clock=True)
    await expect(page.locator(".row")).to_have_count(2)
    note = page.locator("[data-user=bob] .note")
    for score in (21, 22, 23):
        await expect(note).to_be_empty()
        await site.send_board(("alice", 30), ("bob", score), ("carol", 5))
        await expect(page.locator("[data-user=bob] .score")).to_have_text(str(score))

    await expect(note).to_have_text("3 gains in a row")
    await expect(page.locator("[data-user=carol] .note")).to_have_text("New in the top 10")
    await expect(page.locator("#moment")).to_have_text("carol enters the top 10")
    await page.clock.run_for(21_000)

    await expect(note).to_be_empty()
    await expect(page.locator("[data-user=carol] .note")).to_be_empty()


async def test_gains_are_shown_for_three_seconds(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30))
    page = await open_page(site.url)
    await expect(page.locator(".row")).to_have_count(1)

    await site.send_board(("alice", 45))

    await expect(page.locator(".row .gain")).to_have_text("+15")
    durations = await page.evaluate("""
      document.querySelector(".gain").getAnimations()
        .map(({ effect }) => effect.getTiming().duration)
    """)
    assert durations == [3_000]


async def test_reduced_motion_shows_moments_without_movement(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30), ("bob", 20))
    page = await open_page(site.url, reduced_motion="reduce")
    await expect(page.locator(".row")).to_have_count(2)

    await site.send_board(("bob", 40), ("carol", 35), ("alice", 30))

    await expect(page.locator("#moment")).to_have_text("bob takes the lead")
    names, moving = await page.evaluate("""
      [document.getAnimations().map(({ id }) => id),
       document.getAnimations().flatMap((animation) => animation.effect.getKeyframes())
         .filter((frame) => frame.transform && frame.transform !== "none").length]
    """)
    assert moving == 0
    assert "moment" in names
    assert not {"crown", "roll", "slide"} & set(names)


async def test_numbers_roll_and_stay_readable(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 1_230))
    page = await open_page(site.url)
    await expect(page.locator(".row")).to_have_count(1)
    await page.evaluate("""
      window.rolled = [];
      const animate = Element.prototype.animate;
      Element.prototype.animate = function (frames, options) {
        if (this.className === "turning") rolled.push([this.dataset.before, this.textContent]);
        return animate.call(this, frames, options);
      }; 0
    """)

    await site.send_board(("alice", 1_244))

    await expect(page.locator(".row .score")).to_have_text("1,244")
    assert await page.evaluate("rolled") == [["30", "44"]]
    await expect(page.locator(".row .roll")).to_have_attribute("aria-hidden", "true")


# --- viewers, boards, seasons ---------------------------------------------------------------------


async def test_the_number_of_viewers_is_shown(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30))
    page = await open_page(site.url)
    await expect(page.locator(".row")).to_have_count(1)

    await site.send(type="heartbeat", board="main", epoch=1, seq=1, at=0, viewers=1_284)

    await expect(page.locator("#viewers")).to_have_text("1,284 watching")
    await site.send(type="status", state="stale")

    await expect(page.locator("#connection")).to_have_text("Paused")
    await expect(page.locator("#viewers")).to_be_hidden()
    await site.send(type="status", state="live")

    await expect(page.locator("#viewers")).to_be_visible()
    await site.send(type="heartbeat", board="main", epoch=1, seq=1, at=0)

    await expect(page.locator("#viewers")).to_be_hidden()


async def test_another_board_is_chosen(open_page: OpenPage, site: FakeSite):
    site.api_replies["/api/boards"] = {"boards": [{"name": "laps"}, {"name": "main"}]}
    await site.send_board(("alice", 30))
    page = await open_page(site.url)
    choice = page.get_by_label("Board")
    await expect(choice).to_have_value("main")
    site.board = "laps"

    await choice.select_option("laps")

    await expect(page).to_have_url(f"{site.url}?board=laps")
    await expect(page.get_by_label("Board")).to_have_value("laps")
    assert site.handshakes[-1].board == "laps"


async def test_an_ended_season_is_read_over_http(open_page: OpenPage, site: FakeSite):
    site.api_replies |= {
        "/api/boards": {"boards": [{"name": "main", "rules": {"season": "weekly"}}]},
        "/api/scores/seasons": SEASONS,
        "/api/scores/leaderboard": {
            "leaderboard": [{"rank": 1, "userId": "alice", "name": "Ada", "score": 70}],
            "total": 1,
            "epoch": 0,
            "seq": 0,
            "season": "2026-W47",
        },
    }
    await site.send_board(("bob", 30))
    page = await open_page(f"{site.url}?board=main&player=alice")
    await page.get_by_label("Season").select_option("Week 47, 2026")

    await expect(page.locator("#connection")).to_have_text("Ended")
    await expect(page.locator("#detail")).to_have_text("Final standings: Week 47, 2026")
    await expect(page.locator(".row.is-me .name")).to_have_text("Ada")
    assert len(site.handshakes) == 1
    await page.get_by_label("Season").select_option("This season")

    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator(".row .name")).to_have_text("bob")


async def test_an_unknown_season_is_explained(
    open_page: OpenPage, site: FakeSite, guard: PageGuard
):
    guard.expect("Failed to load resource")
    page = await open_page(f"{site.url}?board=main&season=2026-W01")

    await expect(page.locator("#panel-title")).to_have_text("No such season")


# --- wall and share card --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1920, 1080), (1280, 900), (1080, 1920)])
async def test_the_wall_has_the_whole_board_and_a_qr_code(
    open_page: OpenPage, site: FakeSite, size: tuple[int, int]
):
    site.board = "weekly"
    await site.send_board(*TEN)
    viewport = {"width": size[0], "height": size[1]}

    page = await open_page(f"{site.url}?board=weekly&wall=1&player=me", viewport=viewport)

    await expect(page.locator(".row")).to_have_count(10)
    for number in (0, 9):
        await expect(page.locator(".row").nth(number)).to_be_in_viewport(ratio=0.99)
    code = page.get_by_role("img", name=f"QR code of {site.url}?board=weekly")
    await expect(code).to_be_in_viewport(ratio=1)
    for control in await page.locator("button, a, select").all():
        await expect(control).to_be_hidden()
    overflow = "document.documentElement.scrollHeight - innerHeight"
    assert await page.evaluate(overflow) <= 0
    small = await page.evaluate(
        "parseFloat(getComputedStyle(document.querySelector('.name')).fontSize)"
    )
    assert small >= 26


@pytest.mark.parametrize("size", [(1920, 1080), (1280, 900), (1080, 1920), (390, 844)])
async def test_the_wall_has_room_for_a_place_below_the_board(
    open_page: OpenPage, site: FakeSite, size: tuple[int, int]
):
    await site.send_board(*TEN)
    viewport = {"width": size[0], "height": size[1]}
    page = await open_page(f"{site.url}?wall=1&player=me", viewport=viewport)
    await expect(page.locator(".row")).to_have_count(10)
    await send_place(site)
    own = page.locator("#place .row")
    await expect(own).to_be_in_viewport(ratio=0.99)

    box, last = await own.bounding_box(), await page.locator("#rows .row").nth(9).bounding_box()
    assert box is not None
    assert last is not None
    assert last["y"] + last["height"] <= box["y"]
    sprite = await own.locator(".sprite").bounding_box()
    name = await own.locator(".name").bounding_box()
    assert sprite is not None
    assert name is not None
    assert sprite["x"] + sprite["width"] <= name["x"]
    assert await page.evaluate("document.documentElement.scrollHeight - innerHeight") <= 0


async def test_the_qr_code_is_the_address_of_the_page(open_page: OpenPage, site: FakeSite):
    await site.send_board(("alice", 30))
    page = await open_page(f"{site.url}?wall=1&player=me#rows")
    await expect(page.locator("#qr path")).to_have_count(1)

    codes = await page.evaluate("""async () => {
      const { encode } = await import("/vendor/uqr/index.mjs");
      const { data } = encode(`${location.origin}/`, { ecc: "M", border: 2 });
      const dark = data.flatMap((row, y) =>
        row.flatMap((isDark, x) => (isDark ? [`${x} ${y}`] : [])));
      const drawn = document.querySelector("#qr path").getAttribute("d");
      return [dark, drawn.split("M").slice(1).map((cell) => cell.replace("h1v1h-1z", ""))];
    }""")

    assert len(codes[0]) > 200
    assert codes[0] == codes[1]


@pytest.mark.parametrize("player", ["", "?player=bob", "?player=me"])
async def test_a_share_card_is_drawn(open_page: OpenPage, site: FakeSite, player: str):
    await site.send_board(("alice", 30), ("bob", 20))
    page = await open_page(site.url + player)
    await expect(page.locator(".row")).to_have_count(2)
    if player == "?player=me":
        await wait_until_watched(site, "me")
        await send_place(site, name="Grace")
        await expect(page.locator("#place .name")).to_have_text("Grace")

    await page.get_by_role("button", name="Share").click()

    dialog = page.get_by_role("dialog", name="Share")
    text = {
        "": "alice leads main.",
        "?player=bob": "bob is number 2 on main.",
        "?player=me": "Grace is number 23 on main.",
    }[player]
    picture = dialog.get_by_role("img", name=text)
    await expect(picture).to_be_visible()
    size = await picture.evaluate("(image) => [image.naturalWidth, image.naturalHeight]")
    assert size == [1_200, 630]
    async with page.expect_download() as download:
        await dialog.get_by_role("link", name="Save the picture").click()
    saved = await download.value
    assert saved.suggested_filename == "main.png"
    await dialog.get_by_role("button", name="Close").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)


# --- costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
async def test_the_head_is_one_line_and_row_10_is_in_sight(
    open_page: OpenPage, site: FakeSite, width: int, height: int
):
    site.api_replies["/api/boards"] = {"boards": [{"name": "laps"}, {"name": "main"}]}
    await site.send_board(*TEN)
    page = await open_page(f"{site.url}?player=me", viewport={"width": width, "height": height})
    await wait_until_watched(site, "me")
    await site.send(type="heartbeat", board="main", epoch=1, seq=1, at=0, viewers=1_284)
    await send_place(site)
    await expect(page.get_by_label("Board")).to_be_visible()

    await expect(page.locator(".row").nth(9)).to_be_in_viewport(ratio=1)
    await expect(page.locator("#place")).to_be_in_viewport(ratio=1)
    tall = "document.querySelector('.masthead').getBoundingClientRect().height"
    assert await page.evaluate(tall) <= 40


async def test_the_first_board_needs_four_requests(
    open_page: OpenPage, site: FakeSite, guard: PageGuard
):
    await site.send_board(*TEN)
    page = await open_page(f"{site.url}blank.html")
    await page.add_init_script("""
      new MutationObserver(() => {
        if (document.querySelector(".row")) window.firstBoardAt ??= performance.now();
      }).observe(document, { childList: true, subtree: true });
    """)
    await page.goto(site.url)
    await expect(page.locator(".row")).to_have_count(10)

    loaded = await page.evaluate("""
      performance.getEntriesByType("resource")
        .filter(({ startTime }) => startTime <= firstBoardAt).map(({ name }) => name)
    """)
    assert sorted(name.rpartition("/")[2].partition("?")[0] for name in loaded) == [
        "live.css",
        "live.js",
    ]
    assert 1 + len(loaded) + len(guard.sockets) == 4


async def test_an_update_of_ten_rows_costs_one_layout(open_page: OpenPage, site: FakeSite):
    await site.send_board(*TEN)
    page = await open_page(site.url, clock=True)
    await expect(page.locator(".row")).to_have_count(10)
    await expect(page.locator("#connection")).to_have_text("Live")
    await stop_clock(page)  # the texts that change each second would count
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable")  # it counts from here on

    async def layouts() -> int:
        metrics = (await session.send("Performance.getMetrics"))["metrics"]
        return int(next(one["value"] for one in metrics if one["name"] == "LayoutCount"))

    before = await layouts()
    turned = [(name, 2_000 + place * 50) for place, (name, _) in enumerate(TEN)]

    await site.send_board(*reversed(turned))

    async def has_settled() -> bool:
        return await page.evaluate("""
          document.querySelector(".row").dataset.user === "player-9" &&
            !document.querySelector(".is-sliding")
        """)

    await eventually_async(has_settled)
    assert await layouts() - before == 1
