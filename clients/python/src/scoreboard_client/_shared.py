"""What both clients do with addresses and with the exceptions of `websockets`."""

from websockets.exceptions import ConnectionClosed, InvalidStatus

from ._follow import NotOpened
from .errors import problem_of

NO_CLOSE_FRAME = 1006


def live_address(url: str) -> str:
    """Return the address of the streamer behind the same gateway."""
    return f"ws{url.removeprefix('http')}/ws/scoreboard"


def refused(error: InvalidStatus) -> NotOpened:
    """Return the problem of a refused handshake."""
    response = error.response
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    return NotOpened(problem_of(response.status_code, headers, bytes(response.body or b"")))


def close_code(closed: ConnectionClosed) -> int:
    """Return the code that the server sent."""
    return NO_CLOSE_FRAME if closed.rcvd is None else closed.rcvd.code
