"""CPU time of the measured servers, of the generator and of the machine.

Redis tells its own by INFO. A process on this machine is read from /proc, with its workers; one
elsewhere by `process_cpu_seconds_total` of its metrics address.
"""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import redis.asyncio as aioredis
from prometheus_client.parser import text_string_to_metric_families
from redis.exceptions import RedisError

from scoreboard.store.replies import read_reply

GENERATOR: Final = "generator"
MACHINE: Final = "machine"
"""Busy time of all cores, whoever used them."""

LIMIT_S: Final = 2.0
_METRIC: Final = "process_cpu_seconds"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class CpuReader:
    """Reads the CPU seconds used so far by part."""

    def __init__(
        self,
        redis: aioredis.Redis | None,
        pids: Mapping[str, int],
        services: Sequence[tuple[str, str]] = (),
    ) -> None:
        """``services`` are names and metrics addresses of what has no local process."""
        self._redis = redis
        self._pids = pids
        self._services = [(name, url) for name, url in services if name not in pids]

    async def read(self) -> dict[str, float]:
        """Return what can be read; a part that does not answer is missing."""
        found = {GENERATOR: time.process_time(), **read_machine()}
        families = _families()
        for name, pid in self._pids.items():
            seconds = family_cpu_s(pid, families)
            if seconds is not None:
                found[name] = seconds
        asked = [self._ask_service(name, url) for name, url in self._services]
        for part in await asyncio.gather(self._ask_redis(), *asked):
            for name, seconds in part.items():
                found[name] = found.get(name, 0.0) + seconds
        return found

    async def _ask_redis(self) -> dict[str, float]:
        if self._redis is None:
            return {}
        try:
            reply = await read_reply(self._redis.info("cpu"), dict[str, Any], "INFO cpu")
            return {"redis": float(reply["used_cpu_sys"]) + float(reply["used_cpu_user"])}
        except (RedisError, OSError, KeyError, ValueError):
            return {}

    async def _ask_service(self, name: str, url: str) -> dict[str, float]:
        try:
            async with httpx.AsyncClient(timeout=LIMIT_S, trust_env=False) as client:
                text = (await client.get(f"{url}/metrics")).raise_for_status().text
            samples = [
                sample.value
                for family in text_string_to_metric_families(text)
                if family.name == _METRIC
                for sample in family.samples
            ]
        except (httpx.HTTPError, ValueError):
            return {}
        return {name: sum(samples)} if samples else {}


def read_machine() -> dict[str, float]:
    """Return the busy time of this machine; nothing where /proc does not exist."""
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return {}
    user, nice, system, _, _, irq, soft = (int(word) for word in words[1:8])
    return {MACHINE: (user + nice + system + irq + soft) / _TICKS_PER_S}


def family_cpu_s(pid: int, children: Mapping[int, Sequence[int]]) -> float | None:
    """Return the CPU seconds of a process and its descendants, ended ones included."""
    total = 0.0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            text = Path(f"/proc/{one}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            if one == pid:
                return None
            continue
        fields = text.rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15]) / _TICKS_PER_S
        waiting += children.get(one, ())
    return total


def _families() -> dict[int, list[int]]:
    """Return the running children of each process."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it ended
        parent = int(text.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(path.parent.name))
    return children


def postmaster_of(backend_pid: int) -> int | None:
    """Return the parent of a server process of PostgreSQL if it runs on this machine."""
    try:
        text = Path(f"/proc/{backend_pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    return int(rest.split()[1]) if name.startswith("postgres") else None
