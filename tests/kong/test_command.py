"""The commands ``scoreboard kong render`` and ``scoreboard kong sync``, as processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.kong_keys import rows_in
from tests.kong.admin import FakeAdmin
from tests.support.eventually import eventually
from tests.support.tokens import KeyPair

KONG = [sys.executable, "-m", "cli", "kong"]


@pytest.fixture
def environ(admin: FakeAdmin) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCOREBOARD_")}
    return kept | {
        "REDIS_URL": "redis://kong@valkey-counters:6379/0",
        "SCOREBOARD_ISSUER": "https://issuer.example/",
        "SCOREBOARD_JWKS_URL": admin.jwks_url,
    }


def run(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KONG, *arguments], env=environ, capture_output=True, text=True, timeout=30, check=False
    )


def test_render_writes_to_a_file_or_to_standard_output(
    environ: dict[str, str], output: Path
) -> None:
    written = run(environ, "render", "--output", str(output))
    assert (written.returncode, written.stdout) == (0, "")
    assert "2 keys, written" in written.stderr
    printed = run(environ, "render")
    assert printed.stdout == output.read_text()


def test_render_keeps_a_vanished_key_and_what_it_has_when_the_issuer_is_away(
    environ: dict[str, str], admin: FakeAdmin, output: Path, rsa_key: KeyPair
) -> None:
    run(environ, "render", "--output", str(output))
    admin.jwks = json.dumps({"keys": [rsa_key.jwk]}).encode()
    run(environ, "render", "--output", str(output))
    assert [row.kid for row in rows_in(output.read_text())] == ["test-ec", "test-rsa"]
    good = output.read_text()

    admin.jwks_status = 503
    failed = run(environ, "render", "--output", str(output))
    assert failed.returncode == 69
    assert "503" in failed.stderr
    kept = run(environ, "render", "--output", str(output), "--keep-on-failure")
    assert kept.returncode == 0
    assert "stays as it is" in kept.stderr
    assert output.read_text() == good


def test_render_waits_for_an_issuer_that_starts_later(
    environ: dict[str, str], admin: FakeAdmin
) -> None:
    admin.jwks_status = 503
    process = subprocess.Popen(
        [*KONG, "render", "--wait", "20"], env=environ, stdout=subprocess.PIPE, text=True
    )
    try:
        eventually(lambda: admin.asked >= 2, within_s=20)
        admin.jwks_status = 200
        text, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert [row.kid for row in rows_in(text)] == ["test-ec", "test-rsa"]


def test_render_without_an_issuer_fails(environ: dict[str, str]) -> None:
    del environ["SCOREBOARD_ISSUER"]
    failed = run(environ, "render", "--keep-on-failure")
    assert failed.returncode == 1
    assert "SCOREBOARD_ISSUER" in failed.stderr


def test_sync_runs_beside_kong_and_ends_cleanly_on_sigterm(
    environ: dict[str, str], admin: FakeAdmin, output: Path
) -> None:
    arguments = ["sync", "--output", str(output), "--admin", admin.url, "--probe-port", "0"]
    process = subprocess.Popen([*KONG, *arguments], env=environ, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: bool(admin.posted) and output.exists(), within_s=20)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=15)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    messages = [line["message"] for line in lines]
    assert messages[:2] == ["configuration_written", "gateway_synchronised"]
    assert "stop_requested" in messages
    assert "BEGIN PUBLIC" not in log
