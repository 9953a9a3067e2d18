"""Chromium for the tests of the page, and checks on what the page does in it.

Playwright controls Debian's Chromium (`apt-get install chromium`). If it is missing, tests are
skipped; with CI=true they fail. One browser per session, one profile per test. Of a test that
fails, Playwright's trace is kept in `.artifacts/`: `playwright show-trace .artifacts/trace-….zip`.
"""

import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import (
    Browser,
    BrowserContext,
    Page,
    Playwright,
    Route,
    WebSocket,
    async_playwright,
    expect,
)

from tests.support.fakes.site import FakeSite

CHROMIUM = "/usr/bin/chromium"
EXAMPLE = "http://scores.example.com/"
"""An address at which pages see the fake site; requests to it do not leave the browser."""
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--unsafely-treat-insecure-origin-as-secure={EXAMPLE}",  # as https: and 127.0.0.1 are
]
ARTIFACTS = Path(__file__).parents[3] / ".artifacts"
TIMEOUT_MS = 30_000
expect.set_options(timeout=TIMEOUT_MS)
_LOCAL = frozenset({"127.0.0.1", "localhost", urlsplit(EXAMPLE).hostname})
RECORD_VIOLATIONS = """
  window.policyViolations = [];
  addEventListener("securitypolicyviolation",
    (event) => policyViolations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""

# WCAG contrast between an element's text and the first opaque background behind it.
CONTRAST = """
(selector) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [red, green, blue] = [r, g, b].map((value) => value / 255)
      .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const element = document.querySelector(selector);
  let ground = element;
  while (rgb(getComputedStyle(ground).backgroundColor)[3] < 255) ground = ground.parentElement;
  const lights = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor]
    .map((colour) => light(rgb(colour))).sort((a, b) => b - a);
  return (lights[0] + 0.05) / (lights[1] + 0.05);
}
"""

HAS_FAILED = pytest.StashKey[bool]()
"""Whether a test has failed, before its fixtures end."""

OpenPage = Callable[..., Awaitable[Page]]


@dataclass
class PageGuard:
    """Records errors, policy violations and external requests; checked when a test ends."""

    messages: list[str] = field(default_factory=list)
    external: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    sockets: list[WebSocket] = field(default_factory=list)
    expected: re.Pattern[str] | None = None
    _handlers: list[tuple[Page, dict[str, Callable[[Any], None]]]] = field(default_factory=list)

    def expect(self, pattern: str) -> None:
        """Ignore matching console errors, such as those of the browser for a lost server."""
        self.expected = re.compile(pattern)

    def expect_lost_server(self) -> None:
        """Ignore the browser's errors for failed connections."""
        self.expect(r"WebSocket connection to|Failed to load resource")

    def watch(self, page: Page) -> None:
        handlers: dict[str, Callable[[Any], None]] = {
            "console": lambda message: self._record_message(message.type, message.text),
            "pageerror": lambda error: self._record_message("error", str(error)),
            "request": lambda request: self._record_request(request.url),
            "websocket": self._record_socket,
        }
        for event, handler in handlers.items():
            page.on(event, handler)
        self.pages.append(page)
        self._handlers.append((page, handlers))

    def detach(self) -> None:
        """Stop recording, for a page that outlives the test."""
        for page, handlers in self._handlers:
            for event, handler in handlers.items():
                page.remove_listener(event, handler)

    def _record_message(self, kind: str, text: str) -> None:
        is_expected = self.expected is not None and self.expected.search(text)
        if kind in {"error", "warning"} and not is_expected:
            self.messages.append(text)

    def _record_socket(self, socket: WebSocket) -> None:
        self._record_request(socket.url)
        self.sockets.append(socket)

    def _record_request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"data", "blob"} and parts.hostname not in _LOCAL:
            self.external.append(url)

    async def check(self) -> None:
        for page in self.pages:
            violations = await page.evaluate("window.policyViolations")
            assert violations == [], "content security policy"
        assert self.messages == [], "console errors"
        assert self.external == [], "external requests"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test has failed, for its fixtures (a hook, which a conftest.py imports)."""
    del call
    report = yield
    if report.failed:
        item.stash[HAS_FAILED] = True
    return report


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The path of Chromium; if it is missing, skip the test, or fail in CI."""
    path = shutil.which(CHROMIUM)
    if path is None:
        text = f"no {CHROMIUM}: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium_path: str) -> AsyncIterator[Browser]:
    playwright: Playwright
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium_path,
            args=ARGUMENTS,
            timeout=30_000,
        )
        try:
            yield browser
        finally:
            await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def site() -> AsyncIterator[FakeSite]:
    async with FakeSite() as site:
        yield site


@pytest_asyncio.fixture(loop_scope="session")
async def guard() -> PageGuard:
    return PageGuard()


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(
    browser: Browser, guard: PageGuard, site: FakeSite, request: pytest.FixtureRequest
) -> AsyncIterator[OpenPage]:
    """Return a function that opens pages, each in its own profile, with a context's options.

    With `clock=True` the test controls the page's time by `page.clock`; with `now` the page's time
    stands still, and timers run; `random` fixes the result of `Math.random`. `EXAMPLE` is the site.
    When the test ends, no page may have logged an error, violated its policy, or sent a request to
    another host. The site is stopped after that check.
    """
    contexts: list[BrowserContext] = []

    async def forward(route: Route) -> None:
        url = route.request.url.replace(EXAMPLE, site.url)
        await route.fulfill(response=await route.fetch(url=url))

    async def open_(
        url: str,
        *,
        clock: bool = False,
        now: datetime | None = None,
        random: float | None = None,
        **options: Any,
    ) -> Page:
        options = {"viewport": {"width": 1000, "height": 900}, "locale": "en-US"} | options
        context = await browser.new_context(**options)
        contexts.append(context)
        await context.tracing.start(snapshots=True)
        context.set_default_timeout(TIMEOUT_MS)
        await context.add_init_script(RECORD_VIOLATIONS)
        if random is not None:
            await context.add_init_script(f"Math.random = () => {random}")
        await context.route(f"{EXAMPLE}**", forward)
        await context.grant_permissions(["local-network-access"], origin=EXAMPLE)
        page = await context.new_page()
        guard.watch(page)
        if clock:
            await page.clock.install()
        if now is not None:
            await page.clock.set_fixed_time(now)
        await page.goto(url)
        return page

    name: str | None = _trace_name(request.node)
    try:
        yield open_
        await guard.check()
        if not request.node.stash.get(HAS_FAILED, False):
            name = None
    finally:
        for number, context in enumerate(contexts, start=1):
            path = None if name is None else ARTIFACTS / f"{name}-{number}.zip"
            await context.tracing.stop(path=path)
            await context.close()


def _trace_name(test: pytest.Item) -> str:
    return "trace-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", test.nodeid.rpartition("/")[2]).strip("-")


async def stop_clock(page: Page) -> None:
    """Stop the page's clock, which then is up to a second later; only the test advances it."""
    await page.clock.pause_at(await page.evaluate("Date.now() / 1000 + 1"))


async def keep_screenshot(
    page: Page,
    name: str,
    animations: Literal["allow", "disabled"] = "disabled",
) -> Path:
    """Save a screenshot of the page in the git-ignored `.artifacts/`."""
    ARTIFACTS.mkdir(exist_ok=True)
    path = ARTIFACTS / f"{name}.png"
    await page.screenshot(path=path, animations=animations)
    return path
