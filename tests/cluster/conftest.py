"""Fixtures of the tests on a cluster."""

from tests.support.clients.viewer import connect

__all__ = ["connect"]
