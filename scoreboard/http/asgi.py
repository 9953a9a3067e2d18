"""Calls an ASGI application with a request.

Responses are buffered whole, so the application never waits for the client; the server writes them
within its limits. The responses of our applications are small.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from scoreboard.errors import NotFound
from scoreboard.http.problems import Headers
from scoreboard.http.request import Request
from scoreboard.http.response import HttpResponse

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]

_SERVER_HEADERS: Final = frozenset(
    {b"connection", b"content-length", b"date", b"transfer-encoding"}
)
"""Headers written by the server."""


def build_scope(request: Request) -> Scope:
    """Return the ASGI scope of a request. HEAD is passed as GET: the server omits the body."""
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
        "state": request.state,
        "extensions": {},
    }


async def call_app(app: AsgiApp, scope: Scope, request: Request) -> HttpResponse:
    """Return the application's response.

    Raises NotFound for a path with a trailing slash, which frameworks accept and gateways do not,
    and the exceptions of the application.
    """
    if request.head.path.endswith("/") and request.head.path != "/":
        raise NotFound("No such path; remove the trailing slash")
    status, headers, parts = 0, Headers(), list[bytes]()
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
            headers = [
                field for field in message["headers"] if field[0].lower() not in _SERVER_HEADERS
            ]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return HttpResponse(status, headers, b"".join(parts))
