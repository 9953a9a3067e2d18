"""The form in which every benchmark hands its figures over (tests/bench/README.md).

A benchmark makes one `Recorder`, wraps each measurement in `measure()` or `measurement()`, adds a
value for each metric of each round, and writes the file. `make bench` reads it.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from tests.bench.machine import Foreign, share_of

BUSY_SHARE = 0.1
"""Above this foreign share of the machine's CPU time, the machine is busy."""

SHORT_S = 1.0
"""Shorter measurements have one share together."""

Parameter = str | int | float
Found = TypeVar("Found")


class Row(msgspec.Struct, frozen=True):
    """One metric of one variant under one set of parameters: a value for each round."""

    work: str
    variant: str
    parameters: dict[str, Parameter]
    metric: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


class Figures(msgspec.Struct, frozen=True):
    """What one run of a benchmark found.

    ``foreign`` has a share for each second or more of measurements: the CPU time that other
    programs used, of all the CPU time the machine had.
    """

    benchmark: str
    rows: list[Row]
    foreign: list[float] = []
    facts: dict[str, str] = {}


class Recorder:
    """Collects the values of all rounds."""

    def __init__(self, benchmark: str, *, repeats_busy: bool = False, **facts: str) -> None:
        self.benchmark = benchmark
        self._repeats_busy = repeats_busy
        self.facts = facts
        self.foreign: list[float] = []
        self._elapsed_s = self._used_s = 0.0
        self._rows: dict[tuple[object, ...], Row] = {}

    def measure(self, run: Callable[[], Found]) -> Found:
        """Call ``run`` and return its result; with ``repeats_busy`` once more on a busy machine."""
        for is_last in (not self._repeats_busy, True):
            foreign = Foreign()
            found = run()
            share = foreign.share()
            if is_last or share <= BUSY_SHARE:
                break
        self.foreign.append(share)
        return found

    @contextmanager
    def measurement(self) -> Iterator[None]:
        """Measure the share of foreign CPU time during the block.

        Short measurements are added up: the kernel counts CPU time in hundredths of a second.
        """
        foreign = Foreign()
        yield
        elapsed_s, used_s = foreign.elapsed_and_used_s()
        self._elapsed_s += elapsed_s
        self._used_s += used_s
        if self._elapsed_s >= SHORT_S:
            self._add_share()

    def _add_share(self) -> None:
        if self._elapsed_s:
            self.foreign.append(share_of(self._elapsed_s, self._used_s))
        self._elapsed_s = self._used_s = 0.0

    def add(
        self,
        work: str,
        variant: str,
        parameters: Mapping[str, Parameter],
        metric: str,
        unit: str,
        value: float,
    ) -> None:
        """Add the value of one round; rounds of the same row are collected."""
        key = (work, variant, *sorted(parameters.items()), metric)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = Row(work, variant, dict(parameters), metric, unit, [])
        row.values.append(value)

    @property
    def figures(self) -> Figures:
        self._add_share()
        return Figures(self.benchmark, list(self._rows.values()), self.foreign, self.facts)

    def write(self, path: Path | str) -> None:
        """Write the figures as JSON."""
        Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(self.figures)) + b"\n")


def read(path: Path | str) -> Figures:
    """Read the figures of a benchmark; raises msgspec.ValidationError if they have another form."""
    return msgspec.json.decode(Path(path).read_bytes(), type=Figures)
