"""Runs the two handlers on a real nginx, with the fake of Kong in nginx/shim.lua.

It is not Kong: routes, plugins and timeouts come from the rendered configuration, but router,
PDK, jwt and limits are small fakes. What is real: request parsing, headers with underscores
and hop-by-hop ones, the proxy, the upgrade of WebSockets, error pages.
"""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.embedded.ports import find_free_port
from tests.deploy.compose import kong_image
from tests.kong.runtime import LOG_PLUGINS, PLUGINS, checked_config, our_plugins
from tests.support.eventually import eventually

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
MODULES = Path("/usr/lib/nginx/modules")
NEEDED = [MODULES / "ndk_http_module.so", MODULES / "ngx_http_lua_module.so"]
CJSON = next(Path("/usr/lib").glob("*/lua/5.1/cjson.so"), None)
HERE = Path(__file__).parent
PROVIDED = {*our_plugins(), *LOG_PLUGINS, "jwt", "request-size-limiting", "rate-limiting", "cors"}

Entity = dict[str, Any]


def require_nginx() -> None:
    """Skip the test if nginx with Lua is missing; fail in CI, which installs it."""
    if NGINX is not None and CJSON is not None and all(path.exists() for path in NEEDED):
        return
    missing = "apt install nginx libnginx-mod-http-lua lua-cjson"
    if os.environ.get("CI") == "true":
        pytest.fail(f"nginx with Lua is missing: {missing}")
    pytest.skip(f"NOT RUN: the gateway's plugins on a real nginx ({missing})")


@dataclass
class NginxGateway:
    """A running nginx; ``log`` is the output of the log plugin."""

    port: int
    log: Path
    error_log: Path

    @property
    def series(self) -> Path:
        """Return the file with the series that prometheus would count."""
        return self.log.with_name(f"{self.log.name}.series")

    @property
    def url(self) -> str:
        """Return the URL of the gateway."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def nginx_gateway(
    folder: Path,
    document: Entity,
    targets: Mapping[str, str],
    schemas: Mapping[str, Entity],
    *,
    read_timeout_ms: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[NginxGateway]:
    """Run nginx with a rendered configuration; ``targets`` are the services' addresses.

    Directives come from the image's settings (KONG_NGINX_…) and those of ``settings``.
    """
    port = find_free_port()
    gateway = NginxGateway(port, folder / "requests.log", folder / "error.log")
    (folder / "gateway.json").write_text(json.dumps(shim_config(document, schemas)))
    injected = directives({**kong_image(), **(settings or {})})
    text = nginx_conf(
        folder, document, targets, gateway, read_timeout_ms=read_timeout_ms, injected=injected
    )
    (folder / "nginx.conf").write_text(text)
    command = [str(NGINX), "-p", str(folder), "-e", str(gateway.error_log), "-c", "nginx.conf"]
    process = subprocess.Popen(command)
    try:
        eventually(lambda: listens(port, process))
        yield gateway
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process accepts connections."""
    if process.poll() is not None:
        raise RuntimeError(f"nginx ended with {process.returncode}")
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def shim_config(document: Entity, schemas: Mapping[str, Entity]) -> Entity:
    """Return the configuration of shim.lua for a rendered document, most specific entries first."""
    config: Entity = {"keys": {}, "consumers": {}, "routes": {}, "methods": {}, "entities": {}}
    for consumer in document["consumers"]:
        name = consumer["username"]
        config["consumers"][name] = {"id": f"id-of-{name}", "username": name}
        for row in consumer.get("jwt_secrets", []):
            key = {"algorithm": row["algorithm"], "pem": row["rsa_public_key"]}
            config["keys"][row["key"]] = key
    for service in document["services"]:
        for route in service["routes"]:
            config["entities"][route["name"]] = {
                kind: {name: value for name, value in entity.items() if not isinstance(value, list)}
                for kind, entity in (("service", service), ("route", route))
            }
    routes = [route for service in document["services"] for route in service["routes"]]
    for route in [*routes, {"name": "", "plugins": [], "methods": []}]:
        found: dict[str, list[Entity]] = {}
        everywhere = [
            p for p in document["plugins"] if p.get("route", route["name"]) == route["name"]
        ]
        specific = [p for p in everywhere if "consumer" in p]
        general = [p for p in everywhere if "consumer" not in p]
        for plugin in [*specific, *route["plugins"], *general]:
            name = plugin["name"]
            if name in PROVIDED:
                conf = plugin["config"]
                if name in schemas:
                    conf = checked_config(schemas[name], conf)
                entry = {"conf": conf, "consumer": plugin.get("consumer")}
                found.setdefault(name, []).append(entry)
        config["routes"][route["name"]] = [
            {"name": name, "configs": configs} for name, configs in found.items()
        ]
        config["methods"][route["name"]] = dict.fromkeys(route["methods"], True)
    return config


