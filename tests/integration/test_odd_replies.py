"""For any reply of Redis, callers get a value or a project error, and no process ends.

A real server with corrupted keys gives unexpected replies; a fake TCP server gives replies that no
real server gives.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api.edge.rate_limit import RateLimiter
from cli.commands.reseed import reseed_board
from flusher.consumer import Consumer
from flusher.partition import PartitionFlusher
from flusher.status import Condition
from scoreboard.broadcast.messages import Leaderboard
from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.errors import ScoreboardError
from scoreboard.model import Action, ActionKind, Board, Layout, Partition, Receipt, Row, Rules
from scoreboard.recovery.reseed import report_nothing
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.tokens import Caller
from scoreboard.store.boards import BOARD_SCRIPTS, Boards
from scoreboard.store.catalogue import Catalogue
from scoreboard.store.client import make_client
from scoreboard.store.commit_waiter import CommitWaiter
from scoreboard.store.corrections import ExpectedScore
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.durability import check_durability
from scoreboard.store.keys import ACTIONS, GROUP, PartitionKeys
from scoreboard.store.partitions import PartitionState
from scoreboard.store.read_batcher import ReadBatcher
from scoreboard.store.scanner import Scanner
from scoreboard.store.store import Store
from scoreboard.store.uncommitted import UncommittedDeltas
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.fakes.odd_server import odd_server
from tests.support.servers.api import LEADERBOARD_PATH, StartApi
from tests.support.servers.flushers import act, flushing, is_drained, make_board, query, store_of

pytestmark = pytest.mark.slow

MAIN = Partition("main")
KEYS = PartitionKeys(MAIN)
LIMIT_S = 0.15
HANG_S = 30.0
"""A call that takes longer hangs. A call may wait for Redis twice, also when Redis is slow."""
LAST_ID = f"{2**64 - 1}-{2**64 - 1}"
ALICE = Caller(subject="alice", scopes=frozenset(), expires_at_s=0, issuer="https://issuer.test")
Call = Callable[[], Awaitable[object]]


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


class Calls:
    """All calls to Redis, with clients of one server."""

    def __init__(
        self, settings: Settings, text: Any, raw: Any, dispatcher: Dispatcher, reads: ReadBatcher
    ) -> None:
        self.dispatcher = dispatcher
        store = self.store = Store(text)
        batched = Boards(text, reads)
        scanner = Scanner(text)
        consumer = Consumer(raw, store, MAIN, timeout_s=settings.redis_timeout_s)
        self.commits = CommitWaiter(
            msgspec.structs.replace(settings, commit_timeout_s=LIMIT_S), store, dispatcher
        )
        self.limiter = RateLimiter(settings)
        board = Board("main", Layout(2, 60, 2))
        self.table: dict[str, Call] = {
            "submit": lambda: dispatcher.submit("main", Action("alice", "win:1", 1, stated=True)),
            "state": lambda: store.state(MAIN),
            "board": lambda: store.board("main"),
            "leaderboard": lambda: store.leaderboard("main"),
            "standing": lambda: store.standing("main", "alice", around=2),
            "batched leaderboard": lambda: batched.leaderboard("main"),
            "batched standings": lambda: asyncio.gather(
                batched.standing("main", "alice", around=2), batched.standing("main", "bob")
            ),
            "users_at_score": lambda: store.users_at_score(MAIN, Rules(), 1, limit=10),
            "now": store.now_s,
            "backlog": lambda: store.backlog(MAIN),
            "kinds": store.kinds,
            "catalogue": Catalogue(settings, store).load,
            "act": lambda: store.act(
                MAIN, board.layout, user_id="a", action_id="act:1", delta=1, stream_cap=9
            ),
            "count_from": lambda: store.count_from("main", board.layout, 5),
            "exclude": lambda: store.exclude(MAIN, "T", [("alice", 5)], first=True),
            "banned": lambda: scanner.banned(MAIN),
            "count": lambda: scanner.count(MAIN),
            "packed_scores": lambda: scanner.packed_scores(MAIN, ["alice", "bob"]),
            "members": lambda: _all(scanner.members(MAIN)),
            "random_members": lambda: scanner.random_members(MAIN, 3),
            "keys_without_expiry": lambda: scanner.keys_without_expiry(MAIN, board.layout, 5),
            "claim": consumer.claim,
            "read": lambda: consumer.read(10, block=False),
            "entries_before": lambda: consumer.entries_before("5-0"),
            "trim": lambda: store.trim(
                MAIN, "5-0", [b"5-0"], replication_id="", epoch=1, first_seq=1, last_seq=1
            ),
            "replication_id": lambda: store.replication_id(MAIN),
            "uncommitted": lambda: store.read_uncommitted(MAIN, epoch=1, seq=0, stream_id="0-0"),
            "repair": lambda: store.repair(
                MAIN,
                [ExpectedScore("alice", 1)],
                UncommittedDeltas(replication_id="", epoch=1, seq=0, stream_id="0-0"),
            ),
            "ensure_group": consumer.ensure_group,
            "start_over": consumer.start_over,
            "durability": lambda: check_durability(text),
            "committed": lambda: self.commits.confirm(
                "main", Action("alice", "win:1", 1), Receipt(1, 1, replayed=False)
            ),
            "limit": lambda: self.limiter.take(ALICE, trusted=False),
            "mirror": lambda: store.mirror_actions({"win": ActionKind(1)}, seen=0),
            "catalogue_version": store.catalogue_version,
            "states": lambda: store.states("main"),
            "retire": lambda: store.retire(MAIN, "me", board.layout),
            "fence": lambda: store.fence(MAIN, "me", PartitionState()),
            "restore": lambda: store.restore(MAIN, "me", [], first=True),
            "remember": lambda: store.remember(
                MAIN, "me", (5, 1), [], expires_at_s=2_000_000_000, first=True
            ),
            "open": lambda: store.open(
                MAIN, "me", board, epoch=5, seq=5, stream_id="0-0", members=0
            ),
        }

    async def try_all(self) -> dict[str, object]:
        """Make every call; return the result or error of each. Only project errors are allowed."""
        found: dict[str, object] = {}
        for name, call in self.table.items():
            try:
                async with asyncio.timeout(HANG_S):
                    found[name] = await call()
            except ScoreboardError as error:
                found[name] = error
            except Exception as error:
                raise AssertionError(f"{name} raised {error!r}") from error
        return found


async def _all(pages: AsyncIterator[list[str]]) -> list[list[str]]:
    return [page async for page in pages]


@asynccontextmanager
async def calling(url: str, *, timeout_s: float = HANG_S / 3) -> AsyncIterator[Calls]:
    """Run the tasks of a process; none of them may end by itself."""
    settings = Settings(
        redis_url=Secret(url),
        redis_timeout_s=timeout_s,
        redis_connect_timeout_s=timeout_s,
        dispatch_connections=1,
        rate_limit="app",
    )
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    async with AsyncExitStack() as stack:
        text, raw = (
            make_client(settings, name="test"),
            make_client(settings, name="test", decode=False),
        )
        stack.push_async_callback(text.aclose)
        stack.push_async_callback(raw.aclose)
        dispatcher = Dispatcher(settings)
        reads = ReadBatcher(settings, BOARD_SCRIPTS, name="test-reads")
        calls = Calls(settings, text, raw, dispatcher, reads)
        stack.push_async_callback(calls.limiter.close)
        tasks = [
            asyncio.create_task(dispatcher.run()),
            asyncio.create_task(reads.run()),
            asyncio.create_task(calls.commits.run()),
            asyncio.create_task(Catalogue(settings, calls.store).run()),
        ]
        try:
            yield calls
            assert not [task for task in tasks if task.done()], "a task of the process has ended"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert not unhandled


ANSWERS = [
    b"+OK\r\n",
    b"+\r\n",
    b":0\r\n",
    b":-1\r\n",
    b":9223372036854775807\r\n",
    b":99999999999999999999\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"$0\r\n\r\n",
    b"$2\r\n\xff\xfe\r\n",
    b"$500\r\n" + b"9" * 500 + b"\r\n",
    b"*0\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n*-1\r\n",
    b"*2\r\n$1\r\na\r\n",
    b"*2\r\n$1\r\n1\r\n*1\r\n$1\r\na\r\n",
    b"*3\r\n:1\r\n:2\r\n:3\r\n",
    b"*4\r\n:1\r\n:1\r\n:1\r\n*1\r\n$1\r\na\r\n",
    b"*4\r\n:1\r\n:1\r\n:1\r\n*2\r\n$1\r\na\r\n$3\r\ninf\r\n",
    b"*4\r\n:1\r\n:1\r\n:1\r\n*2\r\n$1\r\na\r\n$3\r\n1.5\r\n",
    b"*4\r\n:1\r\n:1\r\n:1\r\n*2\r\n$2\r\n\xff\xfe\r\n$1\r\n5\r\n",
    b"*4\r\n:0\r\n:-1\r\n:1\r\n*0\r\n",
    b"*4\r\n:1\r\n:1\r\n:1\r\n*1\r\n*4\r\n:0\r\n:5\r\n:0\r\n*0\r\n",
    b"*4\r\n:1\r\n:1\r\n:1\r\n*1\r\n*4\r\n:0\r\n:5\r\n:0\r\n*1\r\n$1\r\na\r\n",
    b"*1\r\n*4\r\n$7\r\napplied\r\n:1\r\n:1\r\n:-1\r\n",
    b"*1\r\n*4\r\n$7\r\nunknown\r\n:1\r\n:1\r\n:1\r\n",
    b"*2\r\n-ERR inner\r\n:1\r\n",
    b"*1\r\n" * 40 + b":1\r\n",
    b"*2\r\n$5\r\nepoch\r\n$40\r\n" + b"9" * 40 + b"\r\n",
    b"*4\r\n$5\r\nepoch\r\n$1\r\n1\r\n$3\r\nseq\r\n$3\r\nabc\r\n",
    b"*6\r\n$5\r\nepoch\r\n$1\r\n1\r\n$3\r\nseq\r\n$1\r\n1\r\n$6\r\nlayout\r\n$11\r\n999999:1:99\r\n",
    b"-\r\n",
    b"-ERR\r\n",
    b"-ODD\r\n",
    b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
    b"-MOVED x\r\n",
    b"-MOVED 1 nowhere\r\n",
    b"-ASK\r\n",
    b"-NOSCRIPT No matching script\r\n",
    b"-NOGROUP No such key\r\n",
    b"-BUSYGROUP Consumer Group name already exists\r\n",
    b"-BUCKET\r\n",
    b"-BUCKET soon is the time\r\n",
    b"-BUCKET 99999999999999999999999 is the time\r\n",
    b"-LAYOUT\r\n",
    b"-LAYOUT false is the layout\r\n",
    b"-LAYOUT 0:0:0 is the layout\r\n",
    b"-LAYOUT 99999999:1:1 is the layout\r\n",
    b"-LAYOUT 3:60:2 is the layout\r\n",
    b"-UNINIT\r\n",
    b"-FENCED\r\n",
    b"-FENCE\r\n",
    b"-EPOCH\r\n",
    b"-RANGE\r\n",
    b"-LAG\r\n",
    b"-BADARG\r\n",
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
    b"-OOM command not allowed\r\n",
    b"-NOAUTH Authentication required.\r\n",
    b"-NOPERM this user has no permissions\r\n",
    b"-MISCONF errors writing to the AOF\r\n",
    b"-\xff\xfe\r\n",
    b"%1\r\n+a\r\n+b\r\n",
    b"~1\r\n*1\r\n:1\r\n",
    b"~1\r\n%1\r\n*0\r\n:1\r\n",
    b",inf\r\n",
    b",nan\r\n",
    b"#t\r\n",
    b"_\r\n",
    b"(99999999999999999999999999\r\n",
    b">2\r\n+x\r\n:1\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"?no protocol\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b":1\r\n:2\r\n",
    b"*99999999999\r\n",
    b"$99999999999\r\n",
    b"",
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: repr(answer[:24]))
async def test_every_call_returns_a_value_or_a_project_error(answer: bytes) -> None:
    async with odd_server(answer) as url, calling(url, timeout_s=0.1) as calls:
        await calls.try_all()


LEAVES = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(lambda number: b":%d\r\n" % number),
    st.sampled_from([0, 1, 2**53, -1]).map(lambda number: b":%d\r\n" % number),
    st.binary(max_size=12).map(lambda text: b"$%d\r\n%b\r\n" % (len(text), text)),
    st.sampled_from([b"epoch", b"1", b"5-0", b"applied", b"inf", b"-0", b"1e400"]).map(
        lambda text: b"$%d\r\n%b\r\n" % (len(text), text)
    ),
    st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"+OK\r\n", b"-ERR odd\r\n"]),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=7).map(
        lambda items: b"*%d\r\n" % len(items) + b"".join(items)
    ),
    max_leaves=20,
)


def test_every_call_returns_a_value_or_a_project_error_for_any_reply() -> None:
    @given(answer=TREES)
    @hypothesis_settings(
        max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    def check(answer: bytes) -> None:
        async def run() -> None:
            async with odd_server(answer) as url, calling(url, timeout_s=0.1) as calls:
                await calls.try_all()

        asyncio.run(run())

    check()


def replacements(key: str) -> Iterator[tuple[str, Callable[["redis.Redis[str]"], object]]]:
    """Yield replacements for a key."""
    yield f"{key} is text", lambda c: c.set(key, "invalid")
    yield f"{key} is a list", lambda c: c.rpush(key, "invalid")
    yield f"{key} is a hash", lambda c: c.hset(key, "a", "b")
    yield f"{key} is a set of scores", lambda c: c.zadd(key, {"a": 1})
    yield f"{key} is a stream", lambda c: c.xadd(key, {"a": "b"})


def field(name: str, value: str | bytes | None) -> Callable[["redis.Redis[str]"], object]:
    def write(client: "redis.Redis[str]") -> object:
        if value is None:
            return client.hdel(KEYS.meta, name)
        return client.hset(KEYS.meta, name, value)

    return write


FIELD_VALUES: Mapping[str, list[str | bytes | None]] = {
    "epoch": [None, "", "abc", "0", "-1", "1.5", "inf", "1e5", "0x10", "9" * 16, "9" * 40],
    "seq": [None, "", "abc", "-1", "1.5", "nan", "9" * 16, "9" * 40],
    "state": [None, "", "unknown", b"\xff\xfe"],
    "layout": [None, "", "x", "1:1", "0:0:0", "1:0:1", "-1:60:2", "9" * 40 + ":1:1", "300:60:2"],
    "committed": [
        None,
        "",
        "::",
        "1",
        "1:x",
        "x:1",
        "1:" + "9" * 16,
        "1:" + "9" * 40,
        b"\xff:\xfe",
    ],
    "public": [None, "", "yes"],
    "limits": ["", "x", "1:2", "9" * 40 + ":1:1", "-1:0:0", "0:9:0", b"\xff\xfe"],
    "fence": ["", b"\xff\xfe", "x" * 10_000],
}
BOARD_MEMBERS: list[tuple[str | bytes, float]] = [
    ("alice", float("inf")),
    ("alice", float("-inf")),
    ("alice", -5),
    ("alice", 1.5),
    ("alice", 2.0**60),
    (b"\xff\xfe", 5 * 2**21),
    ("", 5 * 2**21),
    ("x" * 10_000, 5 * 2**21),
]
ENTRIES: list[dict[str | bytes, str | bytes]] = [
    {"x": "invalid"},
    {b"\xff": b"\xfe"},
    {"q": "1", "u": b"\xff\xfe", "a": "b", "d": "inf", "s": "-1", "e": "nan"},
    {"q": "9" * 400, "u": "alice", "a": "b", "d": "9" * 400, "s": "9" * 400, "e": "9" * 400},
    {"u": "alice", "d": "1e5"},
]


def corruptions() -> Iterator[tuple[str, Callable[["redis.Redis[str]"], object]]]:
    for key in (KEYS.board, KEYS.events, KEYS.meta, KEYS.shadow, KEYS.gained, ACTIONS):
        for name, write in replacements(key):
            yield name, lambda c, key=key, write=write: (c.delete(key), write(c))
    for name, values in FIELD_VALUES.items():
        for value in values:
            yield f"{name} is {value!r:.30}", field(name, value)
    for member, score in BOARD_MEMBERS:
        yield (
            f"{member!r:.20} has {score}",
            lambda c, member=member, score=score: c.zadd(KEYS.board, {member: score}),
        )
    for number, entry in enumerate(ENTRIES):
        yield f"entry {number}", lambda c, entry=entry: c.xadd(KEYS.events, entry)
    yield (
        "the last stream id",
        lambda c: c.xadd(KEYS.events, {"a": "b"}, id=LAST_ID),
    )
    yield "points are text", lambda c: c.hset(ACTIONS, "win", "many")
    yield "points are negative", lambda c: c.hset(ACTIONS, "win", "-5")
    yield "points are huge", lambda c: c.hset(ACTIONS, "win", "9" * 400)
    yield "a kind is not UTF-8", lambda c: c.hset(ACTIONS, b"\xff", "1")
    yield "the group is missing", lambda c: c.xgroup_destroy(KEYS.events, GROUP)
    yield "all keys are missing", lambda c: c.flushall()


CORRUPTIONS = dict(corruptions())


@pytest.mark.parametrize("name", CORRUPTIONS)
async def test_corrupted_keys_do_not_end_a_process(name: str, redis_url: str) -> None:
    async with calling(redis_url) as calls:
        await open_board(calls.store, Board("main", Layout(1, 60, 2)))
        await calls.dispatcher.submit("main", Action("alice", "first", 5))
        with redis.Redis.from_url(redis_url, encoding_errors="surrogateescape") as client:
            CORRUPTIONS[name](client)

        await calls.try_all()

        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        await open_board(calls.store, Board("main", Layout(1, 60, 2)))
        receipt = await calls.dispatcher.submit("main", Action("alice", "again", 5))
        assert receipt.score == 5


async def test_a_missing_layout_counts_as_not_loaded_until_a_reseed(
    settings: Settings, start_api: StartApi
) -> None:
    await make_board(settings)
    client = await start_api(open=())
    async with flushing(settings):
        assert (await client.update("alice", "win:1")).status_code == 200
        await eventually_async(lambda: is_drained(settings))
        with redis.Redis.from_url(settings.redis_url.reveal()) as raw:
            raw.hdel(KEYS.meta, "layout")

        for _ in range(3):
            refused = await client.update("alice", "win:2")
            assert (refused.status_code, refused.json()["type"]) == (
                503,
                "/docs/problems/uninitialised",
            )
        assert (await client.get(LEADERBOARD_PATH)).status_code == 503
        done = await reseed_board(
            settings, "main", force=False, only_closed=True, actor="test", report=report_nothing
        )

        assert done is not None
        answer = await client.update("alice", "win:2")
        assert answer.json() == {"success": True, "newScore": 20, "replayed": False}


def repairable() -> Iterator[str]:
    """Yield the names of the corruptions that a reseed repairs."""
    for name in ("epoch", "seq", "layout", "committed"):
        yield from (f"{name} is {value!r:.30}" for value in FIELD_VALUES[name])
    for key in (KEYS.board, KEYS.shadow):
        yield from (name for name, _ in replacements(key))


async def test_a_reseed_replaces_corrupted_keys(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.reseed.STALL_S", 5.0)
    await make_board(settings)
    score = 0
    async with flushing(settings):
        for number, name in enumerate(repairable()):
            await act(settings, Action("alice", f"win:{number}", 5))
            await eventually_async(lambda: is_drained(settings))
            with redis.Redis.from_url(
                settings.redis_url.reveal(), encoding_errors="surrogateescape"
            ) as client:
                CORRUPTIONS[name](client)

            done = await reseed_board(
                settings, "main", force=True, only_closed=False, actor="test", report=report_nothing
            )

            assert done is not None, name
            score += 5
            async with store_of(settings) as store:
                standing = await store.standing("main", "alice")
            assert (standing.score, standing.total) == (score, 1), name


async def test_a_dedup_shard_of_another_type_is_replaced_by_a_reseed(settings: Settings) -> None:
    await make_board(settings, Board(layout=Layout(1, 43_200, 1)))
    async with flushing(settings), store_of(settings) as store:
        await act(settings, Action("alice", "win:1", 5))
        await eventually_async(lambda: is_drained(settings))
        generation = int(await store.now_s() // 43_200)
        with redis.Redis.from_url(settings.redis_url.reveal()) as client:
            client.set(KEYS.dedup_shard(generation, 0), "invalid")
        [refused] = await act(settings, Action("alice", "win:2", 5))
        assert isinstance(refused, ScoreboardError)

        await reseed_board(
            settings, "main", force=True, only_closed=False, actor="test", report=report_nothing
        )

        [receipt] = await act(settings, Action("alice", "win:1", 5))
        assert isinstance(receipt, Receipt)
        assert (receipt.replayed, receipt.score) == (True, 5)


@pytest.mark.parametrize(
    ("key", "command"),
    [(KEYS.meta, "HGETALL"), (KEYS.events, "submit"), (KEYS.events, "XINFO STREAM")],
)
async def test_an_error_names_a_key_of_another_type(
    key: str, command: str, settings: Settings
) -> None:
    await make_board(settings)
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        client.delete(key)
        client.set(key, "invalid")
    async with store_of(settings) as store:
        if command == "submit":
            [error] = await act(settings, Action("alice", "win:1", 5))
        else:
            read = store.states("main") if command == "HGETALL" else store.backlog(MAIN)
            [error] = await asyncio.gather(read, return_exceptions=True)

    assert isinstance(error, ScoreboardError)
    assert error.detail == f"{command} {key}: WRONGTYPE"


@pytest.mark.timeout(400)
async def test_the_flusher_continues_after_any_corruption_of_the_keys(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flusher.partition.CHECK_EVERY_S", 0.05)
    monkeypatch.setattr("flusher.partition.backoff_s", lambda *_: 0.02)
    monkeypatch.setattr("flusher.consumer.BLOCK_MS", 20)
    await make_board(settings)
    async with store_of(settings) as store, flushing(settings) as flusher:
        await eventually_async(lambda: flusher.partitions)
        (partition,) = flusher.partitions
        for number, (name, corrupt) in enumerate(CORRUPTIONS.items()):
            with redis.Redis.from_url(
                settings.redis_url.reveal(), encoding_errors="surrogateescape"
            ) as client:
                corrupt(client)
                before = partition._checked_at_s
                await eventually_async(lambda before=before: has_checked(partition, before))
                client.flushall()
            # As a reseed does, independently of the flusher's reaction.
            query(settings, "DELETE FROM flush_state")
            await open_board(store, Board())
            await act(settings, Action("alice", f"win:{number}", 5))
            await eventually_async(
                lambda number=number, name=name: is_in_ledger(settings, f"win:{number}", name),
            )


def has_checked(partition: PartitionFlusher, since_s: float) -> bool:
    """Return whether a partition flusher is degraded, or has checked Redis since."""
    return partition.status.condition is not Condition.FLUSHING or partition._checked_at_s > since_s


def is_in_ledger(settings: Settings, action: str, after: str) -> bool:
    assert query(settings, "SELECT 1 FROM score_events WHERE action_id = %s", action), after
    return True


def has_read_messages(watcher: BoardWatcher, *, messages: int) -> bool:
    """Return whether this many messages were received, and their changes read."""
    (watched,) = watcher._watched.values()
    return watched.messages >= messages and not watched.dirty.is_set()


class RecordingListener:
    """A listener that records the boards."""

    def __init__(self) -> None:
        self.boards = 0
        self.frame = Leaderboard("main", 1, 0, 0, ())

    def board_changed(self, state: BoardState, noticed_at_s: float) -> None:
        msgspec.json.encode(state.message)
        self.boards += 1
        self.frame = state.message or self.frame

    def shows(self, user: str, score: int) -> bool:
        return self.frame.leaderboard == (Row(1, user, score),)

    def status_changed(self, state: BoardState) -> None:
        pass

    def access_changed(self, state: BoardState) -> None:
        pass

    def least_gap_s(self, board: str) -> float:
        return 0.0


async def test_the_watcher_continues_after_any_corruption_of_the_keys(redis_url: str) -> None:
    settings = Settings(redis_url=Secret(redis_url), frame_interval_ms=10)
    async with store_of(settings) as store:
        await open_board(store, scores=[("alice", 5)])
        listener = RecordingListener()
        watcher = BoardWatcher(settings, listener, name="test")
        task = asyncio.create_task(watcher.run())
        try:
            await eventually_async(lambda: listener.boards == 1)
            for number, corrupt in enumerate(CORRUPTIONS.values(), 2):
                with redis.Redis.from_url(redis_url, encoding_errors="surrogateescape") as client:
                    corrupt(client)
                    (watched,) = watcher._watched.values()
                    due = watched.messages + 2
                    for message in ("1:1", "::", b"\xff", "9" * 400, "1:2"):
                        client.publish(KEYS.changes, message)
                    await eventually_async(lambda due=due: has_read_messages(watcher, messages=due))
                    client.flushall()
                await open_board(store, scores=[("bob", number)])
                with redis.Redis.from_url(redis_url) as client:
                    client.hset(KEYS.meta, "epoch", 10**15 + number)
                    client.publish(KEYS.changes, "9:9")
                await eventually_async(lambda number=number: listener.shows("bob", number))
                assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
