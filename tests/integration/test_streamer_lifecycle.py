"""The lifecycle of a streamer process: shutdown, crashes, mass reconnects, churn, limits."""

import asyncio
import gc
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.server import ServerProtocol

from cli.embedded.ports import find_free_port
from scoreboard.runtime.log_limits import LINES_MAX
from scoreboard.runtime.settings import PREFIX
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.store.client import make_client
from scoreboard.store.store import Store
from streamer.handshake.listener import make_listener
from streamer.server import Streamer, drain_time_s, running
from tests.support.clients.forked import Forked
from tests.support.clients.viewer import (
    Closed,
    Connect,
    RawViewer,
    StartStreamer,
    playing,
    request_bytes,
    streamer_settings,
)
from tests.support.data.boards import open_board
from tests.support.eventually import eventually, eventually_async
from tests.support.fakes.tokens import AUDIENCE, ISSUER

pytestmark = pytest.mark.slow


class Program:
    """The streamer as a process: ``python -m streamer``."""

    def __init__(
        self, redis_url: str, jwks_file: Path, log: Path, *, files: int = 0, **more: object
    ) -> None:
        self.port, self.metrics_port = find_free_port(), find_free_port()
        environ = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
        environ |= {
            "REDIS_URL": redis_url,
            "SCOREBOARD_JWKS_FILE": str(jwks_file),
            "SCOREBOARD_ISSUER": ISSUER,
            "SCOREBOARD_AUDIENCE": AUDIENCE,
            "SCOREBOARD_WS_PORT": str(self.port),
            "SCOREBOARD_WS_METRICS_PORT": str(self.metrics_port),
            "SCOREBOARD_VIEWERS_PER_ADDRESS": "10000",
            "SCOREBOARD_NEW_VIEWERS_BURST": "10000",
            "SCOREBOARD_DRAIN_S": "1",
        }
        environ |= {PREFIX + name.upper(): str(value) for name, value in more.items()}

        self._log = log
        with log.open("wb") as output:
            self.process = Forked("streamer", [], environ, output=output, open_files=files)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=30)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return self.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def lines(self, message: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [row for row in rows if row["message"] == message]

    def metric(self, name: str) -> float:
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"scoreboard_{name} "):
                return float(line.split()[1])
        return 0.0

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)


StartProgram = Callable[..., Program]


@pytest.fixture
def start_program(redis_url: str, jwks_file: Path, tmp_path: Path) -> Iterator[StartProgram]:
    """Return a function that starts streamer processes; all are stopped after the test."""

    async def open_main() -> None:
        client = make_client(streamer_settings(redis_url, jwks_file=jwks_file), name="test")
        await open_board(Store(client), scores=[("ada", 10), ("bob", 5)])
        await client.aclose()

    numbers = itertools.count(1)
    with ExitStack() as stack:
        # In a thread, because asyncio.run would replace the event loop of the test.
        thread = threading.Thread(target=lambda: asyncio.run(open_main()))
        thread.start()
        thread.join()

        def start(*, wait: bool = True, **settings: Any) -> Program:
            log = tmp_path / f"streamer-{next(numbers)}.log"
            program = Program(redis_url, jwks_file, log, **settings)
            stack.callback(program.stop)
            if wait:
                eventually(program.is_ready)
            return program

        yield start


async def join(port: int, count: int) -> list[RawViewer]:
    viewers: list[RawViewer] = []
    try:
        for _ in range(count):
            viewers.append(await RawViewer.open(port))  # noqa: PERF401 (closed if one fails)
        for viewer in viewers:
            await viewer.send(request_bytes())
        for viewer in viewers:
            assert (await viewer.answer()).status == 101
            await viewer.next("leaderboard")
    except BaseException:
        # A dying worker may accept a connection and never answer it.
        for viewer in viewers:
            viewer.close()
        raise
    return viewers


async def test_sigterm_sends_bye_to_every_viewer_and_exits_in_time(
    start_program: StartProgram,
) -> None:
    program = start_program()
    viewers = await join(program.port, 60)
    began_s = time.monotonic()

    program.process.send_signal(signal.SIGTERM)
    codes = await asyncio.gather(*(viewer.closed() for viewer in viewers))
    ends = [viewer.messages[-1] for viewer in viewers]
    for viewer in viewers:
        viewer.close()

    assert set(codes) == {1012}
    assert {one["type"] for one in ends} == {"bye"}
    assert all(one["reconnect"] and one["delay_ms"][1] > 0 for one in ends)
    assert await asyncio.to_thread(program.process.wait, 30) == 0
    assert time.monotonic() - began_s < 20


