"""Spans by OpenTelemetry, exported by OTLP over HTTP from a thread. Imported only if tracing is on.

The other parts see only ``Tracing`` and ``Span``. The standard ``OTEL_*`` variables configure the
exporter, its queue and more attributes of the resource.

Invariants: the queue is bounded, and a full one drops the oldest spans; an unreachable collector
delays neither a request nor, beyond ``FLUSH_S``, a stop, and is logged once until it is back; the
lines of OpenTelemetry itself, which can contain its headers, are not logged.
"""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.metadata import version
from typing import Final, Literal

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace import Span as OtelSpan

from scoreboard.errors import SettingInvalid
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import TRACE_SPANS, get_logger
from scoreboard.runtime.tracing import FLUSH_S
from scoreboard.trace_context import LINKS_MAX, TraceContext

PROTOCOL: Final = "http/protobuf"

Kind = Literal["internal", "server", "client", "consumer"]
Attributes = Mapping[str, str | int | float | bool]

_KINDS: Final[Mapping[Kind, SpanKind]] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
}

_ENDED = TRACE_SPANS["ended"]
_log = get_logger(__name__)


class Span:
    """A span that is recorded; ``context`` identifies it in other processes."""

    __slots__ = ("_span", "_tracing", "context")

    def __init__(self, tracing: "Tracing", span: OtelSpan) -> None:
        found = span.get_span_context()
        self._tracing = tracing
        self._span = span
        self.context = TraceContext(
            trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id)
        )

    def child(self, name: str, kind: Kind, attributes: Attributes) -> "Span":
        """Start a span below this one."""
        return self._tracing.start(name, kind, attributes, parent=self.context)

    def rename(self, name: str) -> None:
        """Replace the name."""
        self._span.update_name(name)

    def add(self, attributes: Attributes) -> None:
        """Add attributes."""
        self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes) -> None:
        """Add an event that happens now."""
        self._span.add_event(name, attributes)

    def fail(self, code: str) -> None:
        """Mark the span as failed; ``code`` is of a closed set, never the text of an error."""
        self._span.set_attribute("error.type", code)
        self._span.set_status(trace.StatusCode.ERROR)

    def end(self, at_ns: int | None = None) -> None:
        """End the span, now or at a time in ns since 1970."""
        self._span.end(at_ns)


class Tracing:
    """The spans of one process."""

    def __init__(self, settings: Settings, service: str) -> None:
        """Read the ``OTEL_*`` variables; nothing is exported before ``running``.

        Raises SettingInvalid.
        """
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", PROTOCOL
        )
        if protocol != PROTOCOL:
            raise SettingInvalid(f"OTEL_EXPORTER_OTLP_PROTOCOL must be {PROTOCOL}")
        attributes = {
            "service.namespace": "scoreboard",
            "service.name": f"scoreboard-{service}",
            "service.version": version("scoreboard"),
            "deployment.environment.name": settings.environment,
        }
        with _checking_variables():
            self._provider = TracerProvider(
                ALWAYS_ON,
                Resource.create(attributes),
                shutdown_on_exit=False,
                span_limits=SpanLimits(
                    max_span_attributes=16,
                    max_events=8,
                    max_links=LINKS_MAX,
                    max_event_attributes=4,
                    max_link_attributes=0,
                    max_span_attribute_length=256,
                ),
            )
        self._tracer = self._provider.get_tracer("scoreboard")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Export spans while the block runs, then those that are queued, for at most FLUSH_S.

        Raises SettingInvalid.
        """
        with _checking_variables():
            processor = _CountingProcessor(_ReportingExporter(OTLPSpanExporter()))
        self._provider.add_span_processor(processor)
        try:
            yield
        finally:
            await _shut_down(processor)

    def start(
        self,
        name: str,
        kind: Kind,
        attributes: Attributes,
        *,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
        at_ns: int | None = None,
    ) -> Span:
        """Start a span, now or at a time in ns since 1970; without ``parent`` a new trace."""
        context = trace.set_span_in_context(
            NonRecordingSpan(_span_context(parent)) if parent else trace.INVALID_SPAN
        )
        span = self._tracer.start_span(
            name,
            context,
            _KINDS[kind],
            attributes,
            [Link(_span_context(one)) for one in links[:LINKS_MAX]],
            at_ns,
        )
        return Span(self, span)


class _CountingProcessor(BatchSpanProcessor):
    """Counts the spans that enter the queue."""

    def on_end(self, span: ReadableSpan) -> None:
        _ENDED.inc()
        super().on_end(span)


class _ReportingExporter(SpanExporter):
    """Counts what another exporter exports, and logs the start and the end of an outage."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        is_failing = result is not SpanExportResult.SUCCESS
        TRACE_SPANS["failed" if is_failing else "exported"].inc(len(spans))
        if is_failing and not self._is_failing:
            _log.warning("trace_export_failed", spans=len(spans))
        elif self._is_failing and not is_failing:
            _log.info("trace_export_recovered")
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


@contextmanager
def _checking_variables() -> Iterator[None]:
    """Raise SettingInvalid for what the SDK raises; its text may contain a header."""
    try:
        yield
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        raise SettingInvalid(
            f"A variable OTEL_* is invalid ({type(error).__name__}): see docs/how-to/trace.md"
        ) from None


async def _shut_down(processor: BatchSpanProcessor) -> None:
    """Export what is queued; after FLUSH_S the rest is lost with the process."""
    loop = asyncio.get_running_loop()
    is_done = asyncio.Event()

    def shut_down() -> None:
        processor.shutdown()
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(is_done.set)

    threading.Thread(target=shut_down, name="otel-shutdown", daemon=True).start()
    try:
        async with asyncio.timeout(FLUSH_S):
            await is_done.wait()
    except TimeoutError:
        _log.warning("trace_export_incomplete", within_s=FLUSH_S)


def _span_context(context: TraceContext) -> SpanContext:
    return SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
