"""Synchronise the gateway's keys with the issuer's: fetch the key set, render, load it into Kong.

The synchronisation runs beside each Kong.

Invariants: a key set without a usable key changes nothing; a configuration that Kong rejected never
replaces the file that Kong starts with, and a file that is not a rendered configuration is never
replaced; the file is the only state, so a restart loses nothing; no file, key set or response ends
the loop; a password is in what Kong is sent and in the password file, and nowhere else.
"""

import asyncio
import os
import re
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import httpx
import msgspec
from msgspec import Struct

from cli.gateway.config import (
    GatewayOptions,
    is_reference,
    render,
    write_atomically,
    write_password,
)
from cli.gateway.keys import KeyRow, merge_rows, rows_in, rows_of
from cli.gateway.kong_yaml import read_text
from scoreboard.errors import OperatorMistake, SecretsUnavailable
from scoreboard.runtime.audit import write_audit
from scoreboard.runtime.lifecycle import StopEvent, backoff_s, jitter
from scoreboard.runtime.settings import Secret
from scoreboard.runtime.telemetry import Children, counter, gauge, get_logger
from scoreboard.security.credentials import SecretStore
from scoreboard.security.key_set import Source, read_key_set
from scoreboard.security.secret_backends import Credentials

INTERVAL_S: Final = 300.0
ADMIN_URL: Final = "http://127.0.0.1:8001"
LOAD_TIMEOUT_S: Final = 30.0
"""Kong responds after it has built the configuration, for which its default limit is 60 s."""

TURN_TIMEOUT_S: Final = 3 * LOAD_TIMEOUT_S
"""Time for the key set and the files, and for each Kong."""

CONNECT_TIMEOUT_S: Final = 2.0
REASON_LENGTH_MAX: Final = 500
_UNQUOTED: Final = re.compile(r"[A-Za-z0-9_.-]+")
"""A password that Kong writes in the same way in JSON, YAML and Lua."""

RETRY_MOST_S: Final = 30.0

LAST_SUCCESS: Final = gauge(
    "kong_sync_last_success_timestamp_seconds",
    "When every Kong last held the issuer's keys",
    normal="at most the interval of the synchronisation ago (300 s); 0 before the first success",
)
KEYS: Final = Children(
    gauge(
        "kong_sync_keys",
        "Keys the gateway holds",
        "state",
        unit="keys",
        normal="current: those of the issuer; retired: 0, more for some hours after a rotation",
    )
)

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
    """No response, or 5xx."""
    NO_KEYS = "no_keys"
    """The issuer's key set is unusable. The previous keys are kept."""
    NO_FILE = "no_file"
    """A file cannot be read or written, or is not a rendered configuration."""
    NO_SECRET = "no_secret"  # noqa: S105 (a result)
    """The login to the counters was never read, or cannot be used. Kong keeps the previous one."""

    @property
    def is_good(self) -> bool:
        """Whether Kong has loaded the configuration."""
        return self in {LoadResult.LOADED, LoadResult.UNCHANGED}

    @property
    def is_rejection(self) -> bool:
        """Whether Kong would also fail to start with this configuration."""
        return self in {LoadResult.REFUSED, LoadResult.FULL}


TURNS: Final = Children(
    counter(
        "kong_sync_turns_total",
        "Iterations of the key synchronisation by result",
        "result",
        unit="iterations",
        normal="unchanged, and loaded after a change of the keys; others: 0",
    ),
    *(result.value for result in LoadResult),
)

