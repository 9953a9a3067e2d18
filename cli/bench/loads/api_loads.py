"""Loads of the api: `http` sends updates, `read` reads the leaderboard and standings."""

import asyncio
from collections.abc import Sequence
from typing import Final

from cli.bench.generator.http_load import Address, HttpLoad, Plan
from cli.bench.generator.requests import Reads, Updates, User
from cli.bench.system.session import Session, parse_address
from scoreboard.errors import Unavailable
from scoreboard.model import Board

UPDATE_PARTS: Final = ("api", "redis", "flusher", "postgres")
READ_PARTS: Final = ("api", "redis")

FILL_CONNECTIONS: Final = 16
READY_S: Final = 30.0
"""Time in which the api must know a board that was just opened."""

_POLL_S: Final = 0.1


async def load_updates(session: Session, board: str, users: Sequence[User]) -> None:
    """Send updates, then repeat those with unknown outcomes to learn whether they count."""
    address, path = parse_address(session.target.api, "--api")
    work = Updates(address.host_header, users, board=board, run=session.run_id, path=path)
    load = HttpLoad(_plan(session, address), work)
    snapshots = await load.run(session.read_cpu, session.stop, session.progress("http"))
    session.add_result(
        "http",
        board,
        load.measurement,
        snapshots,
        parts=UPDATE_PARTS,
        reconciled=dict(await load.send_each(load.measurement.unknown)),
        details={"users": len(users)},
    )


async def load_reads(
    session: Session, board: Board, users: Sequence[User], *, leaderboard_share: float
) -> None:
    """Update every user once, then read."""
    address, path = parse_address(session.target.api, "--api")
    await fill(session, board.name, users)
    work = Reads(
        address.host_header,
        users,
        board=board.name,
        leaderboard_share=leaderboard_share,
        path=path,
        is_public=board.is_public,
    )
    load = HttpLoad(_plan(session, address), work)
    snapshots = await load.run(session.read_cpu, session.stop, session.progress("read"))
    session.add_result(
        "read",
        board.name,
        load.measurement,
        snapshots,
        parts=READ_PARTS,
        details={"members": len(users), "leaderboards": f"{leaderboard_share:.0%}"},
    )


async def fill(session: Session, board: str, users: Sequence[User]) -> None:
    """Send one update of each user, so that reads find them.

    Raises Unavailable if the api does not accept them.
    """
    address, path = parse_address(session.target.api, "--api")
    work = Updates(address.host_header, users, board=board, run=f"fill-{session.run_id}", path=path)
    pending = list(range(len(users)))
    loop = asyncio.get_running_loop()
    until_s = loop.time() + READY_S
    load = HttpLoad(Plan(address, FILL_CONNECTIONS, 0, 0, None), work)
    while pending and not session.stop.is_set():
        turn, pending = pending[:FILL_CONNECTIONS], pending[FILL_CONNECTIONS:]
        outcomes = await asyncio.gather(*[load.send_once(number) for number in turn])
        failed = [
            number
            for number, outcome in zip(turn, outcomes, strict=True)
            if outcome not in {"applied", "replayed"}
        ]
        pending += failed
        if failed:
            if loop.time() > until_s:
                reason = next(one for one in outcomes if one not in {"applied", "replayed"})
                raise Unavailable(f"The api does not accept updates of board {board}: {reason}")
            await asyncio.sleep(_POLL_S)


def _plan(session: Session, address: Address) -> Plan:
    options = session.options
    return Plan(
        address,
        connections=options.connections,
        warm_up_s=options.warm_up_s,
        duration_s=options.duration_s,
        rate=options.rate,
    )
