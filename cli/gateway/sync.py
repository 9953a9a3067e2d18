"""Keeps the gateway's keys those of the issuer: fetches the set, renders, hands it to Kong.

Called by cli.commands.kong; runs beside each Kong. What stays true: a set without a usable key
changes nothing; a configuration that Kong refused never replaces the file that Kong starts with,
and a file that is no rendered configuration is never replaced; the file is the only state, so a
restart forgets nothing; no file, key set or answer ends the loop.
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
"""Kong answers after the new configuration is built; its own limit for that is 60 s by default."""

CONNECT_TIMEOUT_S: Final = 2.0
REASON_LENGTH_MAX: Final = 500
RETRY_MOST_S: Final = 30.0

TURNS: Final = counter("kong_sync_turns_total", "Turns of the key synchronisation", "result")
LAST_SUCCESS: Final = gauge(
    "kong_sync_last_success_timestamp_seconds", "When every Kong last held the issuer's keys"
)
KEYS: Final = gauge("kong_sync_keys", "Keys the gateway holds", "state")

_log = get_logger(__name__)


class HttpResponse(StrEnum):
    """What a Kong made of a configuration, or why it was not asked."""

    LOADED = "loaded"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    """400: invalid; it goes on with the one before."""
    FULL = "full"
    """413: it does not fit into Kong's store; it goes on with the one before."""
    BUSY = "busy"
    """429: another load is under way."""
    AWAY = "away"
    """No answer, or 5xx: it may come yet."""
    NO_KEYS = "no_keys"
    """The issuer's key set could not be used; the last good one stays."""
    NO_FILE = "no_file"
    """The file that Kong starts with cannot be read or written, or is no rendered configuration."""

    @property
    def is_good(self) -> bool:
        """Tell whether Kong holds what it was given."""
        return self in {HttpResponse.LOADED, HttpResponse.UNCHANGED}

    @property
    def is_rejection(self) -> bool:
        """Tell whether Kong would not start with this configuration either."""
        return self in {HttpResponse.REFUSED, HttpResponse.FULL}


_ANSWERS: Final = {
    201: HttpResponse.LOADED,
    200: HttpResponse.LOADED,
    304: HttpResponse.UNCHANGED,
    400: HttpResponse.REFUSED,
    413: HttpResponse.FULL,
    429: HttpResponse.BUSY,
}
_WORST_FIRST: Final = (
    HttpResponse.NO_FILE,
    HttpResponse.REFUSED,
    HttpResponse.FULL,
    HttpResponse.AWAY,
    HttpResponse.BUSY,
    HttpResponse.NO_KEYS,
    HttpResponse.LOADED,
    HttpResponse.UNCHANGED,
)


class SyncOptions(Struct, frozen=True, kw_only=True):
    """How to synchronise. ``grace_s`` is how long a vanished key stays."""

    output: Path
    template: str
    gateway: GatewayOptions
    admin_urls: tuple[str, ...] = (ADMIN_URL,)
    interval_s: float = INTERVAL_S
    revoked: frozenset[str] = frozenset()


