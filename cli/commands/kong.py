"""``scoreboard kong``: the gateway's configuration, made once (render) or kept current (sync)."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from cli.gateway.config import GatewayOptions, check, load_template, render, write_atomically
from cli.gateway.keys import KeyRow, merge_rows, rows_of
from cli.gateway.kong_yaml import read_text
from cli.gateway.probe import serve_probe
from cli.gateway.sync import ADMIN_URL, INTERVAL_S, KongSync, SyncOptions, read_current_rows
from cli.output import print_message, write_stdout
from cli.parameters import Seconds
from scoreboard.errors import KeysUnavailable, OperatorMistake
from scoreboard.runtime import settings as settings_module
from scoreboard.runtime.lifecycle import StopEvent, backoff_s, run
from scoreboard.runtime.resources import kong_path
from scoreboard.runtime.telemetry import setup_logging
from scoreboard.security.key_set import Source, make_source, read_key_set

PROBE_PORT: Final = 9103

Command = Callable[..., object]


def _checked_urls(
    _context: click.Context, _parameter: click.Parameter, urls: tuple[str, ...]
) -> tuple[str, ...]:
    for url in urls:
        try:
            parts = urlsplit(url)
            is_good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            is_good = False
        if not is_good:
            raise click.BadParameter(f"{url!r} is not an address such as {ADMIN_URL}")
    return urls


@click.group()
def kong() -> None:
    """Configure the gateway.

    Issuer, audience, key set, origins and limits are the services' own settings (SCOREBOARD_*);
    REDIS_URL is where Kong keeps its counters, with the name of its user and no password: Kong
    reads REDIS_PASSWORD by itself.
    """


def _gateway_options(command: Command) -> Command:
    """Add the options that render and sync have in common."""
    for option in reversed(
        (
            click.option(
                "--template",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="Configuration without keys; default: the one of this version.",
            ),
            click.option(
                "--api", "api_targets", multiple=True, default=["api:8000"], show_default=True,
                metavar="HOST:PORT", help="Where Kong finds the api; may be given more than once.",
            ),
            click.option(
                "--streamer", "streamer_targets", multiple=True, default=["streamer:8001"],
                show_default=True, metavar="HOST:PORT", help="Where Kong finds the streamer.",
            ),
            click.option(
                "--public/--private", "is_public", default=False, show_default=True,
                help="Whether the leaderboard needs no token.",
            ),
            click.option(
                "--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN",
                help="Another origin whose pages may call the REST interface.",
            ),
            click.option(
                "--token-life", "token_life_s", type=click.IntRange(1, 31_536_000),
                default=86_400, show_default=True, metavar="SECONDS",
                help="Longest life of a token; so long a vanished key stays, too.",
            ),
            click.option(
                "--revoke", "revoked", multiple=True, metavar="KID",
                help="A key that must not be trusted from now on, whoever names it.",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@kong.command("render")
@_gateway_options
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path),
    help="File to replace, in one step; default: standard output.",
)  # fmt: skip
@click.option(
    "--keep-on-failure", is_flag=True,
    help="Where the key set cannot be read and OUTPUT exists: keep it, and succeed.",
)  # fmt: skip
@click.option(
    "--wait", "wait_s", type=Seconds(0, 3600), default=0, show_default=True, metavar="SECONDS",
    help="How long to try again while the key set cannot be read.",
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
    """Write the configuration for Kong, once.

    \b
    scoreboard kong render --output kong.rendered.yml
    scoreboard kong render --public --api api-1:8000 --api api-2:8000 > kong.rendered.yml
    """  # noqa: D301 (click's own mark)
    settings = settings_module.load(os.environ)
    options = GatewayOptions.of(settings, **given)
    check(options)
    source, base = make_source(settings), _template(template)
    before = read_current_rows(output) if output is not None else ()
    try:
        rows = merge_rows(
            before,
            asyncio.run(_read_keys(source, wait_s)),
            now_s=int(time.time()),
            # A restart must not cut off living tokens, so vanished keys stay as they do in sync.
            grace_s=options.token_life_s,
            revoked=frozenset(revoked),
        )
        text = render(base, rows, options)
    except (KeysUnavailable, ValueError) as error:
        if keep_on_failure and before:
            print_message(f"The configuration stays as it is: {error}")
            return
        raise KeysUnavailable(str(error)) from error
    if output is None:
        write_stdout(text)
        return
    try:
        changed = write_atomically(output, text)
    except OSError as error:
        raise OperatorMistake(f"{output} cannot be written: {error.strerror}") from error
    print_message(f"{output}: {len(rows)} keys, {'written' if changed else 'unchanged'}")


@kong.command("sync")
@_gateway_options
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), required=True,
    help="The file that Kong starts with.",
)  # fmt: skip
@click.option(
    "--admin", "admin_urls", multiple=True, default=[ADMIN_URL], show_default=True, metavar="URL",
    callback=_checked_urls, help="Admin API of a Kong; may be given more than once.",
)  # fmt: skip
@click.option(
    "--interval", "interval_s", type=Seconds(1, 86_400), default=INTERVAL_S,
    show_default=True, metavar="SECONDS",
    help="Time between two looks at the key set, ±10 %.",
)  # fmt: skip
@click.option("--probe-host", default="127.0.0.1", show_default=True, help="Of health and metrics.")
@click.option(
    "--probe-port", type=click.IntRange(0, 65_535), default=PROBE_PORT, show_default=True,
    help="Of health and metrics; 0 for a free one.",
)  # fmt: skip
def sync_command(
    template: Path | None,
    output: Path,
    revoked: tuple[str, ...],
    admin_urls: tuple[str, ...],
    *,
    interval_s: float,
    probe_host: str,
    probe_port: int,
    **given: Any,  # noqa: ANN401 (GatewayOptions' fields)
) -> int:
    """Keep the gateway's keys those of the issuer, beside a running Kong.

    A new key is there an interval after the issuer publishes it; a vanished one stays for one
    token's life. Whatever fails, Kong goes on with what it has.
    """
    settings = settings_module.load(os.environ)
    setup_logging(
        "kong-sync",
        level=settings.log_level,
        form=settings.log_format,
        environment=settings.environment,
    )
    gateway = GatewayOptions.of(settings, **given)
    check(gateway)
    source, base = make_source(settings), _template(template)
    read_current_rows(output)
    options = SyncOptions(
        output=output,
        template=base,
        gateway=gateway,
        admin_urls=admin_urls,
        interval_s=interval_s,
        revoked=frozenset(revoked),
    )
    sync = KongSync(options, source)
    with ExitStack() as stack:
        try:
            stack.enter_context(serve_probe(probe_host, probe_port, sync.health))
        except OSError as error:
            where = f"{probe_host}:{probe_port}"
            raise OperatorMistake(f"{where} cannot be listened on: {error.strerror}") from error
        return run(partial(_serve, sync), grace_s=settings.drain_s)


async def _serve(sync: KongSync, stop: StopEvent) -> None:
    """End a turn that is under way at once: the file is replaced whole, and Kong loads whole."""
    async with asyncio.TaskGroup() as tasks:
        loop = tasks.create_task(sync.serve(stop))
        await stop.wait()
        loop.cancel()


def _template(path: Path | None) -> str:
    """Read a template and make sure that it is one, before anything else is done."""
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
                raise KeysUnavailable(f"The key set cannot be used: {error}") from error
        else:
            for fault in found.faults:
                print_message(f"Ignored in the key set: {fault}")
            return rows_of(found.keys)
        await asyncio.sleep(backoff_s(attempt, most_s=2.0))
        attempt += 1
