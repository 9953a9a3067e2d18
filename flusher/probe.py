"""Health and metrics of the flusher, over a small HTTP server on a port that is not public.

``/health/live`` answers as long as the event loop turns; ``/health/ready`` says whether every lane
does its work, with the state of each; ``/metrics`` is Prometheus's text. Served by the same loop as
the lanes, so a loop that hangs is seen from outside.
"""

import asyncio
import time
from contextlib import suppress
from typing import Any, Final

import msgspec
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from flusher import metrics
from flusher.lane import Lane
from scoreboard.errors import SettingInvalid, Unavailable
from scoreboard.lifecycle import Stop
from scoreboard.live import Live
from scoreboard.telemetry import REGISTRY

OBSERVE_EVERY_S: Final = 1.0
REQUEST_LIMIT_S: Final = 2.0
"""Longest a caller may take to ask and to take the answer."""
REQUEST_LIMIT_BYTES: Final = 8192
CONNECTIONS: Final = 16
"""Callers served at once; more are turned away, as a probe must not become a load."""

_JSON: Final = "application/json"


class Probe:
    """Answers probes about lanes, and measures their streams. ``lanes`` may grow."""

    def __init__(self, lanes: list[Lane], live: Live) -> None:
        self._lanes = lanes
        self._live = live
        self._callers = 0

    async def serve(self, host: str, port: int, stop: Stop) -> None:
        """Answer until ``stop``; port 0 answers nothing.

        Raises SettingInvalid if the address cannot be used.
        """
        if not port:
            await stop.wait()
            return
        try:
            server = await asyncio.start_server(
                self._answer, host, port, limit=REQUEST_LIMIT_BYTES, reuse_address=True
            )
        except OSError as error:
            raise SettingInvalid(
                "SCOREBOARD_METRICS_HOST, SCOREBOARD_FLUSHER_METRICS_PORT: cannot listen on "
                f"{host}:{port}: {error.strerror}"
            ) from error
        try:
            await stop.wait()
        finally:
            server.close()

    async def observe(self, stop: Stop) -> None:
        """Measure streams until ``stop``, also while PostgreSQL is away or we do not lead."""
        while not await stop.sleep(OBSERVE_EVERY_S):
            for lane in self._lanes:
                with suppress(Unavailable):  # the lane itself says that Redis is away
                    await self._measure(lane)

    async def _measure(self, lane: Lane) -> None:
        labels = (lane.partition.board, str(lane.partition.number))
        committed = lane.status.position  # before Redis is asked, so that lag is never negative
        state = await self._live.state(lane.partition)
        facts = await lane.consumer.facts()
        metrics.ACCEPTING.labels(*labels).set(state.is_open)
        metrics.STREAM_LENGTH.labels(*labels).set(facts.length)
        metrics.STREAM_PENDING.labels(*labels).set(facts.pending)
        age_s = 0.0 if facts.oldest_ms is None else max(0.0, time.time() - facts.oldest_ms / 1000)
        metrics.STREAM_AGE.labels(*labels).set(age_s)
        if committed is not None:
            metrics.STREAM_LAG.labels(*labels).set(max(0, state.seq - committed.seq))
        else:
            with suppress(KeyError):
                metrics.STREAM_LAG.remove(*labels)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Tell whether every lane does its work, and how each fares."""
        is_ready = bool(self._lanes) and all(lane.status.condition.is_ready for lane in self._lanes)
        return is_ready, {
            "status": "ready" if is_ready else "not ready",
            "partitions": [
                {
                    "board": lane.partition.board,
                    "part": lane.partition.number,
                    "condition": lane.status.condition.value,
                    "reason": lane.status.reason,
                    "committed": msgspec.to_builtins(lane.status.position),
                    "last_success_s": round(lane.status.last_success_s, 3),
                }
                for lane in self._lanes
            ],
        }

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._callers += 1
        try:
            if self._callers <= CONNECTIONS:
                async with asyncio.timeout(REQUEST_LIMIT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._respond(head))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the caller went away or never asked
        finally:
            self._callers -= 1
            writer.close()

    def _respond(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.split(b" ", 1)[0].partition(b"?")[0]
        if method not in {b"GET", b"HEAD"}:
            return _response(405, _JSON, b'{"status":"only GET"}')
        match path:
            case b"/metrics":
                kind, body, status = CONTENT_TYPE_PLAIN_0_0_4, generate_latest(REGISTRY), 200
            case b"/health/live":
                kind, body, status = _JSON, b'{"status":"live"}', 200
            case b"/health/ready":
                is_ready, facts = self.health()
                kind, body, status = _JSON, msgspec.json.encode(facts), 200 if is_ready else 503
            case _:
                kind, body, status = _JSON, b'{"status":"not found"}', 404
        return _response(status, kind, body, with_body=method == b"GET")


_REASONS: Final = {
    200: "OK",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


def _response(status: int, kind: str, body: bytes, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