async def test_a_streamer_is_ready_only_once_it_listens(redis_url: str, jwks_file: Path) -> None:
    """The metrics port is served earlier; viewers would be refused meanwhile."""
    settings = streamer_settings(redis_url, jwks_file=jwks_file)
    async with make_client(settings, name="test") as client:
        await open_board(Store(client))
    streamer = Streamer(settings)
    async with running(streamer):
        await eventually_async(lambda: streamer.watcher.is_ready)
        assert streamer.readiness()[0] is False
        await streamer.listen(make_listener(settings, shared=False))
        assert streamer.readiness()[0] is True


async def test_draining_process_is_not_ready_and_still_sends_boards(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(drain_s=1.5)
    viewers = [await connect(running.port) for _ in range(30)]
    draining = asyncio.ensure_future(running.streamer.drain())
    await eventually_async(lambda: running.viewers < 29)

    assert running.streamer.readiness()[0] is False
    with pytest.raises(OSError):
        await RawViewer.open(running.port)
    async with playing(running.settings) as submit:
        await submit("carol", 900)
    codes = [await viewer.closed() for viewer in viewers]
    await draining

    assert set(codes) == {1012}
    received = [
        viewer
        for viewer in viewers
        if any(one.get("leaderboard", [{}])[0].get("score") == 900 for one in viewer.messages)
    ]
    assert received, "viewers that were still connected got the change"
    for viewer in viewers:
        assert viewer.messages[-1]["type"] == "bye"


async def test_second_signal_closes_at_once_with_1001(start_program: StartProgram) -> None:
    program = start_program(drain_s=60)
    viewers = await join(program.port, 200)

    program.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(eventually, lambda: "drain_started" in program.log)
    program.process.send_signal(signal.SIGTERM)
    codes = await asyncio.gather(*(viewer.closed(5) for viewer in viewers))
    for viewer in viewers:
        viewer.close()

    assert codes.count(1001) > 150
    assert set(codes) <= {1001, 1012}
    assert await asyncio.to_thread(program.process.wait, 5) == 75


async def test_killed_worker_is_replaced_and_its_viewers_reconnect(
    start_program: StartProgram,
) -> None:
    program = start_program(ws_workers=2)
    await asyncio.to_thread(
        eventually, lambda: len(program.lines("streamer_listening")) == 2, within_s=30
    )
    viewers = await join(program.port, 80)
    pids = [line["scoreboard.worker_pid"] for line in program.lines("worker_started")]
    began_s = time.monotonic()

    os.kill(pids[0], signal.SIGKILL)

    async def stay(viewer: RawViewer) -> RawViewer | None:
        """Return the viewer if it is still connected, else a new connection."""
        try:
            while True:
                await viewer.frame(0.5)
        except TimeoutError:
            return None
        except Closed:
            viewer.close()
        while True:
            try:
                return (await join(program.port, 1))[0]
            except (OSError, Closed, TimeoutError):
                await asyncio.sleep(0.05)  # pace: interval of the changes

    async with asyncio.timeout(30):
        returned = [one for one in await asyncio.gather(*map(stay, viewers)) if one is not None]
    assert 10 <= len(returned) <= 70, "the kernel distributes them over both workers"
    assert time.monotonic() - began_s < 30
    for viewer in [*viewers, *returned]:
        viewer.close()
    await asyncio.to_thread(
        eventually, lambda: len(program.lines("streamer_listening")) == 3, within_s=30
    )


Stop = Callable[[int], None]

STOPS: dict[str, Stop] = {
    "Ctrl-C in the terminal": lambda pid: os.killpg(pid, signal.SIGINT),
    "SIGTERM to the group": lambda pid: os.killpg(pid, signal.SIGTERM),
    "SIGTERM to the supervisor": lambda pid: os.kill(pid, signal.SIGTERM),
    "SIGKILL of the supervisor": lambda pid: os.kill(pid, signal.SIGKILL),
}


@pytest.mark.parametrize("how", STOPS)
async def test_workers_drain_once_for_any_kind_of_stop(
    start_program: StartProgram, how: str
) -> None:
    """Incident: a signal to the process group reached workers twice; viewers got 1001, not 1012."""
    program = start_program(ws_workers=2)
    await asyncio.to_thread(
        eventually, lambda: len(program.lines("worker_started")) == 2, within_s=30
    )
    pids = [line["scoreboard.worker_pid"] for line in program.lines("worker_started")]
    viewers = await join(program.port, 40)

    STOPS[how](program.process.pid)
    codes = await asyncio.gather(*(viewer.closed() for viewer in viewers))
    ends = {viewer.messages[-1]["type"] for viewer in viewers}
    for viewer in viewers:
        viewer.close()

    assert set(codes) == {1012}
    assert ends == {"bye"}
    ended = await asyncio.to_thread(program.process.wait, 30)
    assert ended == (-signal.SIGKILL if how == "SIGKILL of the supervisor" else 0)
    await asyncio.to_thread(
        eventually, lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)
    )
    assert not program.lines("stop_forced")


