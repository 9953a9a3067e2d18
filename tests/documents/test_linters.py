"""docs/openapi.json and docs/asyncapi.yaml pass the linters of their formats."""

import json
from pathlib import Path

import pytest
import yaml

from tests.support.clients import npm
from tests.support.repository import ROOT

HERE = ROOT / "tests/documents"
OPENAPI = ROOT / "docs/openapi.json"
ASYNCAPI = ROOT / "docs/asyncapi.yaml"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    npm.install(HERE)


def test_both_documents_pass_their_linters() -> None:
    assert npm.findings(HERE, OPENAPI, ASYNCAPI) == []


def test_errors_are_found(tmp_path: Path) -> None:
    openapi, asyncapi = tmp_path / "openapi.json", tmp_path / "asyncapi.yaml"
    document = json.loads(OPENAPI.read_text())
    del document["paths"]["/health/live"]["get"]["security"]
    openapi.write_text(json.dumps(document))
    channel = yaml.safe_load(ASYNCAPI.read_text())
    channel["channels"]["scoreboard"]["x-close-codes"][999] = {}
    asyncapi.write_text(yaml.safe_dump(channel))

    found = npm.findings(HERE, openapi, asyncapi)

    assert [one.split(":")[0] for one in found] == ["security-defined", "parser"]
