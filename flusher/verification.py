"""Verifies the boards, and reads when the last backup was taken.

The process that leads partition 0 of a board verifies the whole board: a sample by
`scoreboard.recovery.verify` after each takeover, reconnection or recovery, and all users
continuously, some of them each second (`scoreboard.recovery.rolling_check`). A takeover because an
idle board got work is not followed by a sample. Boards that are not served are verified, too, by
one process at a time (`flusher.idle_boards`). All of it takes a bounded share of the time, and the
boards take turns.

Invariants: it has its own connections, so it never delays a read of the stream; commits are blocked
only for the comparison of a few users, and not while the flusher is behind; every wait is limited;
an error, also an unexpected one, is counted and logged once, never ends the flusher, and the next
turn tries again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import redis.asyncio as aioredis

from flusher import metrics
from flusher.idle_boards import POSTPONED, IdleBoards
from flusher.partition import PartitionFlusher
from flusher.status import Condition
from scoreboard.errors import DatabaseUnavailable, ScoreboardError
from scoreboard.health import checks
from scoreboard.health.checks import Check
from scoreboard.ledger.backups import LastBackup, select_last_backup
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import Connection, connect
from scoreboard.recovery.reseed import report_nothing
from scoreboard.recovery.rolling_check import LAG_MAX, RollingCheck
from scoreboard.recovery.verify import Finding, verify
from scoreboard.runtime.lifecycle import StopEvent, backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.client import make_client
from scoreboard.store.durability import Requirements

TURN_S: Final = 1.0
"""Shortest rest between two turns; after a longer turn the rest is as long as that."""

SHARE_S: Final = 0.25
"""Time of a turn after which the remaining boards wait for the next one."""

STEP_LIMIT_S: Final = 5.0
"""Longest step; after it the connection is replaced, which ends its locks."""

SAMPLE: Final = 200
"""Users of a verification after a takeover or reconnection."""

SAMPLE_LIMIT_S: Final = 60.0
SAMPLE_EVERY_S: Final = 60.0
"""Minimum time between two such verifications of a board."""

BACKUP_EVERY_S: Final = 30.0
BACKOFF_MAX_S: Final = 30.0
SHOWN: Final = 5
"""Maximum number of users or findings in a log line."""

SESSION: Final = {
    "lock_timeout": "1s",
    "statement_timeout": "10s",
    # A suspended process must not block the commits of the process that took over.
    "idle_in_transaction_session_timeout": "2s",
    "enable_seqscan": "off",
    "jit": "off",
}

_log = get_logger(__name__)


class _Board:
    """The verification of one board."""

    def __init__(self, flusher: PartitionFlusher, check: RollingCheck | None) -> None:
        """``check`` has found that the board differs; None if it is not known to."""
        self.flusher = flusher
        self.name = flusher.partition.board
        self.check = check
        # The first resumption of a partition that comes and goes is that it got work.
        self.sampled_resumption = 0 if flusher.status.is_kept else 1
        self.sample_after_s = 0.0
        self.verified_at_s: float | None = None
        self.failure = ""
        self._logged_users = len(check.drifted) if check else 0
        for result in metrics.VERIFICATION_RESULTS:
            metrics.VERIFICATIONS[self.name, result].inc(0)

    @property
    def is_led(self) -> bool:
        """Return whether this process flushes the board at the moment."""
        status = self.flusher.status
        return status.condition is Condition.FLUSHING and status.position is not None

    @property
    def is_sample_due(self) -> bool:
        """Return whether flushing has resumed since the last sample."""
        is_new = self.flusher.status.resumptions != self.sampled_resumption
        return is_new and time.monotonic() >= self.sample_after_s

    def count(self, result: str) -> None:
        """Count a completed verification or step."""
        metrics.VERIFICATIONS[self.name, result].inc()
        self.verified_at_s = time.time()
        metrics.VERIFIED_AT.labels(self.name).set(self.verified_at_s)
        if self.failure:
            self.failure = ""
            _log.info("verification_resumed", board=self.name)

    def count_incomplete(self, result: str, error: Exception) -> None:
        """Count a verification that did not complete; log each cause once."""
        metrics.VERIFICATIONS[self.name, result].inc()
        reason = _reason(error)
        cause = error.code if isinstance(error, ScoreboardError) else reason
        if cause != self.failure:
            self.failure = cause
            if result == "postponed":
                _log.info("verification_postponed", board=self.name, reason=reason)
            else:
                _log.warning(
                    "verification_failed",
                    board=self.name,
                    reason=reason,
                    exc_info=_traceback(error),
                )

    def note_drift(self) -> None:
        """Publish the number of differing users; log when it rises, and when it returns to 0."""
        drifted = self.check.drifted if self.check else {}
        metrics.DRIFT_USERS.labels(self.name).set(len(drifted))
        if len(drifted) > self._logged_users:
            _log.error(
                "drift_found",
                board=self.name,
                users=len(drifted),
                examples=[
                    f"{one.user_id}: {one.redis} instead of {one.wanted}"
                    for one in list(drifted.values())[-SHOWN:]
                ],
                advice=checks.describe_drift(self.name, len(drifted), 0.0).advice,
            )
        elif self._logged_users and not drifted:
            _log.info("drift_ended", board=self.name)
        self._logged_users = len(drifted)

    def describe(self) -> Check:
        """Return the check of the differences between the stores."""
        age_s = None if self.verified_at_s is None else max(0.0, time.time() - self.verified_at_s)
        users = len(self.check.drifted) if self.check else 0
        return checks.describe_drift(self.name, users, age_s)

    def forget(self) -> None:
        """Reset the metrics: another process flushes the board, or none does."""
        self.check, self.verified_at_s, self._logged_users = None, None, 0
        metrics.VERIFIED_AT.labels(self.name).set(0)
        with suppress(KeyError):
            metrics.DRIFT_USERS.remove(self.name)

    def remove(self) -> None:
        """Remove all series of a board that this process does not serve any more."""
        self.forget()
        with suppress(KeyError):
            metrics.VERIFIED_AT.remove(self.name)
        for result in metrics.VERIFICATION_RESULTS:
            metrics.VERIFICATIONS.remove((self.name, result))


class Verification:
    """The task of one flusher."""

    def __init__(
        self, settings: Settings, flushers: Callable[[], Sequence[PartitionFlusher]]
    ) -> None:
        """``flushers`` returns those of the partitions that are served at the moment."""
        self._settings = settings
        self._flushers = flushers
        self._boards: dict[str, _Board] = {}
        """By name; those that were verified the longest time ago come first."""
        self._idle = IdleBoards(settings.verify_users_per_s)
        self._is_backup_required = settings.environment != "development"
        if settings.verify_users_per_s:
            for board in settings.boards:
                metrics.VERIFIED_AT.labels(board).set(0)
        self._backup: LastBackup | None = None
        self._backup_read_at_s: float | None = None

    async def run(self, stop: StopEvent) -> None:
        """Verify the boards that this process leads, until ``stop``."""
        async with asyncio.TaskGroup() as group:
            working = group.create_task(self._work())
            await stop.wait()
            working.cancel()  # a verification has nothing to finish

    async def _work(self) -> None:
        attempt = 0
        async with make_client(self._settings, name="flusher-verify", connections=2) as client:
            while True:
                try:
                    async with self._connection() as connection:
                        while not connection.is_login_outdated:
                            began_s = time.monotonic()
                            await self._turn(client, connection)
                            attempt = 0
                            used_s = time.monotonic() - began_s
                            await asyncio.sleep(max(TURN_S, used_s))
                except Exception as error:  # noqa: BLE001 (it would end the flusher)
                    if attempt == 0:
                        _log.warning(
                            "verification_connection_failed",
                            reason=_reason(error),
                            exc_info=_traceback(error),
                        )
                self._idle.leave()
                await asyncio.sleep(backoff_s(attempt, most_s=BACKOFF_MAX_S))
                attempt += 1

    def checks(self) -> dict[str, Check]:
        """Return the checks of boards that this process verifies, and of the last backup."""
        self._find_boards()
        found = self._idle.checks() | {
            checks.drift_name(name): board.describe()
            for name, board in self._boards.items()
            if board.is_led
        }
        if self._backup_read_at_s is not None:
            passed_s = time.monotonic() - self._backup_read_at_s
            age_s = self._backup.age_s + passed_s if self._backup else None
            found[checks.BACKUP] = checks.describe_backup(
                age_s, is_required=self._is_backup_required
            )
        return found

    def _find_boards(self) -> None:
        for flusher in self._flushers():
            name = flusher.partition.board
            if flusher.partition.number == 0 and name not in self._boards:
                self._boards[name] = _Board(flusher, self._idle.hand_over(name))

    def _remove_boards(self) -> None:
        """Remove boards that are not served any more. A step would add their series again."""
        served = set(map(id, self._flushers()))
        for name, board in list(self._boards.items()):
            if id(board.flusher) not in served:
                self._boards.pop(name).remove()

    async def _turn(self, client: aioredis.Redis, connection: Connection) -> None:
        read_at_s = self._backup_read_at_s
        if read_at_s is None or time.monotonic() - read_at_s >= BACKUP_EVERY_S:
            async with asyncio.timeout(STEP_LIMIT_S):
                await self._read_backup(connection)
        self._remove_boards()
        self._find_boards()
        if not self._settings.verify_users_per_s:
            return
        ends_at_s = time.monotonic() + SHARE_S
        for name, board in list(self._boards.items()):
            if board.is_led:
                await self._verify(client, connection, board)
            elif board.flusher.status.condition in {Condition.STANDBY, Condition.RETIRED}:
                board.forget()
            self._boards[name] = self._boards.pop(name)
            if time.monotonic() >= ends_at_s:
                break
        async with asyncio.timeout(STEP_LIMIT_S):
            await self._idle.take_turn(client, connection, self._boards.keys())

    async def _verify(self, client: aioredis.Redis, connection: Connection, board: _Board) -> None:
        """Verify a sample if one is due, and take a step of the comparison.

        Raises DatabaseUnavailable, TimeoutError: the connection has to be replaced.
        """
        try:
            if board.is_sample_due:
                async with asyncio.timeout(SAMPLE_LIMIT_S):
                    await self._verify_sample(client, connection, board)
            async with asyncio.timeout(STEP_LIMIT_S):
                await self._step(client, connection, board)
        except POSTPONED as error:
            board.count_incomplete("postponed", error)
        except (DatabaseUnavailable, TimeoutError) as error:
            board.count_incomplete("failed", error)
            raise
        except Exception as error:  # noqa: BLE001 (other boards are verified, and all are flushed)
            board.count_incomplete("failed", error)

    async def _step(self, client: aioredis.Redis, connection: Connection, board: _Board) -> None:
        check = await self._check_of(client, connection, board)
        await check.step(connection, self._settings.verify_users_per_s)
        board.note_drift()
        board.count("drift" if check.drifted else "sound")

    async def _verify_sample(
        self, client: aioredis.Redis, connection: Connection, board: _Board
    ) -> None:
        waiting = sum(
            flusher.status.backlog.entries
            for flusher in self._flushers()
            if flusher.partition.board == board.name
        )
        if waiting > LAG_MAX:
            return  # it stays due
        resumption = board.flusher.status.resumptions
        board.sample_after_s = time.monotonic() + SAMPLE_EVERY_S
        check = await self._check_of(client, connection, board)
        verdict = await verify(
            client,
            connection,
            check.board,
            sample=SAMPLE,
            report=report_nothing,
            required=Requirements.of(self._settings),
        )
        board.sampled_resumption = resumption
        check.add_drifted(verdict.drifted)
        board.note_drift()
        findings = [one for one in verdict.findings if not self._is_accepted(one)]
        if findings:
            _log.error(
                "verification_findings",
                board=board.name,
                count=len(findings),
                findings=[f"{one.check}: {one.detail}" for one in findings[:SHOWN]],
                advice=f"scoreboard verify --board {board.name}",
            )
        board.count("drift" if verdict.drifted else "findings" if findings else "sound")

    async def _check_of(
        self, client: aioredis.Redis, connection: Connection, board: _Board
    ) -> RollingCheck:
        """Return the comparison of a board, a new one after a change of its layout."""
        current = await select_board(connection, board.name)
        if board.check is None or board.check.board != current:
            board.check = RollingCheck(client, current)
        return board.check

    def _is_accepted(self, finding: Finding) -> bool:
        return finding.check == "redis settings" and self._settings.unsafe_redis

    async def _read_backup(self, connection: Connection) -> None:
        self._backup = await select_last_backup(connection)
        self._backup_read_at_s = time.monotonic()
        if self._backup is not None:
            metrics.BACKUP_AT.set(self._backup.taken_at.timestamp())

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await connect(self._settings, name="flusher-verify", **SESSION)  # pyright: ignore[reportArgumentType]
        try:
            yield connection
        finally:
            await connection.close()


def _reason(error: Exception) -> str:
    if isinstance(error, ScoreboardError):
        return error.detail
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__


def _traceback(error: Exception) -> Exception | None:
    """Return an error that was not expected; its line has a stack trace."""
    return None if isinstance(error, ScoreboardError | TimeoutError) else error
