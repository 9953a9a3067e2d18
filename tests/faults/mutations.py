"""Mutations: changes of the code, made in a copy, that must violate the named invariant.

A suite that passes with one of these changes could not detect that fault.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "cli", "flusher", "lua", "scoreboard", "sql", "streamer", "web")


@dataclass(frozen=True)
class Mutation:
    """A change of one file, in which ``old`` occurs exactly once."""

    name: str
    file: str
    old: str
    new: str
    faults: tuple[str, ...]
    breaks: tuple[str, ...]
    """Prefixes; at least one violation must start with one of them."""


MUTATIONS = [
    Mutation(
        "repeats are counted",
        "lua/submit.lua",
        "  if record then\n",
        "  if false then\n",
        ("redis_cut",),
        ("I5",),
    ),
    Mutation(
        "the stream is trimmed by its length",
        "lua/submit.lua",
        "redis.pcall('XADD', events, '*',",
        "redis.pcall('XADD', events, 'MAXLEN', 5, '*',",
        ("flusher_paused", "flusher_paused"),
        ("I1", "while paused"),
    ),
    Mutation(
        "entries are acknowledged before COMMIT",
        "flusher/partition.py",
        "        with metrics.FLUSH_DURATION.time():\n",
        "        await self.consumer.acknowledge(\n"
        "            batch, replication_id=self._replication_id,"
        " epoch=self._epoch, skip_gaps=True\n"
        "        )\n"
        "        with metrics.FLUSH_DURATION.time():\n",
        ("commits_lost", "backends_terminated", "commits_lost", "database_stopped_immediately"),
        ("I1", "while paused"),
    ),
    Mutation(
        "scores are overwritten by the score in the stream",
        "sql/queries/count_flush_batch.sql",
        "SET score = s.score + excluded.score,",
        "SET score = (SELECT max(b.score_after) FROM flush_batch b"
        " WHERE b.user_id = excluded.user_id),",
        ("redis_rewound",),
        ("I2", "while paused"),
    ),
    Mutation(
        "dedup records never expire",
        "lua/submit.lua",
        "    redis.call('EXPIRE', current, 2 * seen_seconds + 60, 'NX')\n",
        "",
        ("scripts_flushed",),
        ("I7",),
    ),
    Mutation(
        "packed scores lose their last digits",
        "lua/submit.lua",
        "moves[#moves + 1] = string.format('%.0f', packed)",
        "moves[#moves + 1] = string.format('%.6g', packed)",
        ("scripts_flushed",),
        ("I3",),
    ),
]


CLUSTER_MUTATIONS = [
    Mutation(
        "replicas are not awaited",
        "scoreboard/store/dispatcher.py",
        'self._waits = settings.acknowledge == "replicated"',
        "self._waits = False",
        ("primary_isolated_without_commits",),
        ("I1", "I5", "while paused"),
    ),
]
"""Those that only faults of a cluster can show."""


def mutated_copy(mutation: Mutation, folder: Path) -> Path:
    """Copy the packages and apply a mutation; return the folder to import them from."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    path = folder / mutation.file
    text = path.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.name}: adapt it to {mutation.file}"
    path.write_text(text.replace(mutation.old, mutation.new))
    return folder