def directives(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the directives that Kong injects for settings, by block."""
    found = dict.fromkeys(("http", "proxy", "location"), "")
    for name, value in settings.items():
        match = re.fullmatch(r"KONG_NGINX_(HTTP|PROXY|LOCATION)_(\w+)", name)
        if match:
            found[match[1].lower()] += f"{match[2].lower()} {value}; "
    return found


def nginx_conf(
    folder: Path,
    document: Entity,
    targets: Mapping[str, str],
    gateway: NginxGateway,
    *,
    read_timeout_ms: int | None,
    injected: Mapping[str, str],
) -> str:
    """Return the nginx.conf, with a location per path of each route."""
    locations = []
    for service in document["services"]:
        for route in service["routes"]:
            locations += [
                _location(
                    path, route["name"], targets[service["name"]], service, read_timeout_ms
                ).replace("INJECTED", injected["location"])
                for path in route["paths"]
            ]
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    assert CJSON is not None
    return f"""
{user} daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid;
load_module {NEEDED[0]}; load_module {NEEDED[1]};
error_log {gateway.error_log} notice;
events {{ worker_connections 256; }}
http {{
  access_log off; underscores_in_headers on; uninitialized_variable_warn off; {temporary}
  map $request_id $kong_request_id {{ default $request_id; }}
  lua_package_path '{HERE}/?.lua;{HERE}/nginx/?.lua;/usr/share/lua/5.1/?.lua;;';
  lua_package_cpath '{CJSON.parent}/?.so;;';
  lua_shared_dict counters 1m;
  {injected["http"]}
  init_by_lua_block {{
    gateway = require 'shim'
    gateway.load('{folder}/gateway.json', '{PLUGINS}', '{gateway.log}')
  }}
  server {{
    listen 127.0.0.1:{gateway.port};
    {injected["proxy"]}
    set $route ''; set $upstream_upgrade ''; set $upstream_connection '';
    error_page 400 404 405 408 411 412 413 414 417 500 502 503 504 /kong_error_handler;
    error_page 494 =494 /kong_error_handler;
    access_by_lua_block {{ gateway.access() }}
    header_filter_by_lua_block {{ gateway.header_filter() }}
    body_filter_by_lua_block {{ gateway.body_filter() }}
    log_by_lua_block {{ gateway.log() }}
    {"".join(locations)}
    location / {{ return_by_lua_is_never_reached; }}
    location = /kong_error_handler {{
      internal; access_by_lua_block {{ return }} content_by_lua_block {{ gateway.error_page() }}
    }}
  }}
}}
""".replace("return_by_lua_is_never_reached;", "content_by_lua_block { ngx.exit(404) }")


def _location(
    path: str, route: str, target: str, service: Entity, read_timeout_ms: int | None
) -> str:
    pattern = f"~ '^{path[1:]}'" if path.startswith("~") else path
    return f"""
    location {pattern} {{
      set $route '{route}'; INJECTED
      proxy_http_version 1.1; proxy_buffering off; proxy_next_upstream off;
      proxy_connect_timeout {service["connect_timeout"]}ms;
      proxy_send_timeout {service["write_timeout"]}ms;
      proxy_read_timeout {read_timeout_ms or service["read_timeout"]}ms;
      proxy_set_header Host $http_host;
      proxy_set_header X-Kong-Request-Id $kong_request_id;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header Upgrade $upstream_upgrade;
      proxy_set_header Connection $upstream_connection;
      add_header X-Kong-Request-Id $kong_request_id always;
      proxy_pass http://{target};
    }}
"""


def raw_request(
    port: int, lines: Sequence[str], body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """Send a request unchanged, valid or not; return status, headers and body."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        received = b""
        while b"\r\n\r\n" not in received:
            chunk = connection.recv(65_536)
            if not chunk:
                break
            received += chunk
        head, _, rest = received.partition(b"\r\n\r\n")
        first, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
        length = int(headers.get("content-length", -1))
        is_chunked = headers.get("transfer-encoding") == "chunked"
        while (length >= 0 and len(rest) < length) or (
            is_chunked and not rest.endswith(b"0\r\n\r\n")
        ):
            rest += connection.recv(65_536)
        if is_chunked:
            rest = _unchunked(rest)
        return int(first.split(" ")[1]), headers, rest


def _unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        body += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return body
