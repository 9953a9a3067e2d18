"""A web server for the pages of these tests, with a strict Content-Security-Policy."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

POLICY = (
    "default-src 'none'; script-src 'self'; connect-src {}; img-src data:; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
)


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: object, connect_to: str, directory: str) -> None:
        self._connect_to = connect_to
        super().__init__(*arguments, directory=directory)  # pyright: ignore[reportArgumentType]

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY.format(self._connect_to))
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def serve(folder: Path, connect_to: str) -> Iterator[str]:
    """Serve a folder; its pages may connect to one origin. Return the address."""
    handler = partial(_Handler, connect_to=connect_to, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(30)
