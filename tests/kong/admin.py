"""A fake of Kong's Admin API and of an issuer, as far as kong-sync uses them.

It is not Kong: it records what is posted to ``/config`` and answers with the statuses in
``answers``; without any, 400 for a configuration that Kong 3.9 refuses (as far as ``fault_of``
knows), 304 for the current one and 201 for another. Like Kong, it returns the configuration with
201, passwords included. ``/jwks.json`` is the issuer's key set.
"""

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml
from cryptography.hazmat.primitives.serialization import load_pem_public_key

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_REDIS_FIELDS = {
    "host": str,
    "port": int,
    "timeout": int,
    "username": str,
    "password": str,
    "database": int,
    "ssl": bool,
    "ssl_verify": bool,
    "server_name": str,
}


@dataclass
class FakeAdmin:
    """The server's answers, and what it has received."""

    url: str = ""
    jwks: bytes = b""
    jwks_status: int = 200
    jwks_requests: int = 0
    answers: deque[int] = field(default_factory=deque)
    posted: list[tuple[str, str]] = field(default_factory=list)
    held: str = ""

    @property
    def jwks_url(self) -> str:
        """Return the URL of the key set."""
        return f"{self.url}/jwks.json"


def load_yaml(text: str) -> Any:
    """Parse YAML with the fast loader."""
    return yaml.load(text, Loader=_LOADER)


def fault_of(text: str) -> str | None:
    """Return why Kong would refuse a configuration, quoting it; None if it would not."""
    try:
        document = load_yaml(text)
    except yaml.YAMLError as error:
        return f"failed parsing declarative configuration: {error}"
    if not isinstance(document, dict) or document.get("_format_version") != "3.0":
        return f"declarative config is invalid: {document!r}"
    plugins = list(document["plugins"])
    for service in document["services"]:
        for route in service["routes"]:
            plugins += route["plugins"]
    for plugin in plugins:
        for name, value in plugin["config"].get("redis", {}).items():
            kind = _REDIS_FIELDS.get(name)
            # Kong's integers are no booleans; a string may be empty.
            if kind is None or type(value) is not kind:
                return f"declarative config is invalid: redis: {name} = {value!r}"
    for consumer in document["consumers"]:
        for row in consumer.get("jwt_secrets", []):
            try:
                load_pem_public_key(row["rsa_public_key"].encode())
            except (KeyError, ValueError):
                return f"declarative config is invalid: rsa_public_key: {row!r}"
    return None


def passwords_in(text: str) -> list[str]:
    """Return the lines with passwords, as an error that quotes the configuration contains them."""
    return [line.strip() for line in text.splitlines() if "password:" in line]


@contextmanager
def fake_admin() -> Iterator[FakeAdmin]:
    """Run the server during the block."""
    state = FakeAdmin()

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def log_message(self, *args: Any) -> None:
            pass

        def reply(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 302:
                self.send_header("Location", f"{state.url}/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            is_jwks = self.path == "/jwks.json"
            state.jwks_requests += is_jwks
            self.reply(state.jwks_status if is_jwks else 200, state.jwks)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            text = json.loads(body)["config"]
            state.posted.append((self.path, text))
            fault = fault_of(text)
            if state.answers:
                status = state.answers.popleft()
            elif fault:
                status = 400
            else:
                status = 304 if text == state.held else 201
            answer: object = {"quoted": passwords_in(text), "message": fault or "what is wrong"}
            if status == 201:
                state.held = text
                answer = load_yaml(text)
            self.reply(status, b"" if status == 304 else json.dumps(answer).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)
