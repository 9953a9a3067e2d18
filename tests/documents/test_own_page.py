"""The page of the tutorial shows the live board in a browser."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, expect

from tests.documents.snippets import run_page, snippets_of
from tests.documents.test_snippets import checkout, environment_of, replaced
from tests.support.repository import ROOT
from tests.support.servers.system import System

pytestmark = pytest.mark.asyncio(loop_scope="session")
TIMEOUT_MS = 30_000


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Write nothing."""


async def test_the_page_of_the_tutorial_follows_the_board(browser: Browser, tmp_path: Path) -> None:
    folder = checkout(tmp_path / "scoreboard")
    handler = partial(QuietHandler, directory=str(folder / "my-page"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    origin = f"http://127.0.0.1:{server.server_address[1]}"
    system = System(tmp_path / "system", origins=origin)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    context = await browser.new_context()
    try:
        system.start()
        snippets = snippets_of((ROOT / "docs/tutorial/own-page.md").read_text())
        addresses = {"ws://127.0.0.1:8001": system.ws.removesuffix("/ws/scoreboard")}
        run_page(replaced(snippets, addresses), folder, environment_of(folder))
        page = await context.new_page()

        await page.goto(origin)

        await expect(page.locator("#state")).to_have_text("live", timeout=TIMEOUT_MS)
        headers = {"Authorization": f"Bearer {system.token('alice')}"}
        action = {"userId": "alice", "actionId": "win:1"}
        async with httpx.AsyncClient(base_url=system.api, headers=headers) as client:
            assert (await client.post("/api/scores/update", json=action)).status_code == 200
        await expect(page.locator("#board li")).to_have_text(["alice: 10"], timeout=TIMEOUT_MS)
    finally:
        await context.close()
        system.stop()
        server.shutdown()
        server.server_close()
        thread.join(30)
