"""The metrics ports of the services: their addresses, and what is read from them.

`scoreboard status` and the administrator's page read them. Responses are bounded, and only the
metrics named here are parsed.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from scoreboard.errors import Unavailable
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.sockets import connect_host, netloc

if TYPE_CHECKING:
    import httpx  # takes a quarter of the import time of a service

BODY_BYTES_MAX: Final = 4 * 1024 * 1024
"""Maximum size of a response of a service."""

ADMIN: Final = "admin"
"""The api for administrators: one more process of the api."""

WORKER_UP: Final = "scoreboard_worker_up"
BUILD: Final = "scoreboard_build_info"
_CONNECTIONS: Final = "scoreboard_ws_connections"
_STREAMS: Final = "scoreboard_event_streams"
_REFUSED: Final = {
    "scoreboard_score_updates_total": (
        "update",
        "outcome",
        frozenset({"applied", "replayed", "held"}),
    ),
    "scoreboard_auth_failures_total": ("token", "reason", frozenset[str]()),
    "scoreboard_calls_refused_total": ("Redis", "reason", frozenset[str]()),
    "scoreboard_ws_handshakes_total": ("viewer", "result", frozenset({"accepted"})),
}
"""Counters of refusals: what is refused, the label of the reason, and values that are none."""

_USED: Final = {WORKER_UP, BUILD, _CONNECTIONS, _STREAMS, *_REFUSED}


class Key(Struct, frozen=True):
    """A metric and its labels."""

    name: str
    labels: tuple[tuple[str, str], ...]


Samples = dict[Key, float]


def service_urls(settings: Settings) -> list[tuple[str, str]]:
    """Return the services and their metrics addresses; all workers of a service share one."""
    if settings.services:
        return [(name, url.rstrip("/")) for name, _, url in
                (one.partition("=") for one in settings.services)]  # fmt: skip
    host = connect_host(settings.metrics_host)
    ports = [
        ("api", settings.api_metrics_port),
        ("streamer", settings.ws_metrics_port),
        ("flusher", settings.flusher_metrics_port),
    ]
    return [(name, f"http://{netloc(host, port)}") for name, port in ports if port]


async def fetch(
    client: "httpx.AsyncClient", url: str, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Return the status and the body, of a bounded size.

    Raises httpx.HTTPError, Unavailable.
    """
    body = bytearray()
    async with client.stream("GET", url, headers=headers) as response:
        async for part in response.aiter_bytes():
            body += part
            if len(body) > BODY_BYTES_MAX:
                raise Unavailable(f"the response is larger than {BODY_BYTES_MAX} bytes")
    return response.status_code, bytes(body)


def parse_samples(text: bytes) -> Samples:
    """Return the samples that are used here, summed over equal labels.

    Raises ValueError.
    """
    lines = text.decode(errors="replace").splitlines()
    # Most lines are buckets of histograms.
    used = [line for line in lines if line.partition("{")[0].partition(" ")[0] in _USED]
    samples: Samples = defaultdict(float)
    for family in text_string_to_metric_families("\n".join([*used, ""])):
        for sample in family.samples:
            if not math.isfinite(sample.value):
                raise ValueError(f"{sample.name} is {sample.value}")
            samples[Key(sample.name, tuple(sorted(sample.labels.items())))] += sample.value
    return dict(samples)


def builds(samples: Iterable[Key]) -> Iterator[dict[str, str]]:
    """Return the labels that name service and version."""
    for key in samples:
        labels = dict(key.labels)
        if key.name == BUILD and {"service", "version"} <= labels.keys():
            yield labels


def viewers_of(samples: Samples) -> int:
    """Return how many WebSockets and event streams are open."""
    return int(
        sum(
            value
            for key, value in samples.items()
            if key.name == _STREAMS
            or (key.name == _CONNECTIONS and dict(key.labels).get("state") == "open")
        )
    )


def refusals_of(samples: Samples) -> dict[str, float]:
    """Return the refusals since the process started, by what was refused and why."""
    totals: dict[str, float] = defaultdict(float)
    for key, total in samples.items():
        source, label, accepted = _REFUSED.get(key.name, ("", "", frozenset[str]()))
        reason = dict(key.labels).get(label, "")
        if reason and reason not in accepted:
            totals[f"{source} {reason}"] += total
    return dict(totals)
