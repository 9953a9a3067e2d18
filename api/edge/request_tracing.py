"""Which requests are traced, and what their spans contain.

Invariants: a client cannot choose that its request is traced: the sampled flag of a header counts
only from a trusted proxy, and the share of traced requests does not depend on the trace id, which
a client can choose. A span contains no token, no query string, no body and no user.
"""

import random
from typing import TYPE_CHECKING

from api.metrics import METHODS, UNMATCHED
from scoreboard.errors import SettingInvalid
from scoreboard.http.request import Request
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.tracing import CURRENT_SPAN
from scoreboard.security.addresses import Network, is_trusted_hop, trusted_networks
from scoreboard.trace_context import HEADER, parse_traceparent

if TYPE_CHECKING:
    from scoreboard.runtime.otel import Span, Tracing


class RequestTracing:
    """Starts and ends the spans of requests."""

    def __init__(self, tracing: "Tracing", settings: Settings) -> None:
        """Raise SettingInvalid if a gateway is to choose and none is trusted."""
        self._tracing = tracing
        self._ratio = settings.trace_ratio
        self._gateways: tuple[Network, ...] = ()
        if settings.tracing == "gateway":
            self._gateways = trusted_networks(settings.trusted_hops)
            if not self._gateways:
                raise SettingInvalid(
                    "SCOREBOARD_TRACING=gateway needs the gateway's address in "
                    "SCOREBOARD_TRUSTED_HOPS"
                )

    def begin(self, request: Request) -> "Span | None":
        """Start the span of a request, if it is traced, and make it the current one of the task.

        The task of a pipelined request inherits the context of the request before it.
        """
        span = self._start(request)
        CURRENT_SPAN.set(span)
        return span

    def _start(self, request: Request) -> "Span | None":
        head = request.head
        if head.path.startswith("/health/"):
            return None
        is_sampled = random.random() < self._ratio  # noqa: S311 (sampling)
        if not is_sampled and not self._gateways:
            return None
        given = parse_traceparent(head.headers.get(HEADER))
        if given is not None and is_trusted_hop(request.peer[0], self._gateways):
            is_sampled = given.is_sampled
        if not is_sampled:
            return None
        return self._tracing.start(_label(head.method), "server", {}, parent=given)

    def end(self, span: "Span", request: Request, route: str, status: int, code: str) -> None:
        """End the span of an answered request. ``route`` is a template, never a path with ids."""
        method = _label(request.head.method)
        attributes: dict[str, str | int] = {
            "http.request.method": method if method in METHODS else "_OTHER",
            "http.response.status_code": status,
            "scoreboard.request_id": request.id,
        }
        if route != UNMATCHED:
            span.rename(f"{method} {route}")
            attributes["http.route"] = route
        span.add(attributes)
        if status >= 500:
            span.fail(code or str(status))
        elif code:
            span.add({"error.type": code})
        span.end()


def _label(method: str) -> str:
    """Return a method for the name of a span; clients can invent others."""
    return method if method in METHODS else "HTTP"
