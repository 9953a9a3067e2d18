"""What the processes of the services say about themselves: viewers, refusals, readiness.

They are read from the metrics ports that SCOREBOARD_SERVICES names, as `scoreboard status` does; no
login is needed. A name with several addresses is several processes. Invariants: a reading takes at
most LIMIT_S and never raises; what is not known is null, and not zero.
"""

import asyncio
import socket
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, cast
from urllib.parse import urlsplit

from api.documents.admin_schemas import ProcessHealth
from api.endpoints.scores import AnyRequest
from scoreboard.errors import Unavailable
from scoreboard.health.services import (
    ADMIN,
    builds,
    fetch,
    parse_samples,
    refusals_of,
    service_urls,
    viewers_of,
)
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.sockets import netloc

if TYPE_CHECKING:
    import httpx  # takes a quarter of the import time of a service

Service = Literal["api", "streamer", "flusher"]

LIMIT_S: Final = 1.0
"""Longest time for all processes."""

KEPT_S: Final = 1.0
"""How long a reading serves further requests: several pages cost as much as one."""

PROCESSES_MAX: Final = 100


class Processes:
    """Reads the processes of a system."""

    def __init__(self, settings: Settings) -> None:
        """Read the settings; connect to nothing."""
        # The api for administrators is what answers.
        self._urls = [one for one in service_urls(settings) if one[0] != ADMIN]
        self._client: httpx.AsyncClient | None = None
        self._lock = asyncio.Lock()
        self._found: tuple[ProcessHealth, ...] = ()
        self._read_at_s = -KEPT_S

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def read(self) -> tuple[ProcessHealth, ...]:
        """Return the processes; those that do not answer in time are unknown."""
        async with self._lock:
            if time.monotonic() - self._read_at_s >= KEPT_S:
                self._found = await self._read()
                self._read_at_s = time.monotonic()
            return self._found

    async def _read(self) -> tuple[ProcessHealth, ...]:
        deadline_s = asyncio.get_running_loop().time() + LIMIT_S
        addresses = await asyncio.gather(*(self._resolve(url, deadline_s) for _, url in self._urls))
        found = [
            (service, url, address)
            for (service, url), known in zip(self._urls, addresses, strict=True)
            for address in known
        ][:PROCESSES_MAX]
        return tuple(
            await asyncio.gather(
                *(self._ask(cast("Service", one[0]), *one[1:], deadline_s) for one in found)
            )
        )

    async def _resolve(self, url: str, deadline_s: float) -> list[str]:
        """Return an address for each process behind a URL; the URL itself if there is no other."""
        loop = asyncio.get_running_loop()
        try:
            parts = urlsplit(url)
            port = parts.port or 80
            if parts.scheme == "https" or not parts.hostname:  # a certificate is for the name
                return [url]
            async with asyncio.timeout_at(deadline_s):
                known = await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, ValueError):  # also a port or a name that cannot be
            return [url]
        # A name with addresses of both families would be each process twice.
        family = min(one[0] for one in known)
        hosts = sorted({str(one[4][0]) for one in known if one[0] == family})
        return [parts._replace(netloc=netloc(host, port)).geturl() for host in hosts]

    async def _ask(
        self, service: Service, url: str, address: str, deadline_s: float
    ) -> ProcessHealth:
        import httpx  # noqa: PLC0415

        if self._client is None:
            # Proxies and .netrc of the environment are ignored.
            self._client = httpx.AsyncClient(timeout=LIMIT_S, trust_env=False)
        headers = {"Host": urlsplit(url).netloc}
        where = urlsplit(address).netloc
        try:
            async with asyncio.timeout_at(deadline_s):
                ready, _ = await fetch(self._client, f"{address}/health/ready", headers)
                status, text = await fetch(self._client, f"{address}/metrics", headers)
            samples = parse_samples(text) if status == HTTPStatus.OK else {}
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, Unavailable, ValueError):
            return _unknown(service, where)
        versions = {one["service"]: one["version"] for one in builds(samples)}
        if service not in versions:  # it is something else
            return _unknown(service, where)
        return ProcessHealth(
            service,
            where,
            "ready" if ready == HTTPStatus.OK else "not ready",
            versions[service],
            None if service == "flusher" else viewers_of(samples),
            {name: int(total) for name, total in sorted(refusals_of(samples).items()) if total},
        )


def _unknown(service: Service, address: str) -> ProcessHealth:
    return ProcessHealth(service, address, "unknown", None, None, None)


def processes_of(request: AnyRequest) -> Processes:
    """Return the processes of a request's application."""
    return cast("Processes", request.app.state["processes"])
