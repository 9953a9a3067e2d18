"""`scoreboard secrets`: rotate the logins of services while they run."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct

from cli.issuer.config import SECRET_FILE
from cli.issuer.rotation import ClientSecretTarget, SigningKeyTarget
from cli.output import print_json, print_message, print_table, progress
from cli.parameters import Seconds
from cli.target import (
    DATABASE_URL,
    ISSUER_DIR,
    REDIS_URL,
    data_dir_option,
    json_option,
    load_issuer,
    load_running_system,
    load_settings_to_change,
    read_settings,
)
from scoreboard.errors import OperatorMistake, ScoreboardError
from scoreboard.rotation.kinds import Kind, default_secrets, make_rotation
from scoreboard.rotation.steps import Outcome, Rotation, Target
from scoreboard.rotation.versions import FileVersions
from scoreboard.security.key_set import make_source
from scoreboard.security.local_issuer import KEY_FILE

STEPS: Final = ("create", "set", "test", "finish")
GRACE_MAX_S: Final = 7 * 86_400
OAUTH: Final = "oauth"
OAUTH_GRACE_S: Final = 86_400.0
"""Default grace of the issuer's secrets: the longest usual lifetime of a token."""

WAIT_MAX_S: Final = 900.0
"""A longer grace is not waited for."""

_NEEDS: Final = {Kind.DB: DATABASE_URL, Kind.REDIS: REDIS_URL, Kind.KONG: REDIS_URL}
_KINDS: Final = (*(kind.value for kind in _NEEDS), OAUTH)


class Rotated(Struct, frozen=True):
    """The result for one secret; ``version`` is the id of its current version."""

    secret: str
    version: str | None
    previous: str


class Described(Struct, frozen=True):
    """The versions of one secret, and how long the previous one is still in its grace.

    ``changed_s_ago`` is None without a current version.
    """

    secret: str
    current: str | None
    pending: str | None
    previous: str | None
    changed_s_ago: int | None
    grace_left_s: int


@click.group()
def secrets() -> None:
    """Rotate the secrets of services without downtime.

    \b
    db      logins of PostgreSQL
    redis   users of Redis or Valkey
    kong    the user of Kong's counters; REDIS_URL is then their server
    oauth   signing key and client secret of the development issuer of `scoreboard up`

    Without SECRET, all secrets of the kind are selected. For db, redis and kong these are the
    secrets beside the rotator's own, which SCOREBOARD_DATABASE_SECRET or SCOREBOARD_REDIS_SECRET
    names. See docs/how-to/rotate-secrets.md.
    """  # noqa: D301 (\b keeps click from joining the lines)


def _secret_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = data_dir_option(json_option(command))
    for option in (
        click.option("--replica", "replicas", multiple=True, metavar="URL",
                     help="Another node of Redis, which has its own users; can be repeated."),
        click.option("--grace", "grace_s", type=Seconds(0, GRACE_MAX_S), metavar="SECONDS",
                     help="How long services may use the previous version; 0 if it has leaked.  "
                     "[default: 2.2 refresh times of the services; oauth: one day]"),
        click.argument("names", nargs=-1, metavar="[SECRET]…"),
        click.argument("kind", type=click.Choice(_KINDS)),
    ):  # fmt: skip
        command = option(command)
    return command


