"""Metrics that prometheus_client has no class for: read at a scrape, counted cheaply or in bulk."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from scoreboard.runtime.telemetry import REGISTRY, describe_metric

Read = Callable[[], Iterable[tuple[tuple[str, ...], float]]]
"""Returns the label values and the value of each series."""

_FAMILIES: Final = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class Readings(Collector):
    """A counter or gauge whose values are read from their source at each scrape."""

    def __init__(
        self,
        kind: Literal["counter", "gauge"],
        name: str,
        about: str,
        labels: tuple[str, ...],
        read: Read,
        *,
        unit: str = "",
        normal: str = "",
    ) -> None:
        """Register the metric; ``read`` must not block."""
        self._family = _FAMILIES[kind]
        self._name = f"scoreboard_{name}"
        self._about = about
        self._labels = labels
        self._read = read
        describe_metric(kind, self._name, about, labels, unit=unit, normal=normal)
        REGISTRY.register(self)

    def collect(self) -> Iterable[Metric]:
        """Read the values."""
        family = self._family(self._name, self._about, labels=self._labels)
        for values, value in self._read():
            family.add_metric(values, value)
        return [family]


class Series:
    """The values of one series of a ``LoopHistogram``."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values of each bucket alone; the last bucket has no upper bound."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def observe_delays(self, times_ms: Sequence[int], now_ms: float) -> None:
        """Count the delay in seconds from each of the ordered times until now.

        It takes one search for each bucket instead of one observation for each time. A time in the
        future, by a clock that differs, has no delay.
        """
        counted = 0
        for place, bound in enumerate(self._bounds):
            within = len(times_ms) - bisect_left(times_ms, now_ms - bound * 1000)
            self.counts[place] += within - counted
            counted = within
        self.counts[-1] += len(times_ms) - counted
        past = bisect_right(times_ms, now_ms)
        self.total += (now_ms * past - sum(times_ms[:past])) / 1000


class LoopHistogram(Collector):
    """A histogram that is changed and scraped in one thread, that of the event loop.

    Without locks, an observation takes a quarter of the time of prometheus_client's: the metrics of
    an update take below 2 % of its CPU time (docs/explanation/benchmarks.md, section API).
    """

    def __init__(
        self,
        name: str,
        about: str,
        buckets: tuple[float, ...],
        *labels: str,
        unit: str = "",
        normal: str = "",
    ) -> None:
        """Register the metric."""
        self._name = f"scoreboard_{name}"
        self._about = about
        self._labels = labels
        self._bounds = buckets
        self._names = [floatToGoString(bound) for bound in (*buckets, float("inf"))]
        self._series: dict[tuple[str, ...], Series] = {}
        describe_metric("histogram", self._name, about, labels, unit=unit, normal=normal)
        REGISTRY.register(self)

    def series(self, *values: str) -> Series:
        """Return the series of label values; keep it, as for children of other metrics."""
        found = self._series.get(values)
        if found is None:
            found = self._series[values] = Series(self._bounds)
        return found

    def counts(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Return how many values each series has."""
        for values, series in self._series.items():
            yield values, sum(series.counts)

    def collect(self) -> Iterable[Metric]:
        """Return the series."""
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        for values, series in self._series.items():
            buckets = list(zip(self._names, map(float, accumulate(series.counts)), strict=True))
            family.add_metric(values, buckets, series.total)
        return [family]