async def test_second_signal_to_the_supervisor_closes_workers_at_once_with_1001(
    start_program: StartProgram,
) -> None:
    program = start_program(ws_workers=2, drain_s=60)
    await asyncio.to_thread(eventually, lambda: len(program.lines("worker_started")) == 2)
    viewers = await join(program.port, 200)

    program.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(eventually, lambda: len(program.lines("drain_started")) == 2)
    program.process.send_signal(signal.SIGTERM)
    codes = await asyncio.gather(*(viewer.closed(5) for viewer in viewers))
    for viewer in viewers:
        viewer.close()

    assert codes.count(1001) > 150
    assert set(codes) <= {1001, 1012}
    assert await asyncio.to_thread(program.process.wait, 5) == 75


def test_worker_that_cannot_start_stops_the_service_with_its_reason(
    start_program: StartProgram,
) -> None:
    settings = {"ws_workers": 2, "secrets": "file", "redis_secret": "/no/such/secret"}
    program = start_program(wait=False, **settings)
    assert program.process.wait(30) == 1

    assert "/no/such/secret" in program.log
    assert "did not start" in program.log
    assert "Traceback" not in program.log


async def test_low_open_files_limit_neither_crashes_nor_spins(start_program: StartProgram) -> None:
    program = start_program(files=256)
    viewers = [await RawViewer.open(program.port) for _ in range(300)]
    for viewer in viewers:
        try:
            await viewer.send(request_bytes())
        except OSError:
            continue

    def cpu_s() -> float:
        fields = Path(f"/proc/{program.process.pid}/stat").read_text().split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    before_s = cpu_s()
    await asyncio.sleep(1.0)  # pace: the period of the measurement
    assert cpu_s() - before_s < 0.5
    for viewer in viewers:
        viewer.close()
    await asyncio.to_thread(eventually, lambda: program.metric('ws_connections{state="open"}') == 0)

    (after,) = await join(program.port, 1)
    after.close()
    assert "viewers_limited_by_open_files" in program.log


def test_port_in_use_is_reported_in_one_line(start_program: StartProgram) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        program = start_program(wait=False, ws_port=port, log_format="console")
        assert program.process.wait(30) == 1

    assert "SCOREBOARD_WS_PORT" in program.log
    assert "Traceback" not in program.log


def test_invalid_setting_is_reported_in_one_line(start_program: StartProgram) -> None:
    program = start_program(wait=False, ping_s="often")
    assert program.process.wait(30) == 1

    assert program.log.startswith("scoreboard: SCOREBOARD_PING_S")
    assert program.log.count("\n") == 1


def test_health_and_metrics_have_their_own_port(start_program: StartProgram) -> None:
    program = start_program()

    assert program.get("/health/live").json() == {"status": "live"}
    assert program.get("/health/ready").json()["checks"]["live main"] == {"state": "live"}
    assert program.get("/elsewhere").status_code == 404
    metrics = program.get("/metrics").text
    for name in (
        "ws_connections", "ws_handshakes_total", "ws_closes_total", "ws_frames_sent_total",
        "ws_frames_skipped_total", "ws_sweep_seconds", "ws_change_to_write_seconds",
        "ws_ping_rtt_seconds", "ws_unsent_bytes", "ws_ack_paced", "ws_inbound_total",
        "ws_auth_renewals_total", "board_seq", "board_epoch", "board_age_seconds",
        "board_regressions_total", "pubsub_reconnects_total", "pubsub_silence_seconds",
        "reconcile_mismatches_total", "loop_lag_seconds", "build_info",
    ):  # fmt: skip
        assert f"# HELP scoreboard_{name} " in metrics, name


