"""A project of docker-compose.yml, driven by Docker's client as an operator does."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx

from cli.embedded.ports import find_free_port

START = "docker compose up --build --wait"
"""The command of README.md."""

MINIMUM = (2, 20, 2)
START_S = 900
COMMAND_S = 300
HEALTHY_S = 180
LOG_LINES = 25
OWN_VARIABLES = ("COMPOSE_", "SCOREBOARD_", "SECRETS_PREFIX")
UNHEALTHY = (
    r"container \S+?-([a-z-]+)-\d+ (?:is unhealthy|exited)"
    r'|service "([a-z-]+)" didn.t complete'
)
"""How Compose says which service did not start."""

KILL = "import os, sys; os.kill(int(sys.argv[1]), 9)"


class Fault(AssertionError):  # noqa: N818 (it is the project's)
    """What is wrong, with the last log lines of the service concerned."""


class Stack:
    """One project: its own name, ports and network, so that it touches no other.

    ``user`` is the uid that runs the client, if not the present one.
    """

    def __init__(
        self, folder: Path, variables: Mapping[str, str], *, user: int | None = None
    ) -> None:
        self.folder = folder
        self.user = user
        self.variables = dict(variables)
        self.name = variables.get("COMPOSE_PROJECT_NAME", "scoreboard")
        self.gateway = f"http://127.0.0.1:{variables.get('GATEWAY_PORT', '8080')}"
        self.oauth_port = int(variables.get("OAUTH_PORT", "8090"))

    # Commands -----------------------------------------------------------------------------------

    def run(self, *words: str, within_s: float = COMMAND_S, check: bool = True) -> str:
        """Run a command in the project's folder; return what it prints."""
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)
        }
        # The operator's .env belongs to another project.
        environ |= {"COMPOSE_ENV_FILES": os.devnull, **self.variables}
        rights = {} if self.user is None else {"user": self.user, "group": self.user}
        try:
            done = subprocess.run(
                words,
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=within_s,
                **({**rights, "extra_groups": []} if rights else {}),
            )
        except subprocess.TimeoutExpired as error:
            raise Fault(f"{' '.join(words)} did not end within {within_s:.0f} s") from error
        if check and done.returncode:
            text = (done.stdout + done.stderr)[-1500:]
            raise Fault(f"{' '.join(words)} ended with {done.returncode}:\n{text}")
        return done.stdout

    def compose(self, *words: str, within_s: float = COMMAND_S) -> str:
        """Run a command of Compose."""
        return self.run("docker", "compose", *words, within_s=within_s)

    def up(self, command: str = START) -> None:
        """Start the project with the command of the README."""
        try:
            self.run("sh", "-c", command, within_s=START_S)
        except Fault as error:
            found = re.search(UNHEALTHY, str(error))
            raise self.fault(str(error), *filter(None, found.groups() if found else ())) from error

    def scoreboard(self, *words: str) -> str:
        """Run a command of the operator in a container."""
        return self.compose("run", "--rm", "--no-deps", "-T", "open", "scoreboard", *words)

    def query(self, statement: str) -> str:
        """Return the rows of a query, as text."""
        psql = ("psql", "-X", "-A", "-t", "-U", "scoreboard_owner", "scoreboard", "-c", statement)
        return self.compose("exec", "-T", "postgres", *psql).strip()

    # Containers ---------------------------------------------------------------------------------

    def containers(self) -> dict[str, dict[str, Any]]:
        """Return Docker's description of each container of the project, by service."""
        found = self.run("docker", "ps", "-aq", "--filter", self._label).split()
        if not found:
            return {}
        described = json.loads(self.run("docker", "inspect", *found))
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in described}

    @property
    def _label(self) -> str:
        return f"label=com.docker.compose.project={self.name}"

    def kill(self, service: str) -> None:
        """Kill the first process of a container, and wait until Docker has restarted it.

        `docker kill` would count as a stop by the operator, after which nothing restarts.
        """
        before = self.containers()[service]
        process = str(before["State"]["Pid"])
        image = self.containers()["api"]["Image"]
        self.run(
            *("docker", "run", "--rm", "--network", "none", "--pid", "host", "--user", "0"),
            *("--entrypoint", "python", image, "-c", KILL, process),
        )
        self.wait(
            lambda: self.containers()[service]["RestartCount"] > before["RestartCount"],
            f"{service} was not restarted after its process was killed",
            service,
        )
        self.wait_healthy(service)

    def wait_healthy(self, *services: str) -> None:
        """Wait until containers are healthy, or run if they have no health check."""
        for service in services:
            self.wait(
                lambda service=service: self.state(service) in {"healthy", "running"},
                f"{service} is not healthy",
                service,
            )

    def state(self, service: str) -> str:
        """Return the health of a container, or its status if it has no health check."""
        state = self.containers()[service]["State"]
        if state["Status"] != "running":
            return state["Status"]
        return state.get("Health", {}).get("Status", "running")

    def long_running(self) -> list[str]:
        """Return the services that stay up."""
        return [
            name
            for name, one in self.containers().items()
            if one["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        ]

    def wait(
        self,
        check: Callable[[], object],
        fault: str,
        *services: str,
        within_s: float = HEALTHY_S,
    ) -> None:
        """Wait for a condition, or fail with the logs of services."""
        deadline = time.monotonic() + within_s
        while not check():
            if time.monotonic() > deadline:
                raise self.fault(f"{fault} within {within_s:.0f} s", *services)
            time.sleep(0.25)

    def fault(self, text: str, *services: str) -> Fault:
        """Return an error with the last log lines of services."""
        lines = [text]
        for service in services:
            words = ("docker", "compose", "logs", "--no-color", "--tail", str(LOG_LINES), service)
            lines += [f"--- the last log lines of {service}", self.run(*words, check=False).strip()]
        return Fault("\n".join(lines))

    # What is left -------------------------------------------------------------------------------

    def remove(self) -> None:
        """Remove everything of the project: containers, volumes, networks and its own images."""
        words = ("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "20")
        self.compose(*words)
        for image in self.images():
            self.run("docker", "image", "rm", "--force", image)

    def images(self) -> list[str]:
        """Return the images that the project has built."""
        listed = self.run("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
        names = {f"{self.name}{part}:local" for part in ("", "-kong", "-oauth")}
        return [name for name in listed if name in names]

    def left(self) -> list[str]:
        """Return what exists of the project."""
        found = []
        for kind in ("container", "volume", "network"):
            words = ("docker", kind, "ls", "-q", "--filter", self._label)
            if kind == "container":
                words = (*words, "-a")
            found += self.run(*words).split()
        return found + self.images()

    # Requests -----------------------------------------------------------------------------------

    def token(self, client: str) -> str:
        """Return a token of the development's OAuth 2.0 provider."""
        answer = httpx.post(
            f"http://127.0.0.1:{self.oauth_port}/scoreboard/token",
            headers={"Host": f"oauth.localhost:{self.oauth_port}"},
            data={
                "grant_type": "client_credentials",
                "client_id": client,
                "client_secret": "any",
                "scope": "any",
            },
            timeout=10,
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.json()["access_token"]

    def update(self, token: str, user: str, action: str) -> httpx.Response:
        """Send an update through the gateway."""
        return httpx.post(
            f"{self.gateway}/api/scores/update",
            json={"userId": user, "actionId": action},
            headers={"Authorization": f"Bearer {token}"},
            timeout=10,
            trust_env=False,
        )


def own_variables(name: str, run: Callable[..., str]) -> dict[str, str]:
    """Return variables of a project that collides with nothing on this machine."""
    return {
        "COMPOSE_PROJECT_NAME": name,
        "GATEWAY_PORT": str(find_free_port()),
        "OAUTH_PORT": str(find_free_port()),
        "NETWORK_PREFIX": free_prefix(run),
    }


def free_prefix(run: Callable[..., str]) -> str:
    """Return the first three numbers of a /24 network that neither Docker nor this machine uses."""
    networks = run("docker", "network", "ls", "-q").split()
    described = json.loads(run("docker", "network", "inspect", *networks))
    pools = [pool for one in described for pool in one["IPAM"]["Config"] or []]
    routes = re.findall(r"^(?:\w+ )?(\d+\.\d+\.\d+\.\d+/\d+)", _routes(), re.MULTILINE)
    used = [ip_network(text) for text in [*(pool["Subnet"] for pool in pools), *routes]]
    used = [network for network in used if network.version == 4]
    for number in range(92, 256):
        prefix = f"172.30.{number}"
        if not any(ip_network(f"{prefix}.0/24").overlaps(network) for network in used):
            return prefix
    raise Fault("no network 172.30.92.0/24 … 172.30.255.0/24 is free on this machine")


def _routes() -> str:
    try:
        done = subprocess.run(["ip", "route"], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # not Linux: Docker's networks are in its virtual machine
        return ""
    return done.stdout


def check_version(run: Callable[..., str]) -> str:
    """Return the version of Compose; fail below the one that docker-compose.yml needs."""
    version = run("docker", "compose", "version", "--short").strip()
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise Fault(f"Docker Compose {version} is too old; docker-compose.yml needs {wanted}")
    return version
