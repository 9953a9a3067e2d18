"""Starts the api with metrics that count nothing, to measure what they cost."""

import sys

from api import metrics
from scoreboard.runtime.collectors import Series


def _ignore(*_: object) -> None:
    """Count nothing."""


class _Ignored(dict[str, int]):
    """Counts that stay 0."""

    def __setitem__(self, outcome: str, count: int) -> None:
        pass


if __name__ == "__main__":
    # Before other modules take references to them.
    metrics.observe = _ignore
    metrics.UPDATES = _Ignored(metrics.UPDATES)
    Series.observe = _ignore
    from api.__main__ import main

    sys.exit(main(sys.argv[1:]))
