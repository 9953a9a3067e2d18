"""`scoreboard lua`: what it prints, sent by redis-cli and by others, does what the api does."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import redis

from cli.commands.lua import CALLABLE, REFUSED
from scoreboard.model import Action, Board, Layout, Partition, digest_of
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.store import Store
from tests.support import tools
from tests.support.clients.commands import Done, Run, with_store
from tests.support.data.boards import open_board
from tests.support.eventually import eventually
from tests.support.repository import ROOT
from tests.support.servers.rights import as_user, make_users
from tests.support.servers.stores import OwnValkey
from tests.support.servers.system import System

ODD_USERS = ["a|b", "-n", "@x:y._z-", "x" * 128]


def shell(line: str, url: str) -> str:
    """Run a printed line in a shell, in which redis-cli knows the address; return its output."""
    parts = urlsplit(url)
    program = tools.program("redis-cli", "redis-tools")
    addressed = f'redis-cli() {{ "{program}" -p {parts.port} "$@"; }}\n{line}'
    environment = os.environ | ({"REDISCLI_AUTH": parts.password} if parts.password else {})
    done = subprocess.run(
        ["bash", "-c", addressed],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


def action_with(board: str, user: str, wanted: bytes) -> str:
    """Return an action whose digest contains a byte that is special in shells and in Redis."""
    return next(
        action for number in count() if wanted in digest_of(board, user, action := f"win:{number}")
    )


def submitted(out: str) -> list[str]:
    """Return outcome, delta, score, seq and committed of redis-cli's output."""
    return out.split()


def call(run: Callable[..., Any], *words: str) -> str:
    done = run("lua", "call", *words)
    code = done.returncode if isinstance(done, subprocess.CompletedProcess) else done.code
    out, err = (done.stdout, done.stderr) if not isinstance(done, Done) else (done.out, done.err)
    assert code == 0, err
    return out


@pytest.fixture
def board(settings: Settings) -> Board:
    return with_store(settings, open_board)


def update(settings: Settings, user: str, action: str, points: int) -> tuple[int, int, bool]:
    """Send an update as the api does."""

    async def work() -> tuple[int, int, bool]:
        dispatcher = Dispatcher(settings)
        task = asyncio.create_task(dispatcher.run())
        try:
            receipt = await dispatcher.submit("main", Action(user, action, points, stated=True))
        finally:
            dispatcher.close()
            await asyncio.wait_for(task, 30)
        return receipt.score, receipt.seq, receipt.replayed

    return asyncio.run(work())


def test_a_line_counts_as_an_update_by_the_api_does(system: System) -> None:
    with httpx.Client(base_url=system.api, headers=system.game_server(), timeout=30) as api:
        for number, user in enumerate(ODD_USERS):
            first = {"userId": user, "actionId": "by-api:1", "points": 3}
            assert api.post("/api/scores/update", json=first).json()["newScore"] == 3
            words = ("submit", "--user", user, "--action", "by-hand:1", "--points", "5")

            line = call(system.run, *words, "--load")
            replies = [submitted(shell(line, system.valkey.url)) for _ in range(2)]

            seq = str(2 * number + 2)
            assert [one[:4] for one in replies] == [
                ["applied", "5", "8", seq],
                ["replayed", "5", "8", seq],
            ]
            again = {"userId": user, "actionId": "by-hand:1", "points": 5}
            reply = api.post("/api/scores/update", json=again).json()
            assert reply == {"success": True, "newScore": 8, "replayed": True}
    with psycopg.connect(system.postgres.url, autocommit=True) as ledger:
        ask = "SELECT count(*), sum(delta) FROM score_events"
        eventually(lambda: ledger.execute(ask).fetchone() == (2 * len(ODD_USERS), 32))


@pytest.mark.parametrize("byte", [b"\0", b'"', b"\\", b"\n", b"'", b"$", b"\xff"])
def test_any_byte_of_a_digest_reaches_redis(
    command: Run, settings: Settings, board: Board, redis_url: str, byte: bytes
) -> None:
    action = action_with("main", "u1", byte)
    words = ("submit", "--user", "u1", "--action", action, "--points", "5")

    applied = submitted(shell(call(command, *words, "--load"), redis_url))
    from_stdin = call(command, *words, "--format", "args")
    replayed = submitted(shell(f"redis-cli <<'END'\n{from_stdin}END", redis_url))

    assert applied[:2] == ["applied", "5"]
    assert replayed[:2] == ["replayed", "5"]
    assert update(settings, "u1", action, 5) == (5, 1, True)


