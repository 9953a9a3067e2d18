"""Synchronise the gateway's keys with the issuer's: fetch the key set, render, load it into Kong.

The synchronisation runs beside each Kong.

Invariants: a key set without a usable key changes nothing; a configuration that Kong rejected never
replaces the file that Kong starts with, and a file that is not a rendered configuration is never
replaced; the file is the only state, so a restart loses nothing; no file, key set or answer ends
the loop.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import httpx
from msgspec import Struct

from cli.gateway.config import GatewayOptions, render, write_atomically
from cli.gateway.keys import KeyRow, merge_rows, rows_in, rows_of
from cli.gateway.kong_yaml import read_text
from scoreboard.errors import OperatorMistake
from scoreboard.runtime.lifecycle import StopEvent, backoff_s
from scoreboard.runtime.telemetry import counter, gauge, get_logger
from scoreboard.security.key_set import Source, read_key_set

INTERVAL_S: Final = 300.0
ADMIN_URL: Final = "http://127.0.0.1:8001"
LOAD_TIMEOUT_S: Final = 30.0
"""Kong answers after it has built the configuration, for which its default limit is 60 s."""

TURN_TIMEOUT_S: Final = 3 * LOAD_TIMEOUT_S
"""Time for the key set and the files, and for each Kong."""

CONNECT_TIMEOUT_S: Final = 2.0
REASON_LENGTH_MAX: Final = 500
RETRY_MOST_S: Final = 30.0

TURNS: Final = counter(
    "kong_sync_turns_total", "Iterations of the key synchronisation by result", "result"
)
LAST_SUCCESS: Final = gauge(
    "kong_sync_last_success_timestamp_seconds", "When every Kong last held the issuer's keys"
)
KEYS: Final = gauge("kong_sync_keys", "Keys the gateway holds", "state")

_log = get_logger(__name__)


class LoadResult(StrEnum):
    """The result of loading a configuration into Kong, or the reason why it was not loaded."""

    LOADED = "loaded"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    """400: invalid. Kong keeps the previous one."""
    FULL = "full"
    """413: too large for Kong's store. Kong keeps the previous one."""
    BUSY = "busy"
    """429: another load is in progress."""
    AWAY = "away"
    """No answer, or 5xx."""
    NO_KEYS = "no_keys"
    """The issuer's key set is unusable. The previous keys are kept."""
    NO_FILE = "no_file"
    """The file cannot be read or written, or is not a rendered configuration."""

    @property
    def is_good(self) -> bool:
        """Whether Kong has loaded the configuration."""
        return self in {LoadResult.LOADED, LoadResult.UNCHANGED}

    @property
    def is_rejection(self) -> bool:
        """Whether Kong would also fail to start with this configuration."""
        return self in {LoadResult.REFUSED, LoadResult.FULL}


_ANSWERS: Final = {
    201: LoadResult.LOADED,
    200: LoadResult.LOADED,
    304: LoadResult.UNCHANGED,
    400: LoadResult.REFUSED,
    413: LoadResult.FULL,
    429: LoadResult.BUSY,
}
_WORST_FIRST: Final = (
    LoadResult.NO_FILE,
    LoadResult.REFUSED,
    LoadResult.FULL,
    LoadResult.AWAY,
    LoadResult.BUSY,
    LoadResult.NO_KEYS,
    LoadResult.LOADED,
    LoadResult.UNCHANGED,
)


class SyncOptions(Struct, frozen=True, kw_only=True):
    """The options of the synchronisation."""

    output: Path
    template: str
    gateway: GatewayOptions
    admin_urls: tuple[str, ...] = (ADMIN_URL,)
    interval_s: float = INTERVAL_S
    revoked: frozenset[str] = frozenset()


