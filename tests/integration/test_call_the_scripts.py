"""The programs of docs/how-to/call-the-scripts.md count actions, and the flusher commits them."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import redis

from scoreboard.model import Action, Board, Layout, Partition
from scoreboard.runtime.settings import Settings
from scoreboard.store.dispatcher import submit_command
from tests.support import tools
from tests.support.clients.commands import with_store
from tests.support.clients.forked import programs
from tests.support.data.boards import open_board
from tests.support.eventually import eventually
from tests.support.repository import ROOT
from tests.support.servers.system import System, run_command

PAGE = (ROOT / "docs/how-to/call-the-scripts.md").read_text()
EXAMPLE = ROOT / "docs/clients/call_submit.py"
IN_SHARD_0 = bytes(16)


def blocks(mark: str) -> list[str]:
    return re.findall(rf"^<!-- {mark} -->\n```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("call_submit", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def committed(system: System) -> tuple[int, int]:
    with psycopg.connect(system.postgres.url) as ledger:
        ask = "SELECT count(*), coalesce(sum(delta), 0) FROM score_events"
        return ledger.execute(ask).fetchone()  # pyright: ignore[reportReturnType]


def test_the_python_example_counts_once_and_the_flusher_commits(
    system: System, tmp_path: Path
) -> None:
    (tmp_path / "submit.lua").write_text(run_command("lua", "show", "submit").stdout)

    def count(*words: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, EXAMPLE, *words],
            cwd=tmp_path,
            env={"REDIS_URL": system.valkey.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.split()

    applied = count("main", "a|b@c", "win:1", "5")
    replayed = count("main", "a|b@c", "win:1", "5")

    assert applied == ["applied", "5", "5", "1", "0"]
    assert replayed[:4] == ["replayed", "5", "5", "1"]
    update = {"userId": "a|b@c", "actionId": "win:1", "points": 5}
    address = f"{system.api}/api/scores/update"
    reply = httpx.post(address, json=update, headers=system.game_server(), timeout=30)
    assert reply.json() == {"success": True, "newScore": 5, "replayed": True}
    eventually(lambda: committed(system) == (1, 5))
    assert system.run("verify").returncode == 0


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "submit.lua").write_bytes((ROOT / "lua/submit.lua").read_bytes())
    return load_example()


def test_the_python_example_learns_script_time_and_layout(
    example: Any, settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Outdated(redis.Redis):
        """A client that has read the layout before it was changed."""

        def hget(self, *_: object) -> Any:
            return "1:43200:64"

    with_store(settings, lambda store: open_board(store, Board("main", Layout(partitions=3))))
    now_s = time.time()
    monkeypatch.setattr(example.time, "time", lambda: now_s + 10 * 43_200)

    with Outdated.from_url(redis_url, decode_responses=True) as client:
        client.script_flush()
        replies = [example.submit(client, "main", "u1", "win:1", 5) for _ in range(2)]

    assert replies == [["applied", 5, 5, 1, 0], ["replayed", 5, 5, 1, 0]]


def test_the_python_example_raises_other_refusals(
    example: Any, settings: Settings, redis_url: str
) -> None:
    with_store(settings, open_board)
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.hset("sb:{main:0}:meta", "state", "fenced")
        with pytest.raises(redis.ResponseError, match=r"^FENCED "):
            example.submit(client, "main", "u1", "win:1", 5)


def test_the_lines_of_redis_benchmark_run_and_the_flusher_commits(system: System) -> None:
    parts = urlsplit(system.valkey.url)
    cli, benchmark = (
        tools.program(name, "redis-tools") for name in ("redis-cli", "redis-benchmark")
    )
    submits, reads = blocks("benchmark")
    script = f"""
        set -euo pipefail
        redis-cli() {{ "{cli}" -p {parts.port} "$@"; }}
        redis-benchmark() {{ "{benchmark}" -p {parts.port} -a "$REDISCLI_AUTH" --csv "$@"; }}
        BOARD=main
        {submits}
        {reads}
    """.replace("-n 20000", "-n 2000")
    done = subprocess.run(
        ["bash", "-c", script],
        env=os.environ
        | {
            "REDISCLI_AUTH": parts.password or "",
            "PATH": f"{programs('cli')}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "rror" not in done.stdout + done.stderr
    assert done.stdout.count("EVALSHA") == 2, done.stdout
    with redis.Redis.from_url(system.valkey.url) as client:
        applied = int(client.hget("sb:{main:0}:meta", "seq"))  # pyright: ignore[reportArgumentType]
    # The digest of two calls may be the same by chance.
    assert 1990 <= applied <= 2000
    eventually(lambda: committed(system) == (applied, 5 * applied))
    assert system.run("verify").returncode == 0


def test_the_line_of_memtier_has_the_arguments_of_submit() -> None:
    (text,) = blocks("memtier")
    for name, value in {
        "$((GENERATION - 1))": "40000",
        "$GENERATION": "40001",
        "$KEY": "sb:{main:0}",
        "$LAYOUT": "1:43200:64",
        "$SHA": "0" * 40,
    }.items():
        text = text.replace(name, value)
    options = dict(word.split("=", 1) for word in shlex.split(text) if "=" in word)
    action = Action("__key__", "__key__", 5, stated=True, request_id="load")
    command = submit_command(Partition("main"), Layout(), 40_001, 1_000_000, [(action, IN_SHARD_0)])
    expected = ["__key__" if word == IN_SHARD_0 else str(word) for word in command]
    assert options["--command"].split() == [expected[0], "0" * 40, *expected[2:]]
    assert len(options["--key-prefix"] + options["--key-minimum"]) == 16
    assert len(options["--key-minimum"]) == len(options["--key-maximum"])
