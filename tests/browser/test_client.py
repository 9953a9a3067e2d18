"""web/scoreboard-client.js over a real WebSocket in Chromium, against a fake streamer."""

import base64
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.support.clients.browser import RECORD_VIOLATIONS, TIMEOUT_MS, PageGuard, stop_clock
from tests.support.eventually import eventually_async
from tests.support.fakes.site import FakeSite

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Connects and records the callbacks; `random` of 0 makes every delay the shortest.
CONNECT = """
async ({ url, board, token, tokens, random = 0 }) => {
  const { connect } = await import("/scoreboard-client.js");
  Object.assign(window, { boards: [], statuses: [], errors: [], reasons: [], waits: [] });
  Object.assign(window, { places: [], viewers: [] });
  const tokenProvider = ({ reason }) => {
    reasons.push(reason);
    const next = tokens.shift() ?? null;
    if (next === "fail") throw new Error("the issuer is unavailable");
    return next;
  };
  window.connection = connect({
    url, board, token,
    ...(tokens && { tokenProvider }),
    random: () => random,
    onBoard: (board, { isSnapshot }) => boards.push([board.epoch, board.seq, isSnapshot]),
    onStatus: ({ state, reason, retryAtMs }) => {
      statuses.push(reason === null ? state : `${state}: ${reason}`);
      if (retryAtMs !== null) waits.push(retryAtMs - Date.now());
    },
    onError: ({ code }) => errors.push(code),
    onPlace: (place) => places.push(place),
    onViewers: (count) => viewers.push(count),
  });
}
"""


Connect = Callable[..., Awaitable["Client"]]


