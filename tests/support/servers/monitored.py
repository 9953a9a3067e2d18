"""Prometheus, Alertmanager and exporters on a running system, with the configuration of deploy/.

Only addresses and intervals differ, and the receivers of notifications.
"""

import http.client
import json
import os
import signal
import threading
from collections.abc import Mapping
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from cli.embedded import child
from cli.embedded.ports import find_free_port
from tests.kong.admin import fake_admin
from tests.support.clients.forked import Forked
from tests.support.eventually import eventually
from tests.support.monitoring import KONG, PROMETHEUS, RULES, program
from tests.support.servers.system import System

Entity = dict[str, Any]

DOCS = "https://docs.example/"
"""The external label that rules put in front of the paths of the runbook."""

TICK = "1s"
"""In place of the intervals of deploy/prometheus."""


PORTS = {
    "api": "SCOREBOARD_API_METRICS_PORT",
    "streamer": "SCOREBOARD_WS_METRICS_PORT",
    "flusher": "SCOREBOARD_FLUSHER_METRICS_PORT",
}


class Endpoint:
    """A web server that serves what Kong would export, and keeps the notifications it gets."""

    def __init__(self) -> None:
        self.notifications: list[Entity] = []
        """Alerts as Alertmanager has sent them, oldest first."""
        notifications = self.notifications

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def log_message(self, *args: Any) -> None:
                pass

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.answer(KONG.read_bytes())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                notifications.extend(json.loads(body)["alerts"])
                self.answer(b"")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class Monitored:
    """What watches a running system, whose api must have a metrics port."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self._folder = folder
        self._stack = ExitStack()

    def start(self) -> None:
        """Start exporters, key synchronisation, Alertmanager and Prometheus."""
        self._folder.mkdir()
        self.endpoint = Endpoint()
        self._stack.callback(self.endpoint.close)
        self.alertmanager = f"127.0.0.1:{find_free_port()}"
        self.prometheus = f"127.0.0.1:{find_free_port()}"
        targets = {
            **{
                f"scoreboard-{name}": f"127.0.0.1:{self.system.variables[name][variable]}"
                for name, variable in PORTS.items()
            },
            # One api serves everybody here.
            "scoreboard-admin": f"127.0.0.1:{self.system.variables['api'][PORTS['api']]}",
            "scoreboard-kong-sync": self._start_key_synchronisation(),
            "kong": self.endpoint.address,
            "redis": self._start_redis_exporter(),
            "postgres": self._start_postgres_exporter(),
            "prometheus": self.prometheus,
            "alertmanager": self.alertmanager,
        }
        self._start_alertmanager()
        self._start_prometheus(targets)

    def stop(self) -> None:
        """Stop everything that was started here."""
        self._stack.close()

    def query(self, expression: str) -> list[Entity]:
        """Return the result of an expression now."""
        return _ask(self.prometheus, "/api/v1/query", query=expression)["data"]["result"]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        found = self.query('ALERTS{alertstate="firing"}')
        return {one["metric"]["alertname"] for one in found}

    def silenced(self) -> set[str]:
        """Return the names of the alerts that Alertmanager does not send because of others."""
        found = _ask(self.alertmanager, "/api/v2/alerts")
        return {one["labels"]["alertname"] for one in found if one["status"]["inhibitedBy"]}

    def _start_prometheus(self, targets: Mapping[str, str]) -> None:
        folder = self._folder / "rules"
        folder.mkdir()
        for path in RULES:
            document = yaml.safe_load(path.read_text())
            for rule in (rule for group in document["groups"] for rule in group["rules"]):
                if "for" in rule:
                    rule["for"] = TICK
            (folder / path.name).write_text(yaml.safe_dump(document))
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] |= dict.fromkeys(
            ("scrape_interval", "scrape_timeout", "evaluation_interval"), TICK
        )
        config["global"]["external_labels"]["docs"] = DOCS
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        config["alerting"]["alertmanagers"] = [
            {"static_configs": [{"targets": [self.alertmanager]}]}
        ]
        path = self._folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        self._run(
            "prometheus",
            f"--config.file={path}",
            f"--storage.tsdb.path={self._folder / 'prometheus'}",
            f"--web.listen-address={self.prometheus}",
        )
        eventually(lambda: _is_ready(self.prometheus), within_s=15)

    def _start_alertmanager(self) -> None:
        config = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
        for route in (config["route"], *config["route"]["routes"]):
            route |= {"group_wait": TICK, "group_interval": TICK}
        pages = next(one for one in config["receivers"] if one["name"] == "pages")
        pages["webhook_configs"] = [{"url": f"http://{self.endpoint.address}/"}]
        path = self._folder / "alertmanager.yml"
        path.write_text(yaml.safe_dump(config))
        self._run(
            "prometheus-alertmanager",
            f"--config.file={path}",
            f"--storage.path={self._folder / 'alertmanager'}",
            f"--web.listen-address={self.alertmanager}",
            "--cluster.listen-address=",
        )
        eventually(lambda: _is_ready(self.alertmanager), within_s=15)

    def _start_redis_exporter(self) -> str:
        address = f"127.0.0.1:{find_free_port()}"
        self._run(
            "prometheus-redis-exporter",
            REDIS_ADDR=f"redis://127.0.0.1:{self.system.valkey.port}",
            REDIS_PASSWORD=self.system.valkey.password,
            REDIS_EXPORTER_WEB_LISTEN_ADDRESS=address,
        )
        return address

    def _start_postgres_exporter(self) -> str:
        address = f"127.0.0.1:{find_free_port()}"
        postgres = self.system.postgres
        self._run(
            "prometheus-postgres-exporter",
            f"--web.listen-address={address}",
            # Statistics that PostgreSQL 17 has moved to other views.
            "--no-collector.bgwriter",
            DATA_SOURCE_URI=f"127.0.0.1:{postgres.port}/{postgres.database}?sslmode=disable",
            DATA_SOURCE_USER=postgres.user,
            DATA_SOURCE_PASS=postgres.password,
        )
        return address

    def _start_key_synchronisation(self) -> str:
        admin = self._stack.enter_context(fake_admin())
        port = find_free_port()
        environment = self.system.variables["api"] | {"REDIS_URL": "redis://kong@127.0.0.1:1/0"}
        words = ["kong", "sync", "--admin", admin.url, "--probe-port", str(port)]
        words += ["--output", str(self._folder / "kong.yml")]
        process = Forked("cli", words, environment)
        self._stack.callback(process.wait, 10)
        self._stack.callback(process.terminate)
        return f"127.0.0.1:{port}"

    def _run(self, name: str, *arguments: str, **environment: str) -> None:
        found = {"PATH": os.environ["PATH"], **environment}
        self._spawn([program(name), *arguments], found)

    def _spawn(self, words: list[str], environment: Mapping[str, str]) -> None:
        process = child.spawn(
            words,
            on_parent_death=signal.SIGTERM,
            output=self._folder / f"{Path(words[0]).name}.log",
            environment=environment,
        )
        self._stack.callback(child.terminate, process, signal.SIGTERM, within_s=10)


def _is_ready(address: str) -> bool:
    try:
        with closing(http.client.HTTPConnection(address, timeout=2)) as connection:
            connection.request("GET", "/-/ready")
            return connection.getresponse().status == 200
    except OSError:
        return False


def _ask(address: str, path: str, **form: str) -> Any:
    """Return the answer to a request; a form is sent as POST."""
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        if form:
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", path, urlencode(form), headers)
        else:
            connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    assert response.status == 200, body
    return json.loads(body)