class KongSync:
    """The loop that reads the key set, renders and loads; ``state`` returns its readiness."""

    def __init__(
        self, options: SyncOptions, source: Source, now: Callable[[], float] = time.time
    ) -> None:
        self._options = options
        self._source = source
        self._now = now
        self._succeeded_at_s: float | None = None
        self._last: LoadResult | None = None
        self._faults: tuple[str, ...] = ()

    async def serve(self, stop: StopEvent) -> None:
        """Synchronise at each interval, or sooner after a failure, until ``stop``."""
        timeout = httpx.Timeout(LOAD_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            attempt = 0
            while not stop.is_set:
                answer = await self.turn(client)
                if answer.is_good:
                    attempt = 0
                    wait_s = self._options.interval_s * random.uniform(0.9, 1.1)  # noqa: S311
                else:
                    most_s = min(RETRY_MOST_S, self._options.interval_s)
                    wait_s = backoff_s(attempt, least_s=1.0, most_s=most_s)
                    attempt += 1
                if await stop.sleep(wait_s):
                    return

    async def turn(self, client: httpx.AsyncClient) -> LoadResult:
        """Synchronise once; return the worst result of the nodes.

        A turn has a deadline, so that neither a hanging file system nor a hanging server stops the
        loop.
        """
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S * (1 + len(self._options.admin_urls))):
                answer = await self._turn(client)
        except TimeoutError:
            _log.error("synchronisation_timed_out")
            answer = LoadResult.AWAY
        TURNS.labels(answer.value).inc()
        if answer.is_good:
            self._succeeded_at_s = self._now()
            LAST_SUCCESS.set(self._succeeded_at_s)
        if answer is not self._last:
            if answer.is_good:
                _log.info("gateway_synchronised", result=answer.value)
            else:
                _log.warning("gateway_outdated", result=answer.value)
        self._last = answer
        return answer

    async def _turn(self, client: httpx.AsyncClient) -> LoadResult:
        try:
            before = await asyncio.to_thread(read_current_rows, self._options.output)
        except (OSError, OperatorMistake) as error:
            # A foreign file is not replaced, and nothing is loaded that cannot be saved.
            _log.error("configuration_unusable", reason=str(error))
            return LoadResult.NO_FILE
        try:
            rows = self._rows_of(await self._source.read())
            is_fresh = True
        except (OSError, ValueError) as error:
            # The keys of the file remain, but its retired keys still expire.
            _log.warning("key_set_unusable", reason=str(error))
            if not before:
                return LoadResult.NO_KEYS
            rows = tuple(row for row in before if row.retired_at_s is None)
            is_fresh = False
        try:
            rows = self._merge(before, rows)
        except ValueError as error:
            _log.error("keys_rejected", reason=str(error))
            return LoadResult.NO_KEYS
        text = render(self._options.template, rows, self._options.gateway)
        answer = await self._load(client, text)
        if not answer.is_rejection:
            if not await self._write(text, len(rows)):
                return LoadResult.NO_FILE
            retired = sum(row.retired_at_s is not None for row in rows)
            KEYS.labels("current").set(len(rows) - retired)
            KEYS.labels("retired").set(retired)
        return answer if is_fresh or not answer.is_good else LoadResult.NO_KEYS

    def _rows_of(self, document: bytes) -> tuple[KeyRow, ...]:
        found = read_key_set(document)
        if found.faults != self._faults:
            self._faults = found.faults
            _log.warning("keys_ignored", faults=list(found.faults))
        return rows_of(found.keys)

    async def _write(self, text: str, key_count: int) -> bool:
        """Write the file that Kong starts with; return whether that succeeded."""
        try:
            if await asyncio.to_thread(write_atomically, self._options.output, text):
                _log.info("configuration_written", keys=key_count)
        except OSError as error:
            _log.error("configuration_write_failed", reason=error.strerror or type(error).__name__)
            return False
        return True

    def _merge(self, before: Sequence[KeyRow], rows: Sequence[KeyRow]) -> tuple[KeyRow, ...]:
        return merge_rows(
            before,
            rows,
            now_s=int(self._now()),
            grace_s=self._options.gateway.token_life_s,
            revoked=self._options.revoked,
        )

    async def _load(self, client: httpx.AsyncClient, text: str) -> LoadResult:
        answers = [await self._post(client, url, text) for url in self._options.admin_urls]
        return next(answer for answer in _WORST_FIRST if answer in answers)

    async def _post(self, client: httpx.AsyncClient, url: str, text: str) -> LoadResult:
        try:
            # As text, because Kong would reload a JSON object with _format_version every time.
            response = await client.post(
                f"{url.rstrip('/')}/config",
                params={"check_hash": "1"},
                json={"config": text},
            )
        except httpx.HTTPError as error:
            _log.warning("kong_unreachable", url=url, reason=type(error).__name__)
            return LoadResult.AWAY
        answer = _ANSWERS.get(response.status_code, LoadResult.AWAY)
        if answer.is_rejection:
            reason = response.text[:REASON_LENGTH_MAX]
            _log.error("configuration_rejected", url=url, result=answer.value, reason=reason)
        elif not answer.is_good:
            _log.warning("kong_load_failed", url=url, status=response.status_code)
        return answer

    def state(self) -> tuple[bool, dict[str, object]]:
        """Return whether Kong has recently loaded the issuer's keys, and the facts behind it."""
        recent_s = 2 * self._options.interval_s + LOAD_TIMEOUT_S * len(self._options.admin_urls)
        age_s = None if self._succeeded_at_s is None else self._now() - self._succeeded_at_s
        is_ready = age_s is not None and age_s < recent_s
        return is_ready, {"last": self._last, "age_s": age_s}


def read_current_rows(path: Path) -> tuple[KeyRow, ...]:
    """Return the keys of the file that will be replaced; none if it does not exist.

    Raises OSError, OperatorMistake if it is not a rendered configuration.
    """
    if not os.path.lexists(path):
        return ()
    if path.exists() and not path.is_file():
        raise OperatorMistake(f"{path} is not a regular file and cannot be replaced")
    return rows_in(read_text(path))
