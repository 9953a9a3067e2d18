"""The spans of a flush: one of the transaction, and one in each trace that it commits.

The first is a trace of its own with links to the updates, because a batch belongs to many traces.
Batches without a traced update have no span.

Invariant: a batch has at most ``LINKS_MAX`` + 1 spans.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from flusher.batch import Batch
from scoreboard.model import Partition
from scoreboard.trace_context import FIELD, LINKS_MAX, TraceContext, parse_traceparent

if TYPE_CHECKING:
    from scoreboard.runtime.otel import Tracing

_Result = TypeVar("_Result")


class FlushTracing:
    """Traces the transactions of one partition."""

    def __init__(self, tracing: "Tracing", partition: Partition) -> None:
        self._tracing = tracing
        self._attributes = {
            "scoreboard.board": partition.board,
            "scoreboard.partition": partition.number,
        }

    async def trace(self, batch: Batch, commit: Callable[[], Awaitable[_Result]]) -> _Result:
        """Await ``commit``, and add spans to the traces of the batch."""
        contexts = list(islice(_contexts(batch), LINKS_MAX))
        if not contexts:
            return await commit()
        began_ns = time.time_ns()
        outcome, failure = "", ""
        try:
            result = await commit()
            outcome = type(result).__name__.lower()
        except BaseException as error:
            failure = type(error).__name__
            raise
        else:
            return result
        finally:
            self._add_spans(contexts, len(batch.entries), began_ns, outcome, failure)

    def _add_spans(
        self,
        contexts: list[TraceContext],
        entries: int,
        began_ns: int,
        outcome: str,
        failure: str,
    ) -> None:
        ended_ns = time.time_ns()
        attributes = self._attributes | {"scoreboard.entries": entries}
        if outcome:
            attributes["scoreboard.outcome"] = outcome
        flush = self._tracing.start("flush", "internal", attributes, links=contexts, at_ns=began_ns)
        commits = [
            self._tracing.start(
                "commit",
                "consumer",
                attributes,
                parent=context,
                links=[flush.context],
                at_ns=began_ns,
            )
            for context in contexts
        ]
        for span in (flush, *commits):
            if failure:
                span.fail(failure)
            span.end(ended_ns)


def _contexts(batch: Batch) -> Iterator[TraceContext]:
    for _, fields in batch.entries:
        if FIELD in fields:
            context = parse_traceparent(fields[FIELD])
            if context is not None and context.is_sampled:
                yield context
