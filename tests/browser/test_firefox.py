"""The pages in Debian's Firefox: a smoke test of what the tests in Chromium check in detail."""

from collections.abc import Iterator

import pytest

from tests.support.clients.firefox import BiDiError, Firefox, OpenTab, Tab, external, logged
from tests.support.eventually import eventually_async
from tests.support.fakes.site import FakeSite
from tests.support.servers.up import Up, run_up

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

STATE = "document.documentElement.dataset.state"
NAMES = '[...document.querySelectorAll("#rows > .row .name")].map((part) => part.textContent)'


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    yield from run_up(tmp_path_factory.mktemp("up") / "data")


async def click(tab: Tab, text: str) -> None:
    """Click the button with this text, once it is there."""
    button = f"[...document.querySelectorAll('button')].find((one) => {text}.test(one.textContent))"
    await tab.wait_for(f"!!{button}", expected=True)
    await tab.evaluate(f"{button}.click()")


async def test_the_page_shows_the_board_and_changes_live(open_tab: OpenTab, site: FakeSite):
    await site.send_board(("alice", 30), ("bob", 20))
    tab = await open_tab(site.url)
    await tab.wait_for(NAMES, ["alice", "bob"])
    await tab.wait_for(STATE, "live")

    await site.send_board(("bob", 40), ("alice", 30))

    await tab.wait_for(NAMES, ["bob", "alice"])


async def test_the_page_shows_a_stale_board(open_tab: OpenTab, site: FakeSite):
    await site.send_board(("alice", 30))
    tab = await open_tab(site.url)
    await tab.wait_for(STATE, "live")
    await site.send(type="status", state="stale", reason="unreachable")
    await tab.wait_for(STATE, "stale")
    await site.send(type="status", state="live")
    await tab.wait_for(STATE, "live")


async def test_the_page_reconnects_after_the_streamer_restarts(open_tab: OpenTab, site: FakeSite):
    await site.send_board(("alice", 30))
    tab = await open_tab(site.url)
    await tab.wait_for(STATE, "live")
    await site.stop_streamer()
    await tab.wait_for(STATE, "reconnecting")
    await site.start_streamer()
    await site.send_board(("bob", 40), ("alice", 30))
    await tab.wait_for(NAMES, ["bob", "alice"])
    await tab.wait_for(STATE, "live")


async def test_a_player_signs_in_on_the_real_system(open_tab: OpenTab, up: Up):
    tab = await open_tab(up["api"])
    await tab.wait_for(STATE, "live")
    await click(tab, "/Sign in/")
    await tab.wait_for("location.origin", up["issuer"].rstrip("/"))
    await tab.wait_for("!!document.querySelector('input')", expected=True)
    await tab.evaluate("(document.querySelector('input:not([type=hidden])').value = 'frida')")
    await click(tab, "/Sign in/")
    await tab.wait_for("document.querySelector('.player-name')?.textContent", "frida")
    assert await tab.evaluate("location.origin") == up["api"]


async def test_the_board_in_a_frame_of_another_page(open_tab: OpenTab, site: FakeSite):
    site.frame_origins = site.foreign_url.removesuffix("/foreign.html")
    site.framed = f"{site.url}embed?board=main&rows=1&theme=dark"
    await site.send_board(("alice", 30), ("bob", 20))
    frame = await (await open_tab(site.foreign_url)).frame()
    await frame.wait_for(NAMES, ["alice"])
    assert await frame.evaluate("document.documentElement.dataset.theme") == "dark"


async def test_the_overlay_survives_a_lost_connection(open_tab: OpenTab, site: FakeSite):
    await site.send_board(("alice", 30))
    tab = await open_tab(f"{site.url}overlay")
    await tab.wait_for(NAMES, ["alice"])
    await site.stop_streamer()
    await tab.wait_for(STATE, "reconnecting")
    assert await tab.evaluate("document.body.innerText.split(/\\s+/)") == ["1", "alice", "30"]
    await site.start_streamer()
    await site.send_board(("bob", 40))
    await tab.wait_for(NAMES, ["bob"])


async def test_errors_of_pages_and_requests_to_other_hosts_are_noticed(
    firefox: Firefox, open_tab: OpenTab, site: FakeSite
):
    tab = await open_tab(f"{site.url}blank.html")
    await tab.evaluate("console.error('a mistake')")
    await tab.evaluate("void setTimeout(() => { throw new Error('another') })")
    await tab.evaluate("void fetch('http://198.51.100.1/').catch(() => 0)")
    await tab.wait_for("window.policyViolations.length", 1)
    assert await tab.evaluate("window.policyViolations.splice(0).length") == 1
    await eventually_async(lambda: len(logged(firefox)) >= 2)
    assert external(firefox) == []  # the policy prevented it
    foreign = await open_tab(site.foreign_url)
    await foreign.evaluate("fetch('http://198.51.100.1/').catch(() => 0)")
    assert external(firefox) == ["http://198.51.100.1/"]
    with pytest.raises(BiDiError):
        await tab.evaluate("nothing.there")
    firefox.events.clear()
