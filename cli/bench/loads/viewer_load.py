"""Load of the streamer: `ws` shows a board to many viewers while it changes.

A delay is from just before the oldest update in a board was sent to Redis until a viewer has the
board; it includes the interval between two boards.
"""

import asyncio
import time
from typing import Final

from msgspec.structs import replace

from cli.bench.generator.call_load import CallLoad
from cli.bench.generator.measurement import Measurement
from cli.bench.generator.viewers import Viewers
from cli.bench.loads.script_load import dispatch_settings, submit_action
from cli.bench.report.results import format_ms
from cli.bench.system.session import Session, parse_address
from scoreboard.broadcast.messages import WS_PATH
from scoreboard.errors import Unavailable
from scoreboard.model import WATCHED_TOP, Receipt
from scoreboard.store.dispatcher import Dispatcher

ARRIVE_S: Final = 2.0
"""Time after the last update in which its board arrives."""

SERVED_S: Final = 10.0
"""Time for the streamer to read a new board."""

CHANGE_TASKS: Final = 16
VIEWER_PARTS: Final = ("streamer", "redis")


async def load_viewers(
    session: Session, board: str, *, viewers: int, joins_per_s: float, token: str
) -> None:
    """Connect viewers at a rate, then change the board; an operation is a board at a viewer."""
    address, path = parse_address(session.target.ws, "--ws")
    crowd = Viewers(address, f"{path or WS_PATH}?board={board}", token)
    try:
        await _join_all(session, crowd, viewers, joins_per_s)
        if not crowd.count:
            reasons = ", ".join(f"{name} {count}" for name, count in crowd.outcomes.items())
            raise Unavailable(f"No viewer could connect to {session.target.ws}: {reasons}")
        await _change(session, board, crowd)
    finally:
        crowd.close()


async def _join_all(session: Session, crowd: Viewers, viewers: int, joins_per_s: float) -> None:
    report = session.progress("join")
    loop = asyncio.get_running_loop()
    await crowd.join_first(SERVED_S)
    start_s = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(1, viewers):
            if session.stop.is_set():
                break
            wait_s = start_s + number / joins_per_s - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            group.create_task(crowd.join())
            report(number / viewers)


async def _change(session: Session, board: str, crowd: Viewers) -> None:
    options = session.options
    sent_s: dict[int, float] = {}
    frames: list[int] = []
    dispatcher = Dispatcher(dispatch_settings(session.target.settings), name="bench")

    async def change(number: int) -> str:
        user = f"{board}.{number % WATCHED_TOP:06d}"
        began_s = time.perf_counter()
        found = await submit_action(dispatcher, board, user, number, session.run_id)
        if not isinstance(found, Receipt):
            return found
        sent_s[found.seq] = began_s
        return "applied"

    async def snapshot() -> dict[str, float]:
        frames.append(crowd.frames)
        return await session.read_cpu()

    load = CallLoad(
        change,
        in_flight=CHANGE_TASKS,
        rate=options.rate,
        warm_up_s=options.warm_up_s,
        duration_s=options.duration_s,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(dispatcher.run())
        first, last = await load.run(snapshot, session.stop, session.progress("ws"))
        dispatcher.close()
    await asyncio.sleep(ARRIVE_S)
    found = Measurement(load.measurement.window)
    for (before, seq), times in crowd.arrivals.items():
        # The first board of a viewer is not of a change, nor is the same board with other names.
        oldest_s = sent_s.get(before + 1) if 0 <= before < seq else None
        for at_s in times if oldest_s is not None else ():
            found.record(seq, oldest_s or 0.0, at_s, "ok")
    found.outcomes.update(crowd.outcomes)
    found.late = load.measurement.late
    handshakes = crowd.handshakes.summary()
    shown = {name: handshakes.percentiles_ms[name] for name in ("p50", "p99")}
    updates = load.measurement
    session.add_result(
        "ws",
        board,
        found,
        (replace(first, completed=frames[0]), replace(last, completed=frames[1])),
        parts=VIEWER_PARTS,
        details={
            "viewers": crowd.count,
            "updates": f"{updates.succeeded} of {updates.total} applied",
            "handshakes": "  ".join(f"{name} {format_ms(ms)}" for name, ms in shown.items())
            + f"  max {format_ms(handshakes.max_ms)}",
        },
        # The requested rate is that of the updates, and operations are boards at viewers.
        adapt=lambda result: replace(result, rate_requested=None),
    )
