"""The live page with names, a crown, a streak and an own place, for pictures and axe.

The page is at the address of a deployment, and its time stands still.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from playwright.async_api import Page, expect

from tests.support.clients.browser import EXAMPLE, OpenPage
from tests.support.eventually import eventually_async
from tests.support.fakes.site import FakeSite

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
    ("wren", 5_875),
]
NAMES = {
    "kestrel": "Kestrel",
    "nova": "Nova",
    "ada.lovelace": "Ada Lovelace",
    "auth0|64ab31": "Sam Okafor",
    "tern": "Łucja",
}
SEASON = {"id": "2026-W47", "startsAt": 0, "endsAt": 1, "state": "final", "users": 9, "winners": []}
NOW = datetime(2026, 11, 27, 19, 30, tzinfo=UTC)
# The rows are in place; flashes and the moment are at the height of what they show.
HOLD = """
  for (const animation of document.getAnimations()) {
    const { iterations } = animation.effect.getTiming();
    if (["moment", "gain", "move", "flash"].includes(animation.id)) {
      animation.pause();
      animation.currentTime = 800;
    } else if (iterations !== Infinity) animation.finish();
  }
"""


@dataclass(frozen=True)
class Scene:
    """What of the page is shown."""

    query: str
    moment: bool = False
    """Whether somebody has taken the lead a moment ago."""


async def show_scene(
    open_page: OpenPage, site: FakeSite, scene: Scene, options: dict[str, Any]
) -> Page:
    """Open the page in a scene, and hold its animations."""
    boards = [{"name": "main", "rules": {"season": "weekly"}}, {"name": "laps", "rules": {}}]
    site.api_replies["/api/boards"] = {"boards": boards}
    site.api_replies["/api/scores/seasons"] = {"seasons": [SEASON]}
    rows = list(PLAYERS)
    await _send(site, rows)
    page = await open_page(EXAMPLE + scene.query, now=NOW, timezone_id="UTC", **options)
    await expect(page.locator(".row")).to_have_count(10)
    for gained in (25, 40, 15):
        rows[7] = (rows[7][0], rows[7][1] + gained)
        await _send(site, rows)
        shown = page.locator("[data-user=orbit] .score")
        await expect(shown).to_have_text(f"{rows[7][1]:,}")
    if scene.moment:
        rows = [("kestrel", 12_515), *rows[:2], *rows[3:]]
        await _send(site, rows)
        await expect(page.locator("[data-user=kestrel]")).to_have_attribute("data-rank", "1")
    if "player=me" in scene.query:
        watch = {"type": "watch", "userIds": ["me"]}
        await eventually_async(lambda: watch in site.received)
        place = {"rank": 23, "score": 4_180, "total": 48_210, "toNext": 15, "toTop": 1_695}
        about = {"board": site.board, "epoch": site.epoch, "seq": site.seq, "at": 0}
        user = {"userId": "me", "name": "Grace Hopper", "above": [], "below": []}
        await site.send(type="place", **about, **user, **place)
        await expect(page.locator("#place .row")).to_have_count(1)
    heartbeat = {"board": site.board, "epoch": site.epoch, "seq": site.seq, "at": 0}
    await site.send(type="heartbeat", **heartbeat, viewers=1_284)
    await expect(page.locator("#viewers")).to_contain_text("1,284")
    if "wall" not in scene.query:
        await expect(page.get_by_label("Season")).to_have_count(1)
    else:
        await expect(page.locator("#qr path")).to_have_count(1)
    await page.evaluate(HOLD)
    return page


async def _send(site: FakeSite, rows: list[tuple[str, int]]) -> None:
    site.seq += 1
    site.rows = [
        {"rank": rank, "userId": user_id, "score": score}
        | ({"name": NAMES[user_id]} if user_id in NAMES else {})
        for rank, (user_id, score) in enumerate(rows, start=1)
    ]
    await site.send(**site.board_message())
