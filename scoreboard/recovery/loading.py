"""Loads partitions of a board from PostgreSQL into Redis: scores, dedup window, bans and gains.

Used by a reseed, which fences the board first, and by a reshard, which loads while the board
accepts actions and then adds what changed. Every write names the token that the caller has set in
the partition, so two loads cannot mix. The caller owns the snapshot of PostgreSQL.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Final

from msgspec import Struct

from scoreboard.errors import ScoreboardError, ScriptFailed
from scoreboard.events import Event, season_id_of
from scoreboard.ledger import acts, checks, dead_letters
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.scores import (
    DedupRecord,
    count_dedup_records,
    select_changes,
    select_dedup_records,
    select_ranking,
    select_totals,
)
from scoreboard.model import (
    SLOT_COUNT,
    Board,
    Partition,
    digest_of,
    partition_of,
    scores_name,
    shard_of,
)
from scoreboard.store.rebuilding import PAGE, Gains
from scoreboard.store.store import Store

FETCH: Final = 10 * PAGE
"""Rows of one fetch from PostgreSQL."""

CALLS_MAX: Final = 8
"""Maximum concurrent calls to Redis: enough to share an fsync, few enough to bound memory."""

SMALL_CALLS_MAX: Final = 16
"""Maximum concurrent calls for changes: most have a few records, and each waits for an fsync."""

SEEN_GRACE_S: Final = 60
"""Added to the expiry of a dedup shard; lua/submit.lua uses the same value."""

ReportProgress = Callable[[str, int, int], None]
"""Called with a step's name, the amount done and the total; 0 and 0 if the total is unknown."""

Call = Callable[[], Awaitable[object]]
_Place = tuple[int, int, int]
"""A shard of the dedup window: partition, generation, number."""


def report_nothing(_step: str, _done: int, _total: int) -> None:
    """Ignore the progress."""


class Mark(Struct, frozen=True):
    """How far the ledger of a board went at the moment of a snapshot."""

    seqs: Mapping[int, int]
    """The committed seq of each partition."""
    since_s: float
    """No action after them is older (s since 1970), even if a clock was set back."""
    settled_s: float
    """Users who reached their scores before this did so before all later ones (s since 1970).

    Others may have to go behind later ones: the partitions are not committed at the same pace.
    """


