"""`python -m cli.issuer`: the development issuer, a child of `scoreboard up`.

It signs in players by name only, and game servers and the administrator by generated secrets, so
that the system works without an identity provider. It is not for production: it starts in the
environment `development` only and listens on loopback only.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from cli.embedded.server import HOST
from cli.issuer.app import BODY_BYTES_MAX, BODY_TIMEOUT_S, IssuerApp
from cli.issuer.config import (
    PORT,
    check_redirect_uri,
    issuer_url,
    load_admin_passwords,
    load_client_secrets,
)
from cli.issuer.form import FormSigner
from cli.issuer.oauth import AuthorizationServer
from scoreboard.errors import OperatorMistake, ScoreboardError
from scoreboard.http.server import Server, ServerLimits
from scoreboard.runtime import lifecycle
from scoreboard.runtime.core_dumps import disable_core_dumps
from scoreboard.runtime.sockets import bind_listener
from scoreboard.runtime.telemetry import get_logger, setup_logging
from scoreboard.security.tokens import LocalIssuer

GRACE_S: Final = 5.0
DRAIN_S: Final = 2.0
PUBLISH_S: Final = 0.5
LIMITS: Final = ServerLimits(
    body_bytes=BODY_BYTES_MAX,
    head_s=BODY_TIMEOUT_S,
    body_s=BODY_TIMEOUT_S,
    keep_alive_s=30.0,
    send_s=10.0,
    connections=256,
    connections_per_address=128,
)

_log = get_logger(__name__)


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the key and the secrets.",
)
@click.option("--host", default=HOST, show_default=True, help="Host: 127.0.0.1 or ::1.")
@click.option("--port", type=click.IntRange(1, 65535), default=PORT, show_default=True,
              help="Port.")  # fmt: skip
@click.option("--redirect-uri", "redirect_uris", multiple=True, required=True,
              help="Address of a page; can be repeated.")  # fmt: skip
@click.option("--audience", default="scoreboard", show_default=True, help="Audience of the tokens.")
def main(folder: Path, host: str, port: int, redirect_uris: Sequence[str], audience: str) -> None:
    """Run the development issuer, which signs in players without a password."""
    disable_core_dumps()
    try:
        environment = os.environ.get("SCOREBOARD_ENVIRONMENT") or "development"
        if environment != "development":
            raise OperatorMistake(
                f"The development issuer does not run in the environment {environment!r}"
            )
        url = issuer_url(host, port)
        for uri in redirect_uris:
            check_redirect_uri(uri)
        listener = bind_listener(host, port, variables="--host, --port")
        issuer = LocalIssuer.create(folder, issuer=url)
        client_secrets = load_client_secrets(folder)
        admin_passwords = load_admin_passwords(folder)
        grants = AuthorizationServer(
            issuer,
            audience,
            lambda: client_secrets.read().all,
            lambda: admin_passwords.read().all,
        )
    except ScoreboardError as error:
        sys.exit(lifecycle.report_startup_error(error))
    setup_logging(
        "issuer",
        level=os.environ.get("SCOREBOARD_LOG_LEVEL") or "info",
        form=os.environ.get("SCOREBOARD_LOG_FORMAT") or "json",
        environment=environment,
    )
    app = IssuerApp(issuer, grants, FormSigner(), redirect_uris)

    async def serve(stop: lifecycle.StopEvent) -> None:
        _log.warning("development_issuer_started", url=url, never_for="production")
        server = Server(app, LIMITS)
        async with server.listening(listener):
            await _publish_keys(issuer, stop)
            await server.drain(DRAIN_S)

    sys.exit(lifecycle.run(serve, grace_s=GRACE_S))


async def _publish_keys(issuer: LocalIssuer, stop: lifecycle.StopEvent) -> None:
    """Keep the file of the key set current until ``stop``; requests read the keys themselves."""
    while not await stop.sleep(PUBLISH_S):
        try:
            if issuer.publish():
                kids = [key.kid for key in issuer.keys.all]
                _log.info("key_set_published", kids=kids)
        except OSError as error:
            _log.error("key_set_not_published", reason=error.strerror)


if __name__ == "__main__":
    main()
