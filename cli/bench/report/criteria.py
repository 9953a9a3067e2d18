"""The criteria of `--fail-if`, such as `p99>50ms` or `errors>0.1%`.

A criterion is a figure, `<` or `>`, and a limit. Latencies (p50 … max, mean) take µs, us, ms or s;
`errors` is a share of the operations and takes % or a plain fraction; `rate` is in operations per
second; `cpu` is the CPU time of all measured servers per operation and takes µs, us, ms or s.
"""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from cli.bench.generator.latencies import PERCENTILES

LATENCIES: Final = (*PERCENTILES, "max", "mean")
_TIMES: Final = {"µs": 1e-3, "μs": 1e-3, "us": 1e-3, "ms": 1.0, "s": 1e3}
"""Units of time in milliseconds; a micro sign may be typed as the Greek letter."""

UNITS: Final[Mapping[str, Mapping[str, float]]] = {
    **dict.fromkeys((*LATENCIES, "cpu"), _TIMES),
    "errors": {"%": 0.01, "": 1.0},
    "rate": {"": 1.0},
}
"""The units of each figure, and what each is of the figure's own unit."""

_CRITERION: Final = re.compile(
    r"\s*([a-z0-9.]+)\s*([<>])\s*(\d+(?:\.\d+)?)\s*([^\s\d]*)\s*", re.ASCII
)


class Criterion(Struct, frozen=True):
    """A parsed criterion; ``limit`` is in ms, as a fraction, or in operations per second."""

    text: str
    figure: str
    is_above: bool
    limit: float

    def is_met_by(self, figures: Mapping[str, float | None]) -> bool:
        """Return whether the run fails by this criterion.

        It also fails if the figure could not be measured: a check that did not happen must not
        pass.
        """
        value = figures.get(self.figure)
        if value is None:
            return True
        return value > self.limit if self.is_above else value < self.limit


def parse_criterion(text: str) -> Criterion:
    """Parse a criterion.

    Raises ValueError, which says what is wrong with it.
    """
    match = _CRITERION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not of the form FIGURE>LIMIT or FIGURE<LIMIT, as p99>50ms")
    figure, sign, number, unit = match.groups()
    units = UNITS.get(figure)
    if units is None:
        raise ValueError(f"{figure!r} is not a figure; there are {', '.join(UNITS)}")
    if unit not in units:
        known = ", ".join(name or "no unit" for name in units if name != "μs")
        raise ValueError(f"{figure} has the unit {known}, not {unit or 'none'!r}")
    limit = float(number) * units[unit]
    if figure == "errors" and limit >= 1:
        raise ValueError("errors has a limit below 100%, or below 1 as a fraction")
    return Criterion(text.strip(), figure, sign == ">", limit)
