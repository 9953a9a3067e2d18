"""`python -m api` as a process: workers, signals, invalid settings, logs."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from api.__main__ import main
from cli.embedded.ports import find_free_port
from tests.support.eventually import eventually
from tests.support.fakes.tokens import MakeToken
from tests.support.servers.api import UPDATE_PATH, open_boards
from tests.support.servers.api_process import (
    RunApi,
    clean_environ,
    client_of,
    process_settings,
)

pytestmark = pytest.mark.slow


def body(action: str) -> dict[str, str]:
    return {"userId": "alice", "actionId": action}


def children_of(pid: int) -> list[int]:
    """Return the child processes of a process."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += map(int, (task / "children").read_text(encoding="utf-8").split())
    return children


async def test_an_action_sent_to_four_workers_is_applied_once(
    run_api: RunApi, redis_url: str, make_token: MakeToken
) -> None:
    await open_boards(redis_url)
    metrics_port = find_free_port()
    # Incident: the workers' metrics were requested through the proxy of the environment.
    proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    api = run_api(api_workers=4, api_metrics_port=metrics_port, environ=proxies)
    headers = {"Authorization": f"Bearer {make_token('alice')}"}

    async def send() -> httpx.Response:
        # One connection per request, so that the kernel distributes them over the workers.
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            return await client.post(api.url + UPDATE_PATH, json=body("win:1"), headers=headers)

    answers = await asyncio.gather(*(send() for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["newScore"] for answer in answers} == {10}
    assert [answer.json()["replayed"] for answer in answers].count(False) == 1
    with client_of(api) as client:
        assert client.get("/api/scores/users/alice").json()["score"] == 10

    async with httpx.AsyncClient(trust_env=False) as client:
        metrics = (await client.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
    counted = [line for line in metrics.splitlines() if "score_updates_total{" in line]
    assert sum(float(line.rpartition(" ")[2]) for line in counted) == 50
    assert metrics.count("scoreboard_worker_up{") == 4
    assert 'scoreboard_build_info{service="api",version=' in metrics
    busy = {line.split('worker="')[1][0] for line in counted if not line.endswith(" 0.0")}
    assert len(busy) > 1

    workers = children_of(api.process.pid)
    assert len(workers) == 4
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: len(api.lines("worker_started")) == 5)
    assert api.stop() == 0
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def listening_ports(pid: int) -> set[int]:
    """Return the TCP ports on which a process listens."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(file.readlink()).removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(words[1].split(":")[1], 16)
        for words in lines
        if words[3] == "0A" and words[9] in inodes
    }


@pytest.mark.parametrize("workers", [1, 2])
async def test_metrics_port_0_opens_no_port(workers: int, run_api: RunApi, redis_url: str) -> None:
    await open_boards(redis_url)
    api = run_api(api_workers=workers, api_metrics_port=0)
    port = int(api.url.rsplit(":", 1)[1])

    opened = set().union(*map(listening_ports, (api.process.pid, *children_of(api.process.pid))))

    assert opened == {port}


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda pid: os.killpg(pid, signal.SIGINT), 0),
        (lambda pid: os.killpg(pid, signal.SIGTERM), 0),
        (lambda pid: os.kill(pid, signal.SIGTERM), 0),
        (lambda pid: os.kill(pid, signal.SIGKILL), -signal.SIGKILL),
    ],
    ids=[
        "Ctrl-C in the terminal",
        "SIGTERM to the group",
        "SIGTERM to the supervisor",
        "SIGKILL of the supervisor",
    ],
)
async def test_workers_stop_once_and_with_their_supervisor(
    run_api: RunApi, redis_url: str, ask: Callable[[int], None], code: int
) -> None:
    await open_boards(redis_url)
    api = run_api(api_workers=2)
    workers = children_of(api.process.pid)

    ask(api.process.pid)

    assert api.process.wait(60) == code
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert not api.lines("stop_forced")
    assert not api.lines("stop_deadline_passed")


async def test_a_second_signal_stops_the_process_immediately(
    run_api: RunApi, redis_url: str, make_token: MakeToken
) -> None:
    await open_boards(redis_url)
    api = run_api(drain_s=30, body_timeout_s=30)
    with socket.create_connection(("127.0.0.1", api.port)) as held:
        head = (
            f"POST {UPDATE_PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {make_token('alice')}\r\nContent-Length: 50\r\n\r\n"
        )
        held.sendall(head.encode())
        with client_of(api) as client:
            client.get("/health/live")
        api.process.send_signal(signal.SIGTERM)
        eventually(lambda: api.lines("drain_started"))
        assert api.process.poll() is None
        api.process.send_signal(signal.SIGTERM)
        assert api.process.wait(20) == 75


async def test_a_stop_is_clean_and_quick(run_api: RunApi, redis_url: str) -> None:
    await open_boards(redis_url)
    api = run_api()
    with client_of(api) as client:
        assert client.get("/health/ready").status_code == 200
        assert api.stop(signal.SIGINT, within_s=6) == 0
    assert "Traceback" not in api.output
    assert not api.lines("process_crashed")


StartHere = Callable[[dict[str, str]], tuple[int, str]]


@pytest.fixture
def start_here(
    redis_url: str,
    jwks_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> StartHere:
    """Return a function that calls the entry point of the api, which must return.

    It returns the exit code and what was written to stderr.
    """

    def start(changes: dict[str, str]) -> tuple[int, str]:
        settings = process_settings(redis_url, jwks_file) | changes
        for name in set(os.environ) - set(clean_environ()):
            monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        return main([]), capsys.readouterr().err

    return start


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"REDIS_URL": ""}, "REDIS_URL"),
        ({"SCOREBOARD_API_PORT": "many"}, "SCOREBOARD_API_PORT"),
        ({"SCOREBOARD_ISSUER": ""}, "SCOREBOARD_ISSUER"),
        ({"SCOREBOARD_JWKS_FILE": ""}, "SCOREBOARD_JWKS_FILE"),
        ({"SCOREBOARD_NO_SUCH": "1"}, "SCOREBOARD_NO_SUCH"),
        ({"SCOREBOARD_API_HOST": "203.0.113.1"}, "SCOREBOARD_API_HOST"),
    ],
)
def test_an_invalid_setting_is_reported_in_one_line(
    start_here: StartHere, changes: dict[str, str], named: str
) -> None:
    code, errors = start_here(changes)
    assert code == 1
    [line] = errors.splitlines()
    assert line.startswith("scoreboard: ")
    assert named in line


@pytest.mark.parametrize("setting", ["api_port", "api_metrics_port"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_reported_in_one_line(run_api: RunApi, setting: str, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        api = run_api(wait=False, api_workers=workers, **{setting: port})
        assert api.process.wait(60) == 1
    [line] = api.output.splitlines()
    assert str(port) in line


async def test_refusals_are_logged_without_the_token(
    run_api: RunApi, redis_url: str, make_token: MakeToken
) -> None:
    await open_boards(redis_url)
    api = run_api(log_level="debug")
    good, bad = make_token("alice"), make_token("alice", aud="another")
    with client_of(api) as client:
        for token in (good, bad):
            headers = {"Authorization": f"Bearer {token}", "X-Request-Id": f"id-{token[-8:]}"}
            client.post(UPDATE_PATH, json=body("win:1"), headers=headers)
    eventually(lambda: api.lines("request_served"))
    api.stop()
    for token in (good, bad):
        assert token not in api.output
        assert token.split(".")[1] not in api.output
    [line] = [row for row in api.lines("request_served") if row["http.response.status_code"] == 401]
    assert line["http.request.id"] == f"id-{bad[-8:]}"
    assert line["scoreboard.route"] == UPDATE_PATH
    assert line["error.code"] == "unauthenticated"
    assert "win:1" not in api.output


@pytest.mark.parametrize("path", [UPDATE_PATH, "/elsewhere"])
async def test_failed_requests_are_logged_with_the_trace_of_their_caller(
    run_api: RunApi, path: str
) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {
        "id-valid-00": f"00-{trace}-{span}-00",
        "id-upper-00": f"00-{trace.upper()}-{span}-01",
    }
    api = run_api()
    with client_of(api) as client:
        for name, traceparent in headers.items():
            client.post(path, headers={"X-Request-Id": name, "traceparent": traceparent})
    eventually(lambda: len(api.lines("request_served")) == 2)
    api.stop()

    valid, upper = api.lines("request_served")
    assert (valid["http.request.id"], valid["trace.id"]) == ("id-valid-00", trace)
    assert "trace.id" not in upper
    assert span not in api.output, "it is the caller's span, not one of this process"


async def test_refusals_and_updates_have_audit_lines(
    run_api: RunApi, redis_url: str, make_token: MakeToken
) -> None:
    await open_boards(redis_url)
    api = run_api(audit_updates="true", trusted_hops="127.0.0.1")
    good, foreign = make_token("alice"), make_token("alice", aud="another")
    sent = [
        ("request-01", good, "alice", "win:1"),
        ("request-02", good, "alice", "win:1"),
        ("request-03", good, "bob", "win:2"),
        ("request-04", foreign, "alice", "win:3"),
        ("request-05", good, "alice", "not an id"),
    ]
    with client_of(api) as client:
        for request_id, token, user, action in sent:
            headers = {
                "Authorization": f"Bearer {token}",
                "X-Request-Id": request_id,
                "X-Forwarded-For": "192.0.2.7",
            }
            client.post(UPDATE_PATH, json=body(action) | {"userId": user}, headers=headers)
    api.stop()

    lines = {
        line["http.request.id"]: line
        for line in map(json.loads, api.output.splitlines())
        if line["log.logger"] == "scoreboard.audit" and "http.request.id" in line
    }
    assert {
        name: (line["event.action"], line["event.outcome"], line.get("error.code"))
        for name, line in lines.items()
    } == {
        "request-01": ("update", "success", None),
        "request-02": ("update", "success", None),
        "request-03": ("update", "failure", "forbidden"),
        "request-04": ("authenticate", "failure", "unauthenticated"),
        "request-05": ("update", "failure", "invalid"),
    }
    first, second = lines["request-01"], lines["request-02"]
    assert first["user.id"] == first["user.target.id"] == "alice"
    assert first["scoreboard.action_id"] == "win:1"
    assert (first["scoreboard.is_replay"], second["scoreboard.is_replay"]) == (False, True)
    assert first["client.ip"] == "192.0.2.7"
    assert first["source.ip"] == "127.0.0.1"
    assert lines["request-03"]["user.target.id"] == "bob"
    assert "user.id" not in lines["request-04"], "the token was not verified"
    assert lines["request-04"]["event.reason"] == "audience"


async def test_all_or_no_successes_are_logged_by_the_setting(
    run_api: RunApi, redis_url: str, make_token: MakeToken
) -> None:
    await open_boards(redis_url)
    counts: list[int] = []
    for share in ("0", "1"):
        api = run_api(log_success_share=share)
        with client_of(api) as client:
            headers = {"Authorization": f"Bearer {make_token('alice')}"}
            for number in range(10):
                sent = client.post(UPDATE_PATH, json=body(f"win:{number}"), headers=headers)
                assert sent.status_code == 200
        api.stop()
        counts.append(len(api.lines("request_served")))

    assert counts == [0, 10]


async def test_an_unsafe_redis_stops_the_start_with_its_problems(
    run_api: RunApi, redis_url: str, own_valkey: object
) -> None:
    import redis

    from tests.support.servers.stores import EmbeddedValkey

    server: EmbeddedValkey = own_valkey()  # type: ignore[operator]
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("appendfsync", "everysec")
    api = run_api(wait=False, environ={"REDIS_URL": server.url})
    assert api.process.wait(60) == 1
    [line] = api.lines("process_failed")
    assert "appendfsync is everysec" in line["event.reason"]
    accepted = run_api(environ={"REDIS_URL": server.url}, unsafe_redis="true")
    with client_of(accepted) as client:
        answer = client.get("/health/ready")
    assert answer.json()["checks"]["durability"]["state"] == "accepted"
