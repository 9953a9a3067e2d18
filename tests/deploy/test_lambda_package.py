"""dist/scoreboard-rotation.zip: it is built, and the handler runs from it and from nothing else."""

import json
import os
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.compose import ROOT
from tests.deploy.test_aws import STEPS, Installation, installation
from tests.support.fakes.aws import aws_environment, secrets_manager
from tests.support.fakes.stack import start_rotation

__all__ = ["aws_environment", "installation", "secrets_manager"]
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

PACKAGE = ROOT / "deploy" / "aws" / "package.py"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

RUNTIME = """
import json, sys
sys.path[:] = [folder for folder in sys.path if "-packages" not in folder]
sys.path.insert(0, sys.argv[1])
import importlib
module, _, name = sys.argv[2].rpartition(".")
handler = getattr(importlib.import_module(module), name)
for line in sys.stdin:
    try:
        answer = handler(json.loads(line), None)
    except Exception as error:
        answer = {"errorType": type(error).__name__, "errorMessage": str(error)}
    print(json.dumps(answer), flush=True)
library = sys.base_prefix
foreign = sorted(
    {m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)
     and not m.__file__.startswith((sys.argv[1], library + "/"))}
)
print(json.dumps(foreign))
"""


def build(output: Path, *options: str) -> Path:
    """Build a package; skip the test if wheels cannot be fetched, in CI fail."""
    done = subprocess.run(
        [sys.executable, PACKAGE, "--output", output, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        if "CI" not in os.environ and re.search(
            "fetch|network|connect|dns", done.stderr, re.IGNORECASE
        ):
            pytest.skip(f"the wheels of the package cannot be fetched: {done.stderr[-300:]}")
        pytest.fail(done.stderr)
    return output


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package for the Python of the tests."""
    return build(tmp_path_factory.mktemp("package") / "rotation.zip", "--python", PYTHON)


def test_the_same_source_gives_the_same_bytes(package: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "again.zip", "--python", PYTHON)
    assert again.read_bytes() == package.read_bytes()


@pytest.mark.parametrize(
    ("python", "arch", "machine"), [("3.11", "x86_64", 62), ("3.13", "arm64", 183)]
)
def test_a_package_has_only_what_the_function_needs(
    python: str, arch: str, machine: int, package: Path, tmp_path: Path
) -> None:
    path = package
    if (python, arch) != (PYTHON, platform.machine()):
        path = build(tmp_path / "rotation.zip", "--python", python, "--arch", arch)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        size = sum(entry.file_size for entry in archive.infolist())
        for name in names:
            content = archive.read(name)
            assert str(ROOT).encode() not in content, name
            if re.search(r"\.so(\.|$)", name):
                assert content[:4] == b"\x7fELF"
                assert int.from_bytes(content[18:20], "little") == machine, name
    assert size < 60e6
    tops = {name.split("/")[0] for name in names}
    assert {"scoreboard", "boto3", "psycopg_binary", "redis"} <= tops
    assert not tops & {"litestar", "api", "cli", "tests", "streamer", "flusher", "bin"}
    tag = f"cpython-{python.replace('.', '')}-"
    extensions = [name for name in names if name.endswith(".so") and "cpython-" in name]
    assert extensions
    assert all(tag in name for name in extensions)


def test_a_package_that_no_runtime_could_load_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            PACKAGE,
            "--python",
            "3.11",
            "--arch",
            "arm64",
            "--output",
            tmp_path / "x",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no wheels for Python 3.11 on arm64" in done.stderr


def test_the_handler_rotates_from_the_package_alone(
    package: Path, tmp_path: Path, installation: Installation
) -> None:
    """One process serves all events, as a warm function does; it also rotates its own login."""
    folder = tmp_path / "task"
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    function = installation.stack.function("RotationFunction")
    environment = {name: text for name, text in os.environ.items() if name.startswith("AWS_")}
    names = ("rotator/database", "rotator/redis", "api/database", "api/redis")
    secrets = [installation.stack.secrets[f"scoreboard/production/{name}"] for name in names]
    before = {secret: installation.login(secret) for secret in secrets}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", RUNTIME, str(folder), function["Handler"]],
        env=environment | function["Environment"]["Variables"],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def call(event: dict[str, Any]) -> Any:
            print(json.dumps(event), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        try:
            for secret in secrets:
                event = start_rotation(installation.stack.client, secret)
                for step in STEPS:
                    assert call(event | {"Step": step}) == {secret: step}
            retire = {"Step": "retireSecret", "SecretIds": secrets}
            assert call(retire) == dict.fromkeys(secrets, "too early")
            replay = call(event | {"Step": "setSecret", "ClientRequestToken": "0" * 36})
            assert replay["errorType"] == "OperatorMistake"
            process.stdin.close()
            foreign = json.loads(process.stdout.readline())
        finally:
            process.kill()
    assert foreign == []
    for secret in secrets:
        assert installation.login(secret) != before[secret]
        assert installation.accepts(secret, installation.login(secret))
