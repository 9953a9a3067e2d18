"""The files, settings and metrics that documentation pages name exist."""

import re

import pytest

from scoreboard.runtime.settings import describe
from tests.support.repository import ROOT, files_of

PAGES = [name for name in files_of() if name.endswith(".md") and name != "CHANGELOG.md"]
FOLDERS = "api|cli|deploy|docs|flusher|kong|lua|scoreboard|sql|streamer|tests|web"
SECRET_KINDS = ("redis", "database", "counters")
"""The last parts of names of secrets, such as `kong/counters`."""

SETTING = re.compile(r"\bSCOREBOARD_[A-Z_]+[A-Z]\b")


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", (ROOT / page).read_text()))

    missing = {
        name
        for name in named
        if "NNNN" not in name
        and name.rpartition("/")[2] not in SECRET_KINDS
        and name != "scoreboard/production/"
        and not (ROOT / name).exists()
    }

    assert missing == set()


@pytest.mark.parametrize("page", PAGES)
def test_the_settings_that_a_page_names_exist(page: str) -> None:
    known = {variable for variable, _, _ in describe()}

    named = set(SETTING.findall((ROOT / page).read_text()))

    assert {name for name in named if not name.endswith("_METRICS_PORT")} <= known
