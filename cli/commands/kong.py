"""`scoreboard kong`: render the gateway's configuration once, or keep it up to date."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from cli.gateway.config import (
    GatewayOptions,
    check_options,
    load_template,
    render,
    write_atomically,
)
from cli.gateway.keys import KeyRow, merge_rows, rows_of
from cli.gateway.kong_yaml import read_text
from cli.gateway.sync import ADMIN_URL, INTERVAL_S, KongSync, SyncOptions, read_current_rows
from cli.output import print_message, write_stdout
from cli.parameters import FILE, PORT, Seconds
from scoreboard.errors import KeysUnavailable, OperatorMistake, SettingInvalid
from scoreboard.http.operator_port import OperatorPort
from scoreboard.runtime import settings as settings_module
from scoreboard.runtime.audit import audit_start
from scoreboard.runtime.lifecycle import StopEvent, backoff_s, run
from scoreboard.runtime.resources import kong_path
from scoreboard.runtime.service_manager import READY, notify
from scoreboard.runtime.sockets import bind_listener
from scoreboard.runtime.startup import start_logs
from scoreboard.security.credentials import refresh_secrets, secret_store
from scoreboard.security.key_set import Source, make_source, read_key_set

PROBE_PORT: Final = 9103

Command = Callable[..., object]


def _check_urls(
    _context: click.Context, _parameter: click.Parameter, urls: tuple[str, ...]
) -> tuple[str, ...]:
    for url in urls:
        try:
            parts = urlsplit(url)
            is_valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            is_valid = False
        if not is_valid:
            raise click.BadParameter(f"{url!r} is not an address such as {ADMIN_URL}")
    return urls


def _without_empty(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Ignore an empty value, so that a file of Compose can pass a variable that may be unset."""
    return tuple(value for value in values if value)


@click.group()
def kong() -> None:
    """Write the configuration of the Kong gateway.

    Issuer, audience, key set, origins and limits are taken from the services' settings
    (SCOREBOARD_*). REDIS_URL is the address of Kong's counters, with a user name and no password;
    Kong reads the password from REDIS_PASSWORD at its start. With SCOREBOARD_REDIS_SECRET, sync
    reads the password and sends it to the running Kong; no configuration file contains it.
    """