class Client:
    """The client in a blank page, with a record of its callbacks."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def recorded(self, name: str):
        return await self.page.evaluate(f"window.{name}")

    async def positions(self) -> list[list[int]]:
        """Return the epoch and seq of each delivered board."""
        return [board[:2] for board in await self.recorded("boards")]

    async def status(self) -> str:
        return (await self.recorded("statuses"))[-1:][0]

    async def wait_for_status(self, status: str) -> None:
        async def check():
            statuses = await self.recorded("statuses")
            assert statuses[-1:] == [status], statuses
            return True

        await eventually_async(check)

    async def wait_for_board(self, epoch: int, seq: int) -> None:
        async def check():
            positions = await self.positions()
            assert positions[-1:] == [[epoch, seq]], positions
            return True

        await eventually_async(check)

    async def wait_for_reconnects(self, count: int) -> None:
        """Wait until this many reconnects were scheduled."""

        async def check():
            waits = await self.recorded("waits")
            assert len(waits) == count, waits
            return True

        await eventually_async(check)

    async def advance(self, seconds: float) -> None:
        await self.page.clock.fast_forward(int(seconds * 1000))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tab(browser: Browser) -> AsyncIterator[Page]:
    """Return a tab for all tests; a new process per client takes most of the time."""
    context = await browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    await context.add_init_script(RECORD_VIOLATIONS)
    page = await context.new_page()
    await page.clock.install()
    yield page
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def connect(tab: Page, site: FakeSite, guard: PageGuard) -> AsyncIterator[Connect]:
    """Return a function that connects a client, in a new document with a controlled clock."""

    async def connect_(**options: Any) -> Client:
        guard.watch(tab)
        # Earlier tests may have moved or stopped the clock.
        await tab.clock.resume()
        await tab.clock.set_system_time(time.time())
        await tab.goto(f"{site.url}blank.html")
        await tab.evaluate(CONNECT, {"url": site.ws_url} | options)
        return Client(tab)

    yield connect_
    await guard.check()
    guard.detach()
    await tab.goto("about:blank")


def token_until(expires_at_s: float) -> str:
    """Return an unsigned JWT with an expiry."""
    body = base64.urlsafe_b64encode(json.dumps({"exp": int(expires_at_s)}).encode())
    return f"e30.{body.decode().rstrip('=')}.c2lnbmF0dXJl"


async def wait_for_handshakes(site: FakeSite, count: int) -> None:
    """Wait until exactly this many handshakes were received."""

    def check():
        assert len(site.handshakes) == count, site.handshakes
        return True

    await eventually_async(check)


# --- the handshake --------------------------------------------------------------------------------


async def test_client_without_a_token_offers_both_forms_of_the_subprotocol(connect, site: FakeSite):
    site.board = "weekly"
    client = await connect(board="weekly")
    await client.wait_for_status("live")

    (handshake,) = site.handshakes
    assert handshake.subprotocols == ["scoreboard.v1.delta", "scoreboard.v1"]
    assert handshake.board == "weekly"


async def test_token_is_sent_as_a_further_subprotocol_and_not_in_the_url(
    connect,
    site: FakeSite,
):
    token = token_until(time.time() + 600)

    client = await connect(token=token)
    await client.wait_for_status("live")

    (handshake,) = site.handshakes
    assert handshake.subprotocols[:2] == ["scoreboard.v1.delta", "scoreboard.v1"]
    assert handshake.subprotocols[2:] == [f"bearer.{token}"]
    assert token not in handshake.path


async def test_invalid_token_stops_with_a_reason(connect, site: FakeSite):
    client = await connect(token="no token")

    await client.wait_for_status("stopped: refused-by-browser")
    assert site.handshakes == []


# --- delivered boards -----------------------------------------------------------------------------


async def test_first_board_of_a_connection_is_marked_as_a_snapshot(connect, site: FakeSite):
    site.seq = 4
    client = await connect()
    await client.wait_for_board(1, 4)

    await site.send_board(("alice", 10))

    await client.wait_for_board(1, 5)
    assert await client.recorded("boards") == [[1, 4, True], [1, 5, False]]


async def test_no_older_board_is_delivered_unless_the_epoch_differs(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_board(1, 0)

    for epoch, seq in [(1, 5), (1, 4), (1, 9), (1, 9), (2, 3), (2, 2), (2, 4)]:
        await site.send(**site.board_message(epoch=epoch, seq=seq))

    await client.wait_for_board(2, 4)
    assert await client.positions() == [[1, 0], [1, 5], [1, 9], [1, 9], [2, 3], [2, 4]]


async def test_the_same_board_with_names_is_delivered(connect, site: FakeSite):
    await site.send_board(("alice", 10))
    client = await connect()
    await client.wait_for_board(1, 1)

    named = [{"rank": 1, "userId": "alice", "name": "Alice", "score": 10}]
    await site.send(**site.board_message(leaderboard=named))

    await eventually_async(lambda: client.recorded("boards.length === 2"))
    assert await client.recorded("connection.board.leaderboard") == named
    await site.send(type="heartbeat", board="main", epoch=1, seq=1, at=0)
    await site.send(type="error", code="marker")
    await eventually_async(lambda: client.recorded("errors.length"))
    assert site.received == []  # no sync for the board that it has


def delta(base: int, seq: int, count: int, *changes: dict[str, Any], **more: Any) -> dict[str, Any]:
    message = {"type": "delta", "board": "main", "epoch": 1, "base": base, "seq": seq, "at": 5}
    return message | {"count": count, "changes": changes} | more


async def test_deltas_are_applied_to_the_board_before(connect, site: FakeSite):
    alice, bob, carol = (
        {"rank": rank, "userId": user_id, "score": 10 - rank}
        for rank, user_id in enumerate(("alice", "bob", "carol"), start=1)
    )
    site.rows = [alice, bob]
    client = await connect()
    await client.wait_for_board(1, 0)

    await site.send(**delta(0, 3, 3, alice | {"score": 20}, carol))
    await client.wait_for_board(1, 3)
    board = await client.recorded("connection.board")
    assert board["leaderboard"] == [alice | {"score": 20}, bob, carol]
    assert board["at"] == 5

    named = bob | {"name": "Bob"}
    await site.send(type="heartbeat", board="main", epoch=1, seq=3, at=0, viewers=4)
    await site.send(**delta(3, 3, 3, named))
    await eventually_async(lambda: client.recorded("boards.length === 3"))
    board = await client.recorded("connection.board")
    assert board["leaderboard"] == [alice | {"score": 20}, named, carol]
    assert board["viewers"] == 4

    await site.send(**delta(3, 4, 1))
    await client.wait_for_board(1, 4)
    assert await client.recorded("connection.board.leaderboard") == [alice | {"score": 20}]
    assert await client.recorded("boards.map((board) => board[2])") == [True, False, False, False]
    assert await client.recorded("viewers") == [4]
    assert site.received == []


@pytest.mark.parametrize(
    "wrong",
    [
        delta(3, 5, 0),
        delta(6, 7, 0),
        delta(4, 5, 0, epoch=2),
        delta(4, 5, 2),
        delta(4, 5, 2, {"rank": 3, "userId": "a", "score": 1}),
        delta(4, 5, 3, {"rank": 3, "userId": "a", "score": 1}),
        delta(4, 5, 1, {"rank": 0, "userId": "a", "score": 1}),
        delta(4, 5, 1, {"rank": 2, "userId": "a", "score": 1}),
    ],
    ids=lambda message: f"{message['base']}-{message['epoch']}-{message['count']}",
)
async def test_a_delta_that_does_not_fit_makes_the_client_ask_for_the_board(
    connect, site: FakeSite, wrong: dict[str, Any]
):
    await site.send_board(("alice", 1), seq=4)
    client = await connect()
    await client.wait_for_board(1, 4)
    site.epoch, site.seq = 2, 9

    await site.send(**wrong)

    await client.wait_for_board(2, 9)
    assert await client.positions() == [[1, 4], [2, 9]]
    assert site.received == [{"type": "sync"}]


async def test_a_delta_is_applied_to_the_board_of_its_connection(connect, site: FakeSite):
    await site.send_board(("alice", 1), seq=6)
    client = await connect()
    await client.wait_for_board(1, 6)
    carol = {"rank": 1, "userId": "carol", "score": 9}
    site.seq, site.rows = 5, [carol]
    await site.close_viewers(1012)
    await wait_for_handshakes(site, 2)
    await client.wait_for_status("live")

    await site.send(**delta(5, 6, 2, {"rank": 2, "userId": "bob", "score": 2}))
    await site.send(**delta(6, 7, 2, {"rank": 2, "userId": "bob", "score": 3}))

    await client.wait_for_board(1, 7)
    assert await client.positions() == [[1, 6], [1, 6], [1, 7]]
    rows = await client.recorded("connection.board.leaderboard")
    assert rows == [carol, {"rank": 2, "userId": "bob", "score": 3}]
    assert site.received == []


async def test_a_page_may_change_the_board_that_it_gets(connect, site: FakeSite):
    rows = [{"rank": rank, "userId": f"u{rank}", "score": 10 - rank} for rank in (1, 2, 3)]
    site.rows = rows
    client = await connect()
    await client.wait_for_board(1, 0)
    change = "connection.board.leaderboard.reverse().forEach((row) => { row.score = 0; }); 0"
    await client.page.evaluate(change)

    await site.send(**delta(0, 1, 3, rows[0] | {"score": 20}))
    await client.wait_for_board(1, 1)
    assert await client.recorded("connection.board.leaderboard") == [
        rows[0] | {"score": 20},
        *rows[1:],
    ]


async def test_viewers_that_are_not_known_any_more_are_not_shown_again(connect, site: FakeSite):
    await site.send_board(("alice", 1))
    client = await connect()
    await client.wait_for_board(1, 1)
    await site.send(**site.board_message(viewers=5))
    await site.send(type="heartbeat", board="main", epoch=1, seq=1, at=0)
    await site.send(**delta(1, 2, 1))

    await client.wait_for_board(1, 2)
    assert await client.recorded("viewers") == [5, None]
    assert "viewers" not in await client.recorded("connection.board")


async def test_a_server_without_the_compact_form_is_followed(connect, site: FakeSite):
    site.forms = ("scoreboard.v1",)
    client = await connect(token=token_until(time.time() + 600))
    await site.send_board(("alice", 1))

    await client.wait_for_board(1, 1)
    await client.wait_for_status("live")


async def test_board_with_another_name_is_reported_and_ignored(connect, site: FakeSite):
    client = await connect(board="main")
    await client.wait_for_board(1, 0)

    await site.send(**site.board_message(board="weekly", seq=5))
    await site.send(**site.board_message(seq=6))

    await client.wait_for_board(1, 6)
    assert await client.positions() == [[1, 0], [1, 6]]
    assert await client.recorded("errors") == ["other-board"]


async def test_heartbeat_ahead_of_the_client_sends_a_sync(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_board(1, 0)
    await site.send(type="heartbeat", board="main", epoch=1, seq=0, at=0)
    site.seq = 7

    await site.send(type="heartbeat", board="main", epoch=1, seq=7, at=0)

    await client.wait_for_board(1, 7)
    assert site.received == [{"type": "sync"}]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "null",
        "[]",
        '{"type":"leaderboard","board":"main","epoch":1,"seq":5}',
        '{"type":"leaderboard","board":"main","epoch":1,"seq":"5","leaderboard":[]}',
        '{"type":"leaderboard","board":"main","epoch":1,"seq":5,"leaderboard":[{"rank":1}]}',
        '{"type":"leaderboard","board":"main","epoch":1,"seq":5,"leaderboard":[null]}',
        '{"type":"heartbeat"}',
        '{"type":"delta","board":"main","epoch":1,"base":0,"seq":5,"count":1}',
        '{"type":"delta","board":"main","epoch":1,"base":0,"seq":5,"count":-1,"changes":[]}',
        '{"type":"delta","board":"main","epoch":1,"base":0,"seq":5,"count":1,"changes":[{}]}',
    ],
)
async def test_invalid_message_is_reported_and_keeps_the_connection(
    connect, site: FakeSite, text: str
):
    client = await connect()
    await client.wait_for_board(1, 0)

    await site.send_text(text)
    await site.send(type="from-the-future", extra=42)
    await site.send(**site.board_message(seq=6))

    await client.wait_for_board(1, 6)
    assert await client.recorded("errors") == ["bad-frame"]


async def test_server_error_is_reported(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")

    await site.send(type="error", code="unknown_type", detail="say auth or sync")

    await eventually_async(lambda: client.recorded("errors.length"))
    assert await client.recorded("errors") == ["unknown_type"]
    assert await client.status() == "live"


async def test_callback_that_throws_does_not_end_the_connection(
    connect,
    site: FakeSite,
    guard: PageGuard,
):
    guard.expect("the page is broken")
    client = await connect()
    await client.wait_for_board(1, 0)
    await client.page.evaluate("""
        boards.push = () => { delete boards.push; throw new Error("the page is broken"); }; 0
    """)

    await site.send_board(("alice", 1))
    await site.send_board(("alice", 2))

    await client.wait_for_board(1, 2)


# --- stale and live -------------------------------------------------------------------------------


async def test_stale_and_live_follow_the_server(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")

    await site.send(type="status", state="stale", reason="redis")
    await client.wait_for_status("stale")
    await site.send(type="heartbeat", board="main", epoch=1, seq=0, at=0)
    await site.send(type="status", state="live")
    await client.wait_for_status("live")

    assert await client.recorded("statuses") == ["connecting", "live", "stale", "live"]


# --- places and viewers ---------------------------------------------------------------------------


def place_message(**changes: Any) -> dict[str, Any]:
    return {
        "type": "place",
        "board": "main",
        "epoch": 1,
        "seq": 7,
        "at": 0,
        "userId": "me",
        "rank": 23,
        "score": 1_200,
        "total": 100,
        "toNext": 15,
        "toTop": 310,
        "above": [],
        "below": [],
    } | changes


async def test_watched_users_are_named_on_every_connection(connect, site: FakeSite):
    client = await connect()
    await client.page.evaluate("connection.watch(['me'])")
    watch = {"type": "watch", "userIds": ["me"]}
    await eventually_async(lambda: site.received == [watch])

    await site.close_viewers(1012)
    await client.wait_for_reconnects(1)
    await client.advance(1)
    await eventually_async(lambda: site.received == [watch, watch])

    await client.page.evaluate("connection.watch([])")
    await eventually_async(lambda: site.received[2:] == [{"type": "watch", "userIds": []}])


async def test_a_client_that_watches_nobody_sends_nothing(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")

    await client.page.evaluate("connection.watch([])")
    await client.page.evaluate("connection.sync()")

    await eventually_async(lambda: site.received)
    assert site.received == [{"type": "sync"}]


async def test_places_are_delivered_and_never_older_ones(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")

    for message in (
        place_message(),
        place_message(seq=6, rank=30),
        place_message(rank="first"),
        place_message(seq=8, rank=None, score=None),
    ):
        await site.send(**message)

    await eventually_async(lambda: client.recorded("places.length === 2"))
    assert await client.recorded("places.map(({ rank }) => rank)") == [23, None]
    assert await client.recorded("errors") == ["bad-frame"]


async def test_the_number_of_viewers_is_reported_when_it_changes(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")

    beat = {"type": "heartbeat", "board": "main", "epoch": 1, "seq": 0, "at": 0}
    await site.send(**beat, viewers=12)
    await site.send(**beat, viewers=12)
    await site.send(**site.board_message(seq=1, viewers=13))
    await site.send(**beat)
    await site.send(**site.board_message(seq=2))

    await client.wait_for_board(1, 2)
    assert await client.recorded("viewers") == [12, 13, None]


# --- after sleep ----------------------------------------------------------------------------------

WAKE = """
  Object.defineProperty(document, "hidden", { value: false, configurable: true });
  document.dispatchEvent(new Event("visibilitychange")); 0
