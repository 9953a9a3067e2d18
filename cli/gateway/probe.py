"""Health and metrics of the key synchronisation, from a thread, on a port that is not public.

``/health/live``: its loop turns; ``/health/ready``: Kong holds the issuer's keys; ``/metrics``.
Called by cli.commands.kong. A thread, so that a hanging loop is seen from outside.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

import msgspec
from prometheus_client import MetricsHandler

from scoreboard.runtime.telemetry import REGISTRY

Health = Callable[[], tuple[bool, bool, dict[str, Any]]]


@contextmanager
def serve_probe(host: str, port: int, health: Health) -> Iterator[int]:
    """Answer probes inside the block; give the port (0 asks for a free one).

    Raises OSError if the port cannot be used.
    """

    class Handler(MetricsHandler):
        registry = REGISTRY
        timeout = 2.0

        def do_GET(self) -> None:  # noqa: N802 (http.server's name)
            path = self.path.partition("?")[0]
            if path == "/metrics":
                super().do_GET()
                return
            is_live, is_ready, facts = health()
            match path:
                case "/health/live":
                    status, body = 200 if is_live else 503, facts
                case "/health/ready":
                    status, body = 200 if is_ready else 503, facts
                case _:
                    status, body = 404, {"status": "not found"}
            data = msgspec.json.encode(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="probe", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
