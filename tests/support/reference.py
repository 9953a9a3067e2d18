"""What docs/generate.py writes about the metrics of each service."""

import runpy
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from scoreboard.runtime.telemetry import MetricDescription
from tests.support.repository import ROOT


def _load() -> dict[str, Any]:
    folder = str(ROOT / "docs")
    sys.path.insert(0, folder)  # as for a program: it imports modules beside it
    try:
        return runpy.run_path(f"{folder}/generate.py")
    finally:
        sys.path.remove(folder)


_PROGRAM: Final = _load()
SERVICES: Final[Iterable[str]] = tuple(_PROGRAM["SERVICES"])
metrics_of: Final[Callable[[str], list[MetricDescription]]] = _PROGRAM["metrics_of"]
