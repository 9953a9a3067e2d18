"""Asks an ASGI application for the answer to a request.

Answers are gathered whole, so the application never waits for the peer; the server writes them
under its own limits. Applications of ours have small answers.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from scoreboard.errors import NotFound
from scoreboard.http.request import Request
from scoreboard.http.response import Fields, HttpResponse

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]

_SERVERS: Final = frozenset({b"connection", b"content-length", b"date", b"transfer-encoding"})
"""Headers that the server writes itself."""


def build_scope(request: Request) -> Scope:
    """Return the ASGI scope of a request. HEAD is asked for as GET: the server omits the body."""
    head = request.head
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": f"1.{head.minor}",
        "method": "GET" if head.method == "HEAD" else head.method,
        "scheme": "http",
        "path": head.path,
        "raw_path": head.target.partition(b"?")[0],
        "query_string": head.query,
        "root_path": "",
        "headers": list(head.headers.items()),
        "client": request.peer,
        "server": request.local,
        "state": {},
        "extensions": {},
    }


async def ask(app: AsgiApp, scope: Scope, request: Request) -> HttpResponse:
    """Return the application's answer.

    Raises NotFound for an address with a slash at its end, which frameworks take for the address
    without it, and gateways do not; and whatever the application raises.
    """
    if request.head.path.endswith("/") and request.head.path != "/":
        raise NotFound("There is nothing at this address; leave out the slash at its end")
    status, headers, parts = 0, Fields(), list[bytes]()
    is_read = False

    async def receive() -> dict[str, Any]:
        nonlocal is_read
        if is_read:
            await request.wait_disconnected()
            return {"type": "http.disconnect"}
        is_read = True
        return {"type": "http.request", "body": await request.read_body(), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = [field for field in message["headers"] if field[0].lower() not in _SERVERS]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return HttpResponse(status, headers, b"".join(parts))