@secrets.command()
@_secret_options
@click.option("--step", type=click.Choice(STEPS), help="Run one step, of one secret.")
@click.option("--discard", is_flag=True, help="Discard a pending version and create another.")
@click.option("--disconnect", is_flag=True, help="End sessions of the previous version.")
@click.option(
    "--no-wait",
    is_flag=True,
    help="Do not retire the previous version; `secrets retire` does it later.",
)
def rotate(
    *,
    kind: str,
    names: Sequence[str],
    grace_s: float | None,
    replicas: Sequence[str],
    step: str | None,
    discard: bool,
    disconnect: bool,
    no_wait: bool,
    as_json: bool,
    data_dir: Path,
) -> None:
    """Create a new version, set it on the server, test it, make it current, retire the old one.

    Both versions are valid until the old one is retired, so no request fails. Repeat the command if
    it was interrupted: it continues where it stopped. A version that the server refuses never
    becomes current.

    \b
    Examples:
      scoreboard secrets rotate db
      scoreboard secrets rotate redis scoreboard/production/api/redis
      scoreboard secrets rotate db --grace 0 --discard --disconnect      a login has leaked
    """  # noqa: D301
    rotations = _rotations(kind, names, grace_s, replicas, data_dir)
    if step is not None:
        if len(rotations) != 1:
            raise OperatorMistake("--step needs exactly one SECRET")
        token = asyncio.run(_run_step(rotations[0], step, discard=discard, disconnect=disconnect))
        done = [Rotated(rotations[0].name, token, f"{step} done")]
    else:
        failed: dict[str, ScoreboardError] = {}
        done = asyncio.run(_rotate(rotations, failed, discard=discard, disconnect=disconnect))
        if not no_wait:
            rotated = [one for one in rotations if one.name not in failed]
            done = asyncio.run(_retire(rotated, failed, disconnect=disconnect, wait=True))
        _raise_failed(failed, done, as_json=as_json)
    _print_rotated(done, as_json=as_json)


@secrets.command()
@_secret_options
@click.option("--disconnect", is_flag=True, help="End sessions of the previous version.")
def retire(
    *,
    kind: str,
    names: Sequence[str],
    grace_s: float | None,
    replicas: Sequence[str],
    disconnect: bool,
    as_json: bool,
    data_dir: Path,
) -> int:
    """Make the server refuse the previous version of secrets. Exit 1 within its grace.

    \b
    Example:
      scoreboard secrets retire db
    """  # noqa: D301
    rotations = _rotations(kind, names, grace_s, replicas, data_dir)
    failed: dict[str, ScoreboardError] = {}
    done = asyncio.run(_retire(rotations, failed, disconnect=disconnect, wait=False))
    _raise_failed(failed, done, as_json=as_json)
    _print_rotated(done, as_json=as_json)
    return 1 if any(one.previous == Outcome.TOO_EARLY.value for one in done) else 0


@secrets.command()
@_secret_options
def status(
    *,
    kind: str,
    names: Sequence[str],
    grace_s: float | None,
    replicas: Sequence[str],
    as_json: bool,
    data_dir: Path,
) -> None:
    """Show the ids of the versions of secrets, never their values.

    \b
    Example:
      scoreboard secrets status db
    """  # noqa: D301
    found = asyncio.run(_describe(_rotations(kind, names, grace_s, replicas, data_dir)))
    if as_json:
        print_json(found)
        return
    columns = ("secret", "current", "pending", "previous", "changed (s ago)", "grace left (s)")
    rows = [
        (one.secret, one.current, one.pending, one.previous, one.changed_s_ago, one.grace_left_s)
        for one in found
    ]
    print_table(columns, rows)


def _rotations(
    kind: str,
    names: Sequence[str],
    grace_s: float | None,
    replicas: Sequence[str],
    data_dir: Path,
) -> list[Rotation]:
    if kind == OAUTH:
        return _issuer_rotations(names, grace_s, data_dir)
    chosen = Kind(kind)
    settings = load_settings_to_change(data_dir, needs=(_NEEDS[chosen],))
    return [
        make_rotation(chosen, name, settings, grace_s=grace_s, replicas=replicas)
        for name in names or default_secrets(chosen, settings)
    ]


def _issuer_rotations(
    names: Sequence[str], grace_s: float | None, data_dir: Path
) -> list[Rotation]:
    running = load_running_system(data_dir, "--data-dir")
    if not running.issuer:
        raise OperatorMistake(
            "The tokens of this system are of another issuer; rotate its keys there"
        )
    settings = read_settings(running.settings)
    services = {"api": f"{running.api}/api/scores/leaderboard", "streamer": running.ws}
    targets: dict[str, Target] = {
        KEY_FILE: SigningKeyTarget(
            load_issuer(data_dir), make_source(settings), settings.audience, services
        ),
        SECRET_FILE: ClientSecretTarget(running.issuer),
    }
    unknown = [name for name in names if name not in targets]
    if unknown:
        raise OperatorMistake(f"The secrets of the issuer are {', '.join(targets)}")
    return [
        Rotation(
            FileVersions(data_dir / ISSUER_DIR / name),
            targets[name],
            grace_s=OAUTH_GRACE_S if grace_s is None else grace_s,
        )
        for name in names or targets
    ]


