"""The system of a drill: production's logins and files, and parts that are restarted when they end.

Invariant: everything ends with the process that runs the drill.
"""

import shlex
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from cli.embedded import binaries
from cli.embedded.ports import HOST, find_free_port
from cli.embedded.server import EmbeddedServer
from cli.running.service import Service
from scoreboard.errors import ScoreboardError
from tests.drills.disk import limit_files
from tests.drills.place import SERVICES, VISITOR, Place
from tests.support.repository import ROOT
from tests.support.servers.forked_service import ForkedService
from tests.support.servers.rotated import ROTATOR, Rotated
from tests.support.servers.system import System

POLL_S = 0.05
BACKOFF_MAX_S = 2.0
PLAYERS = 20
TEMPLATE = Path(__file__).with_name("operate.sh")


class Keeper:
    """Keeps one part running, as a container engine does, unless its marker file exists."""

    def __init__(self, name: str, part: Service | EmbeddedServer, place: Place) -> None:
        self._part = part
        self._place = place
        self._marker = place.marker(name)
        self._pid = place.folder / "parts" / f"{name}.pid"
        self._is_valkey = name == "valkey"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"keeper-{name}")

    def start(self) -> None:
        """Watch the part, which runs already."""
        self._write_pid()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, then stop the part."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._part.stop()

    def _run(self) -> None:
        failures = 0
        while not self._stop.wait(POLL_S):
            if self._marker.exists():
                if self._pid.exists():
                    self._part.stop()
                    self._pid.unlink(missing_ok=True)
                failures = 0
            elif not self._part.is_running:
                self._pid.unlink(missing_ok=True)
                if failures and self._stop.wait(min(BACKOFF_MAX_S, 0.2 * 2**failures)):
                    return
                failures += 1
                with suppress(ScoreboardError):  # its log has the reason
                    self._part.start()
                self._write_pid()
            elif self._is_valkey and self._part.pid is not None:
                limit_files(self._part.pid, is_full=self._place.disk_is_full.exists())

    def _write_pid(self) -> None:
        if self._part.pid is not None:
            self._pid.write_text(str(self._part.pid))


class DrillSystem:
    """A running system with 20 players; a context manager.

    The commands of the runbook run with ``python``.
    """

    def __init__(self, folder: Path, python: Path = Path(sys.executable)) -> None:
        self.folder = folder.absolute()
        self._python = python
        self._stack = ExitStack()

    def start(self) -> None:
        """Start everything, with players."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop everything."""
        self._stack.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _start(self) -> None:
        (self.folder / "parts").mkdir(parents=True)
        (self.folder / "valkey.conf").write_text(
            "# Read by Valkey at its start.\n"
            "appendonly yes\nappendfsync always\nno-appendfsync-on-rewrite no\n"
            "maxmemory 512mb\nmaxmemory-policy noeviction\n"
        )
        api_metrics = find_free_port()
        rotated = Rotated(
            self.folder,
            has_acl_file=True,
            fsync=True,
            valkey_settings={"include": str(self.folder / "valkey.conf")},
            variables={"SCOREBOARD_SECRETS_REFRESH_S": "1"},
            api_metrics_port=api_metrics,
            drain_s=2,
            drain_notice_s=0.1,
        )
        self._stack.callback(rotated.close)
        rotated.redis.execute_command("ACL", "SAVE")
        rotated.start()
        system = rotated.system
        self.place = _place_of(rotated, api_metrics)
        self.place.save()
        (self.folder / "env.sh").write_text(_shell(self.place, self._python))
        servers: dict[str, Service | EmbeddedServer] = {
            "valkey": system.valkey,
            "postgres": system.postgres,
        }
        for name, part in (servers | system.services).items():
            keeper = Keeper(name, part, self.place)
            self._stack.callback(keeper.stop)
            keeper.start()
        self._act(system, VISITOR)
        players = ForkedService(
            "players",
            [
                *("-m", "cli", "simulate", "--api", system.api, "--players", str(PLAYERS)),
                *("--data-dir", str(system.folder)),
            ],
            dict(self.place.programs),
            self.folder / "players.log",
        )
        self._stack.callback(players.stop)
        players.start()

    def _act(self, system: System, user: str) -> None:
        httpx.post(
            f"{system.api}/api/scores/update",
            json={"userId": user, "actionId": "win:1"},
            headers=system.game_server(),
            trust_env=False,
        ).raise_for_status()


def _place_of(rotated: Rotated, api_metrics: int) -> Place:
    system = rotated.system
    addresses = {
        "REDIS_URL": f"redis://{HOST}:{system.valkey.port}/0",
        "DATABASE_URL": f"postgresql://{HOST}:{system.postgres.port}/scoreboard",
    }
    issuer = {
        name: system.variables["api"][name]
        for name in ("SCOREBOARD_JWKS_FILE", "SCOREBOARD_ISSUER")
    }
    ports = {
        "flusher": system.variables["flusher"]["SCOREBOARD_FLUSHER_METRICS_PORT"],
        "streamer": system.variables["streamer"]["SCOREBOARD_WS_METRICS_PORT"],
    }
    health = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
    metrics = {**health, "api": f"http://{HOST}:{api_metrics}"}
    services = ",".join(f"{name}={url}" for name, url in metrics.items())
    return Place(
        rotated.folder,
        system.valkey.url,
        system.postgres.url,
        {
            **addresses,
            **rotated.secret_variables("operator"),
            **issuer,
            "SCOREBOARD_SERVICES": services,
        },
        addresses | rotated.secret_variables(ROTATOR) | {"SCOREBOARD_SECRETS_REFRESH_S": "1"},
        {**health, "api": system.api},
        metrics,
    )


def _shell(place: Place, python: Path) -> str:
    """Return the shell file of a drill: variables, and the functions of the runbook."""
    address, password = place.owner
    variables: dict[str, Any] = {
        "DRILL": place.folder,
        "DRILL_PYTHON": python,
        "DRILL_PROGRAMS": binaries.find_postgres().folder,
        "DRILL_DATABASE_URL": address,
        "DRILL_DATABASE_PASSWORD": password,
        "DRILL_OPERATOR": _assignments(place.operator),
        "DRILL_ROTATOR": _assignments(place.rotator),
        "PYTHONPATH": ROOT,
        "SECRETS": place.folder,
        "VALKEY_SETTINGS": place.valkey_settings,
        **{f"DRILL_HEALTH_{name}": place.health[name] for name in SERVICES},
        **{f"DRILL_METRICS_{name}": place.metrics[name] for name in SERVICES},
    }
    lines = [f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()]
    return "\n".join([*lines, TEMPLATE.read_text()])


def _assignments(variables: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in variables.items())
