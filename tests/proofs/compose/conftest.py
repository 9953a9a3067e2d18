"""The engine of the proof, with stand-ins for the upstream images, and the project as a user's."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.proofs.compose import images
from tests.proofs.compose.engine import Engine, running_engine
from tests.proofs.compose.scenario import Load, Scenario
from tests.proofs.compose.stack import Stack
from tests.support import tools
from tests.support.repository import ROOT, files_of

USER = 20_000
"""Who runs Docker's client: not root, and with no account on this machine."""

TOOL = Path(__file__).parent / "tool"
COMPOSE, BUILDX = "github.com/docker/compose/v2", "github.com/docker/buildx"
FLAGS = (
    "-s -w"
    f" -X {COMPOSE}/internal.Version=v2.40.3"
    # Compose refuses to build with a buildx whose version it cannot tell.
    f" -X {BUILDX}/version.Version=v0.29.1"
)


@dataclass
class Proof:
    """What the tests share: the engine, a project, a second one, and one with a cluster."""

    engine: Engine
    scenario: Scenario
    second: Stack
    clustered: Scenario


@pytest.fixture(scope="session")
def proof() -> Iterator[Proof]:
    """Run an engine with all images, and copy the project to a folder of another user."""
    if shutil.which("go") is None:
        tools.unavailable("Docker Compose", "Go is not installed")
    plugins = tools.go_programs(TOOL, [f"{COMPOSE}/cmd", f"{BUILDX}/cmd/buildx"], ldflags=FLAGS)
    images.debian_root()
    # Not in the folder of pytest, which is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="scoreboard-proof-", dir="/var/tmp"))
    folder.chmod(0o755)
    with running_engine(folder) as engine:
        client = folder / "client"
        (client / "cli-plugins").mkdir(parents=True)
        shutil.copy(engine.client, client / "docker")
        shutil.copy(plugins / "cmd", client / "cli-plugins/docker-compose")
        shutil.copy(plugins / "buildx", client / "cli-plugins/docker-buildx")
        environ = {
            **engine.environ,
            "DOCKER_CONFIG": str(client),
            "HOME": str(client),
            "PATH": f"{client}:{os.environ['PATH']}",
        }
        images.build(environ, folder / "images")
        project = copy_project(folder / "a folder with spaces")
        for path in [client, *client.rglob("*")]:
            os.chown(path, USER, USER)
        stack = Stack(project, environ, user=USER)
        second = Stack(
            project,
            {
                **environ,
                "COMPOSE_PROJECT_NAME": "second",
                "GATEWAY_PORT": "8081",
                "OAUTH_PORT": "8091",
                "NETWORK_PREFIX": "172.30.92",
                "SCOREBOARD_BOARDS": "main,weekly",
                "SCOREBOARD_SECRETS": "aws",
                "SECRETS_PREFIX": "scoreboard/development/",
            },
            user=USER,
        )
        clustered = Stack(
            project,
            {
                **environ,
                "COMPOSE_FILE": "docker-compose.yml:deploy/docker/cluster.yml",
                "COMPOSE_PROJECT_NAME": "clustered",
                "GATEWAY_PORT": "8082",
                "OAUTH_PORT": "8092",
                "NETWORK_PREFIX": "172.30.93",
            },
            user=USER,
        )
        yield Proof(
            engine,
            Scenario(stack, Load(stack), say),
            second,
            Scenario(clustered, Load(clustered), say),
        )


def copy_project(folder: Path) -> Path:
    """Copy the files of this project, as a checkout of another user."""
    for name in files_of(ROOT):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, USER, USER)
    return folder


def say(text: str) -> None:
    """Print a line of progress; pytest shows it if the test fails."""
    sys.stdout.write(f"{text}\n")