async def _rotate(
    rotations: Sequence[Rotation],
    failed: dict[str, ScoreboardError],
    *,
    discard: bool,
    disconnect: bool,
) -> list[Rotated]:
    """Rotate all that can be; add the others to ``failed``, so that none of them stops the rest."""
    done: list[Rotated] = []
    for rotation in rotations:
        try:
            if discard:
                await rotation.discard_pending()
            version = await rotation.rotate(
                lambda step, name=rotation.name: print_message(f"{name}: {step}"),
                disconnect=disconnect,
            )
        except ScoreboardError as error:
            failed[rotation.name] = error
            print_message(f"{rotation.name}: failed: {error.detail}")
        else:
            done.append(Rotated(rotation.name, version, "valid until it is retired"))
    return done


async def _run_step(rotation: Rotation, step: str, *, discard: bool, disconnect: bool) -> str:
    if discard:
        await rotation.discard_pending()
    if step == "create":
        return await rotation.create(disconnect=disconnect)
    found = await rotation.describe()
    if found.pending is None:
        raise OperatorMistake(f"{rotation.name} has no pending version; run the step create first")
    match step:
        case "set":
            await rotation.set(found.pending)
        case "test":
            await rotation.test(found.pending)
        case _:
            await rotation.finish(found.pending)
    return found.pending


async def _retire(
    rotations: Sequence[Rotation],
    failed: dict[str, ScoreboardError],
    *,
    disconnect: bool,
    wait: bool,
) -> list[Rotated]:
    """Retire all that can be; add the others to ``failed``."""
    if wait:
        left_s = max([one.grace_left_s(await one.describe()) for one in rotations], default=0.0)
        if left_s <= WAIT_MAX_S:
            await _wait(left_s)
        else:
            print_message(
                f"The previous versions can be retired in {left_s:.0f} s, by `scoreboard secrets "
                "retire`"
            )
    done: list[Rotated] = []
    for rotation in rotations:
        try:
            outcome = await rotation.retire(disconnect=disconnect)
            found = await rotation.describe()
        except ScoreboardError as error:
            failed[rotation.name] = error
            print_message(f"{rotation.name}: failed: {error.detail}")
        else:
            done.append(Rotated(rotation.name, found.current, outcome.value))
    return done


async def _wait(seconds: float) -> None:
    """Wait for the grace to pass."""
    if seconds <= 0:
        return
    total = round(seconds + 1)
    print_message(
        f"The previous versions are retired in {total} s; interrupting this wait is harmless"
    )
    began_s = time.monotonic()
    with progress() as report:
        while (passed := time.monotonic() - began_s) <= seconds:
            report("waiting for services", round(passed), total)
            await asyncio.sleep(min(1.0, seconds - passed + 0.01))


async def _describe(rotations: Sequence[Rotation]) -> list[Described]:
    rows: list[Described] = []
    for rotation in rotations:
        found = await rotation.describe()
        rows.append(
            Described(
                rotation.name,
                found.current,
                found.pending,
                found.previous,
                round(time.time() - found.changed_at_s) if found.current else None,
                round(rotation.grace_left_s(found)),
            )
        )
    return rows


def _raise_failed(
    failed: Mapping[str, ScoreboardError], done: Sequence[Rotated], *, as_json: bool
) -> None:
    """Raise the first error, if any, after the results of the other secrets."""
    if failed:
        if done:
            _print_rotated(done, as_json=as_json)
        raise next(iter(failed.values()))


def _print_rotated(done: Sequence[Rotated], *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    rows = [(one.secret, one.version, one.previous) for one in done]
    print_table(("secret", "current version", "previous version"), rows)
