"""A stand-in for Kong in the proof of docker-compose.yml. It is not Kong and proves none of it.

What it has in common with Kong is what the compose file and `scoreboard kong sync` see:

- it reads KONG_DECLARATIVE_CONFIG and ends if Kong would refuse it, as far as admin.py knows;
- nginx proxies the routes of that file to their services, HTTP and WebSocket;
- the Admin API answers ``POST /config?check_hash=1`` with 201, 304 or 400;
- ``/status/ready`` answers 200 once a configuration is loaded, else 503;
- updates count per user in the server of the counters, with the login of the configuration.

No plugin of this project runs in it, and no token is verified: the services do that again.
"""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from admin import fault_of, load_yaml

PREFIX = Path(os.environ.get("KONG_PREFIX", "/var/lib/kong"))
LIMITER = ("127.0.0.1", 8002)
REFERENCE = "{vault://env/redis-password}"
COUNT = """
    local value = redis.call('INCR', KEYS[1])
    if value == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
    return value
"""


def log(text: str) -> None:
    """Write a line to the container's log."""
    sys.stderr.write(f"kong stand-in: {text}\n")


def address_of(variable: str) -> tuple[str, int]:
    """Return host and port of KONG_…_LISTEN."""
    host, _, port = os.environ[variable].rpartition(":")
    return host, int(port)


def nginx_conf(document: dict[str, Any]) -> str:
    """Return the configuration of nginx for the routes of a declarative file."""
    targets = {up["name"]: [t["target"] for t in up["targets"]] for up in document["upstreams"]}
    locations = []
    for service in document["services"]:
        (target,) = targets[service["host"]]
        for route in service["routes"]:
            limited = "auth_request /count;" if route["name"] == "scores-update" else ""
            for path in route["paths"]:
                pattern = f"~ '^{path[1:]}'" if path.startswith("~") else path
                locations.append(
                    f"""location {pattern} {{
                      {limited} set $target {target}; proxy_pass http://$target;
                      proxy_read_timeout {service["read_timeout"]}ms;
                      proxy_connect_timeout {service["connect_timeout"]}ms;
                      proxy_buffering {"on" if route.get("response_buffering", True) else "off"};
                    }}"""
                )
    host, port = address_of("KONG_PROXY_LISTEN")
    folders = " ".join(
        f"{kind}_temp_path {PREFIX}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
      daemon off; worker_processes 2; pid {PREFIX}/nginx.pid; error_log stderr notice;
      worker_shutdown_timeout 60s;
      events {{ worker_connections 1024; }}
      http {{
        access_log off; resolver 127.0.0.11 valid=5s ipv6=off; {folders}
        map $http_upgrade $upstream_connection {{ default upgrade; '' ''; }}
        server {{
          listen {host}:{port} reuseport;
          proxy_http_version 1.1;
          proxy_set_header Host $http_host;
          proxy_set_header Upgrade $http_upgrade;
          proxy_set_header Connection $upstream_connection;
          proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
          error_page 401 =429 /limited;
          error_page 500 502 504 =503 /away;
          location = /count {{
            internal; proxy_pass http://{LIMITER[0]}:{LIMITER[1]}; proxy_pass_request_body off;
            proxy_set_header Content-Length '';
          }}
          location = /limited {{ internal; return 429 '{{"status":429}}'; }}
          location = /away {{
            internal; add_header Retry-After 1 always; return 503 '{{"status":503}}';
          }}
          {" ".join(locations)}
        }}
      }}
    """


class Kong:
    """The loaded configuration, and nginx."""

    def __init__(self) -> None:
        self.text = ""
        self._document: dict[str, Any] = {}
        self._nginx: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def load(self, text: str) -> tuple[int, str]:
        """Load a configuration as ``POST /config?check_hash=1`` does; return status and reason."""
        with self._lock:
            if text == self.text:
                return 304, ""
            fault = fault_of(text)
            if fault:
                return 400, fault
            self._document = load_yaml(text)
            (PREFIX / "nginx.conf").write_text(nginx_conf(self._document))
            if self._nginx is None:
                command = ["nginx", "-p", str(PREFIX), "-e", "stderr", "-c", "nginx.conf"]
                self._nginx = subprocess.Popen(command)
            else:
                self._nginx.send_signal(signal.SIGHUP)
            self.text = text
            log(f"configuration loaded, {len(text)} bytes")
            return 201, ""

    def wait(self) -> int:
        """Wait until nginx has ended."""
        assert self._nginx is not None
        return self._nginx.wait()

    def quit(self) -> None:
        """Stop nginx after the requests in flight."""
        assert self._nginx is not None
        self._nginx.send_signal(signal.SIGQUIT)

    def limit_of(self, token: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the updates per minute for a token, and the server of the counters."""
        scopes = str(token.get("scope", "")).split()
        entries = [
            plugin["config"] | {"for_games": "consumer" in plugin}
            for plugin in [
                *self._document["plugins"],
                *(
                    plugin
                    for service in self._document["services"]
                    for route in service["routes"]
                    if route["name"] == "scores-update"
                    for plugin in route["plugins"]
                ),
            ]
            if plugin["name"] == "rate-limiting"
        ]
        found = next(one for one in entries if one["for_games"] == ("update:score:any" in scopes))
        return found["minute"], found["redis"]

    def may_update(self, authorization: str) -> int:
        """Count an update; return 200, 401 above the limit, or 500 without the counters."""
        try:
            body = authorization.split(".")[1]
            token = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            subject = str(token["sub"])
        except (IndexError, KeyError, ValueError):
            return 200  # the api refuses it
        limit, server = self.limit_of(token)
        try:
            value = count(server, f"ratelimit:{subject}:{int(time.time()) // 60}")
        except (OSError, ValueError) as error:
            log(f"failed to connect to Redis: {error}")
            return 500
        return 200 if value <= limit else 401


def count(server: dict[str, Any], key: str) -> int:
    """Increment a counter of the current minute; return its value."""
    password = server["password"]
    if password == REFERENCE:
        password = os.environ["REDIS_PASSWORD"]
    with socket.create_connection((server["host"], server["port"]), timeout=1) as connection:
        stream = connection.makefile("rwb")
        for words in (["AUTH", server["username"], password], ["EVAL", COUNT, "1", key, "60"]):
            stream.write(b"*%d\r\n" % len(words))
            for word in words:
                stream.write(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()))
        stream.flush()
        for expected in (b"+OK", b":"):
            line = stream.readline()
            if not line.startswith(expected):
                raise ValueError(line.decode(errors="replace").strip())
        return int(line[1:])


