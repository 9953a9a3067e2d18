"""The functions of the runbook for Docker Compose name services, ports and programs that exist.

No container engine runs: a program in place of `docker` records its arguments.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.compose import SERVICES
from tests.documents.test_runbook import RUNBOOK, SECTIONS
from tests.support.repository import ROOT

OPERATE = ROOT / "deploy/docker/operate.sh"
PROGRAM = ROOT / "deploy/docker/redis_command.py"
DRILL = ROOT / "tests/drills/operate.sh"
DEFINED = re.compile(r"^([a-z]\w+)\(\)", re.MULTILINE)
COMPOSE_BLOCK = re.compile(r"^ *```sh compose\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PARTS = ("api", "admin", "streamer", "flusher", "kong-sync")
WITH_VALUE = {"--tail", "--format", "--entrypoint"}
RECORDER = """#!/bin/sh
for word; do printf '%s\\0' "$word"; done >>"$RECORD"
printf '\\n\\0' >>"$RECORD"
cat >/dev/null
echo '{"status":"ready"}'
"""


@pytest.fixture
def shell(tmp_path: Path):
    """Return a function that runs a script and returns the calls of `docker`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(RECORDER)
    (programs / "docker").chmod(0o755)
    for name in ("curl", "df"):
        (programs / name).symlink_to("/bin/true")

    def run(script: str) -> list[list[str]]:
        record = tmp_path / "record"
        record.unlink(missing_ok=True)
        subprocess.run(
            ["sh", "-eu", "-c", f". {OPERATE}\n{script}"],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=30,
            check=True,
        )
        text = record.read_text() if record.exists() else ""
        return [call.strip("\0").split("\0") for call in text.split("\n\0") if call]

    return run


def parse(call: list[str]) -> tuple[str, list[str], list[str]]:
    """Return the command of Compose, its services, and the words after `run` or `exec`."""
    compose, command, *words = call
    assert compose == "compose", call
    plain: list[str] = []
    while words:
        word = words.pop(0)
        if word in WITH_VALUE:
            words.pop(0)
        elif not word.startswith("-"):
            plain.append(word)
            if command in {"run", "exec"}:
                return command, plain, words
    return command, plain, words


@pytest.mark.parametrize(
    ("script", "services"),
    [
        ("state", []),
        *((f"{verb} api kong-sync", ["api", "kong-sync"]) for verb in ("start", "stop", "restart")),
        ("logs valkey 5", ["valkey"]),
        ("warnings flusher", ["flusher"]),
        *((f"health {part}", [part]) for part in PARTS),
        ("ready api", ["api"]),
        *((f"metrics {part} x", [part]) for part in PARTS),
        ("scoreboard verify --full", ["open"]),
        ('secrets rotate db "$SECRETS/flusher/database" --grace 0', ["rotate"]),
        ("write_secret flusher/database", ["rotate"]),
        ("database -c 'SELECT 1'", ["postgres"]),
        ("blockers", ["postgres"]),
        ("well", ["open"]),
        ("dump", ["postgres"]),
        ("check_dump", ["postgres"]),
        ("load_dump", ["postgres"]),
        ("new_database", ["postgres"]),
        ("migrate", ["migrate"]),
        ("redis INFO memory", ["open"]),
    ],
)
def test_each_function_calls_a_service_that_exists(shell, script: str, services: list[str]) -> None:
    (call,) = shell(script)
    command, found, words = parse(call)

    assert found == services
    assert set(found) <= set(SERVICES)
    if command == "exec":
        program = words[0]
        image = SERVICES[found[0]]["image"]
        assert image.startswith("postgres:") if program != "python" else image == "scoreboard:local"
        assert "restart" in SERVICES[found[0]], "a one-shot container cannot be entered"
    if words[:2] == ["python", "-c"]:
        compile(words[2], "operate.sh", "exec")
    for word in words:
        if found_port := re.fullmatch(r"http://127\.0\.0\.1:(\d+)/(health/ready|metrics)", word):
            assert int(found_port[1]) == port_of(found[0], found_port[2])


def port_of(service: str, path: str) -> int:
    """Return the port of a service: of its health check, or the default of its metrics."""
    if service in {"api", "admin"} and path == "metrics":
        return 9100
    return int(re.search(r"127\.0\.0\.1:(\d+)/", SERVICES[service]["healthcheck"]["test"][-1])[1])


def test_secrets_are_files_of_the_mounted_volumes(shell) -> None:
    (call,) = shell("write_secret flusher/database")

    folder = str(Path(call[-1]).parent)
    mounted = [volume.split(":") for volume in SERVICES["rotate"]["volumes"]]
    assert ["secrets-flusher", folder] in mounted


def test_the_login_of_the_commands_is_the_operators() -> None:
    variables = SERVICES["open"]["environment"]
    assert "operator/redis" in variables["SCOREBOARD_REDIS_SECRET"]
    assert "rotator/redis" in SERVICES["rotate"]["environment"]["SCOREBOARD_REDIS_SECRET"]


def test_the_settings_of_valkey_are_the_mounted_file(shell) -> None:
    (call,) = shell('stop "$VALKEY_SETTINGS"')
    assert f"./{call[-1]}" in " ".join(SERVICES["valkey"]["volumes"])


def test_both_installations_have_the_functions_that_the_runbook_lists() -> None:
    compose, drill = (set(DEFINED.findall(path.read_text())) for path in (OPERATE, DRILL))
    table = SECTIONS[""].partition("| function |")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = {name.split()[0] for row in rows for name in re.findall(r"`([^`]+)`", row)}

    assert compose == drill == listed


@pytest.mark.parametrize("page", ["runbook", "full-disk", "recover-postgresql"])
def test_the_blocks_for_compose_call_services_that_exist(shell, page: str) -> None:
    text = RUNBOOK.with_name(f"{page}.md").read_text()
    for block in COMPOSE_BLOCK.findall(text):
        for call in shell(block):
            if call[0] == "compose":
                assert set(parse(call)[1]) <= set(SERVICES), block


def test_the_parts_of_the_runbook_are_services() -> None:
    row = next(line for line in SECTIONS[""].splitlines() if line.startswith("| `start`"))
    parts = set(re.findall(r"`([a-z-]+)`", row)) - {"start", "stop"}
    assert len(parts) == 7
    assert parts <= set(SERVICES)


def test_the_answer_of_redis_is_printed_as_json(tmp_path: Path, redis_url: str) -> None:
    secret = tmp_path / "login"
    secret.write_text(json.dumps({"username": "", "password": password_of(redis_url)}))
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "deploy/docker/redis_command.py",
            "CONFIG",
            "GET",
            "maxmemory-policy",
        ],
        env={
            **os.environ,
            "REDIS_URL": address_of(redis_url),
            "SCOREBOARD_REDIS_SECRET": str(secret),
        },
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert json.loads(done.stdout) == {"maxmemory-policy": "noeviction"}


def password_of(url: str) -> str:
    return url.partition("://:")[2].partition("@")[0]


def address_of(url: str) -> str:
    return f"redis://{url.rpartition('@')[2]}"
