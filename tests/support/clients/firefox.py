"""Debian's Firefox for smoke tests of the pages, over WebDriver BiDi.

    tab = await open_tab(site.url)
    await tab.wait_for("document.documentElement.dataset.state", "live")

Firefox itself speaks this W3C protocol: JSON over a WebSocket. Playwright's Firefox is a patched
build that is downloaded, and its driver does not know Debian's. If Firefox is missing, tests are
skipped; with CI=true they fail. One browser per session, one set of cookies and storage per test.
"""

import asyncio
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.eventually import eventually_async

FIREFOX: Final = "firefox-esr"
START_S: Final = 60
COMMAND_S: Final = 60
WITHIN_S: Final = 45
_LOCAL: Final = frozenset({"127.0.0.1", "localhost"})

PREFERENCES: Final[dict[str, bool | int | str]] = {
    # Whatever the browser itself wants from the network meets a closed port; loopback is direct.
    "network.proxy.type": 1,
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
    "network.proxy.allow_hijacking_localhost": False,
    "network.proxy.no_proxies_on": "127.0.0.1, localhost",
    # And it does not try.
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.region.update.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.push.connection.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
    # A fixed start.
    "browser.aboutwelcome.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "browser.startup.page": 0,
    "intl.accept_languages": "en-US, en",
}

_LOST_SERVER: Final = re.compile(
    r"Firefox can.t establish a connection to|The connection to \S+ was interrupted"
)
_RECORD_VIOLATIONS: Final = """() => {
  window.policyViolations = [];
  addEventListener("securitypolicyviolation",
    (event) => policyViolations.push(`${event.violatedDirective} ${event.blockedURI}`));
}"""


class BiDiError(Exception):
    """A command failed; the text has the browser's error."""


class Firefox:
    """A running browser and its one session."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []

    @classmethod
    @asynccontextmanager
    async def running(cls, program: str, folder: Path) -> AsyncIterator[Self]:
        """Start Firefox with a new profile in a folder; end it afterwards."""
        profile = folder / "profile"
        process = _start(program, folder, profile)
        try:
            url = await _address(profile, process)
            async with connect(url, max_size=None, proxy=None) as socket:
                browser = cls(socket)
                reading = asyncio.create_task(browser._read())
                try:
                    await browser.send("session.new", capabilities={})
                    yield browser
                    with suppress(BiDiError, ConnectionClosed, TimeoutError):
                        await browser.send("browser.close")
                finally:
                    reading.cancel()
        finally:
            await asyncio.to_thread(_end, process)

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command; return its result. Raises BiDiError."""
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(COMMAND_S):
            answer = await reply
        if answer["type"] == "error":
            raise BiDiError(f"{method}: {answer['error']}: {answer.get('message')}")
        return answer["result"]

    async def _read(self) -> None:
        with suppress(ConnectionClosed):
            async for text in self._socket:
                message = json.loads(text)
                if message["type"] == "event":
                    self.events.append(message)
                elif (reply := self._replies.pop(message["id"], None)) and not reply.done():
                    reply.set_result(message)


