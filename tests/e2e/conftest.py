"""Fixtures of the end-to-end tests."""

from tests.support.servers.system import system
