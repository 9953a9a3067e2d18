"""Credentials from AWS Secrets Manager, a file, or the environment.

The Redis client and the PostgreSQL pool ask a ``SecretStore`` at every new connection, so a rotated
secret needs no restart. Each service runs ``refresh_secrets`` in its task group. After a change,
pools are told (``on_change``), and owners of long-lived connections replace those that logged in
with an older value (``is_outdated``).

Invariants: at most one read of a secret is in progress, in a thread; the last value read stays in
use while the secret store is unreachable; versions are logged, values never; no repr and no error
contains a value.
"""

import asyncio
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Literal

from scoreboard.errors import SecretInvalid, SecretsUnavailable, SettingInvalid
from scoreboard.runtime.lifecycle import StopEvent, backoff_s, jitter
from scoreboard.runtime.settings import Settings, variable_name
from scoreboard.runtime.telemetry import Children, counter, gauge, get_logger
from scoreboard.security.secret_backends import Backend, Credentials, make_backend

Owner = Literal["redis", "database"]
"""The server that a secret's credentials are for: a closed set, used as a metric label."""

FETCH_WAIT_S: Final = 5.0
"""Longest wait for a first or a replacement value; the read itself continues after it."""

STALE_WAIT_S: Final = 1.0
"""Longest wait for a newer value if an old one is available."""

INVALIDATE_EVERY_S: Final = 5.0
"""Minimum time between reads caused by refused logins: a wrong secret must not flood AWS."""

LOG_EVERY_S: Final = 300.0
"""Minimum time between log lines of one failure that continues."""

LISTENER_TIMEOUT_S: Final = 5.0
CHECK_S: Final = 1.0
"""Interval of checking whether a read is due or a change has to be reported."""

_NO_ANSWER: Final = "the store of secrets has not answered yet"
_REFRESHES: Final = Children(
    counter(
        "secret_refresh_total",
        "Reads of a secret by outcome",
        "owner",
        "outcome",
        unit="reads",
        normal="same; changed once for each rotation; failed and invalid: 0",
    )
)
_OUTCOMES: Final = ("same", "changed", "failed", "invalid")
_AGE: Final = Children(
    gauge(
        "secret_age_seconds",
        "Time since a secret was last read successfully",
        "owner",
        normal="below SCOREBOARD_SECRETS_REFRESH_S; a file: below 10",
    )
)
_VERSION: Final = gauge(
    "secret_version_info",
    "Always 1; the version of a secret in use",
    "owner",
    "version",
    unit="none",
    normal="1; the same version in all processes, some seconds after a rotation",
)
_ROTATION_AGE: Final = Children(
    gauge(
        "secret_rotation_age_seconds",
        "Time since the version of a secret in use was created; absent if it is not known",
        "owner",
        normal="below the interval of rotations",
    )
)
_log = get_logger(__name__)


