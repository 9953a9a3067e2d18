"""The commands of the runbook repair the faults behind the alerts, on a running system.

Pages with `<!-- system: drill -->` run on a system whose parts are restarted when they end.
`<!-- inject: NAME -->` injects a fault; after each section the whole system must be well. What a
section checks at its end ("Over when") must fail before the repair.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO

import pytest
import yaml

from tests.documents.snippets import Snippet, run_page, snippets_of, system_of
from tests.drills.__main__ import draw, main
from tests.drills.checks import find_problems
from tests.drills.faults import FAULTS
from tests.drills.place import Place
from tests.drills.system import DrillSystem
from tests.support.clients.forked import programs
from tests.support.eventually import eventually
from tests.support.repository import ROOT
from tests.support.servers.system import processes_of

RUNBOOK = ROOT / "docs/how-to/runbook.md"
RULES = ROOT / "deploy/prometheus/rules"
PAGES = [
    page for page in (ROOT / "docs/how-to").glob("*.md") if system_of(page.read_text()) == "drill"
]
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
SYMPTOMS = {
    *("ApiErrorBudgetBurn", "UpdateLatencyBudgetBurn", "ViewerFreshnessBudgetBurn"),
    *("StreamNearlyFull", "ReplicationBroken", "RotationOverdue", "ViewersSkipFrames"),
    *("VerifyOverdue", "BackupOverdue", "KongKeysOld", "KongDown", "LogLinesDropped"),
    *("MetricsMissing", "WorkerDown", "AdminDown", "AdminErrors"),
    *("PartitionsWaiting", "ProofKeysUnavailable", "ProofsForged"),
    *("ClusterSlotsDown", "PrimaryWithoutReplica"),
}
"""Alerts without a fault here: their causes have other sections, need hours, Kong, workers, many
busy boards, an api for administrators, game servers, or a cluster."""

INJECT = re.compile(r"^<!-- inject: ([a-z-]+) -->$", re.MULTILINE)

pytestmark = pytest.mark.timeout(150)


def sections_of(page: str) -> dict[str, str]:
    """Return the text before the first heading, as ``""``, and of each section."""
    first, *rest = HEADING.split(page)
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


SECTIONS = sections_of(RUNBOOK.read_text())

RUNNABLE = [
    pytest.param(text, id=f"{page.stem}-{name}".rstrip("-"))
    for page in sorted(PAGES)
    for name, text in sections_of(page.read_text()).items()
    if snippets_of(text) or INJECT.search(text)
]


class Drills:
    """The running system of all pages; a new one after a failure, which may have left it broken."""

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self._make_folder = make_folder
        self._running: DrillSystem | None = None

    @contextmanager
    def use(self) -> Iterator[DrillSystem]:
        if self._running is None:
            python = programs("cli") / "python"
            self._running = DrillSystem(self._make_folder() / "drill", python)
            self._running.start()
        try:
            yield self._running
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None


@pytest.fixture(scope="module")
def drills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drills]:
    made = Drills(lambda: tmp_path_factory.mktemp("drill"))
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("text", RUNNABLE)
def test_the_commands_of_a_section_end_the_incident(
    text: str, drills: Drills, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        assert os.environ.get("CI") != "true", "CI must install curl"
        pytest.skip("curl is not installed on this system")
    first, *rest = INJECT.split(text)
    ending = snippets_of(text.partition("**Over when**")[2])
    with drills.use() as drill:
        environment = dict(drill.place.programs) | {"COLUMNS": "100"}
        preamble = f'. "{drill.folder}/env.sh"'
        for number, (name, part) in enumerate(
            zip(["", *rest[::2]], [first, *rest[1::2]], strict=True)
        ):
            if name:
                FAULTS[name].inject(drill.place)
            if number == 1 and ending:
                require_unfulfilled(ending, tmp_path / "too-early", environment, preamble)
            folder = tmp_path / (name or "before")
            folder.mkdir()
            run_page(snippets_of(part), folder, environment, preamble)
        eventually(lambda: is_well(drill.place), within_s=20)


def require_unfulfilled(
    ending: list[Snippet], folder: Path, environment: dict[str, str], preamble: str
) -> None:
    """Run what a section checks at its end: before the repair it must fail.

    The services need a moment to notice the fault.
    """
    attempts = count()

    def fails() -> bool:
        own = folder / str(next(attempts))
        own.mkdir(parents=True)
        try:
            run_page(ending, own, environment | {"WAIT_S": "1"}, preamble)
        except AssertionError:
            return True
        return False

    eventually(fails, every_s=0.5)


def is_well(place: Place) -> bool:
    assert find_problems(place) == []
    return True


def alerts_of(folder: Path) -> set[str]:
    """Return the names of the alerts of the rules."""
    groups = [
        group
        for path in sorted(folder.glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    assert set(SECTIONS) - {""} == alerts_of(RULES)


def test_every_section_of_the_runbook_says_the_same_four_things() -> None:
    for name, text in SECTIONS.items():
        labels = re.findall(r"^\*\*(Players|Look|Do|Over when)", text, re.MULTILINE)
        assert not name or labels == ["Players", "Look", "Do", "Over when"], name


def test_a_section_that_injects_a_fault_checks_its_end() -> None:
    for name, text in SECTIONS.items():
        if INJECT.search(text):
            assert snippets_of(text.partition("**Over when**")[2]), name


def test_the_index_lists_every_alert_once() -> None:
    index = SECTIONS[""].partition("| about | alerts |")[2].partition("**Before you start")[0]
    assert sorted(re.findall(r"\[(\w+)\]", index)) == sorted(set(SECTIONS) - {""})


def test_variables_that_a_comment_sets_are_set_in_a_visible_line() -> None:
    for page in PAGES:
        text = page.read_text()
        hidden = re.findall(r"^<!-- sh run\n(.*?)^-->", text, re.MULTILINE | re.DOTALL)
        visible = "\n".join(one.text for one in snippets_of(re.sub(r"(?s)<!--.*?-->", "", text)))
        for name in re.findall(r"^(\w+)=", "".join(hidden), re.MULTILINE):
            if f"${name}" in visible:
                assert re.search(rf"^ *{name}=…", text, re.MULTILINE), f"{page.name}: {name}"


def test_every_section_injects_the_fault_behind_its_alert() -> None:
    injecting = {name for name, text in SECTIONS.items() if INJECT.search(text)}
    assert set(SECTIONS) - injecting - {""} == SYMPTOMS
    assert {one.alert for one in FAULTS.values()} <= set(SECTIONS)


def test_the_metrics_of_the_commands_are_documented() -> None:
    reference = sections_of((ROOT / "docs/reference/metrics.md").read_text())
    for page in PAGES:
        for part, word in re.findall(r"^metrics (\w+) (\w+)$", page.read_text(), re.MULTILINE):
            known = reference["All processes"] + reference[part]
            assert re.sub("_(sum|count)$", "", word) in known, f"{page.name}: {part} {word}"


def test_every_link_to_a_section_names_one() -> None:
    anchors = {name.lower() for name in SECTIONS}
    for page in (ROOT / "docs").rglob("*.md"):
        place = r"runbook\.md" if page != RUNBOOK else ""
        found = set(re.findall(rf"\({place}#([a-z-]+)\)", page.read_text()))
        assert found <= anchors, page


def test_a_drill_hides_its_fault_and_ends_when_it_is_repaired(tmp_path: Path) -> None:
    folder = tmp_path / "drill"
    program = [sys.executable, "-m", "tests.drills", "--folder", str(folder)]
    with subprocess.Popen(
        [*program, "start", "--only", "score-drifted"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            told = read_until(process.stdout, "ALERT ScoresDrifted")
            assert "score-drifted" not in told
            assert subprocess.run([*program, "check"], cwd=ROOT, check=False).returncode == 1
            shell = f". {folder}/env.sh; scoreboard repair --yes"
            subprocess.run(["bash", "-c", shell], check=True, timeout=60)
            assert "repaired after" in read_until(process.stdout, "The fault was score-drifted")
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert not folder.exists()
    assert processes_of(folder) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_drill_draws_other_faults_than_the_one_before(seed: int) -> None:
    first = draw(3, seed, set())
    second = draw(3, seed, {*first, "redis-emptied"})

    assert len(set(first)) == len(set(second)) == 3
    assert len({FAULTS[name].alert for name in first}) == 3
    assert not {*first, "redis-emptied"} & set(second)
    assert first == draw(3, seed, set())


def test_a_start_that_fails_says_why_and_keeps_the_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "drill"
    folder.mkdir()
    (folder / "system").write_text("not a folder")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "argv", ["drills", "--folder", str(folder), "start"])
    try:
        assert main() == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "The start failed: " in capsys.readouterr().err
    assert folder.exists()
    assert processes_of(folder) == []


def read_until(stream: IO[str], text: str) -> str:
    """Return the lines up to the one that contains a text; the test's time limit bounds it."""
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))
