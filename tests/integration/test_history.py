"""A user's counted actions over HTTP: order, pages, access, and a database that does not answer."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from api.endpoints import bounded_reads
from scoreboard.ledger.history import Place
from scoreboard.model import Board, user_uuid
from scoreboard.runtime import resources
from tests.support.data.ledger import Counted, write_history
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy, Proxy
from tests.support.servers.api import ApiClient, StartApi, list_boards

PATH = "/api/scores/users/alice/history"


@pytest.fixture
async def proxy(make_proxy: MakeProxy, postgres_server: Any) -> Proxy:
    return await make_proxy(postgres_server.port)


async def pages(client: ApiClient, limit: int) -> list[dict[str, Any]]:
    """Read the whole history of alice, page by page."""
    rows: list[dict[str, Any]] = []
    params: dict[str, Any] = {"limit": limit}
    while True:
        answer = await client.get(PATH, params=params, headers=client.bearer("alice"))
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["history"]) <= limit
        rows += page["history"]
        if "next" not in page:
            return rows
        assert len(page["history"]) == limit
        params["before"] = page["next"]


def add_row(connection: Any, action: str, at: datetime, epoch: int, seq: int) -> None:
    connection.execute(
        "INSERT INTO score_events (board, user_id, action_id, part, epoch, seq, delta, score_after,"
        " kind, occurred_at) VALUES ('main', %s, %s, 0, %s, %s, 1, 1, 'win', %s)",
        (user_uuid("alice"), action, epoch, seq, at),
    )


async def test_a_history_has_each_action_with_its_points_and_the_score_after_it(
    start_api: StartApi, database_url: str
) -> None:
    write_history(
        database_url,
        [
            Counted("alice", "win:1", 10, 1_700_000_000.5),
            Counted("bob", "win:1", 3, 1_700_000_001.0),
            Counted("alice", "bonus", 7, 1_700_000_002.125),
        ],
    )
    write_history(database_url, [Counted("carol", "x:1", 1, 9.0)], Board("other"))
    client = await start_api(
        database_url=database_url, boards="main,other", open=(Board(), Board("other"))
    )
    answer = await client.get(PATH, headers=client.bearer("alice"))
    assert answer.json() == {
        "userId": "alice",
        "history": [
            {"actionId": "bonus", "delta": 7, "score": 17, "at": 1_700_000_002_125},
            {"actionId": "win:1", "delta": 10, "score": 10, "at": 1_700_000_000_500},
        ],
    }
    assert answer.headers["cache-control"] == "private, no-store"
    for path in ("/api/scores/users/bob/history?board=other", "/api/scores/users/zoe/history"):
        user = path.split("/")[4]
        empty = await client.get(path, headers=client.bearer(user))
        assert empty.json() == {"userId": user, "history": []}


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
async def test_pages_have_every_action_once_also_of_one_moment(
    start_api: StartApi, database_url: str, limit: int
) -> None:
    """Rows of one moment are ordered by their place in the stream, after a reseed as well."""
    write_history(database_url, [Counted("alice", "first", 1, 5.0)])
    moments = [datetime.fromtimestamp(at, UTC) for at in (10.000001, 10.000002, 11.0)]
    expected = ["first"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        for at in moments:
            for epoch in (1, 2):
                for seq in (2, 30, 100):
                    action = f"{at.timestamp():.6f}-{epoch}-{seq}"
                    # A reseed may start seq again, below that of the epoch before.
                    add_row(connection, action, at, epoch, seq + (1000 if epoch == 1 else 0))
                    expected.append(action)
    client = await start_api(database_url=database_url)
    rows = await pages(client, limit)
    assert [row["actionId"] for row in rows] == expected[::-1]


async def test_actions_that_arrive_between_two_pages_move_no_row(
    start_api: StartApi, database_url: str
) -> None:
    write_history(
        database_url, [Counted("alice", f"win:{number}", 1, number) for number in range(1, 11)]
    )
    client = await start_api(database_url=database_url)
    first = (await client.get(PATH, params={"limit": 4}, headers=client.bearer())).json()
    with psycopg.connect(database_url, autocommit=True) as connection:
        add_row(connection, "later", datetime.fromtimestamp(99, UTC), 1, 99)
    params = {"limit": 100, "before": first["next"]}
    rest = (await client.get(PATH, params=params, headers=client.bearer())).json()
    assert [row["actionId"] for row in first["history"] + rest["history"]] == [
        f"win:{number}" for number in range(10, 0, -1)
    ]


@pytest.mark.parametrize(
    ("sub", "scope", "status"),
    [
        ("alice", "read:leaderboard", 200),
        ("alice", "update:score", 403),
        ("bob", "read:leaderboard", 403),
        ("bob", "read:leaderboard update:score", 403),
        ("server", "update:score:any", 403),
        ("server", "update:score:any read:leaderboard", 200),
    ],
)
async def test_a_history_is_read_by_its_user_or_a_game_server(
    start_api: StartApi, database_url: str, sub: str, scope: str, status: int
) -> None:
    write_history(database_url, [Counted("alice", "secret:1", 1, 1.0)])
    client = await start_api(database_url=database_url)
    answer = await client.get(PATH, headers=client.bearer(sub, scope))
    assert answer.status_code == status
    assert ("secret:1" in answer.text) is (status == 200)
    if status == 403:
        assert "insufficient_scope" in answer.headers["www-authenticate"]
    assert (await client.get(PATH)).status_code == 401


@pytest.mark.parametrize(
    ("query", "status"),
    [
        *(("limit=0", 422), ("limit=101", 422), ("before=", 422), ("before=x", 422)),
        *(("before=1.2", 422), ("before=1.2.3.4", 422), ("before=-1.2.3", 422)),
        *(("before=1.2.3%0A", 422), ("before=999999999999999999.1.1", 422)),
        *(
            ("before=99999999999999999.9999999999999999.9999999999999999", 200),
            ("before=0.0.0", 200),
        ),
        *(("offset=1", 400), ("board=none", 404), ("before=1.1.1&before=1.1.1", 400)),
    ],
)
async def test_parameters_of_a_history_are_checked(
    start_api: StartApi, redis_url: str, database_url: str, query: str, status: int
) -> None:
    client = await start_api(database_url=database_url)
    await list_boards(redis_url, Board())
    answer = await client.get(f"{PATH}?{query}", headers=client.bearer())
    assert answer.status_code == status, answer.text


def test_a_place_is_written_and_parsed_exactly() -> None:
    for at_us in (0, 1, 999_999, 1_767_225_600_123_457, 99_999_999_999_999_999):
        text = f"{at_us}.3.1042"
        assert str(Place.parse(text)) == text


async def test_without_a_database_there_is_no_history(start_api: StartApi) -> None:
    client = await start_api()
    answer = await client.get(PATH, headers=client.bearer())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (await client.get("/api/scores/leaderboard")).status_code == 200


async def test_a_database_that_does_not_answer_holds_few_requests_for_a_limited_time(
    start_api: StartApi, database_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_history(database_url, [Counted("alice", "win:1", 1, 1.0)])
    client = await start_api(database_url=proxy.through(database_url))
    assert (await client.get(PATH, headers=client.bearer())).status_code == 200
    monkeypatch.setattr(bounded_reads, "READ_S", 1.0)
    proxy.freeze()

    async def ask() -> tuple[int, float]:
        began_s = time.monotonic()
        answer = await client.get(PATH, headers=client.bearer())
        assert answer.headers["retry-after"]
        assert "postgres" not in answer.text.lower()
        return answer.status_code, time.monotonic() - began_s

    answers = await asyncio.gather(*(ask() for _ in range(8)))

    assert [status for status, _ in answers] == [503] * 8
    assert sum(took_s >= 0.9 for _, took_s in answers) == bounded_reads.READS_MAX
    assert max(took_s for _, took_s in answers) < 8
    await proxy.restore()

    async def is_read() -> bool:
        return (await client.get(PATH, headers=client.bearer())).status_code == 200

    await eventually_async(is_read)


def test_the_query_reads_the_rows_of_one_user_by_an_index(database_url: str) -> None:
    """It would otherwise read the whole ledger."""
    write_history(
        database_url,
        [Counted(f"user{number % 300}", f"win:{number}", 1, number) for number in range(1, 6001)],
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ANALYZE")
        for at in (None, datetime.now(UTC)):
            plan = "\n".join(
                row[0]
                for row in connection.execute(
                    b"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) "
                    + resources.query("select_history"),
                    {
                        "board": "main",
                        "user_id": "user7",
                        "limit": 21,
                        "at": at,
                        "epoch": 1,
                        "seq": 1,
                    },
                )
            )
            assert "score_events_" in plan
            assert "Seq Scan on score_events" not in plan, plan
            # Three of the four parts of the ledger cannot have rows of the user.
            assert plan.count("never executed") >= 3, plan
