"""Fixtures of the gateway's tests: a Lua runtime per test, and a fake of the Admin API."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kong.admin import FakeAdmin, fake_admin
from tests.kong.runtime import Gateway


@pytest.fixture
def gateway() -> Gateway:
    """Return a runtime with both plugins loaded from their files."""
    return Gateway()


@pytest.fixture
def admin(jwks: dict[str, Any]) -> Iterator[FakeAdmin]:
    with fake_admin() as server:
        server.jwks = json.dumps(jwks).encode()
        yield server


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "kong.yml"