class Loader:
    """Loads partitions ``numbers`` of a board, as its layout divides the users."""

    def __init__(
        self,
        store: Store,
        connection: Connection,
        board: Board,
        *,
        season: str,
        numbers: Collection[int],
        token: str,
        report: ReportProgress,
        moved_from: int | None = None,
        calls_max: int = CALLS_MAX,
    ) -> None:
        """``moved_from`` is the number of partitions whose dedup windows are complete and kept.

        Then only the records of users who change their partition are loaded.
        """
        self._store = store
        self._connection = connection
        self._board = board
        self._scores = scores_name(board.name, season_id_of(season))
        self._layout = board.layout
        self._rules = board.layout.rules
        self._numbers = frozenset(numbers)
        self._token = token
        self._report = report
        self._moved_from = moved_from
        self._calls_max = calls_max

    # Scores

    async def load_scores(  # noqa: C901 (two passes over the users)
        self, unresolved: Sequence[Event]
    ) -> dict[int, int]:
        """Fill the shadow boards in ranking order; return the number of members by partition.

        The first user at a score gets its highest slot, each later one the slot below. Users with
        ``unresolved`` dead letters are placed last at their expected scores. Banned users are
        excluded.
        """
        expected = await self._expected_scores(unresolved)
        banned = frozenset(await acts.select_bans(self._connection, self._board.name))
        lowest: dict[tuple[int, int], int] = {}
        expected_values = frozenset(expected.values())
        total, _ = await select_totals(self._connection, self._scores)
        for number in self._numbers:
            await self._restore(number, [], first=True)
        members = dict.fromkeys(self._numbers, 0)
        reached: dict[int, tuple[int, int]] = dict.fromkeys(self._numbers, (-1, 0))
        pages: dict[int, list[tuple[int, str]]] = {number: [] for number in self._numbers}
        done = 0
        async with bounded_calls(self._calls_max) as send:
            async for rows in select_ranking(self._connection, self._scores, page=FETCH):
                for user_id, score in rows:
                    number = partition_of(user_id, self._layout.partitions)
                    if number not in self._numbers or user_id in banned or user_id in expected:
                        continue
                    last_score, slot = reached[number]
                    slot = max(slot - 1, 0) if score == last_score else SLOT_COUNT - 1
                    reached[number] = (score, slot)
                    if score in expected_values:
                        lowest[number, score] = slot
                    page = pages[number]
                    page.append((self._rules.pack(score, slot), user_id))
                    members[number] += 1
                    if len(page) == PAGE:
                        pages[number] = []
                        await send(partial(self._restore, number, page))
                done += len(rows)
                self._report("scores", done, total)
            for number, page in pages.items():
                if page:
                    await send(partial(self._restore, number, page))
        async with bounded_calls(self._calls_max) as send:
            for user_id, score in expected.items():
                if user_id in banned:
                    continue
                number = partition_of(user_id, self._layout.partitions)
                slot = max(lowest.get((number, score), SLOT_COUNT) - 1, 0)
                lowest[number, score] = slot
                members[number] += 1
                packed = self._rules.pack(score, slot)
                await send(partial(self._restore, number, [(packed, user_id)]))
        return members

    async def load_bans(self, unresolved: Sequence[Event]) -> None:
        """Write the banned users of each partition with their scores, in pages."""
        banned = list(await acts.select_bans(self._connection, self._board.name))
        expected = await self._expected_scores(unresolved)
        users: dict[int, list[tuple[str, int]]] = {number: [] for number in self._numbers}
        for start in range(0, len(banned), PAGE):
            some = banned[start : start + PAGE]
            scores = await checks.read_scores(self._connection, self._scores, some)
            for user_id in some:
                number = partition_of(user_id, self._layout.partitions)
                held = scores[user_id].score if user_id in scores else -1
                if number in users:
                    users[number].append((user_id, expected.get(user_id, held)))
        async with bounded_calls(SMALL_CALLS_MAX) as send:
            for number, found in users.items():
                await send(partial(self._exclude, number, found))

    async def _expected_scores(self, unresolved: Sequence[Event]) -> dict[str, int]:
        """Return the scores of users with dead letters, where those change them."""
        sums: dict[str, int] = {}
        for event in unresolved:
            if partition_of(event.user_id, self._layout.partitions) in self._numbers:
                sums[event.user_id] = sums.get(event.user_id, 0) + event.delta
        if not sums:
            return {}
        scores = await checks.read_scores(self._connection, self._scores, list(sums))
        expected: dict[str, int] = {}
        for user, total in sums.items():
            held = scores[user].score if user in scores else None
            score = dead_letters.expected_score(held, total)
            if score is not None and score != held:
                expected[user] = score
        return expected

    # Dedup window

    async def load_dedup_records(self) -> int:
        """Fill the dedup window from the ledger; return the number of actions in it.

        The previous contents are deleted: the event of a remembered action may be lost, and a
        repeat would then get the answer of an action that was never counted. The windows of
        ``moved_from`` partitions are kept, because their events are in the ledger.
        """
        window_s = self._layout.seen_seconds
        current = await self._generation()
        since_s = float((current - 1) * window_s)
        total = await count_dedup_records(self._connection, self._board.name, since_s=since_s)
        pages: dict[_Place, list[tuple[bytes, str]]] = {}
        counts: dict[_Place, int] = {}
        done = 0
        cleared = [number for number in self._numbers if number >= (self._moved_from or 0)]
        await self._clear_dedup_window(cleared, current)
        async with bounded_calls(self._calls_max) as send:
            async for records in select_dedup_records(
                self._connection, self._board.name, since_s=since_s, page=FETCH
            ):
                for record in records:
                    place = self._place_of(record, current)
                    if place is None:
                        continue
                    page = pages.setdefault(place, [])
                    page.append(self._entry(record))
                    if place[0] in cleared:
                        counts[place] = counts.get(place, 0) + 1
                    if len(page) == PAGE:
                        del pages[place]
                        await send(partial(self._remember, place, page, 0))
                done += len(records)
                self._report("actions", done, total)
            full, pages = pages, {}
            for place, page in full.items():
                await send(partial(self._remember, place, page, 0))
        async with bounded_calls(self._calls_max) as send:
            for place, count in counts.items():
                await send(partial(self._remember, place, [], count))
        return total if self._moved_from else sum(counts.values())

    async def _clear_dedup_window(self, numbers: Sequence[int], current: int) -> None:
        async with bounded_calls(SMALL_CALLS_MAX) as send:
            for number in numbers:
                for generation in (current - 1, current):
                    for shard in range(self._layout.seen_shards):
                        place = (number, generation, shard)
                        await send(partial(self._remember, place, [], 0, first=True))

    async def load_unresolved_records(self, unresolved: Sequence[Event]) -> None:
        """Add dead letters to the dedup window: Redis has counted them."""
        current = await self._generation()
        async with bounded_calls(self._calls_max) as send:
            for event in unresolved:
                place = self._place_of(event, current)
                if place is not None:
                    await send(partial(self._remember, place, [self._entry(event)], 0))

    async def _generation(self) -> int:
        return int(
            await self._store.now_s(Partition(self._board.name)) // self._layout.seen_seconds
        )

    def _place_of(self, action: DedupRecord | Event, current: int) -> _Place | None:
        """Return where to remember an action; None if it need not be loaded."""
        number = partition_of(action.user_id, self._layout.partitions)
        # The clock of this server may be behind the one that dated the ledger.
        generation = min(action.occurred_at_ms // (self._layout.seen_seconds * 1000), current)
        if number not in self._numbers or generation < current - 1:
            return None
        if self._moved_from and number == partition_of(action.user_id, self._moved_from):
            return None  # its partition remembers it
        digest = digest_of(self._board.name, action.user_id, action.action_id)
        return number, generation, shard_of(digest, self._layout.seen_shards)

    def _entry(self, action: DedupRecord | Event) -> tuple[bytes, str]:
        """Return the digest and the dedup record of an action, as lua/submit.lua writes it."""
        digest = digest_of(self._board.name, action.user_id, action.action_id)
        answer = f"{action.delta}:{action.score_after}:{action.seq}"
        if isinstance(action, DedupRecord) and action.is_held:
            held_from = action.score_after if self._rules.takes_values else 0
            return digest, f"{answer}:{held_from + action.delta}:held"
        # An action that changed the score set it to the value that it stated.
        return digest, f"{answer}:{action.score_after}" if self._rules.takes_values else answer

    # Changes of a board that accepts actions

    async def load_changes(self, since: Mark, unresolved: Sequence[Event] = ()) -> int:
        """Add what was counted after a mark to what was loaded at it; return the actions.

        Users whose scores changed get their current ones, after all who had reached them before;
        so do those who were not settled at the mark. No operator may have changed the ledger in
        between: the mark would not show it.
        """
        current = await self._generation()
        changed: set[str] = set()
        pages: dict[_Place, list[tuple[bytes, str]]] = {}
        count = 0
        async for records in select_changes(
            self._connection, self._board.name, since.seqs, since_s=since.since_s, page=FETCH
        ):
            count += len(records)
            for record in records:
                if not record.is_held:
                    changed.add(record.user_id)
                place = self._place_of(record, current)
                if place is not None:
                    pages.setdefault(place, []).append(self._entry(record))
            async with bounded_calls(SMALL_CALLS_MAX) as send:
                for place, page in pages.items():
                    for start in range(0, len(page), PAGE):
                        await send(partial(self._remember, place, page[start : start + PAGE], 0))
            pages = {}
        everything = dict.fromkeys(since.seqs, 0)
        async for records in select_changes(
            self._connection, self._board.name, everything, since_s=since.settled_s, page=FETCH
        ):
            changed |= {record.user_id for record in records if not record.is_held}
        await self._replace_scores(changed, unresolved)
        return count

    async def _replace_scores(self, changed: Collection[str], unresolved: Sequence[Event]) -> None:
        """Set users' scores on the shadow boards; those with dead letters come last."""
        expected = await self._expected_scores(unresolved)
        banned = frozenset(await acts.select_bans(self._connection, self._board.name))
        arrivals: list[tuple[datetime, int, str, int]] = []
        users = sorted(changed - expected.keys() - banned)
        for start in range(0, len(users), PAGE):
            some = users[start : start + PAGE]
            scores = await checks.read_scores(self._connection, self._scores, some)
            arrivals += [
                (one.reached_at, one.last_seq, user, one.score) for user, one in scores.items()
            ]
        places: dict[int, list[tuple[str, int]]] = {number: [] for number in self._numbers}
        last = [(user, score) for user, score in expected.items() if user not in banned]
        for user, score in [*((user, score) for _, _, user, score in sorted(arrivals)), *last]:
            places[partition_of(user, self._layout.partitions)].append((user, score))
        async with bounded_calls(SMALL_CALLS_MAX) as send:
            for number, page in places.items():
                if page:
                    await send(partial(self._append, number, page))

    async def _append(self, number: int, arrivals: Sequence[tuple[str, int]]) -> None:
        """Add (user, score) to a shadow board, each after those who have the score already."""
        partition = Partition(self._board.name, number)
        scores = list({score for _, score in arrivals})
        lowest: dict[int, int] = {}
        for start in range(0, len(scores), PAGE):
            some = scores[start : start + PAGE]
            found = await self._store.lowest_slots(partition, self._rules, some)
            lowest.update(zip(some, found, strict=True))
        packed: list[tuple[int, str]] = []
        for user, score in arrivals:
            lowest[score] = slot = max(lowest[score] - 1, 0)
            packed.append((self._rules.pack(score, slot), user))
        for start in range(0, len(packed), PAGE):
            await self._restore(number, packed[start : start + PAGE])

    async def count_members(self, unresolved: Sequence[Event]) -> dict[int, int]:
        """Return the number of members by partition, of shadow boards to which changes were added.

        Raises ScriptFailed if they are not as many as PostgreSQL has.
        """
        due, _ = await select_totals(self._connection, self._scores)
        banned = list(await acts.select_bans(self._connection, self._board.name))
        for start in range(0, len(banned), PAGE):
            some = banned[start : start + PAGE]
            due -= len(await checks.read_scores(self._connection, self._scores, some))
        expected = (await self._expected_scores(unresolved)).keys() - set(banned)
        if expected:
            known = await checks.read_scores(self._connection, self._scores, list(expected))
            due += len(expected) - len(known)
        members = {number: await self._restore(number, []) for number in sorted(self._numbers)}
        if sum(members.values()) != due:
            raise ScriptFailed(f"The new partitions have {sum(members.values())} users, not {due}")
        return members

    # Points gained in the current window

    async def move_gains(self, gains: Sequence[Gains]) -> None:
        """Write the points that users gained in the current window to their new partitions."""
        ends_s = max((one.ends_s for one in gains), default=0)
        points: dict[int, list[tuple[str, int]]] = {number: [] for number in self._numbers}
        for one in gains:
            if one.ends_s == ends_s:
                for user, gained in one.points.items():
                    points[partition_of(user, self._layout.partitions)].append((user, gained))
        async with bounded_calls(SMALL_CALLS_MAX) as send:
            for number, users in points.items():
                await send(partial(self._set_gains, number, users, ends_s))

    # Calls

    async def _restore(
        self, number: int, page: Sequence[tuple[int, str]], *, first: bool = False
    ) -> int:
        partition = Partition(self._board.name, number)
        return await self._store.restore(partition, self._token, page, first=first)

    async def _exclude(self, number: int, users: Sequence[tuple[str, int]]) -> None:
        partition = Partition(self._board.name, number)
        for start in range(0, max(1, len(users)), PAGE):
            page = users[start : start + PAGE]
            await self._store.exclude(partition, self._token, page, first=not start)

    async def _set_gains(self, number: int, users: Sequence[tuple[str, int]], ends_s: int) -> None:
        partition = Partition(self._board.name, number)
        for start in range(0, max(1, len(users)), PAGE):
            page = users[start : start + PAGE]
            await self._store.set_gains(
                partition, self._token, page, ends_s=ends_s, first=not start
            )

    async def _remember(
        self,
        place: _Place,
        page: Sequence[tuple[bytes, str]],
        expected: int,
        *,
        first: bool = False,
    ) -> None:
        number, generation, shard = place
        remembered = await self._store.remember(
            Partition(self._board.name, number),
            self._token,
            (generation, shard),
            page,
            # Read until the end of the following generation.
            expires_at_s=(generation + 2) * self._layout.seen_seconds + SEEN_GRACE_S,
            first=first,
        )
        if expected and remembered != expected:
            raise ScriptFailed(f"A dedup shard holds {remembered} actions, not {expected}")


@asynccontextmanager
async def bounded_calls(
    calls_max: int = CALLS_MAX,
) -> AsyncIterator[Callable[[Call], Awaitable[None]]]:
    """Yield a function that starts a call when fewer than ``calls_max`` are running.

    All calls have ended when the context ends; the first error is raised, not grouped.
    """
    free = asyncio.Semaphore(calls_max)

    async def drive(call: Call) -> None:
        try:
            await call()
        finally:
            free.release()

    try:
        async with asyncio.TaskGroup() as group:

            async def send(call: Call) -> None:
                await free.acquire()
                group.create_task(drive(call))

            yield send
    except BaseExceptionGroup as failures:
        for failure in failures.exceptions:
            if isinstance(failure, ScoreboardError):
                raise failure from None
        raise