def serve(
    address: tuple[str, int], answer: Callable[[BaseHTTPRequestHandler], tuple[int, str]]
) -> None:
    """Answer HTTP requests in a thread."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30
        server_version = "kong-stand-in"

        def log_message(self, *args: object) -> None:
            pass

        def handle_request(self) -> None:
            status, text = answer(self)
            body = b"" if status == 304 else text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = handle_request  # noqa: N815

    server = ThreadingHTTPServer(address, Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> int:
    """Run until nginx ends."""
    kong = Kong()
    text = Path(os.environ["KONG_DECLARATIVE_CONFIG"]).read_text()

    def admin(request: BaseHTTPRequestHandler) -> tuple[int, str]:
        if not re.fullmatch(r"/config\?check_hash=1", request.path) or request.command != "POST":
            return 404, '{"message":"Not found"}'
        body = request.rfile.read(int(request.headers["Content-Length"]))
        status, reason = kong.load(json.loads(body)["config"])
        return status, json.dumps({"message": reason})

    def status(request: BaseHTTPRequestHandler) -> tuple[int, str]:
        if request.path == "/metrics":
            return 200, ""
        if request.path != "/status/ready":
            return 404, "{}"
        return (
            (200, '{"message":"ready"}') if kong.text else (503, '{"message":"no configuration"}')
        )

    def limiter(request: BaseHTTPRequestHandler) -> tuple[int, str]:
        return kong.may_update(request.headers.get("Authorization", "")), ""

    serve(LIMITER, limiter)
    result, reason = kong.load(text)
    if result != 201:
        log(f"error parsing declarative config file: {reason}")
        return 1
    serve(address_of("KONG_ADMIN_LISTEN"), admin)
    serve(address_of("KONG_STATUS_LISTEN"), status)
    for number in (signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, lambda *_: kong.quit())
    return kong.wait()


if __name__ == "__main__":
    if sys.argv[1:] != ["kong", "docker-start"]:
        os.execvp(sys.argv[1], sys.argv[1:])
    sys.exit(main())
