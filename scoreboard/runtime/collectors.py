"""Metrics that prometheus_client has no class for: read at a scrape, or counted in bulk."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
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


class DelayHistogram(Collector):
    """A histogram of the delays from ordered times until one moment.

    It counts a batch with one search for each bucket instead of one observation for each entry.
    """

    def __init__(
        self, name: str, about: str, buckets: tuple[float, ...], *, normal: str = ""
    ) -> None:
        """Register the metric."""
        self._name = f"scoreboard_{name}"
        self._about = about
        self._bounds_ms = [round(bound * 1000) for bound in buckets]
        self._names = [floatToGoString(bound) for bound in (*buckets, float("inf"))]
        self._counts = [0] * (len(buckets) + 1)
        """Observations up to each bound; the last one counts all."""
        self._sum_ms = 0.0
        describe_metric("histogram", self._name, about, unit="", normal=normal)
        REGISTRY.register(self)

    def observe(self, times_ms: Sequence[int], now_ms: float) -> None:
        """Count the delay of each time; a time in the future (a clock differs) has no delay."""
        total = len(times_ms)
        for place, bound_ms in enumerate(self._bounds_ms):
            self._counts[place] += total - bisect_left(times_ms, now_ms - bound_ms)
        self._counts[-1] += total
        past = bisect_right(times_ms, now_ms)
        self._sum_ms += now_ms * past - sum(times_ms[:past])

    def collect(self) -> Iterable[Metric]:
        """Return the counts."""
        buckets = list(zip(self._names, map(float, self._counts), strict=True))
        return [
            HistogramMetricFamily(
                self._name, self._about, buckets=buckets, sum_value=self._sum_ms / 1000
            )
        ]