class Tab:
    """One page."""

    def __init__(self, browser: Firefox, context: str) -> None:
        self._browser = browser
        self.context = context

    async def open(self, url: str) -> None:
        """Open an address and wait until it is loaded."""
        await self._browser.send(
            "browsingContext.navigate", context=self.context, url=url, wait="complete"
        )

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, which may be a promise; as JSON."""
        answer = await self._browser.send(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self.context},
            awaitPromise=True,
        )
        if answer["type"] == "exception":
            raise BiDiError(answer["exceptionDetails"]["text"])
        text = answer["result"].get("value")
        return None if text is None else json.loads(text)

    async def wait_for(self, expression: str, expected: object) -> None:
        """Wait until an expression has a value."""

        async def check() -> bool:
            try:
                found = await self.evaluate(expression)
            except BiDiError as error:
                raise AssertionError(str(error)) from error  # the next page is being loaded
            assert found == expected, found
            return True

        await eventually_async(check, within_s=WITHIN_S)

    async def frame(self) -> "Tab":
        """Return the page in the only frame."""
        tree = await self._browser.send("browsingContext.getTree", root=self.context)
        [child] = tree["contexts"][0]["children"]
        return Tab(self._browser, child["context"])


OpenTab = Callable[[str], Awaitable[Tab]]


@pytest.fixture(scope="session")
def firefox_path() -> str:
    """The path of Firefox; if it is missing, skip the test, or fail in CI."""
    path = shutil.which(FIREFOX)
    if path is None:
        text = f"no {FIREFOX}: apt-get install firefox-esr"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def firefox(
    firefox_path: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Firefox]:
    async with Firefox.running(firefox_path, tmp_path_factory.mktemp("firefox")) as browser:
        events = ["log.entryAdded", "network.beforeRequestSent"]
        await browser.send("session.subscribe", events=events)
        await browser.send("script.addPreloadScript", functionDeclaration=_RECORD_VIOLATIONS)
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def open_tab(firefox: Firefox) -> AsyncIterator[OpenTab]:
    """Return a function that opens tabs, with the cookies and the storage of this test only.

    When the test ends, no page may have logged an error, violated its policy, or sent a request to
    another host.
    """
    firefox.events.clear()
    user = (await firefox.send("browser.createUserContext"))["userContext"]
    tabs: list[Tab] = []

    async def open_(url: str) -> Tab:
        made = await firefox.send("browsingContext.create", type="tab", userContext=user)
        tab = Tab(firefox, made["context"])
        tabs.append(tab)
        await tab.open(url)
        return tab

    try:
        yield open_
        for tab in tabs:
            assert await tab.evaluate("window.policyViolations") == [], "content security policy"
        assert logged(firefox) == [], "console errors"
        assert external(firefox) == [], "external requests"
    finally:
        await firefox.send("browser.removeUserContext", userContext=user)


def logged(browser: Firefox) -> list[str]:
    """Return the errors and warnings that pages have logged, and uncaught exceptions.

    The browser's own errors for a lost server are omitted: tests that need the server notice it.
    """
    entries = [one["params"] for one in browser.events if one["method"] == "log.entryAdded"]
    texts = [str(one["text"]) for one in entries if one["level"] in {"error", "warn"}]
    return [text for text in texts if not _LOST_SERVER.match(text)]


def external(browser: Firefox) -> list[str]:
    """Return the addresses of other hosts that pages have requested."""
    urls = [
        one["params"]["request"]["url"]
        for one in browser.events
        if one["method"] == "network.beforeRequestSent"
    ]
    return [url for url in urls if urlsplit(url).hostname not in {*_LOCAL, None}]


def _start(program: str, folder: Path, profile: Path) -> "subprocess.Popen[bytes]":
    profile.mkdir()
    lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});\n" for k, v in PREFERENCES.items()]
    (profile / "user.js").write_text("".join(lines))
    words = ("--headless", "--no-remote", "--profile", str(profile))
    with (folder / "firefox.log").open("wb") as log:
        return subprocess.Popen(
            [program, *words, "--remote-debugging-port", "0", "about:blank"],
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(folder), "MOZ_CRASHREPORTER_DISABLE": "1"},
        )


async def _address(profile: Path, process: "subprocess.Popen[bytes]") -> str:
    """Return the address of the session, which Firefox writes into its profile."""
    file = profile / "WebDriverBiDiServer.json"

    async def read() -> str:
        if process.poll() is not None:
            raise RuntimeError(f"Firefox ended with {process.returncode}")
        try:
            found = json.loads(file.read_text())
        except (FileNotFoundError, ValueError):
            return ""  # not yet, or not all of it
        return f"ws://{found['ws_host']}:{found['ws_port']}/session"

    return await eventually_async(read, within_s=START_S)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Wait until the browser has ended; else end it."""
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