def _gateway_options(command: Command) -> Command:
    """Add the options that render and sync share."""
    for option in reversed(
        (
            click.option(
                "--template",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="Configuration without keys.  [default: the template of this version]",
            ),
            click.option(
                "--api", "api_targets", multiple=True, default=["api:8000"], show_default=True,
                metavar="HOST:PORT", help="Address of the api for Kong; can be repeated.",
            ),
            click.option(
                "--streamer", "streamer_targets", multiple=True, default=["streamer:8001"],
                show_default=True, metavar="HOST:PORT",
                help="Address of the streamer for Kong; can be repeated.",
            ),
            click.option(
                "--admin-target", "admin_targets", multiple=True, metavar="HOST:PORT",
                callback=_without_empty, help="Address of the api that serves administrators; can "
                "be repeated.  [default: none, and no route to it]",
            ),
            click.option(
                "--public/--private", "is_public", default=False, show_default=True,
                help="Whether the leaderboard can be read without a token.",
            ),
            click.option(
                "--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN",
                help="Other origin whose pages may call the REST API, besides SCOREBOARD_ORIGINS; "
                "can be repeated.",
            ),
            click.option(
                "--token-life", "token_life_s", type=click.IntRange(1, 31_536_000),
                default=86_400, show_default=True, metavar="SECONDS",
                help="Longest lifetime of a token; a retired key is kept for this time.",
            ),
            click.option(
                "--revoke", "revoked", multiple=True, metavar="KID",
                help="Key to remove at once, even if the issuer publishes it; can be repeated.",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@kong.command("render")
@_gateway_options
@click.option(
    "--output", type=FILE,
    help="File to replace atomically.  [default: stdout]",
)  # fmt: skip
@click.option(
    "--keep-on-failure", is_flag=True,
    help="If the key set cannot be read and the output file exists, keep it and exit with 0.",
)  # fmt: skip
@click.option(
    "--wait", "wait_s", type=Seconds(0, 3600), default=0, show_default=True, metavar="SECONDS",
    help="Time for retries while the key set cannot be read.",
)  # fmt: skip
def render_command(
    template: Path | None,
    output: Path | None,
    revoked: tuple[str, ...],
    *,
    keep_on_failure: bool,
    wait_s: float,
    **given: Any,  # noqa: ANN401 (GatewayOptions' fields)
) -> None:
    """Write the configuration for Kong once.

    \b
    Examples:
      scoreboard kong render --output kong.rendered.yml
      scoreboard kong render --public --api api-1:8000 --api api-2:8000 > kong.rendered.yml
    """  # noqa: D301
    settings = settings_module.load(os.environ)
    options = GatewayOptions.of(settings, **given)
    check_options(options)
    source, base = make_source(settings), _read_template(template)
    before = read_current_rows(output) if output is not None else ()
    try:
        rows = merge_rows(
            before,
            asyncio.run(_read_keys(source, wait_s)),
            now_s=int(time.time()),
            # A restart must not invalidate tokens, so retired keys are kept as in sync.
            grace_s=options.token_life_s,
            revoked=frozenset(revoked),
        )
        text = render(base, rows, options)
    except (KeysUnavailable, ValueError) as error:
        if keep_on_failure and before:
            print_message(f"The configuration was not changed: {error}")
            return
        raise KeysUnavailable(str(error)) from error
    if output is None:
        write_stdout(text)
        return
    changed = write_atomically(output, text)
    print_message(f"{output}: {len(rows)} keys, {'written' if changed else 'unchanged'}")


@kong.command("sync")
@_gateway_options
@click.option(
    "--output", type=FILE, required=True,
    help="File that Kong starts with.",
)  # fmt: skip
@click.option(
    "--admin", "admin_urls", multiple=True, default=[ADMIN_URL], show_default=True, metavar="URL",
    callback=_check_urls, help="Admin API of a Kong node; can be repeated.",
)  # fmt: skip
@click.option(
    "--interval", "interval_s", type=Seconds(1, 86_400), default=INTERVAL_S,
    show_default=True, metavar="SECONDS",
    help="Interval between two reads of the key set, ±10 %.",
)  # fmt: skip
@click.option(
    "--password-file", type=FILE,
    help="File to keep current with the password of SCOREBOARD_REDIS_SECRET, for Kong's start. "
    "It keeps its group and mode.",
)  # fmt: skip
@click.option(
    "--probe-host", default="127.0.0.1", show_default=True, help="Host of health and metrics."
)
@click.option(
    "--probe-port", type=PORT, default=PROBE_PORT, show_default=True,
    help="Port of health and metrics; 0 for any.",
)  # fmt: skip
def sync_command(
    template: Path | None,
    output: Path,
    revoked: tuple[str, ...],
    admin_urls: tuple[str, ...],
    *,
    interval_s: float,
    password_file: Path | None,
    probe_host: str,
    probe_port: int,
    **given: Any,  # noqa: ANN401 (GatewayOptions' fields)
) -> int:
    """Keep the keys of a running Kong up to date with the issuer's.

    A new key is loaded within one interval after the issuer publishes it. A retired key is kept for
    the lifetime of a token. After a failure, Kong keeps its previous configuration.

    With SCOREBOARD_REDIS_SECRET, a new password of the counters is loaded as soon as it is read:
    within about 6 seconds from a file, about 2 minutes from AWS.
    """
    settings = settings_module.load(os.environ)
    start_logs("kong-sync", settings)
    gateway = GatewayOptions.of(settings, **given)
    check_options(gateway)
    source, base = make_source(settings), _read_template(template)
    read_current_rows(output)
    secret = secret_store(settings, "redis") if settings.redis_secret else None
    if password_file is not None and secret is None:
        raise OperatorMistake("--password-file needs SCOREBOARD_REDIS_SECRET")
    options = SyncOptions(
        output=output,
        template=base,
        gateway=gateway,
        admin_urls=admin_urls,
        interval_s=interval_s,
        revoked=frozenset(revoked),
        password_file=password_file,
    )
    sync = KongSync(options, source, secret=secret)
    try:
        listener = bind_listener(probe_host, probe_port, variables="--probe-host, --probe-port")
    except SettingInvalid as error:
        raise OperatorMistake(error.detail) from error  # an option, not a setting
    audit_start(settings)
    return run(partial(_serve, sync, listener), grace_s=settings.drain_s)


async def _serve(sync: KongSync, listener: socket.socket, stop: StopEvent) -> None:
    """Synchronise and answer probes until ``stop``.

    A turn in progress is cancelled at once: the file is replaced atomically, and Kong loads a
    configuration completely or not at all.
    """
    async with OperatorPort(listener, sync.state), asyncio.TaskGroup() as tasks:
        loops = [tasks.create_task(sync.serve(stop)), tasks.create_task(refresh_secrets(stop))]
        notify(READY)
        await stop.wait()
        for loop in loops:
            loop.cancel()


def _read_template(path: Path | None) -> str:
    """Read and check a template."""
    text = read_text(path or kong_path() / "kong.yml")
    load_template(text)
    return text


async def _read_keys(source: Source, wait_s: float) -> tuple[KeyRow, ...]:
    deadline_s = time.monotonic() + wait_s
    attempt = 0
    while True:
        try:
            found = read_key_set(await source.read())
        except (OSError, ValueError) as error:
            if time.monotonic() >= deadline_s:
                raise KeysUnavailable(f"The key set is unusable: {error}") from error
        else:
            for fault in found.faults:
                print_message(f"Ignored in the key set: {fault}")
            return rows_of(found.keys)
        await asyncio.sleep(backoff_s(attempt, most_s=2.0))
        attempt += 1
