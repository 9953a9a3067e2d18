"""The benchmarks work: the baseline answers as the api does, and small runs give figures."""

import asyncio
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.api.stage import api_settings, open_main, server
from tests.bench.api.tokens import prepare, user_id
from tests.bench.machine import TICKS_PER_S, busy_and_own_ticks
from tests.bench.rows import read
from tests.support.repository import ROOT

pytestmark = pytest.mark.slow

MEMBERS = 30


def ask(port: int, method: str, path: str, body: Any = None, token: str = "") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    try:
        connection.request(method, path, body and json.dumps(body), headers if token else {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def answers(name: str, url: str) -> list[tuple[int, Any]]:
    """Send the same requests to a server with a board of its own; return the responses."""
    asyncio.run(open_main(url, MEMBERS))
    tokens = prepare(2)
    token = tokens.tokens.read_text().split("\n", 1)[0]
    update = {"userId": user_id(0), "actionId": "win:1"}
    with server(name, api_settings(url, tokens), None) as (_, port):
        return [
            ask(port, "GET", "/api/scores/leaderboard"),
            ask(port, "GET", f"/api/scores/users/{user_id(7)}"),
            ask(port, "POST", "/api/scores/update", update, token),
            ask(port, "POST", "/api/scores/update", update, token),
            ask(port, "GET", f"/api/scores/users/{user_id(0)}"),
        ]


def test_the_baseline_does_the_work_of_the_api(redis_url: str) -> None:
    """The baseline once could not read the reply of submit.lua and failed every update."""
    ours, theirs = answers("api", redis_url), answers("baseline", redis_url)

    assert [status for status, _ in ours] == [200] * 5
    for (_, own), (status, other) in zip(ours, theirs, strict=True):
        assert status == 200
        assert other == {name: own[name] for name in other}, other
    assert [len(other) for _, other in theirs] == [2, 4, 3, 3, 4]


@pytest.mark.parametrize(
    ("words", "works"),
    [
        (("api", "--work", "update", "--only", "api"), {"update"}),
        (("reseed",), {"reseed", "verify --full"}),
        (("lua",), {"actions", "memory"}),
        (("memory",), {"memory of Redis", "disk"}),
        (("flush",), {"steady", "drain"}),
        (("places",), {"10 boards/s", "quiet top", "places"}),
        (("scale", "--only", "apis"), {"update"}),
    ],
)
def test_a_small_run_gives_figures(words: tuple[str, ...], works: set[str], tmp_path: Path) -> None:
    module, *rest = words
    file = tmp_path / "figures.json"

    subprocess.run(
        [sys.executable, "-m", f"tests.bench.{module}", *rest, "--quick", "--json", str(file)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )

    found = read(file)
    assert found.benchmark.partition("-")[0] == module
    assert {row.work for row in found.rows} == works
    assert all(value >= 0 for row in found.rows for value in row.values)
    assert all(0 <= share <= 1 for share in found.foreign)


def test_a_process_that_was_waited_for_counts_as_own() -> None:
    """Its CPU time must not look like that of other programs."""
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    _, before = busy_and_own_ticks(os.getpid())

    with subprocess.Popen([sys.executable, "-c", burn]) as process:
        process.wait(60)
    busy, after = busy_and_own_ticks(os.getpid())

    assert after - before >= 0.25 * TICKS_PER_S
    assert busy >= after
