"""Fixtures of the tests of @scoreboard/client."""

import pytest

from tests.clients.js.package_folder import Package, build
from tests.support.clients.browser import browser, chromium_path, guard, open_page, site


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Return the package, built and installed once for all tests."""
    return build(tmp_path_factory.mktemp("package"))
