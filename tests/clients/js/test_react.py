"""The React hook in Chromium, in StrictMode."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.clients.js.package_folder import HERE, Package
from tests.clients.js.pages import serve
from tests.support.clients import npm
from tests.support.clients.browser import OpenPage
from tests.support.eventually import eventually_async
from tests.support.fakes.site import FakeSite

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Page</title><link rel="icon" href="data:,">
<body><div id="root"></div><script type="module" src="/main.ts"></script></body></html>
"""
APP = """
import { createElement as h, StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { useScoreboard } from "@scoreboard/client/react";

const url = new URLSearchParams(location.search).get("ws")!;

function Board({ user, account }: { user: string, account: string }) {
  // Another function at each render, as pages write it.
  const tokenProvider = () => account;
  const { rows, place, status } = useScoreboard({ url, user, tokenProvider, account });
  return h("section", null,
    h("ol", null, rows.map(({ userId, score }) => h("li", { key: userId }, `${userId}: ${score}`))),
    h("p", { className: "place" }, `${user}: ${place?.rank ?? "no place"}`),
    h("p", { className: "state" }, status.state));
}

function App() {
  const [users, setUsers] = useState(["zoe", "yan"]);
  const [account, setAccount] = useState("secret");
  return h("main", null,
    users.map((user, index) => h(Board, { key: index, user, account })),
    h("button", { onClick: () => setAccount("other") }, "Sign in"),
    h("button", { onClick: () => setUsers(["walt", "yan"]) }, "Change"),
    h("button", { onClick: () => setUsers([]) }, "Hide"));
}

createRoot(document.querySelector("#root")!).render(h(StrictMode, null, h(App)));
"""


@pytest.fixture(scope="module")
def built(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the page, built with React for development: StrictMode mounts twice."""
    folder = tmp_path_factory.mktemp("react")
    (folder / "index.html").write_text(PAGE)
    (folder / "main.ts").write_text(APP)
    modules = folder / "node_modules"
    modules.mkdir()
    (modules / "@scoreboard").symlink_to(package.project / "node_modules/@scoreboard")
    for name in ("react", "react-dom", "@types"):
        (modules / name).symlink_to(HERE / "node_modules" / name)
    for words in (
        (
            *("typescript/bin/tsc", "--noEmit", "--strict", "--target", "es2024"),
            *("--module", "esnext", "--moduleResolution", "bundler", "main.ts"),
        ),
        ("vite/bin/vite.js", "build", "--mode", "development"),
    ):
        done = npm.node(
            str(HERE / "node_modules" / words[0]),
            *words[1:],
            cwd=folder,
            timeout_s=120,
            env={"NODE_ENV": "development"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture
def address(built: Path, site: FakeSite) -> Iterator[str]:
    with serve(built, site.ws_url.removesuffix("/ws/scoreboard")) as url:
        yield f"{url}/?ws={site.ws_url}"


async def last_watched(site: FakeSite, *user_ids: str) -> None:
    async def check() -> bool:
        watched = [message["userIds"] for message in site.received if message["type"] == "watch"]
        assert watched[-1:] == [list(user_ids)]
        return True

    await eventually_async(check)


async def send_place(site: FakeSite, user_id: str, rank: int) -> None:
    await site.send(
        type="place",
        board="main",
        epoch=1,
        seq=1,
        at=1,
        userId=user_id,
        rank=rank,
        score=5,
        total=100,
        above=[],
        below=[],
    )


async def test_components_share_one_connection(
    open_page: OpenPage, address: str, site: FakeSite
) -> None:
    await site.send_board(("alice", 10))
    page: Page = await open_page(address)
    await expect(page.locator("li")).to_have_text(["alice: 10", "alice: 10"])
    await last_watched(site, "zoe", "yan")

    await site.send_board(("bob", 20), ("alice", 10))
    await send_place(site, "zoe", 23)
    await send_place(site, "yan", 24)

    await expect(page.locator("section:first-child li")).to_have_text(["bob: 20", "alice: 10"])
    await expect(page.locator(".place")).to_have_text(["zoe: 23", "yan: 24"])
    await expect(page.locator(".state")).to_have_text(["live", "live"])
    assert [handshake.token for handshake in site.handshakes] == ["secret"]


async def test_another_user_needs_no_other_connection(
    open_page: OpenPage, address: str, site: FakeSite
) -> None:
    page: Page = await open_page(address)
    await last_watched(site, "zoe", "yan")
    await send_place(site, "zoe", 23)
    await expect(page.locator(".place").first).to_have_text("zoe: 23")

    await page.get_by_role("button", name="Change").click()

    await expect(page.locator(".place").first).to_have_text("walt: no place")
    await last_watched(site, "yan", "walt")
    await send_place(site, "walt", 7)
    await expect(page.locator(".place").first).to_have_text("walt: 7")
    assert len(site.handshakes) == 1


async def test_another_account_is_another_connection(
    open_page: OpenPage, address: str, site: FakeSite
) -> None:
    page: Page = await open_page(address)
    await last_watched(site, "zoe", "yan")

    await page.get_by_role("button", name="Sign in").click()

    async def is_other() -> bool:
        assert [handshake.token for handshake in site.handshakes] == ["secret", "other"]
        assert len(site.viewers) == 1
        return True

    await eventually_async(is_other)
    await expect(page.locator(".state")).to_have_text(["live", "live"])


async def test_the_connection_is_closed_after_its_last_component(
    open_page: OpenPage, address: str, site: FakeSite
) -> None:
    page: Page = await open_page(address)
    await last_watched(site, "zoe", "yan")

    await page.get_by_role("button", name="Hide").click()

    async def is_closed() -> bool:
        assert not site.viewers
        return True

    await eventually_async(is_closed)
    assert len(site.handshakes) == 1
