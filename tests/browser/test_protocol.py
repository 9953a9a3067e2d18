"""The functions of web/scoreboard-protocol.js in Chromium."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Error

from scoreboard.broadcast.close_codes import CLOSE_REASONS, CloseCode
from tests.support.fakes.site import FakeSite

pytestmark = pytest.mark.asyncio(loop_scope="session")

Call = Callable[..., Awaitable[Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def call(browser: Browser) -> AsyncIterator[Call]:
    """Return a function that calls the module's functions; all tests share one page."""
    async with FakeSite() as site:
        page = await browser.new_page()
        await page.goto(f"{site.url}blank.html")

        async def call_(name: str, *arguments: Any) -> Any:
            script = """async ([name, values]) => {
              const rules = await import("/scoreboard-protocol.js");
              return rules[name](...values);
            }"""
            return await page.evaluate(script, [name, list(arguments)])

        yield call_
        await page.close()


@pytest.mark.parametrize(
    ("current", "frame", "is_newer"),
    [
        (None, (1, 0), True),
        ((1, 5), (1, 6), True),
        ((1, 5), (1, 900), True),
        ((1, 5), (1, 5), True),
        ((1, 5), (1, 4), False),
        ((1, 5), (2, 0), True),
        ((2, 5), (1, 900), True),
    ],
)
async def test_board_is_taken_with_another_epoch_or_a_seq_that_is_not_less(
    call, current, frame, is_newer
):
    def position(pair):
        return None if pair is None else {"epoch": pair[0], "seq": pair[1]}

    assert await call("isNewer", position(current), position(frame)) is is_newer
    # An equal position needs no sync.
    is_ahead = is_newer and current != frame
    assert await call("isAhead", position(current), position(frame)) is is_ahead


@pytest.mark.parametrize("attempt", [1, 2, 5, 6, 40, 2000])
async def test_backoff_is_between_500_ms_and_30_s(call, attempt: int):
    shortest = await call("backoffMs", attempt, 0)
    longest = await call("backoffMs", attempt, 1)

    assert shortest == 500
    assert longest == min(30_000, 1000 * 2**attempt)


async def test_higher_floor_shifts_the_whole_range(call):
    assert await call("backoffMs", 1, 0, 30_000) == 30_000
    assert await call("backoffMs", 1, 1, 30_000) == 60_000


@pytest.mark.parametrize(
    ("code", "action", "floor_ms"),
    [
        (1000, "retry", None),
        (1001, "retry", None),
        (1002, "stop", None),
        (1003, "stop", None),
        (1005, "retry", None),
        (1006, "retry", None),
        (1007, "stop", None),
        (1009, "stop", None),
        (1011, "retry", None),
        (1012, "retry", None),
        (1013, "retry", 5_000),
        (4400, "stop", None),
        (4401, "renew", None),
        (4403, "stop", None),
        (4408, "retry", None),
        (4429, "retry", 30_000),
        (4450, "retry", None),
        (4999, "retry", None),
    ],
)
async def test_every_close_code_has_an_action(call, code: int, action: str, floor_ms: int | None):
    actions = await call("closeAction", code)

    assert actions["action"] == action
    assert actions.get("floorMs") == floor_ms
    assert actions["reason"]


async def test_client_and_streamer_agree_on_every_close_code(call):
    actions = {code: await call("closeAction", int(code)) for code in CLOSE_REASONS}
    # Only clients close with 1000.
    server = {
        code: ending for code, ending in CLOSE_REASONS.items() if code is not CloseCode.NORMAL
    }

    reconnects = {code: actions[code]["action"] != "stop" for code in server}
    assert reconnects == {code: ending.reconnect for code, ending in server.items()}
    floors_ms = {code: actions[code]["floorMs"] for code in server if "floorMs" in actions[code]}
    assert floors_ms == {code: server[code].delay_ms[0] for code in floors_ms}


@pytest.mark.parametrize(
    ("token", "expiry_ms"),
    [
        ("e30.eyJleHAiOjE3MDB9.x", 1_700_000),
        ("e30.e30.x", None),
        ("e30.eyJleHAiOiJzb29uIn0.x", None),
        ("not a token", None),
        ("", None),
    ],
)
async def test_token_expiry_is_decoded(call, token: str, expiry_ms):
    assert await call("tokenExpiryMs", token) == expiry_ms


@pytest.mark.parametrize(
    ("url", "board", "address"),
    [
        ("ws://a.test/ws", None, "ws://a.test/ws"),
        ("https://a.test/ws?x=1#y", "weekly", "wss://a.test/ws?x=1&board=weekly"),
        ("/ws/scoreboard", "a&b", "ws://page.test:8/ws/scoreboard?board=a%26b"),
    ],
)
async def test_url_is_a_websocket_url_with_the_board(call, url, board, address):
    assert (
        await call("webSocketUrl", url, board, "http://page.test:8/index.html?board=no") == address
    )


async def test_url_with_another_scheme_is_rejected(call):
    with pytest.raises(Error, match="not a WebSocket URL"):
        await call("webSocketUrl", "javascript:alert(1)", None, "http://page.test/")


async def test_board_with_unknown_fields_is_parsed(call):
    frame = {
        "type": "leaderboard",
        "board": "main",
        "epoch": 1,
        "seq": 2,
        "at": int(time.time() * 1000),
        "leaderboard": [{"rank": 1, "userId": "alice", "score": 3, "medal": "gold"}],
        "extra": "good",
    }
    assert await call("parseMessage", json.dumps(frame)) == frame
