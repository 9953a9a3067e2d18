"""Tracing, as services use it: OpenTelemetry is imported only if SCOREBOARD_TRACING is on.

Invariants: without tracing nothing is imported and every part holds None instead of a ``Tracing``;
spans exist for sampled requests only, so an unsampled one costs a random number.
"""

import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from scoreboard.errors import SettingInvalid
from scoreboard.runtime.settings import Settings

if TYPE_CHECKING:
    from scoreboard.runtime.otel import Span, Tracing

FLUSH_S: Final = 1.0
"""Time to export the spans that are queued when a process stops."""

CURRENT_SPAN: "Final[ContextVar[Span | None]]" = ContextVar("current_span", default=None)
"""The span of the request that a task serves."""


def make_tracing(settings: Settings, service: str) -> "Tracing | None":
    """Return the tracing of a process, to be entered while it runs; None if it is off.

    Raises SettingInvalid if the extra is not installed or an ``OTEL_*`` variable is invalid.
    """
    if settings.tracing == "off" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from scoreboard.runtime.otel import Tracing  # noqa: PLC0415 (only if it is on)
    except ImportError:
        raise SettingInvalid(
            "SCOREBOARD_TRACING needs the extra otel: pip install 'scoreboard[otel]'"
        ) from None
    return Tracing(settings, service)
