"""Fixtures of the browser tests."""

from tests.support.clients.browser import (
    browser,
    chromium_path,
    guard,
    open_page,
    pytest_runtest_makereport,
    site,
)
from tests.support.clients.firefox import firefox, firefox_path, open_tab
from tests.support.clients.viewer import connect, handshake, start_streamer
from tests.support.servers.system import system
