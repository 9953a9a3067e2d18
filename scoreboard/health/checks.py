"""The checks: what is called well, and what to do if it is not. No I/O.

`/health/ready` of the services and `scoreboard status` show these checks under the same names, so
that a line of one can be found in the other. No check contains a secret.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Final

from msgspec import Meta, Struct

from scoreboard.model import Layout
from scoreboard.store.durability import Durability
from scoreboard.store.partitions import GAP_FENCE, REWIND_FENCE, PartitionState

REDIS: Final = "redis"
DURABILITY: Final = "durability"
DATABASE: Final = "database"
SCHEMA: Final = "schema"
KEYS: Final = "keys"
CATALOGUE: Final = "catalogue"
VIEWERS: Final = "viewers"
DEAD_LETTERS: Final = "dead letters"
BACKUP: Final = "backup"

UNKNOWN: Final = "unknown"
"""The state of a part that could not be examined."""

BEHIND_S: Final = 30.0
"""Longest time that an action may wait for PostgreSQL."""

UNVERIFIED_S: Final = 900.0
"""Longest time without a completed comparison of users."""

BACKUP_S: Final = 26 * 3600.0
"""Longest age of the last checked backup: a day, and the time a backup takes."""

SECRET_UNREAD_S: Final = 600.0
"""Longest time without a successful read of a secret."""

SECRET_AGE_S: Final = 35 * 86_400.0
"""Longest time without a rotation of a secret."""

FULL_SHARE: Final = 0.9
"""Share of the maximum number of viewers from which a streamer counts as nearly full."""

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400


class Check(Struct, frozen=True, omit_defaults=True):
    """The state of one part of the system."""

    state: str
    detail: str = ""
    advice: Annotated[str, Meta(description="What to do; missing if nothing has to be done.")] = ""


def board_name(board: str) -> str:
    """Return the name of the check of a board."""
    return f"board {board}"


def backlog_name(board: str) -> str:
    """Return the name of the check of the actions of a board that wait for PostgreSQL."""
    return f"backlog {board}"


def drift_name(board: str) -> str:
    """Return the name of the check of differences between the stores."""
    return f"drift {board}"


def live_name(board: str) -> str:
    """Return the name of the check of what viewers see of a board."""
    return f"live {board}"


def secret_name(owner: str) -> str:
    """Return the name of the check of a server's credentials."""
    return f"secret {owner}"


def runbook(alert: str) -> str:
    """Return where the runbook describes an alert."""
    return f"docs/how-to/runbook.md#{alert.lower()}"


def down(reason: str, *, alert: str = "") -> Check:
    """Return the state of a server or service that does not answer."""
    return Check("down", reason, f"see {runbook(alert)}" if alert else "")


def unknown(reason: str, *, advice: str = "") -> Check:
    """Return the state of a part that could not be examined."""
    return Check(UNKNOWN, reason, advice)


def describe_redis(found: Durability) -> Check:
    """Return which servers of Redis answer."""
    if found.primaries == 1:
        return Check("up", found.version)
    detail = f"{found.version}, {found.primaries} primaries"
    if not found.away:
        return Check("up", detail)
    away = f"{detail}; {', '.join(found.away)} does not answer"
    return Check("partly away", away, f"see {runbook('RedisDown')}")


def describe_durability(found: Durability, *, is_unsafe_allowed: bool) -> Check:
    """Return whether Redis keeps what it acknowledges."""
    if found.is_safe and found.vouched:
        return Check("vouched", f"the server hides its settings; required: {found.vouched}")
    if found.is_safe:
        return Check("safe")
    if is_unsafe_allowed:
        return Check("accepted", "; ".join(found.problems))
    return Check(
        "unsafe",
        "; ".join(found.problems),
        f"correct the configuration of Redis: {runbook(_durability_alert(found.problems))}",
    )


def _durability_alert(problems: Sequence[str]) -> str:
    """Return the alert whose section restores lost keys, if keys may be lost."""
    may_evict = any(one.startswith("maxmemory-policy ") for one in problems)
    return "RedisEvictsKeys" if may_evict else "RedisNotDurable"