async def test_the_metrics_of_all_workers_have_one_port(start_program: StartProgram) -> None:
    program = start_program(ws_workers=2)
    await asyncio.to_thread(
        eventually, lambda: len(program.lines("worker_started")) == 2, within_s=30
    )
    viewers = await join(program.port, 60)

    def by_worker(name: str) -> dict[str, float]:
        return {
            sample.labels["worker"]: sample.value
            for family in text_string_to_metric_families(program.get("/metrics").text)
            for sample in family.samples
            if sample.name == f"scoreboard_{name}" and sample.labels.get("state", "open") == "open"
        }

    opened = by_worker("ws_connections")
    assert sum(opened.values()) == 60
    assert min(opened.values()) > 0, "the kernel distributes them over both workers"
    assert by_worker("worker_up") == {"0": 1, "1": 1}
    ready = program.get("/health/ready")
    assert (ready.status_code, ready.json()["workers"]) == (200, {"0": "ready", "1": "ready"})
    assert ready.json()["checks"]["live main"]["state"] == "live"

    started = program.lines("worker_started")
    pids = {line["scoreboard.worker"]: line["scoreboard.worker_pid"] for line in started}
    os.kill(pids[1], signal.SIGSTOP)
    try:
        assert by_worker("worker_up") == {"0": 1, "1": 0}
        unready = program.get("/health/ready")
    finally:
        os.kill(pids[1], signal.SIGCONT)
    assert unready.status_code == 503
    assert unready.json()["workers"] == {"0": "ready", "1": "not ready"}
    await asyncio.to_thread(eventually, lambda: by_worker("worker_up") == {"0": 1, "1": 1})
    for viewer in viewers:
        viewer.close()


def test_a_metrics_port_in_use_is_reported_in_one_line(start_program: StartProgram) -> None:
    for workers in (1, 2):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            program = start_program(wait=False, ws_workers=workers, ws_metrics_port=port)
            assert program.process.wait(30) == 1
        [line] = [line for line in program.log.splitlines() if "METRICS_PORT" in line]
        assert str(port) in line
        assert "Traceback" not in program.log


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_logs_of_rejections_are_limited_and_counted(
    start_program: StartProgram,
) -> None:
    program = start_program()
    for _ in range(100):
        viewer = await RawViewer.open(program.port)
        headers = [("X-Request-Id", "client-01"), ("traceparent", f"00-{TRACE}-{'b' * 16}-01")]
        await viewer.send(request_bytes("/nowhere", headers=headers))
        assert (await viewer.answer()).status == 404
        viewer.close()

    await asyncio.to_thread(program.stop)

    lines = program.lines("handshake_refused")
    assert len(lines) == LINES_MAX
    assert lines[0]["http.request.id"] == "client-01"
    assert lines[0]["trace.id"] == TRACE
    assert lines[0]["http.response.status_code"] == 404
    (dropped,) = program.lines("log_lines_dropped")
    assert dropped["scoreboard.count"] == 100 - LINES_MAX


async def test_churn_releases_all_resources(start_streamer: StartStreamer) -> None:
    running = await start_streamer()

    async def churn(rounds: int) -> None:
        for _ in range(rounds):
            viewers = await join(running.port, 20)
            for number, viewer in enumerate(viewers):
                viewer.reset() if number % 2 else viewer.close()
        await running.wait_until_empty()

    def counts() -> tuple[int, int, int]:
        gc.collect()
        parsers = sum(isinstance(one, ServerProtocol) for one in gc.get_objects())
        return parsers, len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))

    await churn(5)
    before = counts()
    await churn(40)

    assert counts() == before
    assert before[0] == 0
    # The wheel keeps closed connections until their slot is due.
    assert len(running.streamer.manager.wheel) <= 3 * 45 * 20


