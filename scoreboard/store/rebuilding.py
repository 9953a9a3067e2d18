"""The steps of a reseed and of a reshard, from the fence to the opening; removal of a board."""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from scoreboard.model import SLOT_COUNT, Board, BoardState, Count, Layout, Partition, Rules
from scoreboard.store.cluster import send_many
from scoreboard.store.keys import GROUP, PartitionKeys, load_test_key, viewers_key
from scoreboard.store.partitions import Partitions, PartitionState
from scoreboard.store.replies import parse_whole, read_replies, read_reply
from scoreboard.store.scripts import Script, call

PAGE: Final = 1000
"""Maximum number of scores or dedup records of one call."""

_GENERATIONS: Final = 3
"""Earlier generations of the dedup window that may have keys: they expire after two and a minute,
and the clock of Redis may have been set."""

_ENDS: Final = "/ends"
"""Field of the points gained that has the end of their window; it is not the id of a user."""

GAINS_PAGE: Final = PAGE - 1
"""Maximum number of users of one call of ``set_gains``."""

_STAGE: Final = Script.load("stage")
_RELEASE: Final = Script.load("release")
_FENCE: Final = Script.load("fence")
_RESTORE: Final = Script.load("restore")
_EXCLUDE: Final = Script.load("exclude")
_REMEMBER: Final = Script.load("remember")
_RETIRE: Final = Script.load("retire")
_OPEN: Final = Script.load("open")


class Gains(Struct, frozen=True):
    """The points that users of a partition have gained in the window that ends at ``ends_s``."""

    ends_s: int
    points: Mapping[str, int]


