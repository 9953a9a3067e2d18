"""`scoreboard season`, and boards with seasons by `scoreboard board`."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from pyarrow import parquet

from flusher import seasons
from scoreboard.model import Action, Layout, Partition, Rules
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import PartitionKeys
from tests.support.clients.commands import Done, Run
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import act, flushing, is_drained, query

RULES = Rules(season="weekly", time_zone="Europe/Berlin")
UTC_RULES = Rules(season="weekly", time_zone="UTC")
LIMIT = ("--max-points-per-action", "10")


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


async def test_a_board_with_seasons_is_created_played_and_listed(
    command: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seasons, "LIST_EVERY_S", 1.0)
    create = ("board", "create", "league", "--season", "weekly", "--time-zone", "Europe/Berlin")
    assert (await asyncio.to_thread(command, *create)).code == 0
    shown = await asyncio.to_thread(command, "board", "show", "league", "--json")
    assert json.loads(shown.out)["layout"]["rules"]["season"] == "weekly"
    assert "weekly in Europe/Berlin" in (await asyncio.to_thread(command, "board", "list")).out
    async with flushing(settings):
        for user, points in (("alice", 30), ("bob", 20)):
            await act(settings, Action(user, "win:1", points, rules=RULES), board="league")
        await eventually_async(lambda: is_drained(settings, "league"))
        [(first,)] = query(settings, "SELECT season FROM seasons")
        early = await asyncio.to_thread(command, "season", "top", "league", first)
        assert early.code != 0
        assert "is not final" in early.err
        with redis.Redis.from_url(settings.redis_url.reveal(), decode_responses=True) as client:
            meta = PartitionKeys(Partition("league")).meta
            name, start, _ = str(client.hget(meta, "season")).split(":")
            client.hset(meta, "season", f"{name}:{start}:{int(time.time())}")

        def is_frozen() -> bool:
            return query(settings, "SELECT 1 FROM seasons WHERE frozen_at IS NOT NULL") != []

        await eventually_async(is_frozen, 15)
    listed = await asyncio.to_thread(command, "season", "list", "league")
    assert listed.code == 0
    assert "alice 30, bob 20" in listed.out
    top = await asyncio.to_thread(command, "season", "top", "league", first, "--json")
    assert json.loads(top.out) == [
        {"rank": 1, "userId": "alice", "score": 30},
        {"rank": 2, "userId": "bob", "score": 20},
    ]
    query(settings, "UPDATE season_standings SET score = 99 WHERE rank = 2")
    verify = ("verify", "--board", "league", "--season", first)
    wrong = await asyncio.to_thread(command, *verify)
    assert (wrong.code, wrong.out.count("season standings")) == (1, 1)
    assert (await asyncio.to_thread(command, *verify, "--full")).code == 2
    revise = ("season", "revise", "league", first, "--reason", "changed by hand", "--yes")
    assert "2 users" in (await asyncio.to_thread(command, *revise)).err
    assert (await asyncio.to_thread(command, *verify)).code == 0
    again = await asyncio.to_thread(command, "season", "top", "league", first, "--json")
    assert again.out == top.out
    open_ = await asyncio.to_thread(command, "season", "revise", "league", "1999-W01", *revise[4:])
    assert "has no final season" in open_.err
    unknown = await asyncio.to_thread(command, "season", "top", "league", "1999-W01")
    assert "has no season" in unknown.err
    exported = await asyncio.to_thread(command, "export", "board", "league")
    assert exported.out.splitlines() == ["rank,userId,score,reachedAt"]
    reached = query(settings, "SELECT reached_at FROM scores ORDER BY score DESC")
    export = ("export", "board", "league", "--season", first)
    exported = await asyncio.to_thread(command, *export)
    assert [line.split(",") for line in exported.out.splitlines()[1:]] == [
        [rank, user, score, f"{at:%Y-%m-%dT%H:%M:%S.%fZ}"]
        for (rank, user, score), (at,) in zip(
            (("1", "alice", "30"), ("2", "bob", "20")), reached, strict=True
        )
    ]
    file = tmp_path / "final.parquet"
    done = await asyncio.to_thread(command, *export, "--format", "parquet", "--output", str(file))
    assert "2 rows exported" in done.err
    assert parquet.read_table(file).to_pylist() == [
        {"rank": 1, "userId": "alice", "score": 30, "reachedAt": reached[0][0]},
        {"rank": 2, "userId": "bob", "score": 20, "reachedAt": reached[1][0]},
    ]
    [(second,)] = query(settings, "SELECT season FROM seasons ORDER BY starts_at DESC LIMIT 1")
    current = await asyncio.to_thread(command, *export[:-1], second)
    assert (current.code, current.out.splitlines()) == (0, ["rank,userId,score,reachedAt"])
    unknown = await asyncio.to_thread(command, *export[:-1], "1999-W01")
    assert "has no season 1999-W01" in unknown.err
    query(settings, "UPDATE seasons SET frozen_at = NULL")
    assert "is not final yet" in (await asyncio.to_thread(command, *export)).err


async def test_an_action_of_an_ended_season_is_released_in_the_current_one(
    command: Run, settings: Settings
) -> None:
    for words in (("create", "league", "--season", "weekly"), ("set", "league", *LIMIT)):
        assert (await asyncio.to_thread(command, "board", *words)).code == 0
    async with flushing(settings):
        await act(settings, Action("alice", "win:1", 30, rules=UTC_RULES), board="league")
        await eventually_async(lambda: is_drained(settings, "league"))
        query(settings, "UPDATE held_actions SET season = '1999-W01'")
        release = ("held", "release", "--user", "alice", "--board", "league", "--yes")
        why = ("--reason", "checked", "--json")
        refused = await asyncio.to_thread(command, *release, *why)
        assert (refused.code, result(refused)["outcome"]) == (5, "refused")
        assert "is of season 1999-W01, which is over" in refused.out
        done = await asyncio.to_thread(command, *release, *why, "--in-current-season")
    assert (done.code, result(done)["score"]) == (0, 30)


def result(done: Done) -> dict[str, Any]:
    """Return the only result; the flusher of the test logs to the same place before it."""
    [one] = json.loads(done.out.splitlines()[-1])
    return one


async def test_the_last_season_of_a_deleted_board_becomes_final(
    command: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seasons, "LIST_EVERY_S", 1.0)
    create = ("board", "create", "league", "--season", "weekly")
    assert (await asyncio.to_thread(command, *create)).code == 0
    async with flushing(settings):
        rules = Rules(season="weekly", time_zone="UTC")
        await act(settings, Action("alice", "win:1", 30, rules=rules), board="league")
        await eventually_async(lambda: is_drained(settings, "league"))
        for words in (("archive", "league"), ("delete", "league", "--yes")):
            assert (await asyncio.to_thread(command, "board", *words)).code == 0

        def is_frozen() -> bool:
            return query(settings, "SELECT 1 FROM seasons WHERE frozen_at IS NOT NULL") != []

        await eventually_async(is_frozen, 15)
    listed = await asyncio.to_thread(command, "season", "list", "league", "--json")
    [last] = json.loads(listed.out)
    assert (last["is_frozen"], last["users"]) == (True, 1)
    beyond = await asyncio.to_thread(
        command, "season", "top", "league", last["id"], "--offset", "5"
    )
    assert "has no users after the first 5" in beyond.err
    unknown = await asyncio.to_thread(command, "season", "list", "league", "--before", "ZZZ")
    assert (unknown.code, "Board league has no season ZZZ" in unknown.err) == (3, True)


def test_a_board_without_seasons_has_no_standings_of_one(command: Run) -> None:
    assert command("board", "create", "plain").code == 0
    refused = command("season", "top", "plain", "2026-W48")
    assert (refused.code, "Board plain has no seasons" in refused.err) == (3, True)


def test_a_file_of_boards_has_seasons(command: Run, tmp_path: Path) -> None:
    file = tmp_path / "boards.toml"
    file.write_text('[boards.daily]\nseason = "daily"\n[boards.plain]\n')
    assert command("board", "apply", str(file)).code == 0
    again = command("board", "apply", str(file))
    assert "Nothing had to be changed" in again.err
    text = command("board", "export").out
    assert text.count("season = ") == 1
    assert 'time_zone = "UTC"' in text
    file.write_text('[boards.daily]\nseason = "weekly"\n')
    refused = command("board", "apply", str(file))
    assert "season is daily and cannot be changed" in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--season", "hourly"), "a season is daily"),
        (("--season", "daily", "--time-zone", "Mars"), "time zone"),
        (("--season", "daily", "--time-zone", "localtime"), "time zone"),
        (("--season", "daily", "--time-zone", "posix/Europe/Berlin"), "time zone"),
        (("--season", "cron:* *"), "five fields"),
        (("--time-zone", "UTC"), "is for boards with seasons"),
    ],
)
def test_seasons_that_cannot_be_computed_are_refused(
    command: Run, options: tuple[str, ...], message: str
) -> None:
    refused = command("board", "create", "league", *options)
    assert refused.code != 0
    assert message in refused.err
    assert str(Layout()) not in refused.out
