"""Run the Python client as a JSON document says, and print what comes of it.

    python probe.py blocking|asyncio '{"do": "update", …}'

clients/go/internal/probe does the same in Go.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import scoreboard_client as sc
from scoreboard_client.proofs import ProofKey

Document = dict[str, Any]


def show(event: str, **members: object) -> None:
    print(json.dumps({"event": event, **members}), flush=True)


def options(order: Document) -> Document:
    return {
        "url": order["url"],
        "token": provider(order["tokens"]) if "tokens" in order else order.get("token"),
        "live_url": order.get("liveUrl"),
        "timeout_s": order.get("timeoutS", 15.0),
        "retries": sc.Retries(**snake(order.get("retries", {}))),
    }


def provider(tokens: list[str]) -> Callable[[str], str]:
    def give(reason: str) -> str:
        show("token", reason=reason)
        token = tokens.pop(0) if len(tokens) > 1 else tokens[0]
        if token == "fail":
            raise RuntimeError("the issuer is unavailable")
        return token

    return give


def snake(members: Document) -> Document:
    return {
        "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name): value
        for name, value in members.items()
    }


def live_options(order: Document) -> Document:
    return {
        "board": order.get("board"),
        "rows": order.get("rows", 10),
        "offset": order.get("offset", 0),
        "watch": order.get("watch"),
        "patience": sc.Patience(**snake(order.get("patience", {}))),
    }


def show_event(event: sc.Event) -> None:
    match event:
        case sc.Board():
            rows = [[row.rank, row.user_id, row.name or "", row.score] for row in event.leaderboard]
            position = [event.epoch, event.seq]
            show(
                "board",
                board=event.board,
                position=position,
                rows=rows,
                offset=event.offset,
                viewers=event.viewers,
                season=event.season or "",
            )
        case sc.Place():
            show(
                "place",
                userId=event.user_id,
                rank=event.rank,
                score=event.score,
                toNext=event.to_next,
                toTop=event.to_top,
                around=[len(event.above), len(event.below)],
            )
        case sc.Status():
            show(
                "status",
                state=event.state,
                reason=event.reason or "",
                code=event.code or 0,
                attempt=event.attempt,
                wait=event.retry_in_s or 0,
                stale=event.stale,
            )
        case sc.Viewers():
            show("viewers", board=event.board, viewers=event.viewers)
        case sc.Refused():
            show("refused", code=event.code)


def show_error(error: sc.ScoreboardError) -> None:
    match error:
        case sc.LiveStoppedError():
            status = error.problem.status if error.problem else 0
            show("end", reason=error.reason, code=error.code or 0, status=status)
        case sc.ProblemError():
            show("error", status=error.status, code=error.code)
        case sc.NoAnswerError():
            show("error", status=0, code="no-answer")
        case _:
            show("error", status=0, code=str(error))


def show_results(results: list[sc.BulkResult]) -> None:
    outcomes = [one.problem.type if one.problem else one.outcome for one in results]
    show("results", outcomes=outcomes)


def show_reads(replies: list[Any]) -> None:
    board, standing, own, standings, rank, cutoff, seasons, history, boards, one = replies
    row = board.leaderboard[0]
    show(
        "reads",
        row=[row.rank, row.user_id, row.name or "", row.score],
        neighbours=len(standing.neighbours),
        own=own.rank,
        standings=[standings.users[0].place, standings.not_found],
        rank=rank.rank,
        cutoff=cutoff.score,
        season=seasons.seasons[0].state,
        history=history.history[0].action_id,
        boards=[boards.boards[0].name, boards.next or ""],
        operator=one.rules.operator,
    )


def reads(client: Any, order: Document) -> list[Any]:
    user = order["userId"]
    return [
        client.leaderboard(order.get("board")),
        client.standing(user, around=1),
        client.own_standing(),
        client.standings([user, "nobody"]),
        client.rank_of_score(0),
        client.cutoff(1),
        client.seasons("league"),
        client.history(user, limit=1),
        client.boards(limit=1),
        client.board("main"),
    ]


def action(order: Document) -> Document:
    return snake(order["action"])


def updates(order: Document) -> list[sc.UpdateItem]:
    return msgspec.convert(order["updates"], list[sc.UpdateItem])


def blocking(order: Document) -> None:
    with sc.Client(**options(order)) as client:
        match order["do"]:
            case "update":
                reply = client.update(**action(order))
                show("reply", newScore=reply.new_score, replayed=reply.replayed)
            case "many":
                show_results(client.update_many(updates(order)))
            case "reads":
                show_reads(reads(client, order))
            case _:
                with client.live(**live_options(order)) as live:
                    for window in order.get("subscribe", ()):
                        live.subscribe(**window)
                    threading.Thread(target=obey, args=(live,), daemon=True).start()
                    for event in live:
                        show_event(event)
                show("end", reason="closed", code=0, status=0)


def obey(live: sc.Live) -> None:
    for line in sys.stdin:
        match json.loads(line):
            case {"watch": ids}:
                live.watch(*ids)
            case {"subscribe": window}:
                live.subscribe(**window)
            case {"unsubscribe": board}:
                live.unsubscribe(board)
            case _:
                live.close()


async def asynchronous(order: Document) -> None:
    async with sc.AsyncClient(**options(order)) as client:
        match order["do"]:
            case "update":
                reply = await client.update(**action(order))
                show("reply", newScore=reply.new_score, replayed=reply.replayed)
            case "many":
                show_results(await client.update_many(updates(order)))
            case "reads":
                show_reads(await asyncio.gather(*reads(client, order)))
            case _:
                async with client.live(**live_options(order)) as live:
                    for window in order.get("subscribe", ()):
                        await live.subscribe(**window)
                    loop = asyncio.get_running_loop()
                    threading.Thread(target=obey_loop, args=(live, loop), daemon=True).start()
                    async for event in live:
                        show_event(event)
                show("end", reason="closed", code=0, status=0)


def obey_loop(live: sc.AsyncLive, loop: asyncio.AbstractEventLoop) -> None:
    for line in sys.stdin:
        asyncio.run_coroutine_threadsafe(obey_one(live, json.loads(line)), loop).result()


async def obey_one(live: sc.AsyncLive, command: Document) -> None:
    match command:
        case {"watch": ids}:
            await live.watch(*ids)
        case {"subscribe": window}:
            await live.subscribe(**window)
        case {"unsubscribe": board}:
            await live.unsubscribe(board)
        case _:
            await live.aclose()


def sign(order: Document) -> None:
    key = ProofKey(Path(order["url"]).read_bytes())
    show("proof", keySet=key.key_set, proof=key.sign(**action(order)))


def main() -> None:
    order = json.loads(sys.argv[2])
    try:
        if order["do"] == "proof":
            sign(order)
        elif sys.argv[1] == "blocking":
            blocking(order)
        else:
            asyncio.run(asynchronous(order))
    except sc.ScoreboardError as error:
        show_error(error)


if __name__ == "__main__":
    main()