class Rebuilding(Partitions):
    """The steps of a reseed and of a reshard: fence or stage, load, open or retire."""

    async def stage(self, partition: Partition, token: str, seen: PartitionState) -> None:
        """Let ``token`` load a partition, which goes on accepting actions if it is open.

        ``seen`` is the state that the caller read while it held the operators' lock.

        Raises Outdated (the partition has changed since), RedisUnavailable, ScriptFailed.
        """
        meta = PartitionKeys(partition).meta
        await call(self._client, _STAGE, [meta], [token, seen.epoch, seen.fence], int)

    async def release(self, partition: Partition, token: str, state: BoardState) -> None:
        """Let a partition go on with what it holds, in a state; drop its shadow board.

        Raises OperatorMistake if another operator holds the fence, Uninitialised, RedisUnavailable,
        ScriptFailed.
        """
        keys = PartitionKeys(partition)
        await call(self._client, _RELEASE, [keys.meta, keys.shadow], [token, state], int)

    async def fence(
        self, partition: Partition, token: str, seen: PartitionState, *, committed: int = -1
    ) -> tuple[int, int]:
        """Stop accepting actions; return epoch and seq, (0, 0) if the partition is empty.

        ``token`` identifies the fence. ``seen`` is the state that the caller read while it held
        the operators' lock. ``committed`` is the highest committed seq the caller knows of, -1 to
        skip that check.

        Raises Outdated (the partition has changed since), RedisUnavailable, ScriptFailed.
        """
        args: list[object] = [token, seen.epoch, seen.fence, committed]
        meta = PartitionKeys(partition).meta
        return await call(self._client, _FENCE, [meta], args, tuple[Count, Count])

    async def restore(
        self, partition: Partition, token: str, page: Sequence[tuple[int, str]], *, first: bool
    ) -> int:
        """Add a page of (packed score, user) to the shadow board; return its size.

        ``first`` empties the shadow board before.

        Raises OperatorMistake if another operator holds the fence, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        flat = [value for pair in page for value in pair]
        args = [token, int(first), *flat]
        return await call(self._client, _RESTORE, [keys.meta, keys.shadow], args, int)

    async def exclude(
        self, partition: Partition, token: str, page: Sequence[tuple[str, int]], *, first: bool
    ) -> int:
        """Add a page of (user, score) to the banned users; -1 is the score of one without any.

        ``first`` removes those of before. Returns their number.

        Raises OperatorMistake if another operator holds the fence, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        flat = [value for pair in page for value in pair]
        args = [token, int(first), *flat]
        return await call(self._client, _EXCLUDE, [keys.meta, keys.banned], args, int)

    async def remember(
        self,
        partition: Partition,
        token: str,
        shard: tuple[int, int],
        page: Sequence[tuple[bytes, str]],
        *,
        expires_at_s: int,
        first: bool,
    ) -> int:
        """Add (digest, ``delta:score:seq``) to a shard of the dedup window; return its size.

        ``shard`` is (generation, number). ``first`` empties the shard before. ``expires_at_s`` is
        in seconds since 1970.

        Raises OperatorMistake if another operator holds the fence, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        flat = [value for pair in page for value in pair]
        args = [token, int(first), expires_at_s, *flat]
        return await call(self._client, _REMEMBER, [keys.meta, keys.dedup_shard(*shard)], args, int)

    async def lowest_slots(
        self, partition: Partition, rules: Rules, scores: Sequence[int]
    ) -> list[int]:
        """Read the lowest slot of each score on the shadow board; ``SLOT_COUNT`` if it is unused.

        ``scores`` are at most ``PAGE``. Raises RedisUnavailable, UnexpectedReply.
        """
        shadow = PartitionKeys(partition).shadow
        commands = [
            (
                *("ZRANGE", shadow, rules.pack(score, 0), rules.pack(score, SLOT_COUNT - 1)),
                *("BYSCORE", "LIMIT", 0, 1, "WITHSCORES"),
            )
            for score in scores
        ]
        sent = send_many(self._client, commands)
        replies = await read_replies(sent, list[list[str]], f"ZRANGE {shadow}")
        slots: list[int] = []
        for score, found in zip(scores, replies, strict=True):
            packed = parse_whole(found[1]) if found else None
            slots.append(SLOT_COUNT if packed is None else packed - rules.pack(score, 0))
        return slots

    async def gains(self, partition: Partition) -> Gains:
        """Read the points that users have gained in the current window of a limit.

        Fields that are not whole numbers are ignored. Raises RedisUnavailable, UnexpectedReply.
        """
        key = PartitionKeys(partition).gained
        fields = await read_reply(self._client.hgetall(key), dict[str, str], f"HGETALL {key}")
        ends_s = parse_whole(fields.pop(_ENDS, None)) or 0
        points = {user: parse_whole(text) for user, text in fields.items()}
        return Gains(ends_s, {user: number for user, number in points.items() if number})

    async def set_gains(
        self,
        partition: Partition,
        token: str,
        page: Sequence[tuple[str, int]],
        *,
        ends_s: int,
        first: bool,
    ) -> None:
        """Add a page of (user, points) to those gained in the window that ends at ``ends_s``.

        ``first`` removes those of before. A page has at most ``GAINS_PAGE`` users.

        Raises OperatorMistake if another operator holds the fence, RedisUnavailable, ScriptFailed.
        """
        keys = PartitionKeys(partition)
        fields = [value for pair in page for value in pair] + ([_ENDS, ends_s] if page else [])
        await call(
            self._client,
            _REMEMBER,
            [keys.meta, keys.gained],
            [token, int(first), ends_s, *fields],
            int,
        )

    async def retire(self, partition: Partition, token: str, layout: Layout) -> None:
        """Empty a fenced partition that its board no longer has; later callers learn ``layout``.

        Raises OperatorMistake if another operator holds the fence, Busy if the stream holds
        uncommitted actions, RedisUnavailable (repeat the call), ScriptFailed.
        """
        keys = PartitionKeys(partition)
        names = [keys.meta, keys.board, keys.shadow, keys.events]
        await call(self._client, _RETIRE, names, [token, str(layout), GROUP], int)

    async def remove(self, partition: Partition, layout: Layout) -> None:
        """Remove every key of a partition whose board is deleted, and announce it.

        No action of it may be uncommitted, and none accepted meanwhile. Repeat it if it was
        interrupted.

        Raises RedisUnavailable, UnexpectedReply.
        """
        keys = PartitionKeys(partition)
        # Without meta reads are refused; before that, they would find an empty board.
        names = [
            keys.meta,
            keys.board,
            keys.shadow,
            keys.events,
            keys.banned,
            keys.gained,
            keys.pulse,
        ]
        if partition.number == 0:  # the key has its tag: on a cluster, others are in other slots
            names += [load_test_key(partition.board), viewers_key(partition.board)]
        generation = int(await self.now_s(partition) // layout.seen_seconds)
        names += [
            keys.dedup_shard(near, shard)
            for near in range(generation - _GENERATIONS, generation + 2)
            for shard in range(layout.seen_shards)
        ]
        for start in range(0, len(names), PAGE):
            page = names[start : start + PAGE]
            await read_reply(self._client.unlink(*page), int, f"UNLINK {keys.tag}")
        publish = "SPUBLISH" if self.is_cluster else "PUBLISH"
        announced = self._client.execute_command(publish, keys.changes, "0:0:board")
        await read_reply(announced, int, publish)

    async def open(
        self,
        partition: Partition,
        token: str,
        board: Board,
        *,
        epoch: int,
        seq: int,
        stream_id: str,
        members: int,
        season: str = "",
    ) -> int:
        """Replace the board with the shadow board under a new epoch and accept actions again.

        ``season`` is the one of the members as id:start:end, empty for a board without seasons.
        Returns the number of members.

        Raises OperatorMistake if the fence was lost or the shadow board is incomplete,
        RedisUnavailable (the call may have succeeded: read ``state``), ScriptFailed.
        """
        keys = PartitionKeys(partition)
        names = [keys.board, keys.shadow, keys.events, keys.meta, keys.changes]
        args = [
            token,
            epoch,
            seq,
            stream_id,
            GROUP,
            str(board.layout),
            int(board.is_public),
            members,
            board.state,
            str(board.limits),
            season,
        ]
        return await call(self._client, _OPEN, names, args, int)