class SecretStore:
    """One secret, cached. Call ``get`` at every login, ``renew`` after a refused login."""

    def __init__(
        self, owner: Owner, backend: Backend, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._owner: Owner = owner
        self._backend = backend
        self._clock = clock
        self._held: Credentials | None = None
        self._flight: asyncio.Future[Credentials] | None = None
        self._listeners: list[weakref.WeakMethod[Callable[[], Awaitable[None]]]] = []
        self._has_news = False
        self._failures = 0
        self._reason, self._is_invalid = _NO_ANSWER, False
        self._logged_at_s = float("-inf")
        self._read_at_s = self._due_at_s = self._started_at_s = clock()
        self._invalidated_at_s = float("-inf")
        for outcome in _OUTCOMES:
            _REFRESHES[owner, outcome].inc(0)

    def __repr__(self) -> str:
        version = self._held.version if self._held else None
        return f"SecretStore(owner={self._owner!r}, version={version!r})"

    async def get(self) -> Credentials:
        """Return the credentials; the cached ones if a newer value does not arrive soon.

        Raises SecretsUnavailable if there are none.
        """
        return await self._get(STALE_WAIT_S)

    async def renew(self, refused: Credentials) -> Credentials | None:
        """Return credentials other than the refused ones; None if there are none."""
        if self._held == refused:
            self.invalidate()
        found = await self._get(FETCH_WAIT_S)
        return None if found == refused else found

    def invalidate(self) -> None:
        """Make the next ``get`` read the secret again; ignored within 5 s of the last call."""
        if self._clock() - self._invalidated_at_s >= INVALIDATE_EVERY_S:
            self._invalidated_at_s = self._due_at_s = self._clock()

    def is_outdated(self, used: Credentials) -> bool:
        """Return whether the secret has changed since a login used it."""
        return self._held is not None and self._held != used

    @property
    def read_age_s(self) -> float | None:
        """The time since the secret was last read successfully; None if it never was."""
        return None if self._held is None else self._clock() - self._read_at_s

    def on_change(self, listener: Callable[[], Awaitable[None]]) -> None:
        """Call a bound method after every change; it is referenced weakly."""
        self._listeners = [held for held in self._listeners if held() is not None]
        self._listeners.append(weakref.WeakMethod(listener))

    async def check(self) -> None:
        """Start a read if one is due, and report a change; called each second."""
        if self._is_due:
            self._start()
        if not self._has_news:
            return
        self._has_news = False
        for listener in [held() for held in self._listeners]:
            if listener is not None:
                try:
                    async with asyncio.timeout(LISTENER_TIMEOUT_S):
                        await listener()
                except TimeoutError:
                    _log.warning("secret_listener_timed_out", owner=self._owner)

    @property
    def _is_due(self) -> bool:
        return self._clock() >= self._due_at_s

    async def _get(self, timeout_s: float) -> Credentials:
        if self._is_due or self._flight is not None:
            # The read continues for other callers if this one is cancelled or times out.
            limit_s = FETCH_WAIT_S if self._held is None else timeout_s
            await asyncio.wait([self._start()], timeout=limit_s)
        if self._held is None:
            kind = SecretInvalid if self._is_invalid else SecretsUnavailable
            raise kind(f"The {self._owner} credentials: {self._reason}")
        return self._held

    def _start(self) -> asyncio.Future[Credentials]:
        """Start a read, or return the one in progress."""
        loop = asyncio.get_running_loop()
        if self._flight is None or self._flight.get_loop() is not loop:
            self._flight = loop.create_future()
            self._flight.add_done_callback(self._land)
            self._started_at_s = self._clock()
            # A daemon thread: a process waits for the loop's executor at shutdown, and an
            # unresponsive AWS would delay the shutdown by all its attempts.
            reader = threading.Thread(
                target=_read_into, args=(self._backend, self._flight, loop), daemon=True
            )
            reader.start()
        return self._flight

    def _land(self, flight: "asyncio.Future[Credentials]") -> None:
        if self._flight is flight:
            self._flight = None
        if flight.cancelled():
            return
        error = flight.exception()
        if error is not None:
            self._note_failure(error)
            return
        found, before = flight.result(), self._held
        self._held, self._read_at_s = found, self._clock()
        is_newer = self._started_at_s >= self._invalidated_at_s
        ttl_s = jitter(self._backend.ttl_s) if is_newer else 0.0
        self._due_at_s = self._clock() + ttl_s
        _REFRESHES[self._owner, "same" if found == before else "changed"].inc()
        if self._failures:
            _log.info("secret_refresh_recovered", owner=self._owner, failures=self._failures)
            self._failures = 0
            self._logged_at_s = float("-inf")
        if found != before:
            _log.info("secret_changed", owner=self._owner, version=found.version)
            if before is not None:
                with suppress(KeyError):
                    _VERSION.remove(self._owner, before.version)
            self._export(found)
            self._has_news = before is not None

    def _export(self, held: Credentials) -> None:
        """Export the version in use, its age and the age of the last read."""
        _VERSION.labels(self._owner, held.version).set(1)
        _AGE[self._owner].set_function(lambda: self._clock() - self._read_at_s)
        if held.created_at_s:
            _ROTATION_AGE[self._owner].set_function(
                lambda: max(0.0, time.time() - held.created_at_s)
            )

    def _note_failure(self, error: BaseException) -> None:
        """Count a failed read, and log it unless the same failure was logged recently."""
        is_invalid = isinstance(error, SecretInvalid)
        reason = (
            error.detail if isinstance(error, SecretsUnavailable) else f"{type(error).__name__}"
        )
        self._due_at_s = self._clock() + backoff_s(self._failures, least_s=1.0, most_s=30.0)
        self._failures += 1
        _REFRESHES[self._owner, "invalid" if is_invalid else "failed"].inc()
        if reason != self._reason or self._clock() - self._logged_at_s >= LOG_EVERY_S:
            self._logged_at_s = self._clock()
            version = self._held.version if self._held else None
            if is_invalid:
                _log.warning(
                    "secret_invalid",
                    owner=self._owner,
                    reason=reason,
                    version=version,
                    failures=self._failures,
                )
            else:
                _log.warning(
                    "secret_refresh_failed",
                    owner=self._owner,
                    reason=reason,
                    version=version,
                    failures=self._failures,
                )
        self._reason, self._is_invalid = reason, is_invalid


_stores: Final[dict[tuple[str, Owner, str, float], SecretStore]] = {}
"""The stores of this process, one per secret; they outlive the pools that use them."""


def secret_store(settings: Settings, owner: Owner) -> SecretStore | None:
    """Return the store of a server's credentials; None if its URL contains them.

    Raises SettingInvalid if credentials come from a store and the secret is not named.
    """
    field = "redis_secret" if owner == "redis" else "database_secret"
    name: str = getattr(settings, field)
    if not name:
        if settings.secrets == "env":
            return None
        raise SettingInvalid(
            f"{variable_name(field)} is not set, and SCOREBOARD_SECRETS is {settings.secrets}"
        )
    key = settings.secrets, owner, name, settings.secrets_refresh_s
    store = _stores.get(key)
    if store is None:
        store = _stores[key] = SecretStore(
            owner, make_backend(settings.secrets, name, settings.secrets_refresh_s)
        )
    return store


def read_ages_s() -> dict[Owner, float]:
    """Return the time since each secret of this process was last read successfully."""
    ages_s: dict[Owner, float] = {}
    for (_, owner, _, _), store in _stores.items():
        if store.read_age_s is not None:
            ages_s[owner] = store.read_age_s
    return ages_s


def forget_frames(error: BaseException) -> None:
    """Remove the frames of an error and of its causes, because those of drivers hold passwords."""
    causes: list[BaseException | None] = [error]
    seen: set[int] = set()
    while causes:
        one = causes.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            causes += [one.__cause__, one.__context__]


async def require_secrets(settings: Settings, *owners: Owner) -> None:
    """Read the secrets that a starting process needs.

    Raises SecretsUnavailable, SecretInvalid, or SettingInvalid if one is not named.
    """
    for store in [secret_store(settings, owner) for owner in owners]:
        if store is not None:
            await store.get()


async def refresh_secrets(stop: StopEvent | None = None) -> None:
    """Refresh the secrets of this process until ``stop`` is set or the task is cancelled."""
    while True:
        for store in list(_stores.values()):
            await store.check()
        if stop is None:
            await asyncio.sleep(CHECK_S)
        elif await stop.sleep(CHECK_S):
            return


def _read_into(
    backend: Backend, flight: "asyncio.Future[Credentials]", loop: asyncio.AbstractEventLoop
) -> None:
    """Read a secret and pass the result to the loop; runs in a thread."""
    try:
        found, failure = backend.read(), None
    except Exception as error:  # noqa: BLE001 (entry point of a thread)
        found, failure = None, error

    def settle() -> None:
        if flight.done():
            return
        if found is not None:
            flight.set_result(found)
        elif failure is not None:
            flight.set_exception(failure)

    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(settle)
