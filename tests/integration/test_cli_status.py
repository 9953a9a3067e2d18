"""`scoreboard status`: every part is one line, whatever its state, within a bounded time."""

import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis

from cli import system_status
from cli.embedded.ports import find_free_port
from scoreboard.health import checks
from scoreboard.health.services import service_urls
from scoreboard.model import Layout, Partition, pack
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partitions import PartitionState
from tests.support.clients.commands import Run
from tests.support.eventually import eventually
from tests.support.servers.api_process import RunApi
from tests.support.servers.system import System

pytestmark = pytest.mark.slow

KEYS = PartitionKeys(Partition("main"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Return a system that the tests of this file share; each leaves it as it was."""
    with System(tmp_path_factory.mktemp("status"), api_metrics_port=find_free_port()) as made:
        eventually(lambda: look(made)["checks"]["drift main"]["state"] == "none", within_s=20)
        yield made


def look(system: System, *options: str) -> Any:
    """Return the status as JSON, with the exit code."""
    done = system.run("status", "--json", "--interval", "0.1", *options)
    assert done.stdout, done.stderr
    return json.loads(done.stdout) | {"code": done.returncode}


def states(found: Any) -> dict[str, str]:
    return {name: check["state"] for name, check in found["checks"].items()}


def test_a_healthy_system_is_all_well(running: System) -> None:
    found = look(running)

    assert (found["code"], found["status"]) == (0, "well")
    assert not [name for name, check in found["checks"].items() if "advice" in check]
    assert states(found) | {"viewers": "", "program": "", "backlog main": ""} == {
        "program": "",
        "redis": "up",
        "durability": "safe",
        "database": "up",
        "schema": "current",
        "dead letters": "none",
        "backup": "none",
        "board main": "open",
        "backlog main": "",
        "api": "ready",
        "streamer": "ready",
        "flusher": "ready",
        "keys": "up",
        "catalogue": "up",
        "live main": "live",
        "viewers": "",
        "drift main": "none",
        "refusals": "none",
    }
    assert found["checks"]["redis"]["detail"].startswith("Valkey ")
    assert found["checks"]["database"]["detail"].startswith("PostgreSQL ")
    assert found["checks"]["board main"]["detail"] == "epoch 1"
    assert found["checks"]["api"]["detail"] == f"version {found['checks']['program']['state']}"


def test_the_lines_are_plain_without_a_terminal(running: System) -> None:
    done = running.run("status", "--interval", "0.1")

    assert done.returncode == 0
    assert done.stdout.isascii()
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert {len(line) for line in lines} == {5}
    assert ["ok", "board main", "open", "epoch 1", ""] in lines


def test_drift_is_shown_until_it_is_repaired(running: System) -> None:
    token = running.token("alice")
    httpx.post(
        f"{running.api}/api/scores/update",
        json={"userId": "alice", "actionId": "drift:1"},
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
    ).raise_for_status()
    with redis.Redis.from_url(running.valkey.url, decode_responses=True) as admin:
        eventually(lambda: admin.xlen(KEYS.events) == 0)
        admin.zadd(KEYS.board, {"alice": pack(99, 0)})

    eventually(lambda: look(running)["checks"]["drift main"]["state"] == "drifted", within_s=20)
    found = look(running)
    assert (found["code"], found["status"]) == (1, "action needed")
    assert found["checks"]["drift main"]["advice"] == "scoreboard repair --board main"

    assert running.run("repair", "--yes").returncode == 0
    eventually(lambda: look(running)["code"] == 0, within_s=20)


@pytest.mark.parametrize(
    ("fence", "owner", "advice"),
    [
        ("somebody:secret-token", "somebody", "wait for the reseed or repair that fenced it"),
        ("flusher:gap", "flusher:gap", "do not reseed yet, accepted actions are missing"),
        ("flusher:rewind:secret-token", "flusher:rewind", "wait for the flusher"),
    ],
)
def test_a_fenced_board_is_shown_with_who_fenced_it_and_what_to_do(
    fence: str, owner: str, advice: str
) -> None:
    state = PartitionState(epoch=1, layout=Layout(), fence=fence)

    check = checks.describe_board("main", Layout(), [state])

    assert (check.state, check.detail) == ("fenced", f"epoch 1, by {owner}")
    assert check.advice.startswith(advice)
    assert check.advice.endswith("#streamfaults") == (owner == "flusher:gap")


def test_a_closed_board_that_no_setting_names_is_shown(running: System) -> None:
    """Updates of the board got 503 and the status was well, once."""
    for name in ("golf", "chess"):
        assert running.run("board", "create", name).returncode == 0
    meta = PartitionKeys(Partition("golf")).meta
    try:
        found = look(running)
        assert (found["code"], found["checks"]["other boards"]) == (
            0,
            {"state": "open", "detail": "2"},
        )
        with redis.Redis.from_url(running.valkey.url, decode_responses=True) as admin:
            admin.hset(meta, mapping={"state": "fenced", "fence": "somebody:secret-token"})

            found = look(running)

            admin.hset(meta, "state", "open")
            admin.hdel(meta, "fence")
    finally:
        for name in ("golf", "chess"):
            running.run("board", "archive", name, "--yes")
    assert (found["code"], found["status"]) == (1, "action needed")
    assert found["checks"]["board golf"]["detail"] == "epoch 1, by somebody"
    assert found["checks"]["other boards"]["detail"] == "1 of 2 accept no actions"
    assert "board chess" not in found["checks"]


def test_the_owner_of_a_fence_is_shown_in_status_and_readiness(running: System) -> None:
    with redis.Redis.from_url(running.valkey.url, decode_responses=True) as admin:
        admin.hset(KEYS.meta, mapping={"state": "fenced", "fence": "somebody:secret-token"})
        try:
            done = running.run("status", "--interval", "0.1")
            ready = eventually(lambda: _readiness(running, "by somebody"))
        finally:
            admin.hset(KEYS.meta, "state", "open")
            admin.hdel(KEYS.meta, "fence")
            eventually(lambda: look(running)["code"] == 0, within_s=20)

    line = next(one for one in done.stdout.splitlines() if "\tboard main\t" in one)
    assert line.startswith("action\tboard main\tfenced\tepoch 1, by somebody\twait for the reseed")
    assert "secret-token" not in done.stdout + ready
    assert done.returncode == 1
    eventually(lambda: look(running)["code"] == 0, within_s=20)


def _readiness(system: System, text: str) -> str:
    """Return the body of the api's readiness once it contains a text."""
    body = httpx.get(f"{system.api}/health/ready", trust_env=False).text
    assert text in body
    return body


def test_refusals_are_shown_by_reason_and_rate(running: System) -> None:
    is_done = threading.Event()

    def send_bad_tokens() -> None:
        with httpx.Client(trust_env=False) as client:
            while not is_done.is_set():
                client.post(
                    f"{running.api}/api/scores/update",
                    json={"userId": "a", "actionId": "b"},
                    headers={"Authorization": "Bearer bad"},
                )

    sender = threading.Thread(target=send_bad_tokens)
    sender.start()
    try:
        found = look(running, "--interval", "0.5")
    finally:
        is_done.set()
        sender.join(10)

    refused = found["refusals"]["token malformed"]
    assert refused["per_s"] > 0
    assert refused["total"] > 0
    assert found["checks"]["refusals"]["state"] == "some"
    assert "token malformed" in found["checks"]["refusals"]["detail"]
    assert found["code"] == 0, "clients' faults need no action"


def test_a_stopped_flusher_is_one_line_and_69(running: System) -> None:
    running.services["flusher"].stop()
    try:
        found = look(running)
    finally:
        running.services["flusher"].start()
        running.wait_until_ready("flusher")

    assert (found["code"], found["status"]) == (69, "unavailable")
    assert found["checks"]["flusher"]["state"] == "down"
    assert found["checks"]["flusher"]["advice"] == "see docs/how-to/runbook.md#flusherdown"
    assert found["checks"]["drift main"]["state"] == "unknown"
    assert found["effects"]["drift main"] == "flusher"
    assert "advice" not in found["checks"]["drift main"]
    assert states(found)["api"] == "ready"


def test_the_effects_of_a_stopped_redis_name_their_cause_and_need_no_action(
    running: System,
) -> None:
    running.valkey.stop()
    try:
        found = eventually(lambda: _with_services_not_ready(running), within_s=40)
        lines = running.run("status", "--interval", "0.1").stdout.splitlines()
    finally:
        running.valkey.start()
        running.wait_until_ready()

    assert set(found["effects"].values()) == {"redis"}
    assert {"api", "streamer", "flusher", "drift main"} <= set(found["effects"])
    assert [name for name, check in found["checks"].items() if "advice" in check] == ["redis"]
    assert found["checks"]["drift main"]["detail"].endswith("because of redis: down")
    assert [line.split("\t")[1] for line in lines if line.startswith(("action", "down"))] == [
        "redis"
    ]
    eventually(lambda: look(running)["code"] == 0, within_s=20)


def _with_services_not_ready(system: System) -> Any:
    found = look(system)
    assert {states(found)[name] for name in system_status.SERVICES} == {"not ready"}
    return found


def test_a_service_that_is_not_ready_for_another_reason_names_its_section(
    command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "health").mkdir()
    (tmp_path / "health/ready").write_text('{"status": "not ready"}')
    version = importlib.metadata.version("scoreboard")
    (tmp_path / "metrics").write_text(
        f'scoreboard_build_info{{service="streamer",version="{version}"}} 1\n'
    )
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("SCOREBOARD_SERVICES", f"streamer={url}")

        found = json.loads(command("status", "--json").out)

        server.shutdown()
    assert found["checks"]["streamer"]["state"] == "not ready"
    assert found["checks"]["streamer"]["advice"] == "see docs/how-to/runbook.md#boardstale"


def test_frozen_servers_are_lines_within_a_bounded_time(running: System) -> None:
    """Both servers accept connections and never answer."""
    pids = [running.valkey.pid, running.postgres.pid]
    for pid in pids:
        assert pid is not None
        subprocess.run(["/bin/kill", "-STOP", str(pid)], check=True)
    began_s = time.monotonic()
    try:
        done = running.run("status", "--json", "--interval", "0.1")
    finally:
        for pid in pids:
            subprocess.run(["/bin/kill", "-CONT", str(pid)], check=True)
        took_s = time.monotonic() - began_s
        running.wait_until_ready()

    found = json.loads(done.stdout)
    assert done.returncode == 69
    assert took_s < system_status.LIMIT_S + 6
    assert states(found)["redis"] == states(found)["database"] == "down"
    assert "flusher" in found["checks"]
    assert "Traceback" not in done.stderr


def test_nothing_answers(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    port = find_free_port()
    monkeypatch.setenv("REDIS_URL", f"redis://:hidden-one@127.0.0.1:{port}/0")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:hidden-two@127.0.0.1:{port}/x")
    monkeypatch.setenv("SCOREBOARD_SERVICES", f"api=http://127.0.0.1:{port}")

    done = command("status", "--json")

    found = json.loads(done.out)
    assert done.code == 69
    assert {"redis", "database", "api"} <= {
        name for name, state in states(found).items() if state == "down"
    }
    assert found["checks"]["redis"]["advice"] == "see docs/how-to/runbook.md#redisdown"
    assert found["checks"]["api"]["detail"] == (
        f"http://127.0.0.1:{port}: nothing listens there, or the host is unreachable"
    )
    assert states(found)["streamer"] == states(found)["board main"] == "unknown"
    assert "hidden" not in done.out + done.err


@pytest.mark.parametrize(
    ("ready", "reason"),
    [
        ("", "it has no metric scoreboard_build_info"),
        ("welcome", "the response is not that of this service"),
        ('{"status": "ready"}', "it has no metric scoreboard_build_info"),
    ],
)
def test_another_program_on_the_port_of_a_service_is_not_ready(
    ready: str, reason: str, command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    (tmp_path / "health").mkdir()
    if ready:
        (tmp_path / "health/ready").write_text(ready)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("SCOREBOARD_SERVICES", f"flusher={url}")

        found = json.loads(command("status", "--json").out)

        server.shutdown()
    assert found["checks"]["flusher"]["state"] == "down"
    assert found["checks"]["flusher"]["detail"] == f"{url}: {reason}"


def test_a_schema_that_is_not_current_is_shown(command: Run, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM _yoyo_migration WHERE migration_id = '0014_create_backups'")

    found = json.loads(command("status", "--json").out)

    assert found["checks"]["schema"]["state"] == "outdated"
    assert found["checks"]["schema"]["advice"] == "scoreboard db migrate"


def test_an_endless_response_is_cut_off(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65_536)
                        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                        while True:
                            connection.sendall(b"x" * 65_536)
                except OSError:
                    if listener.fileno() < 0:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        monkeypatch.setenv("SCOREBOARD_SERVICES", f"flusher=http://127.0.0.1:{port}")

        found = json.loads(command("status", "--json").out)

        assert found["checks"]["flusher"]["state"] == "down"
        assert "is larger than" in found["checks"]["flusher"]["detail"]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_a_board_that_cannot_be_read_needs_action(running: System) -> None:
    with redis.Redis.from_url(running.valkey.url, decode_responses=True) as admin:
        admin.rename(KEYS.events, "away")
        admin.set(KEYS.events, "of another type")
        try:
            done = running.run("status", "--interval", "0.1")
        finally:
            admin.rename("away", KEYS.events)
            eventually(lambda: look(running)["code"] == 0, within_s=20)

    lines = {line.split("\t")[1]: line.split("\t") for line in done.stdout.splitlines()}
    assert lines["board main"][0] == "action"
    assert "WRONGTYPE" in lines["board main"][3]
    assert lines["board main"][4] == "see docs/how-to/runbook.md#flusherstuck"
    assert lines["backlog main"][0] == "unknown"
    assert done.returncode == 1


def test_a_frozen_worker_needs_action(
    run_api: RunApi, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel still gives it connections, which hang."""
    url = f"http://127.0.0.1:{find_free_port()}"
    api = run_api(api_workers=2, api_metrics_port=url.rpartition(":")[2])
    monkeypatch.setenv("SCOREBOARD_SERVICES", f"api={url}")
    started = eventually(lambda: len(found := api.lines("worker_started")) == 2 and found)
    pids = {line["scoreboard.worker"]: line["scoreboard.worker_pid"] for line in started}
    os.kill(pids[1], signal.SIGSTOP)
    try:
        found = json.loads(command("status", "--json", "--interval", "0.1").out)
        ready = httpx.get(f"{url}/health/ready", trust_env=False, timeout=10)
    finally:
        os.kill(pids[1], signal.SIGCONT)

    assert found["checks"]["api"]["state"] == "not ready"
    assert found["checks"]["api"]["detail"].endswith("worker 1 does not answer")
    assert found["checks"]["api"]["advice"] == "see docs/how-to/runbook.md#workerdown"
    assert ready.status_code == 503
    assert ready.json()["workers"]["1"] == "not ready"


def test_the_port_of_another_service_is_not_the_service(
    running: System, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = running.variables["flusher"]["SCOREBOARD_FLUSHER_METRICS_PORT"]
    monkeypatch.setenv("SCOREBOARD_SERVICES", f"api=http://127.0.0.1:{port}")

    found = json.loads(command("status", "--json", "--interval", "0.1").out)

    assert found["checks"]["api"]["state"] == "down"
    assert "it is the flusher" in found["checks"]["api"]["detail"]


@pytest.mark.parametrize(
    "services", ["http://127.0.0.1:1", "worker=http://a:1", "api=http://u:p@h"]
)
def test_a_wrong_setting_of_services_is_refused(
    services: str, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOREBOARD_SERVICES", services)

    done = command("status")

    assert done.code == 1
    assert "SCOREBOARD_SERVICES" in done.err


def test_the_api_for_administrators_is_shown_if_it_is_named(
    running: System, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an api; a port without one is down, with the alert of the api for administrators."""
    assert "admin" not in states(look(running))
    api, streamer = (
        running.variables[name][f"SCOREBOARD_{port}_METRICS_PORT"]
        for name, port in (("api", "API"), ("streamer", "WS"))
    )
    for port, state in ((api, "ready"), (streamer, "down"), (find_free_port(), "down")):
        monkeypatch.setenv("SCOREBOARD_SERVICES", f"admin=http://127.0.0.1:{port}")
        check = json.loads(command("status", "--json").out)["checks"]["admin"]
        assert check["state"] == state
        if state == "down":
            assert check["advice"].endswith("#admindown")


def test_the_addresses_follow_from_the_ports_unless_they_are_set() -> None:
    from scoreboard.runtime import settings

    given = {"REDIS_URL": "redis://r", "SCOREBOARD_METRICS_HOST": "0.0.0.0"}
    by_port = settings.load(given | {"SCOREBOARD_WS_WORKERS": "2"})
    by_name = settings.load(given | {"SCOREBOARD_SERVICES": "api=http://a:1/,api=http://b:1"})

    assert service_urls(by_port) == [
        ("api", "http://127.0.0.1:9100"),
        ("streamer", "http://127.0.0.1:9101"),
        ("flusher", "http://127.0.0.1:9102"),
    ]
    assert service_urls(by_name) == [("api", "http://a:1"), ("api", "http://b:1")]
