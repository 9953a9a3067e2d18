"""Checks that Redis and PostgreSQL agree on every user, while the board stays open.

For each user: score in Redis = score in PostgreSQL + uncommitted deltas of the stream + dead
letters (dead_events) + uncorrected late duplicates (rejected_events). The first pass takes no
lock; differences are checked again while commits are blocked, which removes those of timing.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

import msgspec
import redis.asyncio as aioredis
from msgspec import Struct

from scoreboard.errors import (
    Busy,
    OperatorMistake,
    Outdated,
    UnknownBoard,
    WaitTimeout,
)
from scoreboard.ledger import acts, checks, dead_letters
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import Connection, snapshot, translate_errors
from scoreboard.ledger.positions import Position, lock_position_shared, select_position
from scoreboard.ledger.scores import select_ranking, select_totals
from scoreboard.ledger.seasons import newest_season_id, read_season
from scoreboard.model import Board, Limits, Partition, partition_of, scores_name
from scoreboard.recovery.drift import Drift, find_drift
from scoreboard.recovery.reseed import ReportProgress
from scoreboard.store.corrections import REPAIR_MAX
from scoreboard.store.durability import DEFAULT_REQUIREMENTS, Requirements, check_durability
from scoreboard.store.scanner import PAGE, Scanner
from scoreboard.store.store import Store
from scoreboard.store.uncommitted import UncommittedDeltas

SHOWN_MAX: Final = 100
"""Maximum number of findings of one check that are listed."""

ORDER_MAX: Final = 1000
"""Maximum number of pairs of equal scores whose order is checked again."""

CATCH_UP_S: Final = 30.0
"""Longest time to retry while the flusher is too far behind."""

BACKLOG_S: Final = 10.0
"""Longest time that actions may wait for PostgreSQL while none is committed."""

RANGES: Final = 10
"""Number of places in the order of ids at which a sample is taken."""

SEASON_SUM: Final = "season sum"
SEASON_STANDINGS: Final = "season standings"

_POLL_S: Final = 0.2
_Seen = TypeVar("_Seen")


class Finding(Struct, frozen=True):
    """Another inconsistency. ``check`` is one of a fixed set of names."""

    check: str
    detail: str
    partition: int | None = None


class Verdict(Struct, frozen=True, kw_only=True):
    """The result of a verification.

    ``users`` counts the distinct users of both stores. ``known`` are users whose correction is
    pending. ``truncated`` names checks that found more than is listed. ``warnings`` are settings
    that are acceptable in tests only, such as PostgreSQL without fsync.
    """

    board: str
    partitions: int
    users: int
    suspects: int
    drifted: tuple[Drift, ...]
    known: tuple[Drift, ...]
    findings: tuple[Finding, ...]
    truncated: tuple[str, ...]
    warnings: tuple[str, ...]
    duration_s: float

    @property
    def is_sound(self) -> bool:
        """Return whether no inconsistency was found."""
        return not self.drifted and not self.findings


async def verify(
    client: aioredis.Redis,
    connection: Connection,
    board: Board,
    *,
    sample: int | None,
    report: ReportProgress,
    required: Requirements = DEFAULT_REQUIREMENTS,
) -> Verdict:
    """Compare both stores: about ``sample`` users, all for None.

    ``required`` is what Redis must have. ``connection`` is in autocommit and made with
    ``reseed.SESSION``.

    Raises WaitTimeout (the flusher is too far behind), Fenced, RedisUnavailable,
    DatabaseUnavailable.
    """
    return await _Verification(client, connection, board, report, required).run(sample)


async def verify_season(connection: Connection, board: Board, season: str) -> Verdict:
    """Check one ended season in PostgreSQL, and nothing else; Redis has the current one only.

    ``connection`` is in autocommit and made with ``reseed.SESSION``.

    Raises UnknownSeason, OperatorMistake (it is the current one), DatabaseUnavailable.
    """
    started_at = time.monotonic()
    found = await read_season(connection, board.name, season)
    newest = await newest_season_id(connection, board)
    if season == newest:
        raise OperatorMistake(f"Season {season} is the current one: leave --season out")
    findings, truncated = await _check_seasons(connection, board.name, newest, season)
    warnings = () if found.is_frozen else (f"The standings of season {season} are not final",)
    return Verdict(
        board=board.name,
        partitions=board.layout.partitions,
        users=found.users,
        suspects=0,
        drifted=(),
        known=(),
        findings=tuple(findings),
        truncated=tuple(truncated),
        warnings=warnings,
        duration_s=time.monotonic() - started_at,
    )


async def _check_seasons(
    connection: Connection, board: str, newest: str, season: str | None
) -> tuple[list[Finding], list[str]]:
    """Check the ledger and the final standings of an ended season, or of all for None.

    Returns the findings, and the names of checks that found more.
    """
    findings: list[Finding] = []
    truncated: list[str] = []
    limit = SHOWN_MAX + 1
    sums = await checks.check_season_sums(
        connection, board, newest=newest, season=season, limit=limit
    )
    findings += [
        Finding(
            SEASON_SUM,
            f"{name}, {one.user_id}: score {one.score} of {one.actions} actions, "
            f"ledger {one.total} of {one.rows}",
        )
        for name, one in sums[:SHOWN_MAX]
    ]
    places = await checks.check_season_standings(connection, board, season=season, limit=limit)
    findings += [
        Finding(
            SEASON_STANDINGS,
            f"{one.season}, {one.user_id}: {_place(one.rank, one.score)}, due is "
            f"{_place(one.due_rank, one.due_score)}",
        )
        for one in places[:SHOWN_MAX]
    ]
    truncated += [SEASON_SUM] * (len(sums) > SHOWN_MAX)
    truncated += [SEASON_STANDINGS] * (len(places) > SHOWN_MAX)
    return findings, truncated


def _place(rank: int | None, score: int | None) -> str:
    return "no standing" if rank is None else f"rank {rank} with {score}"


class _Verification:
    """One verification: collects suspects, checks them again, and runs all other checks."""

    def __init__(
        self,
        client: aioredis.Redis,
        connection: Connection,
        board: Board,
        report: ReportProgress,
        required: Requirements,
    ) -> None:
        self._client = client
        self._required = required
        self._store = Store(client)
        self._scanner = Scanner(client)
        self._connection = connection
        self._board = board
        self._partitions = [Partition(board.name, n) for n in range(board.layout.partitions)]
        self._season = ""
        """The id of the newest season. Users of a partition that is in another one are suspects."""
        self._scores = board.name
        self._report = report
        self._users = 0
        self._suspects: dict[Partition, set[str]] = {each: set() for each in self._partitions}
        self._uncommitted: dict[Partition, UncommittedDeltas] = {}
        self._disordered: list[tuple[str, str]] = []
        self._drifted: list[Drift] = []
        self._known: list[Drift] = []
        self._findings: dict[str, list[Finding]] = {}
        self._truncated: set[str] = set()
        self._warnings: list[str] = []
        self._began: dict[Partition, Position] = {}
        self._began_at_s = 0.0

    async def run(self, sample: int | None) -> Verdict:
        started_at = self._began_at_s = time.monotonic()
        await self._check_settings()
        await self._check_strays()
        self._season = await newest_season_id(self._connection, self._board)
        self._scores = scores_name(self._board.name, self._season)
        sound = [each for each in self._partitions if await self._check_position(each)]
        chosen = await self._compare_all() if sample is None else await self._compare_some(sample)
        await self._compare_bans(sound)
        suspects = sum(len(self._suspects[partition]) for partition in sound)
        rechecked = 0
        for partition in sound:
            users = sorted(self._suspects[partition])
            for start in range(0, len(users), REPAIR_MAX):
                page = users[start : start + REPAIR_MAX]
                await self._recheck(partition, page)
                rechecked += len(page)
                self._report("suspects", rechecked, suspects)
        await self._recheck_order()
        await self._check_rows()
        for partition in sound:
            await self._check_backlog(partition)
        await self._check_ledger(chosen)
        return Verdict(
            board=self._board.name,
            partitions=len(self._partitions),
            users=self._users,
            suspects=suspects,
            drifted=tuple(self._drifted),
            known=tuple(self._known),
            findings=tuple(one for found in self._findings.values() for one in found),
            truncated=tuple(sorted(self._truncated)),
            warnings=tuple(self._warnings),
            duration_s=time.monotonic() - started_at,
        )

    def _find(self, check: str, detail: str, partition: Partition | None = None) -> None:
        """Add a finding, at most ``SHOWN_MAX`` of one check."""
        found = self._findings.setdefault(check, [])
        if len(found) < SHOWN_MAX:
            found.append(Finding(check, detail, partition.number if partition else None))
        else:
            self._truncated.add(check)

    async def _check_settings(self) -> None:
        for problem in (await check_durability(self._client, self._required)).problems:
            self._find("redis settings", problem)
        session = await checks.read_durability(self._connection)
        if session.fsync != "on":
            self._warnings.append(
                f"PostgreSQL may lose committed transactions: fsync is {session.fsync}"
            )
        if session.is_standby:
            self._find("postgresql settings", "the server is a standby")

    async def _check_strays(self) -> None:
        """Find partitions that the board no longer has and that are not retired."""
        for number, state in (await self._store.states(self._board.name)).items():
            if number >= len(self._partitions) and state.epoch:
                accepts = "accepts actions" if state.is_open else "is fenced and not retired"
                self._find(
                    "layout",
                    f"not a partition of {self._board.layout}, but it {accepts}",
                    Partition(self._board.name, number),
                )

    async def _check_position(self, partition: Partition) -> bool:
        """Check positions and dedup window; return whether the users can be compared."""
        # PostgreSQL first, so that later commits do not make Redis appear behind.
        committed = await select_position(self._connection, partition)
        self._began[partition] = committed
        state = await self._store.state(partition)
        if state.epoch != committed.epoch:
            self._find("epoch", f"Redis has {state.epoch}, PostgreSQL {committed.epoch}", partition)
        elif state.layout != self._board.layout:
            held = state.layout or "none"
            self._find("layout", f"Redis has {held}, PostgreSQL {self._board.layout}", partition)
        elif not state.is_open:
            self._find("state", f"fenced by {state.fence}", partition)
        elif state.seq < committed.seq:
            self._find("rewind", f"Redis has {state.seq}, PostgreSQL {committed.seq}", partition)
        else:
            generation = int(await self._store.now_s(partition) // self._board.layout.seen_seconds)
            for key in await self._scanner.keys_without_expiry(
                partition, self._board.layout, generation
            ):
                self._find("seen window", f"{key} never expires", partition)
            await self._check_limits(partition, state.limits)
            return True
        return False

    async def _check_limits(self, partition: Partition, limits: Limits) -> None:
        """Check the limits that Redis applies: a reseed by an older version removes them.

        They are read again if they differ, because a change reaches one store after the other.
        """
        expected = self._board.limits
        if limits == expected:
            return
        await asyncio.sleep(_POLL_S)
        with suppress(UnknownBoard):  # it was deleted
            expected = (await select_board(self._connection, self._board.name)).limits
        limits = (await self._store.state(partition)).limits
        if limits != expected:
            held, due = str(limits) or "none", str(expected) or "none"
            self._find("limits", f"Redis has {held}, PostgreSQL {due}", partition)

    async def _compare_all(self) -> None:
        """Compare all users of PostgreSQL in ranking order, and of Redis if it has more."""
        board = self._scores
        found = dict.fromkeys(self._partitions, 0)
        above: dict[Partition, tuple[int, int, str]] = {}
        async with snapshot(self._connection):
            await self._read_uncommitted()
            total, _ = await select_totals(self._connection, board)
            async for rows in select_ranking(self._connection, board, page=PAGE):
                for partition, page in self._by_partition(rows).items():
                    held = await self._compare(partition, page)
                    found[partition] += len(held)
                    self._note_order(partition, held, above)
                self._users += len(rows)
                self._report("users", self._users, total)
        for partition in self._partitions:
            if await self._scanner.count(partition) > found[partition]:
                await self._find_unknown_members(partition)

    async def _compare_some(self, sample: int) -> list[str]:
        """Compare random users, half of them from each store; return their ids."""
        board = self._scores
        await self._read_uncommitted()
        rows: dict[str, int] = {}
        for _ in range(RANGES):
            start = UUID(bytes=secrets.token_bytes(16))
            limit = max(1, sample // 2 // RANGES)
            some = await checks.read_scores_from(self._connection, board, start, limit=limit)
            if len(some) < limit:  # after the greatest id the order starts again
                some += await checks.read_scores_from(
                    self._connection, board, UUID(int=0), limit=limit - len(some)
                )
            rows.update((user, score) for _, user, score in some)
        for partition, page in self._by_partition(list(rows.items())).items():
            await self._compare(partition, page)
        chosen = set(rows)
        for partition in self._partitions:
            share = max(1, sample // 2 // len(self._partitions))
            members = await self._scanner.random_members(partition, share)
            known = await checks.read_scores(self._connection, board, members)
            unknown = set(members) - known.keys()
            self._suspects[partition].update(unknown)
            await self._compare(partition, [(user, one.score) for user, one in known.items()])
            chosen.update(known)
            self._users += len(unknown)
        self._users += len(chosen)
        self._report("users", self._users, self._users)
        return sorted(chosen)

    def _by_partition(
        self, rows: Sequence[tuple[str, int]]
    ) -> dict[Partition, list[tuple[str, int]]]:
        if len(self._partitions) == 1:
            return {self._partitions[0]: list(rows)}
        pages: dict[Partition, list[tuple[str, int]]] = {}
        for user, score in rows:
            number = partition_of(user, len(self._partitions))
            pages.setdefault(self._partitions[number], []).append((user, score))
        return pages

    async def _compare(
        self, partition: Partition, page: Sequence[tuple[str, int]]
    ) -> list[tuple[str, int, int | None]]:
        """Collect differing users; return (user, score, packed or None if different) of members."""
        replies = await self._scanner.packed_scores(partition, [user for user, _ in page])
        held: list[tuple[str, int, int | None]] = []
        score_of = self._board.layout.rules.unpack_score
        for (user, score), packed in zip(page, replies, strict=True):
            is_equal = packed is not None and score_of(packed) == score
            # Users who have acted since are expected to differ.
            if not is_equal or self._uncommitted[partition].has(user):
                self._suspects[partition].add(user)
            if packed is not None:
                held.append((user, score, packed if is_equal else None))
        return held

    def _note_order(
        self,
        partition: Partition,
        held: Sequence[tuple[str, int, int | None]],
        above: dict[Partition, tuple[int, int, str]],
    ) -> None:
        """Collect neighbours with equal scores whose order differs in Redis."""
        for user, score, packed in held:
            if packed is None:
                continue
            before = above.get(partition)
            if before is not None and before[0] == score and packed > before[1]:
                if len(self._disordered) < ORDER_MAX:
                    self._disordered.append((before[2], user))
                else:
                    self._truncated.add("order")
            above[partition] = (score, packed, user)

    async def _find_unknown_members(self, partition: Partition) -> None:
        """Collect members that PostgreSQL does not have; most are not committed yet."""
        async for members in self._scanner.members(partition):
            known = await checks.read_scores(self._connection, self._scores, members)
            unknown = set(members) - known.keys() - self._suspects[partition]
            self._suspects[partition].update(unknown)
            self._users += len(unknown)

    async def _read_uncommitted(self) -> None:
        """Read the changes since the positions of the snapshot."""
        for partition in self._partitions:
            position = await select_position(self._connection, partition)
            self._uncommitted[partition] = await _retry_while_behind(
                partition,
                partial(
                    self._store.read_uncommitted, partition, **msgspec.structs.asdict(position)
                ),
            )

    async def _compare_bans(self, partitions: Sequence[Partition]) -> None:
        """Collect users that only one of the stores holds to be banned."""
        banned = await acts.select_bans(self._connection, self._board.name)
        pages = self._by_partition([(user, 0) for user in banned])
        for partition in partitions:
            held = await self._scanner.banned(partition)
            wanted = {user for user, _ in pages.get(partition, [])}
            self._suspects[partition].update(held ^ wanted)

    async def _recheck(self, partition: Partition, users: Sequence[str]) -> None:
        """Check suspects again while commits are blocked; sort them into drifted and known."""
        await _retry_while_behind(partition, partial(self._recheck_now, partition, users))

    async def _recheck_now(self, partition: Partition, users: Sequence[str]) -> None:
        drifted, known = await find_drift(self._store, self._connection, partition, users)
        self._drifted += drifted
        self._known += known

    async def _recheck_order(self) -> None:
        """Check pairs again whose order differed, while commits are blocked."""
        for first, second in self._disordered:
            partition = self._partitions[partition_of(first, len(self._partitions))]
            await _retry_while_behind(
                partition, partial(self._recheck_pair, partition, first, second)
            )

    async def _recheck_pair(self, partition: Partition, first: str, second: str) -> None:
        async with translate_errors(), self._connection.transaction():
            position = await lock_position_shared(self._connection, partition) or Position()
            packed = await self._scanner.packed_scores(partition, [first, second])
            # Read after the board, so that it has every action that the board shows.
            uncommitted = await self._store.read_uncommitted(
                partition, **msgspec.structs.asdict(position)
            )
            scores = await checks.read_scores(self._connection, self._scores, [first, second])
        if uncommitted.has(first) or uncommitted.has(second):
            return  # who has left a score and returned to it arrives later than PostgreSQL knows
        one, other = scores.get(first), scores.get(second)
        if one is None or other is None or packed[0] is None or packed[1] is None:
            return
        score_of = self._board.layout.rules.unpack_score
        are_equal = one.score == other.score == score_of(packed[0]) == score_of(packed[1])
        was_first = (one.reached_at, one.last_seq) < (other.reached_at, other.last_seq)
        if are_equal and was_first and packed[0] < packed[1]:
            self._find("order", f"{first} reached {one.score} before {second}", partition)

    async def _check_backlog(self, partition: Partition) -> None:
        """Report a backlog that does not move; one commit since the start is sufficient."""
        began = self._began[partition]
        while True:
            committed = await select_position(self._connection, partition)
            state = await self._store.state(partition)
            if committed != began or state.epoch != began.epoch or state.seq <= committed.seq:
                return
            waited_s = time.monotonic() - self._began_at_s
            if waited_s >= BACKLOG_S:
                self._find(
                    "backlog",
                    f"{state.seq - committed.seq} actions wait for PostgreSQL, and none was "
                    f"committed in {waited_s:.0f} s: is the flusher running?",
                    partition,
                )
                return
            self._report("backlog", 0, 0)
            await asyncio.sleep(_POLL_S)

    async def _check_rows(self) -> None:
        """Report drifted users whose actions an older version counted for another user."""
        users = [drift.user_id for drift in self._drifted]
        shared = await checks.shared_rows(self._connection, users, limit=SHOWN_MAX)
        for user, owner in shared:
            self._find(
                "shared row", f"{user} was counted as {owner}; the ledger cannot separate them"
            )

    async def _check_ledger(self, chosen: Sequence[str] | None) -> None:
        """Check the ledger: sums always; all else, and ended seasons, for a full verification."""
        self._report("ledger", 0, 0)
        for one in await checks.check_sums(
            self._connection,
            self._board.name,
            chosen,
            season=self._season,
            limit=SHOWN_MAX + 1,
        ):
            self._find(
                "ledger sum",
                f"{one.user_id}: score {one.score} of {one.actions} actions, "
                f"ledger {one.total} of {one.rows}",
            )
        if chosen is not None:
            return
        if self._season:
            found, truncated = await _check_seasons(
                self._connection, self._board.name, self._season, None
            )
            for one in found:
                self._find(one.check, one.detail)
            self._truncated.update(truncated)
        unresolved = await dead_letters.sum_unresolved(
            self._connection, self._board.name, season=self._season
        )
        for partition in self._partitions:
            async with snapshot(self._connection):
                position = await select_position(self._connection, partition)
                span = await checks.check_density(self._connection, partition, position)
            if span.count and (
                span.count != span.last - span.first + 1 or span.last != position.seq
            ):
                self._find(
                    "density",
                    f"epoch {position.epoch} has {span.count} changes from {span.first} to "
                    f"{span.last}, committed is {position.seq}",
                    partition,
                )
            for one in await checks.check_chain(
                self._connection,
                partition,
                position.epoch,
                excluded=list(unresolved),
                limit=SHOWN_MAX + 1,
            ):
                self._find(
                    "chain",
                    f"{one.user_id}, seq {one.seq}: {one.before} + {one.delta} is not "
                    f"{one.score_after}",
                    partition,
                )


async def _retry_while_behind(partition: Partition, read: Callable[[], Awaitable[_Seen]]) -> _Seen:
    """Retry while the flusher is too far behind, or after a reseed or failover.

    Raises WaitTimeout.
    """
    deadline = time.monotonic() + CATCH_UP_S
    while True:
        try:
            return await read()
        except (Busy, Outdated) as error:
            if time.monotonic() > deadline:
                raise WaitTimeout(f"{partition} cannot be checked: {error.detail}") from error
        await asyncio.sleep(_POLL_S)
