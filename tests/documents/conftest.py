"""Fixtures of the documentation tests."""

from tests.support.clients.browser import browser, chromium_path
from tests.support.clients.commands import command
