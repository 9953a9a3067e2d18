"""Plain Litestar handlers: an update verifies the token and calls EVALSHA, a read asks Redis.

An update runs the same submit.lua on the same Redis and has the same requests and responses. Reads
send ZRANGE or ZREVRANK, ZSCORE and ZCARD in one pipeline, and have the same rows, ranks and totals.
Both do everything that a correct response requires, but nothing for operation (limits, request
ids, metrics), which the api includes.
"""

import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import jwt
import redis.asyncio as aioredis
import uvicorn
from litestar import Litestar, Request, get, post
from litestar.exceptions import (
    NotAuthorizedException,
    NotFoundException,
    PermissionDeniedException,
)
from litestar.params import JSONBody
from msgspec import Meta, Struct

from scoreboard.model import SLOT_COUNT, Layout, Partition, digest_of, shard_of
from scoreboard.runtime import resources
from scoreboard.runtime.settings import load
from scoreboard.store.keys import PartitionKeys

SETTINGS = load(os.environ)
LAYOUT = Layout()
KEYS = PartitionKeys(Partition("main"))
POINTS = 10
ROWS = 10

Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._|:@-]{1,128}$")]


class Update(Struct, rename="camel"):
    user_id: Id
    action_id: Id


class Updated(Struct, rename="camel"):
    success: bool
    new_score: int
    replayed: bool


class Ranked(Struct, rename="camel"):
    rank: int
    user_id: str
    score: int


class Leaderboard(Struct):
    leaderboard: list[Ranked]
    total: int


class Standing(Struct, rename="camel"):
    user_id: str
    rank: int
    score: int
    total: int


@asynccontextmanager
async def connected(app: Litestar) -> AsyncIterator[None]:
    # The client's default limit of 100 connections causes errors with 256 clients.
    client = aioredis.Redis.from_url(
        SETTINGS.redis_url.reveal(), decode_responses=True, max_connections=1000
    )
    keys = json.loads(Path(SETTINGS.jwks_file).read_text(encoding="utf-8"))["keys"]
    app.state["keys"] = {key["kid"]: jwt.PyJWK(key) for key in keys}
    app.state["redis"] = client
    app.state["sha"] = await client.script_load(resources.script("submit").decode())
    yield
    await client.aclose()


def verify(request: Request[Any, Any, Any]) -> dict[str, Any]:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise NotAuthorizedException
    try:
        key = request.app.state["keys"][jwt.get_unverified_header(token)["kid"]]
        return jwt.decode(
            token,
            key,
            algorithms=["RS256", "ES256"],
            audience=SETTINGS.audience,
            issuer=SETTINGS.issuer,
            leeway=30,
        )
    except (jwt.PyJWTError, KeyError) as error:
        raise NotAuthorizedException from error


@post("/api/scores/update", status_code=200)
async def update(request: Request[Any, Any, Any], data: JSONBody[Update]) -> Updated:
    claims = verify(request)
    if "update:score" not in claims["scope"].split() or claims["sub"] != data.user_id:
        raise PermissionDeniedException
    generation = int(time.time() // LAYOUT.seen_seconds)
    digest = digest_of("main", data.user_id, data.action_id)
    shard = shard_of(digest, LAYOUT.seen_shards)
    [[outcome, _, score, *_]] = await request.app.state["redis"].evalsha(
        request.app.state["sha"],
        8,
        KEYS.board,
        KEYS.events,
        KEYS.meta,
        KEYS.changes,
        KEYS.banned,
        KEYS.gained,
        KEYS.dedup_shard(generation, shard),
        KEYS.dedup_shard(generation - 1, shard),
        generation,
        str(LAYOUT),
        SETTINGS.stream_cap,
        data.user_id,
        data.action_id,
        digest,
        POINTS,
        0,
        "",
        1,
    )
    return Updated(True, score, outcome == "replayed")


@get("/api/scores/leaderboard")
async def leaderboard(request: Request[Any, Any, Any]) -> Leaderboard:
    async with request.app.state["redis"].pipeline(transaction=True) as pipe:
        pipe.zrange(KEYS.board, 0, ROWS - 1, desc=True, withscores=True)
        pipe.zcard(KEYS.board)
        rows, total = await pipe.execute()
    return Leaderboard(
        [
            Ranked(index, user, int(packed) // SLOT_COUNT)
            for index, (user, packed) in enumerate(rows, start=1)
        ],
        total,
    )


@get("/api/scores/users/{user_id:str}")
async def standing(request: Request[Any, Any, Any], user_id: Id) -> Standing:
    async with request.app.state["redis"].pipeline(transaction=True) as pipe:
        pipe.zrevrank(KEYS.board, user_id)
        pipe.zscore(KEYS.board, user_id)
        pipe.zcard(KEYS.board)
        index, packed, total = await pipe.execute()
    if index is None:
        raise NotFoundException
    return Standing(user_id, index + 1, int(packed) // SLOT_COUNT, total)


app = Litestar(
    [update, leaderboard, standing], lifespan=[connected], openapi_config=None, logging_config=None
)

if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
