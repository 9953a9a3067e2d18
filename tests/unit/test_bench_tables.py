"""The tables of `make bench`: markers, ratios, aims, busy machines."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import tests.bench.__main__ as bench
from tests.bench.aims import AIMS, Aim, judge
from tests.bench.rows import Figures, Recorder, Row, read
from tests.bench.scale.__main__ import PARTS
from tests.bench.tables import Published, number, render, render_aims, replace_blocks

FACTS = {"Measured": "2026-01-02", "commit": "abc"}
PAGE = """# Page

<!-- bench: api -->

old api

<!-- end -->

Prose.

<!-- bench: ws -->

old ws

<!-- end -->

<!-- bench: aims -->

<!-- end -->
"""


def row(variant: str, *values: float, work: str = "update", metric: str = "server CPU") -> Row:
    return Row(work, variant, {"connections": 64}, metric, "µs", list(values))


def figures(*rows: Row, foreign: float = 0.01) -> Figures:
    return Figures("api", list(rows), [0.0, foreign])


def test_only_the_given_blocks_are_rewritten() -> None:
    page = replace_blocks(PAGE, {"api": r"new \1 api"})

    assert page == PAGE.replace("old api", r"new \1 api")
    assert replace_blocks(page, {"api": r"new \1 api"}) == page


@pytest.mark.parametrize("page", ["", PAGE + PAGE])
def test_a_block_that_is_missing_or_ambiguous_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="blocks named api"):
        replace_blocks(page, {"api": "new"})


def test_a_table_has_the_ratio_first_then_median_and_spread() -> None:
    found = figures(row("baseline", 100, 200, 400), row("api", 40, 50, 60))

    assert render(Published(found, FACTS), "api").split("\n") == [
        "| work | connections | variant | server CPU: api ÷ this | server CPU, µs |",
        "|---|---|---|---|---|",
        "| update | 64 | baseline | 0.25 (0.15–0.40) | 200 (100–400) |",
        "| update | 64 | **api** |  | 50 (40–60) |",
        "",
        "*Measured 2026-01-02; commit abc; other programs used at most 1.0% of the CPU.*",
    ]


def test_works_with_different_metrics_have_tables_of_their_own() -> None:
    found = figures(row("api", 1), row("x", 2, work="memory", metric="size"))

    assert render(Published(found, {}), "api").count("|---") == 2 * 4


def test_a_metric_that_a_variant_lacks_is_an_empty_cell() -> None:
    found = figures(row("api", 1), row("api", 2, metric="p99"), row("other", 3))

    assert "| update | 64 | other | 0.33 | 3 |  |" in render(Published(found, {}), "api")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234.5, "1,234"), (40.0, "40"), (41.25, "41.2"), (4.125, "4.12"), (0.037, "0.04"), (0, "0")],
)
def test_numbers_have_about_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_aims_are_met_missed_or_not_measured() -> None:
    aims = [
        Aim("low", 50, "api", "update", "api", "server CPU", {"connections": 64}),
        Aim("high", 49, "api", "update", "api", "server CPU"),
        Aim("ratio", 0.5, "api", "update", "api", "server CPU", over="baseline", unit="×"),
        Aim("other", 50, "api", "update", "api", "server CPU", {"connections": 1}),
        Aim("none", 1, "api", "update", "api", "server CPU", over="absent", unit="×"),
    ]
    rows = [row("api", 40, 50, 60), row("baseline", 100, 100, 100)]

    table = render_aims(judge({"api": rows}, aims))

    assert table.split("\n")[2:] == [
        "| low | ≤ 50 µs | 50 µs | met |",
        "| high | ≤ 49 µs | 50 µs | **missed** |",
        "| ratio | ≤ 0.50 × | 0.50 × | met |",
        "| other | ≤ 50 µs |  | not measured |",
        "| none | ≤ 1 × |  | not measured |",
    ]


def test_a_recorder_collects_rounds_and_its_file_is_read_back(tmp_path: Path) -> None:
    recorder = Recorder("api", Valkey="9")
    for value in (1.0, 2.0):
        with recorder.measurement():
            recorder.add("update", "api", {"connections": 1}, "server CPU", "µs", value)
            recorder.add("update", "api", {"connections": 64}, "server CPU", "µs", value + 10)
    recorder.write(tmp_path / "api.json")

    found = read(tmp_path / "api.json")

    assert [(one.parameters, one.values) for one in found.rows] == [
        ({"connections": 1}, [1.0, 2.0]),
        ({"connections": 64}, [11.0, 12.0]),
    ]
    assert len(found.foreign) == 1, "two short measurements"
    assert found.facts == {"Valkey": "9"}


def test_a_busy_measurement_is_repeated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 0.02, 0.5, 0.4])
    monkeypatch.setattr("tests.bench.rows.Foreign.share", lambda _: next(shares))
    recorder = Recorder("api", repeats_busy=True)
    runs: list[int] = []

    for number_of_round in (1, 2):
        recorder.measure(lambda number_of_round=number_of_round: runs.append(number_of_round))

    assert runs == [1, 1, 2, 2]
    assert recorder.foreign == [0.02, 0.4]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the command write into a page and a folder of this test."""
    path = tmp_path / "benchmarks.md"
    path.write_text(PAGE)
    monkeypatch.setattr(bench, "PAGE", path)
    monkeypatch.setattr(bench, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(bench, "describe_run", lambda: FACTS)
    return path


def run(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, list[Figures | None]], *words: str
) -> int:
    """Run the command with these results of each benchmark, in turn."""

    def run_once(name: str, _: Path, *, quick: bool) -> Published | None:
        result = found[name].pop(0)
        return result and Published(result, FACTS)

    monkeypatch.setattr(bench, "run_once", run_once)
    return CliRunner().invoke(bench.main, words).exit_code


