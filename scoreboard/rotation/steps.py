"""The steps of a rotation: create, set, test, finish; and retire after a grace.

Invariants: every step can be repeated; a rotation that was interrupted anywhere continues with the
version that it had created; at every moment the server accepts the current version, and the
previous one until ``retire``; a version that fails its test never becomes current. Ids of versions
are logged, documents never.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from scoreboard.errors import OperatorMistake, RotationFailed
from scoreboard.rotation.versions import Stage, Stages, Versions
from scoreboard.runtime.audit import write_audit
from scoreboard.runtime.settings import Secret
from scoreboard.runtime.telemetry import get_logger

_log = get_logger(__name__)


class Target(Protocol):
    """The server that accepts a secret, and how it is told of a version."""

    def make_document(self, current: Secret) -> Secret:
        """Return the document of the next version.

        Raises OperatorMistake if the current document cannot be rotated.
        """
        ...

    async def set(self, current: Secret, pending: Secret) -> None:
        """Make the server accept the pending version beside the current one.

        Raises OperatorMistake, Unavailable.
        """
        ...

    async def test(self, pending: Secret) -> None:
        """Use the pending version as a service would.

        Raises RotationFailed if the server refuses it, Unavailable.
        """
        ...

    async def retire(self, current: Secret, pending: Secret | None, previous: Secret) -> None:
        """Make the server refuse the previous version. Must not affect the other two.

        Raises OperatorMistake, Unavailable.
        """
        ...

    async def disconnect(self, previous: Secret) -> int:
        """End the sessions that logged in with the previous version; return their number.

        Raises Unavailable.
        """
        ...


class Outcome(StrEnum):
    """What ``retire`` did."""

    RETIRED = "retired"
    NOTHING = "nothing to retire"
    TOO_EARLY = "too early"


class Rotation:
    """The rotation of one secret at one server."""

    def __init__(
        self,
        versions: Versions,
        target: Target,
        *,
        grace_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``grace_s`` is how long services may still use the previous version after ``finish``."""
        self._versions = versions
        self._target = target
        self._grace_s = grace_s
        self._clock = clock

    @property
    def name(self) -> str:
        """The name of the secret."""
        return self._versions.name

    async def rotate(
        self, report: Callable[[str], None] = lambda _: None, *, disconnect: bool = False
    ) -> str:
        """Run the four steps, or those that an interrupted rotation left; return the version's id.

        ``report`` is called with the name of each step before it runs. Within the grace after a
        rotation only ``retire`` is left, so the current version is returned. ``disconnect`` is that
        of ``create``. Raises as the steps do.
        """
        with self._versions.lock():
            found = await self.describe()
            if found.current and not found.pending and self.grace_left_s(found) > 0:
                return found.current
            report("create")
            token = await self._create(found.pending, disconnect=disconnect)
            report("set")
            await self._set(token)
            report("test")
            await self._test(token)
            report("finish")
            await self._finish(token)
            return token

    async def create(self, token: str | None = None, *, disconnect: bool = False) -> str:
        """Create the pending version unless it exists; return its id.

        ``token`` is the id that Secrets Manager has chosen. An earlier version that is not retired
        yet is retired first, with ``disconnect`` as in ``retire``. Raises OperatorMistake within
        its grace, SecretsUnavailable.
        """
        with self._versions.lock():
            return await self._create(token, disconnect=disconnect)

    async def set(self, token: str) -> None:
        """Make the server accept the pending version."""
        with self._versions.lock():
            await self._set(token)

    async def test(self, token: str) -> None:
        """Use the pending version.

        Raises RotationFailed if the server refuses it.
        """
        with self._versions.lock():
            await self._test(token)

    async def finish(self, token: str) -> None:
        """Test the pending version once more and make it the current one."""
        with self._versions.lock():
            await self._test(token)
            await self._finish(token)

    async def retire(self, *, disconnect: bool = False) -> Outcome:
        """Make the server refuse the previous version once its grace has passed.

        ``disconnect`` then ends the sessions that use it.
        """
        with self._versions.lock():
            return await self._retire(await self.describe(), disconnect=disconnect)

    async def discard_pending(self) -> None:
        """Discard the pending version, so that the next rotation creates another."""
        with self._versions.lock():
            await asyncio.to_thread(self._versions.discard, Stage.PENDING)
            write_audit("secret discard", name=self.name)

    async def describe(self) -> Stages:
        """Return the ids of the versions."""
        return await asyncio.to_thread(self._versions.describe)

    def grace_left_s(self, found: Stages) -> float:
        """Return the seconds until the previous version may be retired; 0 if it may be now."""
        if found.previous is None or self._grace_s <= 0:
            return 0.0
        return max(0.0, found.changed_at_s + self._grace_s - self._clock())

    async def _create(self, token: str | None, *, disconnect: bool) -> str:
        found = await self.describe()
        if token is not None and found.current == token:
            return token
        if found.pending is not None and token in {None, found.pending}:
            if await self._read(Stage.PENDING) is not None:
                return found.pending
            token = found.pending  # Secrets Manager creates it without a value
        if await self._retire(found, disconnect=disconnect) is Outcome.TOO_EARLY:
            raise OperatorMistake(
                f"Services may still use the previous version of {self.name}; try again in "
                f"{self.grace_left_s(found):.0f} s"
            )
        document = self._target.make_document(await self._require(Stage.CURRENT))
        chosen = await asyncio.to_thread(
            self._versions.put_pending, document, token or str(uuid.uuid4())
        )
        _log.info("secret_version_created", name=self.name, version=chosen)
        return chosen

    async def _set(self, token: str) -> None:
        if await self._is_finished(token):
            return
        current, pending = await self._require(Stage.CURRENT), await self._require(Stage.PENDING)
        await self._target.set(current, pending)
        _log.info("secret_version_set", name=self.name, version=token)
        write_audit("secret set", name=self.name, version=token)

    async def _test(self, token: str) -> None:
        if await self._is_finished(token):
            return
        try:
            await self._target.test(await self._require(Stage.PENDING))
        except RotationFailed as error:
            write_audit(
                "secret rotate",
                "failure",
                name=self.name,
                version=token,
                code=error.code,
                reason=error.detail,
            )
            raise
        _log.info("secret_version_tested", name=self.name, version=token)

    async def _finish(self, token: str) -> None:
        if await self._is_finished(token):
            return
        await asyncio.to_thread(self._versions.promote, token)
        _log.info("secret_rotated", name=self.name, version=token)
        write_audit("secret rotate", name=self.name, version=token)

    async def _retire(self, found: Stages, *, disconnect: bool) -> Outcome:
        if found.previous is None:
            return Outcome.NOTHING
        if self.grace_left_s(found) > 0:
            return Outcome.TOO_EARLY
        current = await self._require(Stage.CURRENT)
        pending = await self._read(Stage.PENDING) if found.pending is not None else None
        previous = await self._require(Stage.PREVIOUS)
        again = await self.describe()
        if (again.current, again.previous) != (found.current, found.previous):
            return Outcome.TOO_EARLY  # another rotation finished while they were read
        await self._target.retire(current, pending, previous)
        if disconnect:
            ended = await self._target.disconnect(previous)
            _log.info("sessions_ended", name=self.name, sessions=ended)
            write_audit("session end", name=self.name, sessions=ended)
        await asyncio.to_thread(self._versions.discard, Stage.PREVIOUS)
        _log.info("secret_version_retired", name=self.name, version=found.previous)
        write_audit("secret retire", name=self.name, version=found.previous)
        return Outcome.RETIRED

    async def _is_finished(self, token: str) -> bool:
        found = await self.describe()
        if found.current == token:
            return True
        if found.pending != token:
            raise OperatorMistake(f"{token} is not the pending version of {self.name}")
        return False

    async def _read(self, stage: Stage) -> Secret | None:
        return await asyncio.to_thread(self._versions.read, stage)

    async def _require(self, stage: Stage) -> Secret:
        document = await self._read(stage)
        if document is None:
            raise OperatorMistake(f"{self.name} has no version {stage.value}")
        return document


def refused(reason: str) -> RotationFailed:
    """Return the error of a failed test."""
    return RotationFailed(
        f"{reason}. The current version stays in use; run the command again when that is fixed, or "
        "with --discard to create another version"
    )