class KongSync:
    """One loop: read the key set, render, hand over. ``health`` tells how it fares."""

    def __init__(
        self, options: SyncOptions, source: Source, now: Callable[[], float] = time.time
    ) -> None:
        self._options = options
        self._source = source
        self._now = now
        self._began_at_s = 0.0
        self._succeeded_at_s: float | None = None
        self._last: HttpResponse | None = None
        self._faults: tuple[str, ...] = ()

    async def serve(self, stop: StopEvent) -> None:
        """Synchronise until ``stop``; sooner than the interval after a failure."""
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

    async def turn(self, client: httpx.AsyncClient) -> HttpResponse:
        """Do it once; give the worst answer of the nodes."""
        self._began_at_s = self._now()
        answer = await self._turn(client)
        TURNS.labels(answer.value).inc()
        if answer.is_good:
            self._succeeded_at_s = self._now()
            LAST_SUCCESS.set(self._succeeded_at_s)
        if answer is not self._last:
            log = _log.info if answer.is_good else _log.warning
            log("gateway_synchronised" if answer.is_good else "gateway_behind", result=answer.value)
        self._last = answer
        return answer

    async def _turn(self, client: httpx.AsyncClient) -> HttpResponse:
        try:
            before = await asyncio.to_thread(read_current_rows, self._options.output)
        except OperatorMistake as error:
            # Somebody else's file is not replaced, and nothing is handed over that is not kept.
            _log.error("configuration_unusable", reason=str(error))
            return HttpResponse.NO_FILE
        try:
            rows = self._rows_of(await self._source.read())
            is_fresh = True
        except (OSError, ValueError) as error:
            # What stands in the file goes on; its vanished keys must not live for ever either.
            _log.warning("key_set_kept", reason=str(error))
            if not before:
                return HttpResponse.NO_KEYS
            rows = tuple(row for row in before if row.retired_at_s is None)
            is_fresh = False
        try:
            rows = self._merge(before, rows)
        except ValueError as error:
            _log.error("keys_withheld", reason=str(error))
            return HttpResponse.NO_KEYS
        text = render(self._options.template, rows, self._options.gateway)
        answer = await self._hand_over(client, text)
        if not answer.is_rejection:
            if not await self._write(text, len(rows)):
                return HttpResponse.NO_FILE
            retired = sum(row.retired_at_s is not None for row in rows)
            KEYS.labels("current").set(len(rows) - retired)
            KEYS.labels("retired").set(retired)
        return answer if is_fresh or not answer.is_good else HttpResponse.NO_KEYS

    def _rows_of(self, document: bytes) -> tuple[KeyRow, ...]:
        found = read_key_set(document)
        if found.faults != self._faults:
            self._faults = found.faults
            _log.warning("keys_ignored", faults=list(found.faults))
        return rows_of(found.keys)

    async def _write(self, text: str, key_count: int) -> bool:
        """Put the text where Kong starts from; tell whether that went well."""
        try:
            if await asyncio.to_thread(write_atomically, self._options.output, text):
                _log.info("configuration_written", keys=key_count)
        except OSError as error:
            _log.error("configuration_not_written", reason=error.strerror or type(error).__name__)
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

    async def _hand_over(self, client: httpx.AsyncClient, text: str) -> HttpResponse:
        answers = [await self._post(client, url, text) for url in self._options.admin_urls]
        return next(answer for answer in _WORST_FIRST if answer in answers)

    async def _post(self, client: httpx.AsyncClient, url: str, text: str) -> HttpResponse:
        try:
            # As text: a JSON object with _format_version would be loaded anew every time.
            response = await client.post(
                f"{url.rstrip('/')}/config",
                params={"check_hash": "1"},
                json={"config": text},
            )
        except httpx.HTTPError as error:
            _log.warning("kong_away", url=url, reason=type(error).__name__)
            return HttpResponse.AWAY
        answer = _ANSWERS.get(response.status_code, HttpResponse.AWAY)
        if answer.is_rejection:
            reason = response.text[:REASON_LENGTH_MAX]
            _log.error("configuration_refused", url=url, result=answer.value, reason=reason)
        elif not answer.is_good:
            _log.warning("kong_not_ready", url=url, status=response.status_code)
        return answer

    def health(self) -> tuple[bool, bool, dict[str, object]]:
        """Tell whether the loop turns, whether Kong holds the issuer's keys, and the facts."""
        now_s = self._now()
        # A turn is bounded by its time-outs, so a loop that began none for this long hangs.
        patience_s = 2 * self._options.interval_s + LOAD_TIMEOUT_S * len(self._options.admin_urls)
        is_live = now_s - self._began_at_s < patience_s
        age_s = None if self._succeeded_at_s is None else now_s - self._succeeded_at_s
        is_ready = age_s is not None and age_s < patience_s
        return (
            is_live,
            is_ready,
            {"status": "ready" if is_ready else "not ready", "last": self._last, "age_s": age_s},
        )


def read_current_rows(path: Path) -> tuple[KeyRow, ...]:
    """Return the keys of the file that will be replaced.

    Raises OperatorMistake where something else stands there.
    """
    if not os.path.lexists(path):
        return ()
    if path.exists() and not path.is_file():
        raise OperatorMistake(f"{path} is not a regular file, so it cannot be replaced")
    return rows_in(read_text(path))
