"""A client of Scoreboard: update a score with retries, and watch a board.

    export TOKEN=$(scoreboard token --sub alice)
    python scoreboard_client.py update http://127.0.0.1:8000 alice python:1
    python scoreboard_client.py watch ws://127.0.0.1:8001/ws/scoreboard 3

Needs Python 3.11 and, to watch, the package `websockets`.
"""

import http.client
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

TRIES = 8
TIMEOUT_S = 15.0
SILENCE_S = 37.0
STOP_CODES = {1002, 1003, 1007, 1009, 4400, 4401, 4403, 4404}
LEAST_WAIT_S = {1013: 5.0, 4429: 30.0}


def update(api: str, user_id: str, action_id: str, token: str) -> dict[str, Any]:
    """Count one action and return the reply.

    Every try sends the same ``action_id``, so the action counts once however often a response is
    lost. Raises RuntimeError if the request is refused, or if all tries fail.
    """
    request = urllib.request.Request(
        f"{api}/api/scores/update",
        data=json.dumps({"userId": user_id, "actionId": action_id}).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    failure = ""
    for attempt in range(TRIES):
        wait_s = random.uniform(0, min(30.0, 0.5 * 2**attempt))
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            failure = error.read().decode(errors="replace")
            if error.code != 429 and error.code < 500:
                raise RuntimeError(failure) from None
            wait_s += float(error.headers.get("Retry-After", 0))
        except (OSError, http.client.HTTPException) as error:
            failure = str(error)  # the outcome is unknown: the next try tells
        time.sleep(wait_s)
    raise RuntimeError(f"no answer after {TRIES} tries: {failure}")


def watch(url: str, token: str = "") -> Iterator[dict[str, Any]]:
    """Yield each board, and again when names of it arrive; reconnect when the connection is lost.

    Raises RuntimeError if the server says that reconnecting is useless.
    """
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect

    epoch, seq, failures = 0, -1, 0
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    while True:
        delay_s = random.uniform(0, min(30.0, 0.5 * 2**failures))
        failures = min(failures + 1, 6)
        is_over = False
        try:
            with connect(
                url, subprotocols=["scoreboard.v1"], additional_headers=headers, proxy=None
            ) as socket:
                while True:
                    message = json.loads(socket.recv(timeout=SILENCE_S))
                    match message["type"]:
                        case "leaderboard":
                            # An equal seq is the same board, with newer names.
                            if message["epoch"] == epoch and message["seq"] < seq:
                                continue
                            epoch, seq, failures = message["epoch"], message["seq"], 0
                            yield message
                        case "bye" if message.get("reconnect", True):
                            low_ms, high_ms = message.get("delay_ms", (100, 3000))
                            delay_s = random.uniform(low_ms, high_ms) / 1000
                        case "bye":
                            is_over = True
                        case _:
                            pass  # heartbeat, status, and types that are added later
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else 1006
            if is_over or code in STOP_CODES:
                raise RuntimeError(f"closed with {code}") from None
            delay_s = max(delay_s, random.uniform(1, 2) * LEAST_WAIT_S.get(code, 0.0))
        except InvalidStatus as refused:
            if refused.response.status_code not in {429, 503}:
                raise RuntimeError(refused.response.body.decode()) from None
            delay_s += float(refused.response.headers.get("Retry-After", 0))
        except (OSError, TimeoutError):
            pass
        time.sleep(delay_s)


def main() -> None:
    """Run one command line."""
    token = os.environ.get("TOKEN", "")
    match sys.argv[1:]:
        case ["update", api, user_id, action_id]:
            print(json.dumps(update(api, user_id, action_id, token)))
        case ["watch", url, *rest]:
            boards = watch(url, token)
            count = int(rest[0]) if rest else None
            for number, board in enumerate(boards, start=1):
                print(json.dumps(board["leaderboard"]), flush=True)
                if number == count:
                    break
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
