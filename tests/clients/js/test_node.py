"""The package in Node: its own tests, on each version that it supports."""

import shutil
from pathlib import Path

import pytest

from tests.clients.js.package_folder import HERE, VERSIONS, Package, program
from tests.support.clients import npm

pytestmark = pytest.mark.timeout(300)
TESTS = sorted(path.name for path in (HERE / "node_tests").glob("*.test.mjs"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", TESTS)
def test_the_tests_in_node_pass(name: str, version: str, package: Package, tmp_path: Path) -> None:
    for path in (HERE / "node_tests").iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    (tmp_path / "node_modules").symlink_to(package.project / "node_modules")

    limit = ("--test-timeout", "60000")
    done = npm.node("--test", *limit, name, cwd=tmp_path, timeout_s=90, program=program(version))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass 0" not in done.stdout
