"""leaderboard.lua, standing.lua and neighbours.lua return the same order and ranks."""

import pytest
import redis

from scoreboard.model import SLOT_COUNT, pack
from tests.support.clients.scripts import KEYS, Scripts, text

READ = [KEYS.board, KEYS.meta]


def fill(scripts: Scripts, count: int) -> list[str]:
    """Add ``count`` users with falling scores, two users per score; return them in order."""
    users = [f"user{n}" for n in range(count)]
    scores = [100 - n // 2 for n in range(count)]
    for n in range(0, count, 64):
        batch = list(zip(users, scores, strict=True))[n : n + 64]
        scripts.submit(*((user, "1", score) for user, score in batch))
    return users


def names(flat: list[object]) -> list[str]:
    return [text(value) for value in flat[::2]]


def test_a_window_has_total_epoch_and_seq(opened: Scripts) -> None:
    users = fill(opened, 12)

    epoch, seq, total, rows, *_ = opened.run("leaderboard", READ, 0, 10)

    assert (epoch, seq, total) == (1, 12, 12)
    assert names(rows) == users[:10]
    assert int(rows[1]) == pack(100, SLOT_COUNT - 1)


def test_pages_do_not_overlap_within_equal_scores(opened: Scripts) -> None:
    users = fill(opened, 11)

    pages = [opened.run("leaderboard", READ, offset, 3)[3] for offset in (0, 3, 6, 9, 12)]

    assert [names(page) for page in pages] == [users[n : n + 3] for n in (0, 3, 6, 9, 12)]


def test_an_empty_board_has_no_rows(opened: Scripts) -> None:
    assert opened.run("leaderboard", READ, 0, 10)[:5] == [1, 0, 0, [], 0]
    assert opened.run("leaderboard", READ, 0, 0)[:5] == [1, 0, 0, [], 0]


def test_a_window_has_the_time_of_the_last_change_of_the_watched_top(opened: Scripts) -> None:
    def times() -> tuple[int, int]:
        *_, changed_ms, now_ms, _season, _layout = opened.run("leaderboard", READ, 0, 10)
        return changed_ms, now_ms

    fill(opened, 12)
    first_ms, read_ms = times()
    [(stream_id, _)] = opened.client.xrevrange(KEYS.events, count=1)
    assert first_ms <= int(text(stream_id).partition("-")[0]) <= read_ms

    # The last entry of the call has its time, also for a change that viewers do not see.
    opened.submit(("newcomer", "1", 1))
    assert times()[0] == first_ms

    opened.submit(("newcomer", "2", 1000))
    [(stream_id, _)] = opened.client.xrevrange(KEYS.events, count=1)
    assert times()[0] == int(text(stream_id).partition("-")[0])


def test_a_user_without_the_right_to_time_gets_rows_and_no_times(opened: Scripts) -> None:
    if not opened.is_real:
        return  # fakeredis has no users
    users = fill(opened, 3)
    rights = ("~*", "+eval", "+hmget", "+zcard", "+zrange")
    opened.client.execute_command("ACL", "SETUSER", "old", "on", "nopass", *rights)
    server = opened.client.connection_pool.connection_kwargs
    try:
        with redis.Redis(
            host=server["host"], port=server["port"], username="old", password="any"
        ) as client:
            found = Scripts(client, is_real=True).run("leaderboard", READ, 0, 10)
    finally:
        opened.client.execute_command("ACL", "DELUSER", "old")

    assert names(found[3]) == users
    assert found[4:6] == [0, 0]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("around", [0, 1, 3])
def test_neighbours_keep_their_width_at_the_edges(opened: Scripts, count: int, around: int) -> None:
    users = fill(opened, count)

    for place, user in enumerate(users):
        _, _, total, [[index, packed, first, rows]], _ = opened.run("standing", READ, user, around)

        width = min(2 * around + 1, count)
        assert (total, index) == (count, place)
        assert packed == dict(opened.board())[user]
        if around:
            assert first <= place < first + width
            assert names(rows) == users[first : first + width]
        else:
            assert (first, rows) == (0, [])
    [middle] = opened.run("standing", READ, users[count // 2], 1)[3]
    if count >= 3:
        assert names(middle[3]) == users[count // 2 - 1 : count // 2 + 2]


def test_one_call_reads_the_standings_of_many_users_in_order(opened: Scripts) -> None:
    users = fill(opened, 40)
    wanted = [*users[::2], "unknown", users[1], users[1]]

    epoch, seq, total, places, _ = opened.run(
        "standing", READ, *(a for u in wanted for a in (u, 0))
    )

    assert (epoch, seq, total) == (1, 40, 40)
    assert [index for index, *_ in places] == [*range(0, 40, 2), -1, 1, 1]
    mixed = opened.run("standing", READ, users[0], 0, users[20], 1, "unknown", 3)[3]
    assert [names(rows) for *_, rows in mixed] == [[], users[19:22], []]


def test_a_user_without_a_score_has_no_rank(opened: Scripts) -> None:
    fill(opened, 3)

    assert opened.run("standing", READ, "unknown", 2)[:4] == [1, 3, 3, [[-1, -1, 0, []]]]


@pytest.mark.parametrize(
    ("script", "args"),
    [("leaderboard", (0, 10)), ("standing", ("u", 0)), ("neighbours", (1, 0, 1))],
)
def test_a_read_says_which_layout_the_partition_has(
    opened: Scripts, script: str, args: tuple[object, ...]
) -> None:
    layout = opened.run(script, READ, *args)[-1]

    assert layout == opened.client.hget(KEYS.meta, "layout")


@pytest.mark.parametrize(
    ("script", "args"),
    [("leaderboard", (0, 10)), ("standing", ("u", 0)), ("neighbours", (1, 0, 1))],
)
def test_reads_of_an_emptied_redis_are_refused(
    scripts: Scripts, script: str, args: tuple[object, ...]
) -> None:
    assert scripts.refuses(script, READ, *args).startswith("UNINIT ")


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("leaderboard", (-1, 10)),
        ("leaderboard", ("x", 10)),
        ("standing", ("u", -1)),
        ("standing", ()),
        ("standing", ("u", 0, "v")),
        ("standing", ("u", 0, "v", -1)),
        ("standing", ("u", 0) * 65),
        ("neighbours", ()),
        ("neighbours", (1, 0)),
        ("neighbours", (1, 0, 1) * 65),
        ("neighbours", ("x", 0, 1)),
    ],
)
def test_reads_with_wrong_arguments_are_refused(
    opened: Scripts, script: str, args: tuple[object, ...]
) -> None:
    assert opened.refuses(script, READ, *args).startswith("BADARG ")


def test_neighbours_of_another_partitions_score_are_counted_nearest_first(opened: Scripts) -> None:
    users = fill(opened, 6)
    packed = dict(opened.board())
    between = packed[users[2]]

    [*_, (loses, wins), _] = opened.run("neighbours", READ, between, 0, 2, between, 1, 2)
    [*_, (alone,), _] = opened.run("neighbours", READ, between, 0, 0)

    assert (loses[0], names(loses[1]), names(loses[2])) == (2, [users[1], users[0]], users[2:4])
    assert (wins[0], names(wins[1]), names(wins[2])) == (3, [users[2], users[1]], users[3:5])
    assert alone == [2, [], []]