def describe_board(name: str, layout: Layout | None, states: Sequence[PartitionState]) -> Check:
    """Return whether a board accepts actions; ``layout`` is that of PostgreSQL, None if unknown.

    ``states`` are those of all its partitions.
    """
    missing = [
        number for number, state in enumerate(states) if not state.epoch or state.layout is None
    ]
    if missing or not states:
        where = f"partitions {_numbers(missing)} of {len(states)}" if len(states) > 1 else ""
        return Check("uninitialised", where, f"scoreboard reseed --board {name}")
    epochs = sorted({state.epoch for state in states})
    epoch = f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"
    if layout is not None and any(state.layout != layout for state in states):
        return Check(
            "outdated layout",
            f"{epoch}, PostgreSQL has {layout}",
            f"scoreboard reseed --board {name} --force",
        )
    closed = [number for number, state in enumerate(states) if not state.is_open]
    if closed:
        where = f", partitions {_numbers(closed)} of {len(states)}" if len(states) > 1 else ""
        owners = {states[number].fenced_by for number in closed}
        names = ", ".join(sorted(owners - {""}))
        by = f", by {names}" if names else ""
        return Check("fenced", epoch + where + by, _advise_fenced(owners))
    is_archived = any(state.is_archived for state in states)
    return Check("open", f"{epoch}, archived" if is_archived else epoch)


def _advise_fenced(owners: AbstractSet[str]) -> str:
    if GAP_FENCE in owners:
        return f"do not reseed yet, accepted actions are missing: {runbook('StreamFaults')}"
    if owners == {REWIND_FENCE}:
        return f"wait for the flusher, which reseeds it; if it does not: {runbook('FlusherStuck')}"
    return (
        f"wait for the reseed or repair that fenced it; if none runs: {runbook('PartitionClosed')}"
    )


def describe_backlog(actions: int, oldest_s: float | None) -> Check:
    """Return how many actions wait for PostgreSQL; ``oldest_s`` is the age of the oldest one."""
    if oldest_s is None:
        return Check("empty")
    waits = "1 action waits" if actions == 1 else f"{actions} actions wait"
    detail = f"{waits} for PostgreSQL, the oldest for {duration(oldest_s)}"
    if oldest_s > BEHIND_S:
        return Check("behind", detail, f"check the flusher: {runbook('StreamBacklogOld')}")
    return Check("moving", detail)


def describe_drift(board: str, users: int, verified_s: float | None) -> Check:
    """Return how many users differ between the stores.

    ``verified_s`` is the time since the last comparison, None if there was none.
    """
    age = "" if verified_s is None else f"compared {duration(verified_s)} ago"
    if users:
        differ = "1 user differs" if users == 1 else f"{users} users differ"
        return Check("drifted", f"{differ}; {age}", f"scoreboard repair --board {board}")
    if verified_s is None:
        return unknown("not compared yet")
    if verified_s > UNVERIFIED_S:
        return Check("unverified", age, f"scoreboard verify --board {board}")
    return Check("none", age)


def describe_dead_letters(counts: Mapping[str, int]) -> Check:
    """Return the number of unresolved dead letters, from those of each board."""
    held = {board: count for board, count in counts.items() if count}
    if not held:
        return Check("none")
    detail = ", ".join(f"{count} of board {board}" for board, count in sorted(held.items()))
    return Check("unresolved", detail, f"scoreboard dead list --board {min(held)}")


def describe_backup(age_s: float | None, *, is_required: bool) -> Check:
    """Return the age of the last checked backup; None: there is none."""
    advice = "make and check a backup: docs/how-to/backup-and-restore.md"
    if age_s is None:
        return Check("none", "no checked backup is recorded", advice if is_required else "")
    detail = f"taken {duration(age_s)} ago"
    if age_s > BACKUP_S:
        return Check("overdue", detail, advice if is_required else "")
    return Check("recent", detail)


def describe_secret(read_s: float, rotated_s: float | None = None) -> Check:
    """Return the time since a secret was read and, if that is known, since it was rotated."""
    rotated = "" if rotated_s is None else f", rotated {duration(rotated_s)} ago"
    detail = f"read {duration(read_s)} ago{rotated}"
    if read_s > SECRET_UNREAD_S:
        return Check("stale", detail, f"see {runbook('SecretStale')}")
    if rotated_s is not None and rotated_s > SECRET_AGE_S:
        return Check("old", detail, f"rotate it: {runbook('RotationOverdue')}")
    return Check("current", detail)


def describe_viewers(viewers: int, most: int) -> Check:
    """Return the number of viewers; ``most`` is the maximum of the process."""
    detail = f"{viewers} of at most {most}"
    if viewers >= most * FULL_SHARE:
        return Check("nearly full", detail, "add a streamer or raise SCOREBOARD_VIEWERS")
    return Check("connected", detail)


def describe_live(stale_reason: str | None, *, is_read: bool) -> Check:
    """Return whether viewers see the latest state of a board."""
    if stale_reason is not None:
        return Check("stale", stale_reason, f"see {runbook('BoardStale')}")
    return Check("live") if is_read else unknown("not read yet")


def duration(seconds: float) -> str:
    """Return a duration in its largest usual unit."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < 2 * _DAY_S:
        return f"{seconds / _HOUR_S:.0f} h"
    return f"{seconds / _DAY_S:.0f} d"


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return f"{shown} …" if len(numbers) > 5 else shown
