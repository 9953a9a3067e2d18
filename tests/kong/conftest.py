"""One fresh Lua runtime per test."""

import pytest

from tests.kong.runtime import Gateway


@pytest.fixture
def gateway() -> Gateway:
    """Give a runtime with both plugins loaded from their files."""
    return Gateway()