def test_a_run_rewrites_its_table_and_the_aims(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = run(monkeypatch, {"api": [figures(row("api", 30))]}, "--only", "api")

    text = page.read_text()
    assert code == 0
    assert "| update | 64 | **api** | 30 |" in text
    assert "old api" not in text
    assert "old ws" in text
    assert "| ≤ 40 µs | 30 µs | met |" in text


def test_a_later_run_of_another_benchmark_keeps_the_aims(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, {"api": [figures(row("api", 30))]}, "--only", "api")
    run(monkeypatch, {"ws": [figures(row("streamer", 7, work="frame"))]}, "--only", "ws")

    assert "| ≤ 40 µs | 30 µs | met |" in page.read_text()


def test_busy_figures_are_measured_again_and_then_not_published(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, quiet = figures(row("api", 30), foreign=0.11), figures(row("streamer", 7))

    code = run(monkeypatch, {"api": [busy, busy], "ws": [busy, quiet]}, "--only", "api,ws")

    assert code == bench.BUSY
    assert "old api" in page.read_text()
    assert "old ws" not in page.read_text()


def test_a_failed_benchmark_leaves_its_table(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"api": [None], "ws": [figures(row("streamer", 7))]}

    code = run(monkeypatch, found, "--only", "api,ws")

    assert code == bench.FAILED
    assert "old api" in page.read_text()
    assert "old ws" not in page.read_text()


@pytest.mark.parametrize("option", ["--quick", "--no-write"])
def test_no_file_is_changed_on_request(
    page: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    code = run(monkeypatch, {"api": [figures(row("api", 30))]}, "--only", "api", option)

    assert code == 0
    assert page.read_text() == PAGE
    assert not bench.PUBLISHED.exists()


def test_a_benchmark_that_does_not_exist_fails(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = bench.Benchmark("absent")
    monkeypatch.setitem(bench.BENCHMARKS, "api", missing)

    assert CliRunner().invoke(bench.main, ["--only", "api", "--quick"]).exit_code == bench.FAILED
    assert CliRunner().invoke(bench.main, ["--only", "absent"]).exit_code == 2
    assert page.read_text() == PAGE


def test_the_aims_differ() -> None:
    assert len({aim.title for aim in AIMS}) == len(AIMS)


def test_the_page_has_a_block_of_each_benchmark_and_shows_the_published_figures() -> None:
    page = bench.PAGE.read_text()

    for name in [*bench.BENCHMARKS, "aims", "soak"]:
        assert page.count(f"<!-- bench: {name} -->") == 1, name
    assert replace_blocks(page, bench.page_blocks()[bench.PAGE]) == page, "run `make bench`"


def test_the_page_on_scaling_has_a_block_of_each_part_and_shows_the_published_figures() -> None:
    page = bench.SCALING_PAGE.read_text()

    for name in PARTS:
        assert page.count(f"<!-- bench: {bench.SCALING}{name} -->") == 1, name
    blocks = bench.page_blocks().get(bench.SCALING_PAGE, {})
    assert replace_blocks(page, blocks) == page, "run `make bench-scale`"
