"""Addresses on this machine: how one that is listened on is reached, written and found free."""

import socket
from typing import Final

from scoreboard.errors import EmbeddedFailed

HOST: Final = "127.0.0.1"
"""Where everything listens that is not told otherwise."""
_EVERYWHERE: Final = {"": HOST, "0.0.0.0": HOST, "::": "::1"}  # noqa: S104 (compared, not bound)


def connect_host(host: str) -> str:
    """Return the address of this machine where a service that listens on ``host`` is reached."""
    return _EVERYWHERE.get(host, host)


def netloc(host: str, port: int) -> str:
    """Return host and port as they stand in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_port_free(host: str, port: int, name: str) -> None:
    """Make sure that a port can be listened on; port 0 is not checked.

    Raises EmbeddedFailed, naming the setting.
    """
    if not port:
        return
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise EmbeddedFailed(
            f"Port {port} ({name}) cannot be used on {host}: {error.strerror}"
        ) from error
    except UnicodeError as error:
        raise EmbeddedFailed(f"{host!r} ({name}) is not an address") from error
