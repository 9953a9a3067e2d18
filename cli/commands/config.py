"""`scoreboard config`: show, check and document the settings."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click
import msgspec
from msgspec import Struct

from cli.failures import explain
from cli.output import print_json, print_table, write_stdout
from cli.target import (
    data_dir_option,
    json_option,
    load_settings,
    open_database,
    open_store,
    read_settings,
)
from scoreboard.ledger import checks, migrations
from scoreboard.ledger.actions import select_actions
from scoreboard.ledger.boards import select_board
from scoreboard.model import Partition
from scoreboard.runtime.settings import Secret, Settings, describe, service_links
from scoreboard.security.key_set import (
    PROOF_ALGORITHMS,
    make_proof_source,
    make_source,
    parse_keys,
    read_key_set,
)
from scoreboard.store.client import make_client
from scoreboard.store.durability import Requirements, check_durability

STARS: Final = "***"
WIDTH: Final = 98
EXAMPLES: Final = {
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "DATABASE_URL": "postgresql://scoreboard@127.0.0.1:5432/scoreboard",
}
"""Values in .env.example for settings without a useful default."""


class Entry(Struct, frozen=True):
    """One setting; ``source`` is `environment` or `default`."""

    variable: str
    value: str
    source: str
    about: str


class Check(Struct, frozen=True):
    """The result of one check; ``problem`` is empty if there is none."""

    subject: str
    problem: str = ""


@click.group()
def config() -> None:
    """Show and check the settings."""


@config.command()
@json_option
@click.option("--changed", is_flag=True, help="Show only settings from the environment.")
def show(*, as_json: bool, changed: bool) -> None:
    """Show every setting with its value and source; secrets are masked."""
    found = [one for one in entries(os.environ) if not changed or one.source != "default"]
    if as_json:
        print_json(found)
    else:
        print_table(
            ("setting", "value", "from"), [(one.variable, one.value, one.source) for one in found]
        )


@config.command()
@json_option
@data_dir_option
def check(*, as_json: bool, data_dir: Path) -> int:
    """Check Redis, PostgreSQL, the boards and the issuer's keys.

    Exit 1 if any check fails.
    """
    found = asyncio.run(_check(load_settings(data_dir)))
    if as_json:
        print_json(found)
    else:
        print_table(("subject", "state"), [(one.subject, one.problem or "ok") for one in found])
    return 1 if any(one.problem for one in found) else 0


@config.command()
def example() -> None:
    """Print .env.example: every setting with its description and default."""
    write_stdout(render_example())


def entries(environ: Mapping[str, str]) -> Iterator[Entry]:
    """Yield every setting with its current value.

    Raises SettingInvalid for an invalid or unknown setting.
    """
    chosen = read_settings(environ)
    links = service_links(environ)
    values = msgspec.structs.asdict(chosen)
    for (variable, about, _), value in zip(describe(), values.values(), strict=True):
        is_set = variable not in links and bool(environ.get(variable))
        text = _text(value) if is_set or not isinstance(value, Secret) else ""
        yield Entry(variable, text, "environment" if is_set else "default", about)


def render_example() -> str:
    """Return the text of .env.example."""
    lines = [
        "# Every setting with its default. Made by `make env` from scoreboard/runtime/settings.py.",
        "# Copy it to .env, uncomment what you change, and keep it out of version control.",
    ]
    for variable, about, default in describe():
        lines += ["", *_wrapped(about)]
        if variable in EXAMPLES:
            lines.append(f"{variable}={EXAMPLES[variable]}")
        else:
            lines.append(f"# {variable}={_text(default)}")
    return "\n".join(lines) + "\n"


async def _check(settings: Settings) -> list[Check]:
    return [
        *await _check_redis(settings),
        *await _check_database(settings),
        *[await _check_board(settings, name) for name in settings.boards],
        await _check_keys(settings),
        *await _check_proof_keys(settings),
    ]


async def _check_redis(settings: Settings) -> list[Check]:
    client = make_client(settings, name="check")
    try:
        async with client:
            found = await check_durability(client, Requirements.of(settings))
    except Exception as error:  # noqa: BLE001 (any error is the result of the check)
        return [Check("redis", explain(error)[0])]
    accepted = " (accepted by SCOREBOARD_UNSAFE_REDIS)" if settings.unsafe_redis else ""
    return [Check("redis", problem + accepted) for problem in found.problems] or [Check("redis")]


async def _check_database(settings: Settings) -> list[Check]:
    try:
        async with open_database(settings) as connection:
            await migrations.require_schema(connection)
            session = await checks.read_durability(connection)
    except Exception as error:  # noqa: BLE001
        return [Check("postgresql", explain(error)[0])]
    found = []
    if session.is_standby:
        found.append(Check("postgresql", "the server is a standby"))
    if session.fsync != "on":
        found.append(Check("postgresql", f"fsync is {session.fsync}, so a crash can lose commits"))
    return found or [Check("postgresql")]


async def _check_board(settings: Settings, name: str) -> Check:
    subject = f"board {name}"
    try:
        async with open_database(settings) as connection, open_store(settings) as store:
            board = await select_board(connection, name)
            for number in range(board.layout.partitions):
                state = await store.state(Partition(name, number))
                if not state.epoch:
                    return Check(subject, f"not loaded: scoreboard reseed --board {name}")
                if state.layout != board.layout:
                    held = state.layout or "missing"
                    return Check(subject, f"the layout is {held} instead of {board.layout}")
                if not state.is_open:
                    return Check(subject, f"fenced by {state.fence}")
    except Exception as error:  # noqa: BLE001
        return Check(subject, explain(error)[0])
    return Check(subject)


async def _check_keys(settings: Settings) -> Check:
    subject = "issuer's keys"
    if not settings.jwks_url and not settings.jwks_file:
        return Check(subject, "neither SCOREBOARD_JWKS_URL nor SCOREBOARD_JWKS_FILE is set")
    try:
        parse_keys(await make_source(settings).read())
    except Exception as error:  # noqa: BLE001
        return Check(subject, explain(error)[0])
    return Check(subject)


async def _check_proof_keys(settings: Settings) -> list[Check]:
    """Check the keys of proofs, if there are any or a kind of action needs a proof."""
    subject = "keys of proofs"
    if settings.proof_jwks_url or settings.proof_jwks_file:
        try:
            source = make_proof_source(settings)
            if source is not None:
                read_key_set(await source.read(), PROOF_ALGORITHMS)
        except Exception as error:  # noqa: BLE001
            return [Check(subject, explain(error)[0])]
        return [Check(subject)]
    try:
        async with open_database(settings) as connection:
            kinds = [one.kind for one in await select_actions(connection) if one.needs_proof]
    except Exception:  # noqa: BLE001 (the check of the database reports it)
        return []
    if not kinds:
        return []
    return [Check(subject, f"missing; kind {kinds[0]} needs them: set SCOREBOARD_PROOF_JWKS_URL")]


def _text(value: object) -> str:
    if isinstance(value, Secret):
        return STARS if value else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _wrapped(text: str) -> Iterator[str]:
    line = "#"
    for word in text.split():
        if len(line) + 1 + len(word) > WIDTH:
            yield line
            line = "#"
        line += f" {word}"
    yield line
