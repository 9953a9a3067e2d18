"""Load of the scripts: `lua` applies actions by the dispatcher, without the api.

The dispatcher is the product's: it groups the actions of one turn of the loop into calls of
submit.lua, at most 64 each. A batch is a number of actions submitted in the same turn.
"""

import asyncio
from functools import partial
from typing import Final

from msgspec.structs import replace

from cli.bench.generator.call_load import CallLoad
from cli.bench.report.results import Result
from cli.bench.system.boards import member
from cli.bench.system.session import Session
from scoreboard.errors import ClientError, OutcomeUnknown, ScoreboardError
from scoreboard.model import Action, Board, Receipt
from scoreboard.runtime.settings import Settings
from scoreboard.store.dispatcher import Dispatcher

POINTS: Final = 10
SPREAD: Final = 7919
"""A prime, so that successive actions are of users all over the board."""

STREAM_CAP: Final = 10_000_000
"""Nothing flushes the stream of a script board, so its cap must exceed the load."""

ACTION_BYTES: Final = 400
"""What an action adds to Redis while nothing flushes the stream, rounded up."""


async def load_scripts(session: Session, board: Board, *, members: int, batch: int) -> None:
    """Apply actions of members in batches. A latency is that of a batch.

    If an action of a batch is refused, the batch counts as refused.
    """
    dispatcher = Dispatcher(dispatch_settings(session.target.settings), name="bench")

    async def submit(number: int) -> str:
        first = number * batch
        outcomes = await asyncio.gather(
            *[
                apply(dispatcher, board.name, member((n * SPREAD) % members), n, session.run_id)
                for n in range(first, first + batch)
            ]
        )
        return next((one for one in outcomes if one != "applied"), "applied")

    options = session.options
    load = CallLoad(
        submit,
        in_flight=options.connections,
        rate=None if options.rate is None else options.rate / batch,
        warm_up_s=options.warm_up_s,
        duration_s=options.duration_s,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(dispatcher.run())
        snapshots = await load.run(session.read_cpu, session.stop, session.progress("lua"))
        dispatcher.close()
    session.add_result(
        "lua",
        board.name,
        load.measurement,
        snapshots,
        parts=("redis",),
        details={"members": members, "batch": batch},
        adapt=partial(_per_action, batch=batch),
    )


def _per_action(result: Result, *, batch: int) -> Result:
    """Return the result of calls with its counts and costs per action; latencies stay per call."""
    return replace(
        result,
        rate=result.rate * batch,
        operations=result.operations * batch,
        outcomes={name: count * batch for name, count in result.outcomes.items()},
        unsent=result.unsent * batch,
        late=result.late * batch,
        cpu_us={name: round(cost / batch, 1) for name, cost in result.cpu_us.items()},
        generator_us=round(result.generator_us / batch, 1),
    )


async def apply(dispatcher: Dispatcher, board: str, user: str, number: int, run: str) -> str:
    """Apply one action and return its outcome."""
    found = await submit_action(dispatcher, board, user, number, run)
    if isinstance(found, Receipt):
        return "replayed" if found.replayed else "applied"
    return found


async def submit_action(
    dispatcher: Dispatcher, board: str, user: str, number: int, run: str
) -> Receipt | str:
    """Apply one action; return its receipt, or what it was refused with."""
    try:
        return await dispatcher.submit(board, Action(user, f"win:{run}-{number}", POINTS))
    except OutcomeUnknown:
        return "503 outcome-unknown"
    except ScoreboardError as error:
        return f"{'409' if isinstance(error, ClientError) else '503'} {error.code}"


def dispatch_settings(settings: Settings) -> Settings:
    """Return the settings of the dispatcher of a load."""
    return replace(settings, stream_cap=STREAM_CAP)