_RESULTS: Final = {
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
    LoadResult.NO_SECRET,
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
    password_file: Path | None = None


class KongSync:
    """The loop that reads the key set, renders and loads; ``state`` returns its readiness."""

    def __init__(
        self,
        options: SyncOptions,
        source: Source,
        now: Callable[[], float] = time.time,
        *,
        secret: SecretStore | None = None,
    ) -> None:
        """``secret`` is the login to the counters; without one, Kong reads the password itself."""
        self._secret = secret
        self._has_news = asyncio.Event()
        self._sent_version: str | None = None
        if secret is not None:
            secret.on_change(self._wake)
        self._options = options
        self._source = source
        self._now = now
        self._succeeded_at_s: float | None = None
        self._last: LoadResult | None = None
        self._faults: tuple[str, ...] = ()

    async def serve(self, stop: StopEvent) -> None:
        """Synchronise at each interval, after a new password, or sooner after a failure."""
        timeout = httpx.Timeout(LOAD_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            attempt = 0
            while not stop.is_set:
                self._has_news.clear()
                result = await self.turn(client)
                if result.is_good:
                    attempt = 0
                    wait_s = jitter(self._options.interval_s)
                else:
                    most_s = min(RETRY_MOST_S, self._options.interval_s)
                    wait_s = backoff_s(attempt, least_s=1.0, most_s=most_s)
                    attempt += 1
                await self._sleep(stop, wait_s)

    async def _wake(self) -> None:
        self._has_news.set()

    async def _sleep(self, stop: StopEvent, wait_s: float) -> None:
        """Sleep until the time has passed, the secret has changed, or ``stop`` is set."""
        events = [asyncio.create_task(one.wait()) for one in (stop, self._has_news)]
        try:
            await asyncio.wait(events, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()

    async def turn(self, client: httpx.AsyncClient) -> LoadResult:
        """Synchronise once; return the worst result of the nodes.

        A turn has a deadline, so that neither a hanging file system nor a hanging server stops the
        loop.
        """
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S * (1 + len(self._options.admin_urls))):
                result = await self._turn(client)
        except TimeoutError:
            _log.error("synchronisation_timed_out")
            result = LoadResult.AWAY
        TURNS[result.value].inc()
        if result.is_good:
            self._succeeded_at_s = self._now()
            LAST_SUCCESS.set(self._succeeded_at_s)
        if result is not self._last:
            if result.is_good:
                _log.info("gateway_synchronised", result=result.value)
            else:
                _log.warning("gateway_outdated", result=result.value)
        self._last = result
        return result

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
        login = await self._read_login()
        text, result = await self._load(client, rows, login)
        if not result.is_rejection:
            if not await self._write(text, len(rows)) or not await self._write_password(login):
                return LoadResult.NO_FILE
            retired = sum(row.retired_at_s is not None for row in rows)
            KEYS["current"].set(len(rows) - retired)
            KEYS["retired"].set(retired)
        return result if is_fresh or not result.is_good else LoadResult.NO_KEYS

    def _rows_of(self, document: bytes) -> tuple[KeyRow, ...]:
        found = read_key_set(document)
        if found.faults != self._faults:
            self._faults = found.faults
            _log.warning("keys_ignored", reasons=list(found.faults))
        return rows_of(found.keys)

    async def _write(self, text: str, key_count: int) -> bool:
        """Write the file that Kong starts with; return whether that succeeded."""
        try:
            if await asyncio.to_thread(write_atomically, self._options.output, text):
                _log.info("configuration_written", keys=key_count)
                write_audit("gateway configure", keys=key_count)
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

    async def _read_login(self) -> Credentials | None:
        """Return the login to the counters; None if there is none that can be used."""
        if self._secret is None:
            return None
        try:
            login = await self._secret.get()
        except SecretsUnavailable as error:
            _log.warning("counters_secret_unavailable", reason=str(error))
            return None
        if is_reference(login.password):
            reason = "Kong would take the password for a reference; rotate the secret"
            _log.error("counters_secret_unusable", reason=reason, version=login.version)
            return None
        return login

    async def _load(
        self, client: httpx.AsyncClient, rows: Sequence[KeyRow], login: Credentials | None
    ) -> tuple[str, LoadResult]:
        """Load the configuration into every Kong; return its text without a password."""
        template, gateway = self._options.template, self._options.gateway
        if login is not None and login.username:
            gateway = msgspec.structs.replace(gateway, username=login.username)
        text = render(template, rows, gateway)
        if self._secret is not None and login is None:
            # Kong may already have a newer password than the one of its start.
            return text, LoadResult.NO_SECRET
        password = None if login is None else login.password
        body = text if password is None else render(template, rows, gateway, password)
        urls = self._options.admin_urls
        results = [await self._post(client, url, body, password) for url in urls]
        result = next(result for result in _WORST_FIRST if result in results)
        if result.is_good and login is not None and login.version != self._sent_version:
            self._sent_version = login.version
            _log.info("counters_secret_sent", version=login.version)
        return text, result

    async def _write_password(self, login: Credentials | None) -> bool:
        """Write the password that Kong starts with; return whether that succeeded."""
        path = self._options.password_file
        if path is None or login is None:
            return True
        try:
            if await asyncio.to_thread(write_password, path, login.password):
                _log.info("password_file_written", version=login.version)
        except OSError as error:
            _log.error("password_file_write_failed", reason=error.strerror or type(error).__name__)
            return False
        return True

    async def _post(
        self, client: httpx.AsyncClient, url: str, text: str, password: Secret | None
    ) -> LoadResult:
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
        result = _RESULTS.get(response.status_code, LoadResult.AWAY)
        if result.is_rejection:
            reason = _reason_in(response, password)
            _log.error("configuration_rejected", url=url, result=result.value, reason=reason)
        elif not result.is_good:
            _log.warning("kong_load_failed", url=url, status=response.status_code)
        return result

    def state(self) -> tuple[bool, dict[str, object]]:
        """Return whether Kong has recently loaded the issuer's keys, and the facts behind it."""
        recent_s = 2 * self._options.interval_s + LOAD_TIMEOUT_S * len(self._options.admin_urls)
        age_s = None if self._succeeded_at_s is None else self._now() - self._succeeded_at_s
        is_ready = age_s is not None and age_s < recent_s
        facts: dict[str, object] = {"last": self._last, "age_s": age_s}
        if self._secret is not None:
            facts["secret_version"] = self._sent_version
        return is_ready, facts


def _reason_in(response: httpx.Response, password: Secret | None) -> str:
    """Return the reason of a rejection; Kong may quote the configuration in it."""
    text = response.text
    if password is not None:
        if not _UNQUOTED.fullmatch(password.reveal()):
            return "not shown, because it may contain the password in quotes"
        text = text.replace(password.reveal(), "***")
    return text[:REASON_LENGTH_MAX]


def read_current_rows(path: Path) -> tuple[KeyRow, ...]:
    """Return the keys of the file that will be replaced; none if it does not exist.

    Raises OSError, OperatorMistake if it is not a rendered configuration.
    """
    if not os.path.lexists(path):
        return ()
    if path.exists() and not path.is_file():
        raise OperatorMistake(f"{path} is not a regular file and cannot be replaced")
    return rows_in(read_text(path))
