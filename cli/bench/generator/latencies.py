"""Latencies of a run in an HdrHistogram: three significant digits from 1 µs to 10 minutes.

The histogram's size does not depend on how many latencies it holds. The mean is exact.
"""

from typing import Final

from hdrh.histogram import HdrHistogram
from msgspec import Struct

PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99}
"""The reported percentiles by name."""

HIGHEST_US: Final = 600_000_000
"""Longer latencies count as this one; every wait of the generator is shorter."""

_DIGITS: Final = 3


class LatencySummary(Struct, frozen=True):
    """The figures of a histogram in milliseconds; all are 0 if it is empty."""

    count: int = 0
    mean_ms: float = 0.0
    percentiles_ms: dict[str, float] = {}
    max_ms: float = 0.0


class Latencies:
    """A histogram of latencies."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, HIGHEST_US, _DIGITS)
        self._sum_s = 0.0
        self._max_s = 0.0

    def record(self, latency_s: float) -> None:
        """Add a latency."""
        self._sum_s += latency_s
        self._max_s = max(self._max_s, latency_s)
        self._histogram.record_value(min(max(int(latency_s * 1e6), 1), HIGHEST_US))

    @property
    def count(self) -> int:
        """How many latencies were added."""
        return self._histogram.get_total_count()

    def summary(self) -> LatencySummary:
        """Return the figures of all latencies so far."""
        if not self.count:
            return LatencySummary(percentiles_ms=dict.fromkeys(PERCENTILES, 0.0))
        found = self._histogram.get_percentile_to_value_dict(list(PERCENTILES.values()))
        # The histogram answers with the highest value of a bucket, which may exceed the maximum.
        at_most_us = self._max_s * 1e6
        return LatencySummary(
            count=self.count,
            mean_ms=round(self._sum_s / self.count * 1e3, 3),
            percentiles_ms={
                name: round(min(found[share], at_most_us) / 1e3, 3)
                for name, share in PERCENTILES.items()
            },
            max_ms=round(self._max_s * 1e3, 3),
        )
