"""`make bench-ws`: cost per viewer, and delay, of ten boards a second.

Compares the streamer, the streamer with viewers that take the compact form, websockets' broadcast()
and Litestar on uvicorn, one after the other in every run. Each runs in its own process with the
same BoardWatcher and the same Valkey; the viewers are raw sockets in another process. Reports per
size and server: CPU time of the server per delivered frame, memory per viewer, and milliseconds
until a board reaches a reading viewer, measured from just before its update was sent (which
includes the frame interval of 100 ms) and from when it was built. It also measures opening
handshakes at a fixed rate, each closed after its first board, and the pace of the streamer on a
quiet board (a change a second) and on one that changes continuously (100 a second). The figures are
medians of the runs, with minimum and maximum. ``--check`` fails if a target is missed.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedValkey
from scoreboard.broadcast.messages import COMPACT, SUBPROTOCOL
from scoreboard.runtime.settings import PREFIX, load
from scoreboard.runtime.telemetry import setup_logging
from scoreboard.store.client import make_client
from scoreboard.store.store import Store
from tests.bench.machine import cpu_s
from tests.bench.rows import Recorder
from tests.support.clients.viewer import playing
from tests.support.data.boards import open_board

TEN_A_SECOND = (0.09, 0.11)
"""The least and the most time between two changes, with jitter against synchronization."""
PACES = {1: (0.9, 1.1), 100: (0.005, 0.015)}
"""Changes a second on a quiet board, and on one that changes continuously."""
PACE_VIEWERS = 2000
HANDSHAKES_PER_S = 1000
WARM_UP_S = 2.0
VIEWERS_MODULE = "tests.bench.ws.viewers"
OURS = ("ours", "compact")
SERVERS = (*OURS, "broadcast", "litestar")
TITLES = {
    "ours": "streamer",
    "compact": "streamer, compact form",
    "broadcast": "broadcast()",
    "litestar": "Litestar, uvicorn",
}
METRICS = (
    ("server CPU", "µs", "cpu_us_per_frame"),
    ("memory of a viewer", "KB", "kb_per_viewer"),
    ("sent p50", "ms", "p50_ms"),
    ("sent p99", "ms", "p99_ms"),
    ("built p50", "ms", "built_p50_ms"),
    ("built p99", "ms", "built_p99_ms"),
    ("boards", "/s", "boards_per_s"),
)
PACE_METRICS = tuple(one for one in METRICS if one[2] in {"p50_ms", "p99_ms", "boards_per_s"})
HANDSHAKE_METRICS = (
    ("server CPU", "µs", "cpu_us_per_handshake"),
    ("to the board p50", "ms", "p50_ms"),
    ("to the board p99", "ms", "p99_ms"),
)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TARGET_RATIO, TARGET_KB, TARGET_MS = 0.7, 5.0, 150.0

Figures = dict[str, float]


def memory_kb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 1024


def environment(redis_url: str, folder: Path, port: int) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    keys = folder / "jwks.json"
    keys.write_text('{"keys": []}')
    return kept | {
        "REDIS_URL": redis_url,
        "SCOREBOARD_ISSUER": "https://issuer.test/",
        "SCOREBOARD_JWKS_FILE": str(keys),
        "SCOREBOARD_WS_PORT": str(port),
        "SCOREBOARD_WS_METRICS_PORT": "0",
        "SCOREBOARD_VIEWERS_PER_ADDRESS": "100000",
        "SCOREBOARD_NEW_VIEWERS_PER_SECOND": "100000",
        "SCOREBOARD_NEW_VIEWERS_BURST": "100000",
        "SCOREBOARD_DRAIN_S": "0.2",
        "SCOREBOARD_LOG_LEVEL": "error",
        # Stalled viewers stay connected for the whole run.
        "SCOREBOARD_SLOW_VIEWER_S": "600",
    }


@contextmanager
def serving(
    name: str, redis_url: str, folder: Path, settings: dict[str, str] | None = None
) -> Iterator[tuple[int, int]]:
    """Run a server; yield its port and pid when it accepts connections."""
    port = find_free_port()
    words = (
        ["-m", "streamer"] if name in OURS else ["-m", "tests.bench.ws.contenders", name, str(port)]
    )
    server = subprocess.Popen(
        [sys.executable, *words],
        env=environment(redis_url, folder, port) | (settings or {}),
        stderr=subprocess.DEVNULL,
    )
    try:
        until_s = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, f"{name} did not start"
                assert time.monotonic() < until_s, f"{name} does not listen"
                time.sleep(0.1)
        time.sleep(0.5)
        yield port, server.pid
    finally:
        server.kill()
        server.wait()


class ViewersProcess:
    """The process that holds the viewers."""

    def __init__(self, module: str, *arguments: int | str) -> None:
        words = ["-m", module, *map(str, arguments)]
        self._process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready"

    def begin(self) -> None:
        self._send("begin")

    def end(self) -> Any:
        self._send("end")
        seen = json.loads(self._line())
        self._process.wait(30)
        self.close()
        return seen

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def _send(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


async def publish(
    redis_url: str, seconds: float, pace: tuple[float, float] = TEN_A_SECOND
) -> dict[int, float]:
    """Change the top 10 at a pace; return when each change was sent, by seq."""
    sent: dict[int, float] = {}
    settings = load({"REDIS_URL": redis_url, "SCOREBOARD_ISSUER": "https://issuer.test/"})
    async with playing(settings) as submit:
        loop = asyncio.get_running_loop()
        next_s = began_s = loop.time()
        number = 0
        while next_s - began_s < seconds:
            number += 1
            before_s = time.monotonic()
            sent[await submit(f"player-{number % 10:0>28}", 10_000)] = before_s
            next_s += random.uniform(*pace)
            await asyncio.sleep(max(0.0, next_s - loop.time()))
    return sent


async def open_main(redis_url: str) -> None:
    client = make_client(load({"REDIS_URL": redis_url}), name="bench")
    await client.flushall()
    scores = [(f"player-{number:0>28}", 1000 - number) for number in range(10)]
    await open_board(Store(client), scores=scores)
    await client.aclose()


def measure(
    name: str,
    redis_url: str,
    *,
    viewers: int,
    stalled: int,
    seconds: float,
    pace: tuple[float, float] = TEN_A_SECOND,
) -> Figures:
    """Run one server with one number of viewers."""
    asyncio.run(open_main(redis_url))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(name, redis_url, Path(folder)) as (port, pid),
    ):
        alone_kb = memory_kb(pid)
        subprotocol = COMPACT if name == "compact" else SUBPROTOCOL
        viewers_process = ViewersProcess(
            VIEWERS_MODULE, port, viewers - stalled, stalled, subprotocol
        )
        try:
            asyncio.run(publish(redis_url, WARM_UP_S))
            with_viewers_kb = memory_kb(pid)
            viewers_process.begin()
            before_s, began_s = cpu_s(pid), time.monotonic()
            sent = asyncio.run(publish(redis_url, seconds, pace))
            time.sleep(0.5)
            used_s, elapsed_s = cpu_s(pid) - before_s, time.monotonic() - began_s
            seen = viewers_process.end()
        finally:
            viewers_process.close()
    sent_ms = sorted((at_s - sent[seq]) * 1000 for seq, at_s, _ in seen if seq in sent)
    built_ms = sorted(one for _, _, one in seen)
    assert sent_ms, f"{name} delivered nothing"
    boards = len({seq for seq, _, _ in seen})
    return {
        "cpu_us_per_frame": used_s / len(seen) * 1e6,
        "cpu_share": used_s / elapsed_s,
        "kb_per_viewer": (with_viewers_kb - alone_kb) / viewers,
        "p50_ms": sent_ms[len(sent_ms) // 2],
        "p99_ms": sent_ms[len(sent_ms) * 99 // 100],
        "max_ms": sent_ms[-1],
        "built_p50_ms": built_ms[len(built_ms) // 2],
        "built_p99_ms": built_ms[len(built_ms) * 99 // 100],
        "boards_per_s": boards / elapsed_s,
        "delivered": len(seen) / (boards * (viewers - stalled)),
    }


def measure_handshakes(name: str, redis_url: str, *, seconds: float) -> Figures:
    """Open viewers of one server at a fixed rate."""
    asyncio.run(open_main(redis_url))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(name, redis_url, Path(folder)) as (port, pid),
    ):
        open_viewers(port, 1.0)
        before_s = cpu_s(pid)
        count, took_ms = open_viewers(port, seconds)
        used_s = cpu_s(pid) - before_s
    took_ms.sort()
    return {
        "cpu_us_per_handshake": used_s / count * 1e6,
        "p50_ms": took_ms[len(took_ms) // 2],
        "p99_ms": took_ms[len(took_ms) * 99 // 100],
    }


def open_viewers(port: int, seconds: float) -> tuple[int, list[float]]:
    words = [str(port), str(HANDSHAKES_PER_S), str(seconds)]
    found = subprocess.run(
        [sys.executable, "-m", "tests.bench.ws.handshakes", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    count, took_ms = json.loads(found.stdout)
    return count, took_ms


def summarise(runs: list[Figures]) -> dict[str, tuple[float, float, float]]:
    """Return median, minimum and maximum of each figure."""
    return {
        key: (
            statistics.median(one[key] for one in runs),
            min(one[key] for one in runs),
            max(one[key] for one in runs),
        )
        for key in runs[0]
    }


def table(results: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    titles = "viewers, stalled|server|CPU µs/frame|KB/viewer|sent p50|sent p99|built p50|built p99"
    columns = [*titles.split("|"), "boards/s"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for label, figures in results.items():
        size, server = label.split("/")

        def cell(key: str, digits: int, shown: Any = figures) -> str:
            median, least, most = shown[key]
            return f"{median:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"

        lines.append(
            f"| {size} | {server} | {cell('cpu_us_per_frame', 1)} | {cell('kb_per_viewer', 1)} | "
            f"{cell('p50_ms', 0)} | {cell('p99_ms', 0)} | "
            f"{cell('built_p50_ms', 0)} | {cell('built_p99_ms', 0)} | "
            f"{figures['boards_per_s'][0]:.1f} |"
        )
    return "\n".join(lines)


def missed_targets(results: dict[str, dict[str, tuple[float, float, float]]]) -> list[str]:
    """Return the targets that were missed."""
    found = []
    for label, figures in results.items():
        size, server = label.split("/")
        if server != "ours":
            continue
        other = results.get(f"{size}/broadcast")
        if other is not None and other["cpu_us_per_frame"][0]:
            ratio = figures["cpu_us_per_frame"][0] / other["cpu_us_per_frame"][0]
            print(f"{size}: {ratio:.2f} of broadcast's processor time per frame")
            if ratio > TARGET_RATIO:
                found.append(f"{size}: {ratio:.2f} of broadcast, more than {TARGET_RATIO}")
        if figures["kb_per_viewer"][0] > TARGET_KB:
            found.append(f"{size}: {figures['kb_per_viewer'][0]:.1f} KB per viewer")
        if size.startswith("2000") and figures["p99_ms"][0] > TARGET_MS:
            found.append(f"{size}: p99 {figures['p99_ms'][0]:.0f} ms")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ws", description=__doc__)
    parser.add_argument("--viewers", default="1000,2000,5000")
    parser.add_argument("--stalled", type=float, default=0.01, help="share that never reads")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    if options.quick:
        options.viewers, options.seconds, options.runs = "100", 1.0, 1
    recorder = Recorder("ws", websockets=version("websockets"), uvicorn=version("uvicorn"))
    setup_logging("bench", level="error", form="console", environment="bench")
    sizes = [int(word) for word in options.viewers.split(",")]
    servers = options.servers.split(",")
    runs: dict[str, list[Figures]] = {}
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as valkey:
        for number in range(options.runs):
            for size in sizes:
                stalled = int(size * options.stalled)
                for name in servers:
                    variants = [stalled, 0] if name == "ours" and size == 2000 else [stalled]
                    for count in variants:
                        with recorder.measurement():
                            figures = measure(
                                name,
                                valkey.url,
                                viewers=size,
                                stalled=count,
                                seconds=options.seconds,
                            )
                        parameters = {"viewers": size, "stalled": count}
                        for metric, unit, key in METRICS:
                            recorder.add(
                                "frame", TITLES[name], parameters, metric, unit, figures[key]
                            )
                        runs.setdefault(f"{size}, {count}/{name}", []).append(figures)
                        print(f"run {number + 1}: {size}, {count} {name}", figures, file=sys.stderr)
            # Litestar's example sends no board after the handshake.
            for name in (one for one in servers if one in {"ours", "broadcast"}):
                with recorder.measurement():
                    figures = measure_handshakes(name, valkey.url, seconds=options.seconds)
                for metric, unit, key in HANDSHAKE_METRICS:
                    parameters = {"handshakes/s": HANDSHAKES_PER_S}
                    recorder.add("handshake", TITLES[name], parameters, metric, unit, figures[key])
                print(f"run {number + 1}: handshakes, {name}", figures, file=sys.stderr)
            viewers = min(PACE_VIEWERS, max(sizes))
            for changes, pace in PACES.items():
                with recorder.measurement():
                    figures = measure(
                        "ours",
                        valkey.url,
                        viewers=viewers,
                        stalled=0,
                        seconds=options.seconds,
                        pace=pace,
                    )
                for metric, unit, key in PACE_METRICS:
                    parameters = {"viewers": viewers, "changes/s": changes}
                    recorder.add("pace", TITLES["ours"], parameters, metric, unit, figures[key])
                print(f"run {number + 1}: {changes} changes a second", figures, file=sys.stderr)
    results = {label: summarise(found) for label, found in runs.items()}
    if options.json:
        recorder.write(options.json)
    print(
        f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores; "
        f"{options.runs} runs of {options.seconds:g} s; load average at the start and end: "
        f"{load_before:.1f}, {os.getloadavg()[0]:.1f}\n"
    )
    print(table(results))
    print()
    found = missed_targets(results)
    print("\n".join(found) or "every target is met")
    return 1 if found and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
