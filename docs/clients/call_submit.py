"""Count an action by calling submit.lua directly.

    REDIS_URL=… python call_submit.py BOARD USER ACTION POINTS

It needs redis-py, and submit.lua of the running version: `scoreboard lua show submit > submit.lua`.
"""

import hashlib
import os
import sys
import time
import zlib
from pathlib import Path

import redis
from redis.exceptions import NoScriptError, ResponseError

STREAM_CAP = 1_000_000  # SCOREBOARD_STREAM_CAP of the api

SCRIPT = Path("submit.lua").read_bytes()
SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest()


def submit(client: redis.Redis, board: str, user: str, action: str, points: int) -> list:
    """Return outcome, points, score, seq, and 1 if the change is known to be in PostgreSQL."""
    layout = client.hget(f"sb:{{{board}:0}}:meta", "layout")
    clock_offset_s = 0.0
    digest = hashlib.blake2b(f"{board}\0{user}\0{action}".encode(), digest_size=16).digest()
    for _ in range(4):
        partitions, seen_seconds, seen_shards = map(int, layout.split(":")[:3])
        part = zlib.crc32(user.encode()) % partitions
        shard = int.from_bytes(digest[:4], "big") % seen_shards
        generation = int((time.time() + clock_offset_s) // seen_seconds)
        tag = f"sb:{{{board}:{part}}}"
        keys = [f"{tag}:board", f"{tag}:events", f"{tag}:meta", f"{tag}:changes"]
        keys += [f"{tag}:banned", f"{tag}:gained"]
        keys += [f"{tag}:seen:{one}:{shard}" for one in (generation, generation - 1)]
        args = [generation, layout, STREAM_CAP, user, action, digest, points, 1, "", 1]
        try:
            return client.evalsha(SHA, len(keys), *keys, *args)[0]
        except NoScriptError:
            client.script_load(SCRIPT)
        except ResponseError as refusal:
            code, fact, *_ = str(refusal).split(" ")
            if code == "BUCKET":  # the clocks differ, or the generation has just ended
                clock_offset_s = int(fact) - time.time() + 0.5
            elif code == "LAYOUT":  # the board was laid out anew
                layout = fact
            else:
                raise
    raise RuntimeError("Redis refused the call again and again")


if __name__ == "__main__":
    url = os.environ["REDIS_URL"]
    with redis.Redis.from_url(url, socket_timeout=5, decode_responses=True) as connection:
        print(*submit(connection, *sys.argv[1:4], int(sys.argv[4])))
