"""What a result was measured on: the machine, the versions, the settings that matter."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import redis.asyncio as aioredis
from msgspec import Struct
from redis.exceptions import RedisError

from cli.embedded.binaries import find_program
from scoreboard.errors import ScoreboardError
from scoreboard.runtime.settings import Settings, list_changed
from scoreboard.store.replies import read_reply

CONFIGURATION: Final = ("appendonly", "appendfsync", "maxmemory-policy", "io-threads")
DATABASE: Final = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
BUSY_LOAD: Final = 0.5
"""Load average per core above which the machine was busy before the run."""

_GIT_LIMIT_S: Final = 5


class Environment(Struct, frozen=True):
    """The surroundings of a run."""

    machine: dict[str, Any]
    versions: dict[str, str]
    redis: dict[str, str]
    postgresql: dict[str, str]
    settings: list[str]
    """Settings that differ from their defaults, without secrets."""


async def describe_environment(
    settings: Settings, redis: aioredis.Redis, database: dict[str, str]
) -> Environment:
    """Read the surroundings; what a server does not tell is missing."""
    return Environment(
        machine={
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "kernel": f"{platform.system()} {platform.release()}",
            "load_before": round(os.getloadavg()[0], 2),
        },
        versions={
            "scoreboard": _own_version(),
            "python": platform.python_version(),
        },
        redis=await _describe_redis(redis),
        postgresql=database,
        settings=list_changed(settings),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _own_version() -> str:
    """Return the version of the package, with the commit in a checkout."""
    root = Path(__file__).parents[2]
    git = find_program("git") if (root / ".git").exists() else None
    if git is None:
        return version("scoreboard")
    try:
        asked = subprocess.run(  # noqa: S603 (a fixed program, no shell)
            [git, "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            check=False,
            text=True,
            timeout=_GIT_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return version("scoreboard")
    return f"{version('scoreboard')} {asked.stdout.strip()}".strip()


async def _describe_redis(client: aioredis.Redis) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        server = await read_reply(client.info("server"), dict[str, Any], "INFO server")
        for name in ("valkey_version", "redis_version"):
            if name in server:
                found["version"] = f"{name.partition('_')[0]} {server[name]}"
                break
        # A managed server may refuse CONFIG.
        asked = client.config_get(*CONFIGURATION)
        found |= await read_reply(asked, dict[str, str], "CONFIG GET")
    except (RedisError, ScoreboardError, OSError):
        pass
    return found


def is_busy(environment: Environment) -> bool:
    """Return whether the machine was busy before the run."""
    load, cores = environment.machine["load_before"], environment.machine["cores"]
    return float(load) > BUSY_LOAD * float(cores)