async def test_mass_reconnect_is_served_in_time(start_streamer: StartStreamer) -> None:
    running = await start_streamer(new_viewers_burst=50, new_viewers_per_second=60)
    refused = 0

    async with AsyncExitStack() as stack:

        async def reconnect() -> None:
            nonlocal refused
            while True:
                viewer = await RawViewer.open(running.port)
                stack.callback(viewer.close)
                await viewer.send(request_bytes())
                if (await viewer.answer(15)).status == 101:
                    await viewer.next("leaderboard", 15)
                    return
                refused += 1
                viewer.close()
                await asyncio.sleep(random.uniform(0.1, 1.0))  # pace: the documented backoff

        async with asyncio.timeout(60):
            await asyncio.gather(*(reconnect() for _ in range(200)))

        assert refused > 0, "the limit was reached"
        assert running.viewers == 200
    await running.wait_until_empty()


async def test_maximum_age_of_connections_is_jittered(start_streamer: StartStreamer) -> None:
    running = await start_streamer(viewer_age_s=1.0)
    viewers = await join(running.port, 40)
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    async def age(viewer: RawViewer) -> float:
        assert await viewer.closed() == 1012
        viewer.close()
        return loop.time() - began_s

    ages = await asyncio.gather(*map(age, viewers))

    assert min(ages) > 0.5
    assert max(ages) < 1.8
    assert max(ages) - min(ages) > 0.2


async def test_blocked_loop_does_not_close_viewers(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(ping_s=0.3, pong_timeout_s=1.0)
    viewers = [await connect(running.port) for _ in range(5)]

    def is_pinged() -> bool:
        present = running.streamer.manager.connections
        return all(one._flow._keepalive_sent_at_s > 0 for one in present)  # type: ignore[attr-defined]

    await eventually_async(is_pinged, every_s=0.001)

    async def read(viewer: RawViewer) -> None:
        while not viewer.pings:
            await viewer.frame()

    # Pings are sent and pongs are on their way; then the loop blocks for longer than the pong
    # timeout.
    reading = [asyncio.ensure_future(read(viewer)) for viewer in viewers]
    time.sleep(1.3)  # pace: a loop that is blocked  # noqa: ASYNC251
    await asyncio.gather(*reading)
    answered_s = running.streamer.manager.clock()
    await eventually_async(lambda: running.streamer.manager.clock() > answered_s + 0.3)

    assert running.viewers == 5
    assert [viewer.messages[-1]["type"] for viewer in viewers] == ["leaderboard"] * 5


async def test_disconnect_during_sweep_first_frame_or_resume_does_not_affect_others(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer()
    staying = [await connect(running.port) for _ in range(10)]
    channel, clock = running.streamer.manager.hub.channel("main"), running.streamer.manager.clock

    for _ in range(10):
        leaving = [await RawViewer.open(running.port) for _ in range(10)]
        for number, viewer in enumerate(leaving):
            await viewer.send(request_bytes())
            if number % 2:
                viewer.reset()
        channel.publish(channel.leaderboard, clock(), clock())
        await asyncio.sleep(0)
        for viewer in leaving[::2]:
            viewer.reset()
        channel.publish(channel.leaderboard, clock(), clock())

    await eventually_async(lambda: running.viewers == len(staying))
    async with playing(running.settings) as submit:
        await submit("last", 5000)
    for viewer in staying:
        while (await viewer.next("leaderboard"))["leaderboard"][0]["userId"] != "last":
            pass


@pytest.mark.parametrize(
    ("viewers", "drain_s", "seconds"),
    [(0, 10, 0), (10, 10, 0.5), (200, 10, 10), (3000, 10, 10), (9000, 10, 30), (60_000, 10, 60)],
)
def test_drain_time_grows_with_the_viewers_up_to_a_maximum(
    viewers: int, drain_s: float, seconds: float
) -> None:
    assert drain_time_s(viewers, drain_s) == pytest.approx(seconds)


async def test_counters_match_what_happened(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"scoreboard_{name}", labels) or 0.0

    running = await start_streamer()
    await running.wait_until_quiet()
    accepted = value("ws_handshakes_total", result="accepted")
    sent = value("ws_frames_sent_total")
    normal = value("ws_closes_total", code="1006", by="client")
    viewers = [await connect(running.port) for _ in range(3)]
    async with playing(running.settings) as submit:
        await submit("carol", 900)
    for viewer in viewers:
        await viewer.next("leaderboard")
        await viewer.next("leaderboard")

    await eventually_async(lambda: value("ws_frames_sent_total") == sent + 6)
    assert value("ws_handshakes_total", result="accepted") == accepted + 3
    for viewer in viewers:
        viewer.close()
    await running.wait_until_empty()
    assert value("ws_closes_total", code="1006", by="client") == normal + 3