"""


async def test_a_device_that_slept_asks_for_the_board_at_once(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")
    await client.page.clock.run_for(2_500)
    site.seq = 4

    await client.page.evaluate(WAKE)

    await client.wait_for_board(1, 4)
    await client.wait_for_status("live")
    assert await client.recorded("statuses") == ["connecting", "live", "checking", "live"]
    assert site.received == [{"type": "sync"}]
    await wait_for_handshakes(site, 1)


async def test_a_timer_that_is_late_means_sleep(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")

    await client.advance(20)

    await eventually_async(lambda: site.received == [{"type": "sync"}])
    await client.wait_for_status("live")
    assert "checking" in await client.recorded("statuses")


async def test_a_connection_that_died_in_sleep_is_replaced_within_seconds(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")
    await stop_clock(client.page)
    await client.page.clock.run_for(2_500)
    site.answers_sync = False

    await client.page.evaluate(WAKE)
    assert await client.status() == "checking"
    # What was sent before the sleep does not prove that the connection lives.
    await site.send(type="heartbeat", board="main", epoch=1, seq=0, at=0)
    await site.send(type="error", code="marker")
    await eventually_async(lambda: client.recorded("errors.length"))
    assert await client.status() == "checking"
    await client.page.clock.run_for(2_900)
    await wait_for_handshakes(site, 1)
    await client.page.clock.run_for(200)

    await wait_for_handshakes(site, 2)
    await client.wait_for_status("live")


async def test_waking_while_waiting_shortens_the_wait(connect, site: FakeSite, guard: PageGuard):
    guard.expect_lost_server()
    client = await connect(random=1)
    await client.wait_for_status("live")
    await stop_clock(client.page)
    await site.stop_streamer()
    await client.wait_for_reconnects(1)
    await site.start_streamer()

    await client.page.evaluate(WAKE)
    await client.page.clock.run_for(1_000)

    await client.wait_for_status("live")


async def test_a_live_connection_is_not_checked(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")
    await site.send_board(("alice", 1))
    await client.wait_for_board(1, 1)

    await client.page.evaluate(WAKE)

    assert await client.status() == "live"
    assert site.received == []


# --- lost connections -----------------------------------------------------------------------------


async def test_server_restart_delivers_no_older_board(
    connect,
    site: FakeSite,
    guard: PageGuard,
):
    guard.expect_lost_server()
    await site.send_board(("alice", 1), seq=50)
    client = await connect()
    await client.wait_for_board(1, 50)

    await site.stop_streamer()
    await client.wait_for_status("reconnecting: lost")
    site.seq = 49
    await site.start_streamer()
    await client.advance(31)
    await client.wait_for_status("live")
    await site.send_board(("alice", 3), seq=51)

    await client.wait_for_board(1, 51)
    assert await client.positions() == [[1, 50], [1, 51]]


async def test_silence_longer_than_two_heartbeats_and_a_half_reconnects(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")

    await stop_clock(client.page)
    await site.send(type="error", code="the last message")
    await eventually_async(lambda: client.recorded("errors.length"))
    await client.page.clock.run_for(36_900)
    assert await client.status() == "live"
    await client.page.clock.run_for(200)
    assert await client.status() == "reconnecting: silent"
    await client.page.clock.run_for(600)

    await client.wait_for_status("live")
    await wait_for_handshakes(site, 2)


async def test_heartbeats_keep_a_quiet_connection(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")

    for seq in (3, 4, 5):
        await client.page.clock.run_for(30_000)
        await site.send_board(("alice", seq), seq=seq)
        await client.wait_for_board(1, seq)

    await wait_for_handshakes(site, 1)
    assert await client.recorded("statuses") == ["connecting", "live"]


async def test_handshake_without_a_board_times_out(connect, site: FakeSite):
    site.sends_snapshot = False
    client = await connect()
    await wait_for_handshakes(site, 1)

    await client.advance(11)

    assert await client.status() == "reconnecting: silent"


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 3999, 4408, 4450, 4999])
async def test_client_reconnects_after_known_and_unknown_codes(
    connect,
    site: FakeSite,
    code: int,
):
    client = await connect()
    await client.wait_for_status("live")

    await site.close_viewers(code)
    await client.wait_for_reconnects(1)
    await client.advance(1)

    await client.wait_for_status("live")
    await wait_for_handshakes(site, 2)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1002, "protocol-error"),
        (1003, "protocol-error"),
        (1007, "protocol-error"),
        (1009, "protocol-error"),
        (4400, "malformed"),
        (4403, "forbidden"),
    ],
)
async def test_permanent_close_codes_stop(connect, site: FakeSite, code: int, reason: str):
    client = await connect()
    await client.wait_for_status("live")

    await site.close_viewers(code)

    await client.wait_for_status(f"stopped: {reason}")
    await client.advance(120)
    await wait_for_handshakes(site, 1)


@pytest.mark.parametrize(("code", "least_s"), [(1013, 5), (4429, 30)])
async def test_delay_requested_by_the_server_is_respected(
    connect,
    site: FakeSite,
    code: int,
    least_s: int,
):
    client = await connect()
    await client.wait_for_status("live")

    await site.close_viewers(code)
    await client.wait_for_reconnects(1)

    (wait_ms,) = await client.recorded("waits")
    assert least_s * 1000 - 100 <= wait_ms <= least_s * 2000
    assert await client.page.evaluate("connection.retry()") is False
    await client.page.evaluate("dispatchEvent(new Event('online'))")
    await wait_for_handshakes(site, 1)
    await client.advance(least_s)
    await wait_for_handshakes(site, 2)


@pytest.mark.parametrize(("random", "wait_ms"), [(0, 2_000), (0.5, 3_000)])
async def test_delay_of_bye_overrides_the_backoff(
    connect,
    site: FakeSite,
    random: float,
    wait_ms: int,
):
    client = await connect(random=random)
    await client.wait_for_status("live")

    await site.send(type="bye", code=1012, reason="drain", reconnect=True, delay_ms=[2000, 4000])
    await site.close_viewers(1012)
    await client.wait_for_reconnects(1)

    (actual_ms,) = await client.recorded("waits")
    assert abs(actual_ms - wait_ms) < 100


async def test_bye_without_reconnect_stops_the_client(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")

    await site.send(type="bye", code=1001, reason="gone", reconnect=False, delay_ms=[0, 0])
    await site.close_viewers(1001)

    await client.wait_for_status("stopped: goodbye")


async def test_backoff_grows_and_resets_after_a_lasting_connection(
    connect,
    site: FakeSite,
    guard: PageGuard,
):
    guard.expect_lost_server()
    client = await connect(random=1)
    await client.wait_for_status("live")
    await site.stop_streamer()

    for count in range(1, 8):
        await client.wait_for_reconnects(count)
        await client.advance(30)
    await client.wait_for_reconnects(8)

    rounded = [round(wait_ms / 1000) for wait_ms in await client.recorded("waits")]
    assert rounded[:7] == [2, 4, 8, 16, 30, 30, 30]

    await site.start_streamer()
    await client.advance(30)
    await client.wait_for_status("live")
    await client.advance(11)
    await site.close_viewers(1011)
    await client.wait_for_status("reconnecting: lost")
    assert round((await client.recorded("waits"))[-1] / 1000) == 2


async def test_online_event_shortens_the_wait(connect, site: FakeSite, guard: PageGuard):
    guard.expect_lost_server()
    client = await connect(random=1)
    await client.wait_for_status("live")
    await stop_clock(client.page)
    await site.stop_streamer()
    await client.wait_for_reconnects(1)
    await site.start_streamer()

    await client.page.evaluate("dispatchEvent(new Event('online'))")
    await client.advance(1)

    await client.wait_for_status("live")
    assert await client.recorded("waits") == [2_000]


async def test_close_is_permanent(connect, site: FakeSite):
    client = await connect()
    await client.wait_for_status("live")

    await client.page.evaluate("connection.close()")

    assert await client.status() == "stopped: closed"
    await eventually_async(lambda: not site.viewers)
    assert await client.page.evaluate("connection.retry()") is False
    assert await client.page.evaluate("connection.sync()") is False
    await client.advance(120)
    await wait_for_handshakes(site, 1)


# --- tokens ---------------------------------------------------------------------------------------


async def test_rejected_token_is_replaced_once(connect, site: FakeSite):
    old, new = token_until(time.time() + 600), token_until(time.time() + 1200)
    client = await connect(tokens=[old, new])
    await client.wait_for_status("live")

    await site.close_viewers(4401)

    await wait_for_handshakes(site, 2)
    await client.wait_for_status("live")
    assert [handshake.token for handshake in site.handshakes] == [old, new]
    assert await client.recorded("reasons") == ["first", "rejected"]


async def test_token_rejected_twice_requires_sign_in(connect, site: FakeSite):
    site.close_at_once = 4401
    fresh = token_until(time.time() + 600)

    client = await connect(tokens=[fresh, fresh, fresh, fresh])

    await client.wait_for_status("stopped: signed-out")
    await client.advance(120)
    await wait_for_handshakes(site, 2)


async def test_stopped_client_restarts_on_retry(connect, site: FakeSite):
    site.close_at_once = 4401
    fresh = token_until(time.time() + 600)
    client = await connect(tokens=[fresh, fresh, fresh])
    await client.wait_for_status("stopped: signed-out")
    site.close_at_once = None

    assert await client.page.evaluate("connection.retry()") is True

    await client.wait_for_status("live")


@pytest.mark.parametrize("options", [{"token": "e30.e30.c2ln"}, {"tokens": ["e30.e30.c2ln"]}, {}])
async def test_rejected_token_without_another_requires_sign_in(connect, site: FakeSite, options):
    client = await connect(**options)
    await client.wait_for_status("live")

    await site.close_viewers(4401)

    await client.wait_for_status("stopped: signed-out")
    await wait_for_handshakes(site, 1)


async def test_expired_token_is_replaced_before_the_handshake(connect, site: FakeSite):
    old, new = token_until(time.time() - 1), token_until(time.time() + 600)

    client = await connect(token=old, tokens=[new])

    await client.wait_for_status("live")
    assert [handshake.token for handshake in site.handshakes] == [new]


async def test_expired_token_without_provider_is_tried_once(
    connect,
    site: FakeSite,
    guard: PageGuard,
):
    guard.expect_lost_server()
    site.reject_status = HTTPStatus.UNAUTHORIZED

    client = await connect(token=token_until(time.time() - 3600))
    await client.wait_for_status("reconnecting: lost")
    await client.advance(31)

    await client.wait_for_status("stopped: signed-out")
    await wait_for_handshakes(site, 1)


async def test_failed_token_provider_is_called_again_later(connect, site: FakeSite):
    fresh = token_until(time.time() + 600)
    client = await connect(tokens=["fail", fresh])
    await client.wait_for_status("reconnecting: token-provider")
    assert site.handshakes == []

    await client.advance(31)

    await client.wait_for_status("live")
    assert site.handshakes[0].token == fresh


async def test_expiring_token_is_renewed_in_place(connect, site: FakeSite):
    old, new = token_until(time.time() + 30), token_until(time.time() + 900)
    client = await connect(tokens=[old, new])
    await client.wait_for_status("live")

    await site.send(type="auth_expiring", exp=int(time.time()) + 30, grace_ms=25_000)

    await eventually_async(lambda: site.received == [{"type": "auth", "token": new}])
    await wait_for_handshakes(site, 1)
    assert await client.recorded("reasons") == ["first", "expiring"]


async def test_failed_renewal_is_retried_on_the_same_connection(connect, site: FakeSite):
    old, new = token_until(time.time() + 30), token_until(time.time() + 900)
    client = await connect(tokens=[old, "fail", new])
    await client.wait_for_status("live")

    await site.send(type="auth_expiring", exp=int(time.time()) + 30, grace_ms=25_000)
    await eventually_async(lambda: client.recorded("errors.length"))
    await client.page.clock.run_for(11_000)

    await eventually_async(lambda: site.received == [{"type": "auth", "token": new}])
    await wait_for_handshakes(site, 1)


async def test_renewal_that_the_server_could_not_check_is_retried(connect, site: FakeSite):
    old, new = token_until(time.time() + 30), token_until(time.time() + 900)
    client = await connect(tokens=[old, new, new])
    await client.wait_for_status("live")
    await site.send(type="auth_expiring", exp=int(time.time()) + 30, grace_ms=25_000)
    await eventually_async(lambda: site.received == [{"type": "auth", "token": new}])

    await site.send(type="error", code="keys-unavailable", detail="try again in 10 seconds")
    await eventually_async(lambda: client.recorded("errors.length"))
    await client.page.clock.run_for(11_000)
    await eventually_async(lambda: site.received == [{"type": "auth", "token": new}] * 2)

    await site.send(type="heartbeat", board="main", epoch=1, seq=0, at=0, exp=int(time.time()))
    await site.send(type="error", code="malformed", detail="about something else")
    await eventually_async(lambda: client.recorded("errors.length === 2"))
    await client.page.clock.run_for(11_000)
    assert len(site.received) == 2


async def test_token_that_opens_no_connection_is_replaced(
    connect,
    site: FakeSite,
    guard: PageGuard,
):
    guard.expect_lost_server()
    site.reject_status = HTTPStatus.UNAUTHORIZED
    old, new = token_until(time.time() + 600), token_until(time.time() + 900)
    client = await connect(tokens=[old, new])

    for count in (1, 2):
        await wait_for_handshakes(site, count)
        await client.wait_for_reconnects(count)
        site.reject_status = None if count == 2 else site.reject_status
        await client.advance(31)

    await client.wait_for_status("live")
    assert [handshake.token for handshake in site.handshakes] == [old, old, new]
    assert await client.recorded("reasons") == ["first", "refused"]


async def test_token_is_not_exposed(connect, site: FakeSite):
    secret = token_until(time.time() + 600)
    client = await connect(tokens=[secret, secret])
    await client.wait_for_status("live")
    await site.close_viewers(4403)
    await client.wait_for_status("stopped: forbidden")

    exposed = await client.page.evaluate("JSON.stringify([statuses, errors, connection.status])")
    assert not re.search(re.escape(secret), exposed)