def test_the_bytes_of_the_protocol_and_json_are_the_same_command(
    command: Run, board: Board, redis_url: str
) -> None:
    words = ("submit", "--user", "u1", "--action", "win:1", "--points", "5")
    made = json.loads(call(command, *words, "--format", "json", "--load"))
    all_words = made["command"]
    sendable = [bytes.fromhex(one["hex"]) if isinstance(one, dict) else one for one in all_words]
    with redis.Redis.from_url(redis_url) as client:
        assert client.execute_command(*sendable) == [[b"applied", 5, 5, 1, 0]]

    sent = subprocess.run(
        [sys.executable, "-m", "cli", "lua", "call", *words, "--format", "resp"],
        cwd=ROOT,
        env=os.environ | {"REDIS_URL": redis_url},
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    parts = urlsplit(redis_url)
    login = f"AUTH {parts.password}\r\n".encode()
    with socket.create_connection(("127.0.0.1", parts.port), 30) as connection:
        connection.sendall(login)
        assert connection.recv(5) == b"+OK\r\n"
        connection.sendall(sent)
        reply = connection.makefile("rb").read(len(b"*1\r\n*5\r\n$8\r\nreplayed\r\n"))
    assert reply == b"*1\r\n*5\r\n$8\r\nreplayed\r\n"


def test_without_the_script_redis_says_so_and_load_loads_it(
    command: Run, board: Board, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    words = ("submit", "--user", "u1", "--action", "win:1", "--points", "5")

    assert shell(call(command, *words), redis_url).startswith("NOSCRIPT")
    assert "--load" in command("lua", "call", *words).err
    assert submitted(shell(call(command, *words, "--load"), redis_url))[0] == "applied"

    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    shown = command("lua", "show", "submit").out
    assert shown == (ROOT / "lua/submit.lua").read_text()


def test_a_line_of_another_generation_is_refused_and_the_message_says_when(
    command: Run, settings: Settings, redis_url: str
) -> None:
    with_store(settings, lambda store: open_board(store, Board("main", Layout(seen_seconds=1))))
    words = ("submit", "--user", "u1", "--action", "win:1", "--points", "5")

    done = command("lua", "call", *words, "--load")

    assert "for real" in done.err
    assert "BUCKET" in done.err
    eventually(lambda: shell(done.out, redis_url).startswith("BUCKET"))


def test_reads_of_several_partitions_are_those_of_the_store(
    command: Run, settings: Settings, redis_url: str
) -> None:
    with_store(settings, lambda store: open_board(store, Board("main", Layout(partitions=3))))
    for number in range(12):
        update(settings, f"user{number}", "win:1", number + 1)

    async def read(store: Store) -> tuple[int, int]:
        window = await store.leaderboard("main")
        place = await store.standing("main", "user5", around=2)
        return window.total, place.rank

    total, rank = with_store(settings, read)
    lines = call(command, "leaderboard", "--load").splitlines()
    totals = [int(shell(line, redis_url).split()[2]) for line in lines]
    assert len(lines) == 3
    assert sum(totals) == total == 12

    line = call(command, "standing", "--user", "user5", "--load")
    _, _, _, index, packed, *_ = shell(line, redis_url).split()
    home = line.split("{main:")[1][0]
    above = 0
    for number in {"0", "1", "2"} - {home}:
        wins = ["--wins"] if number < home else []
        words = ("neighbours", "--packed", packed, "--partition", number, *wins, "--load")
        above += int(shell(call(command, *words), redis_url).split()[3])
    assert int(index) + above + 1 == rank
    wrong = command("lua", "call", "neighbours", "--packed", packed, "--partition", "3")
    assert wrong.code == 3

    history = shell(call(command, "history", "--load"), redis_url).strip()
    assert history == with_store(settings, lambda store: store.replication_id(Partition("main")))


def test_a_board_that_is_not_loaded_is_an_error(command: Run) -> None:
    done = command("lua", "call", "leaderboard", "--board", "other")

    assert (done.code, done.out) == (69, "")


def test_each_script_can_be_called_or_says_why_not(command: Run) -> None:
    scripts = {path.stem for path in (ROOT / "lua").glob("*.lua")}
    assert {*CALLABLE, *REFUSED} == scripts
    listed = {
        row.split("\t")[0]: row.split("\t")[2] for row in command("lua", "list").out.splitlines()
    }
    assert listed == {name: "yes" if name in CALLABLE else "no" for name in scripts}
    assert {one["name"] for one in json.loads(command("lua", "list", "--json").out)} == scripts

    for name, reason in REFUSED.items():
        done = command("lua", "call", name)
        assert (done.code, done.out) == (5, "")
        assert reason in done.err
    assert command("lua", "show", "nothing").code == 3
    assert command("lua", "call", "nothing").code == 2


def test_wrong_ids_and_points_are_refused(command: Run, board: Board) -> None:
    words = ("lua", "call", "submit")

    assert command(*words, "--user", "a b", "--action", "win:1", "--points", "5").code == 5
    assert command(*words, "--user", "u1", "--action", "win 1", "--points", "5").code == 5
    assert command(*words, "--user", "u1", "--action", "win:1", "--points", "0").code == 2


def test_a_password_is_not_printed(
    command: Run, own_valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_valkey(password="not-to-be-printed")
    monkeypatch.setenv("REDIS_URL", server.url)
    settings = Settings(redis_url=Secret(server.url))
    with_store(settings, open_board)

    for form in ("redis-cli", "valkey-cli", "args", "json", "resp"):
        done = command("lua", "call", "leaderboard", "--format", form, "--load")
        assert done.code == 0
        assert "not-to-be-printed" not in done.out + done.err


def test_the_operator_prints_what_the_login_of_the_api_may_send(
    command: Run, own_valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_valkey()
    with redis.Redis.from_url(server.url) as admin:
        make_users(admin, "deployed")
    with_store(Settings(redis_url=Secret(server.url)), open_board)
    operator, api = (as_user(server.url, name, "deployed") for name in ("operator", "api"))
    monkeypatch.setenv("REDIS_URL", operator)
    submit = ("submit", "--user", "u1", "--action", "win:1", "--points", "5")

    for words in (submit, ("leaderboard",), ("standing", "--user", "u1")):
        made = json.loads(call(command, *words, "--load", "--format", "json"))["command"]
        sent = [bytes.fromhex(one["hex"]) if isinstance(one, dict) else one for one in made]
        with redis.Redis.from_url(api) as client:
            reply = client.execute_command(*sent)
        assert reply[:1] == [[b"applied", 5, 5, 1, 0]] if words == submit else reply[:1] == [1]
    assert "login of the api" in command("lua", "call", *submit).err
