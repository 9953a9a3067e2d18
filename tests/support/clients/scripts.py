"""Calls single Lua scripts, for the script tests and the state machine."""

from typing import Any

import msgspec
import pytest
import redis

from scoreboard.model import Layout, Partition, Rules, digest_of, shard_of
from scoreboard.runtime import resources
from scoreboard.store.keys import GROUP, PartitionKeys

LAYOUT = Layout(partitions=1, seen_seconds=1000, seen_shards=4)
KEYS = PartitionKeys(Partition("main"))
Reply = Any


class Scripts:
    """Runs scripts by name and builds the arguments of an update."""

    def __init__(self, client: "redis.Redis[str]", *, is_real: bool) -> None:
        self.client = client
        self.is_real = is_real
        self.cap = 1000
        self.layout = LAYOUT

    def run(self, name: str, keys: list[str], *args: object) -> Reply:
        return self.client.eval(resources.script(name).decode(), len(keys), *keys, *args)

    def refuses(self, name: str, keys: list[str], *args: object) -> str:
        with pytest.raises(redis.ResponseError) as caught:
            self.run(name, keys, *args)
        return str(caught.value)

    def now(self) -> int:
        return int(self.client.time()[0])

    @property
    def generation(self) -> int:
        return self.now() // LAYOUT.seen_seconds

    def use_rules(self, rules: Rules) -> None:
        """Set the rules of the partition that ``open`` makes."""
        self.layout = msgspec.structs.replace(LAYOUT, rules=rules)

    def open(self, *, epoch: int = 1, seq: int = 0, members: int = 0, season: str = "") -> None:
        if not self.is_real:  # fakeredis has no XSETID, which open.lua needs
            facts = {"epoch": epoch, "seq": seq, "state": "open", "layout": str(self.layout)}
            self.client.hset(KEYS.meta, mapping=facts | {"public": 1})
            self.client.xgroup_create(KEYS.events, GROUP, "0-0", mkstream=True)
            return
        self.fence("T")
        self.run(
            "open",
            [KEYS.board, KEYS.shadow, KEYS.events, KEYS.meta, KEYS.changes],
            *("T", epoch, seq, "0-0", GROUP, str(self.layout), 1, members, "open", "", season),
        )

    def fence(self, token: str) -> Reply:
        """Fence a partition in any state with a token."""
        epoch, seq, fence = (text(one or b"") for one in self._facts("epoch", "seq", "fence"))
        return self.run("fence", [KEYS.meta], token, epoch if epoch and seq else 0, fence, -1)

    @property
    def history(self) -> str:
        """Return the replication id of the server."""
        return text(self.run("history", []))

    def _facts(self, *names: str) -> Any:
        return self.client.hmget(KEYS.meta, *names)

    def submit_call(
        self,
        *actions: tuple[Any, ...],
        generation: int | None = None,
        layout: str | None = None,
        traces: str = "",
        seasons: str = "",
    ) -> tuple[list[str], list[object]]:
        generation = self.generation if generation is None else generation
        keys = [KEYS.board, KEYS.events, KEYS.meta, KEYS.changes, KEYS.banned, KEYS.gained]
        args: list[object] = [generation, layout or str(self.layout), self.cap]
        pairs: dict[int, int] = {}
        for user, action, delta, *more in actions:
            digest = digest_of("main", user, action)
            shard = shard_of(digest, LAYOUT.seen_shards)
            if shard not in pairs:
                pairs[shard] = len(pairs) + 1
                keys += [
                    KEYS.dedup_shard(generation, shard),
                    KEYS.dedup_shard(generation - 1, shard),
                ]
            stated, request = (*more, "")[:2] if more else (0, "")
            args += [user, action, digest, delta, int(stated), request, pairs[shard]]
        args += [traces] if traces or seasons else []
        args += [seasons] if seasons else []
        return keys, args

    def submit(self, *actions: tuple[Any, ...], **options: Any) -> list[list[Any]]:
        keys, args = self.submit_call(*actions, **options)
        return [[text(row[0]), *row[1:4]] for row in self.run("submit", keys, *args)]

    def board(self) -> list[tuple[str, int]]:
        rows = self.client.zrange(KEYS.board, 0, -1, desc=True, withscores=True)
        return [(text(user), int(score)) for user, score in rows]

    def events(self) -> list[dict[str, str]]:
        return [
            {text(name): text(value) for name, value in fields.items()}
            for _, fields in self.client.xrange(KEYS.events)
        ]

    def snapshot(self) -> dict[str, object]:
        """Return the content of the server, to check that a refusal changed nothing."""
        held: dict[str, object] = {}
        for key in sorted(self.client.keys()):
            match text(self.client.type(key)):
                case "zset":
                    held[key] = self.client.zrange(key, 0, -1, withscores=True)
                case "hash":
                    held[key] = sorted(self.client.hgetall(key).items())
                case "stream":
                    held[key] = self.client.xrange(key)
                case kind:
                    held[key] = kind
        return held


def text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
