"""The commands ``scoreboard kong render`` and ``scoreboard kong sync``, as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import main
from cli.gateway.keys import rows_in
from scoreboard.runtime.resources import kong_path
from tests.kong.admin import FakeAdmin
from tests.support.clients.forked import Forked, run_forked
from tests.support.eventually import eventually
from tests.support.fakes.tokens import KeyPair

pytestmark = pytest.mark.slow

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
    return run_forked("cli", ["kong", *arguments], environ)


def sync(output: Path, admin: FakeAdmin) -> list[str]:
    """Return the arguments of ``sync``."""
    options = ["--output", str(output), "--admin", admin.url, "--probe-port", "0"]
    return ["kong", "sync", *options]


def test_render_writes_to_a_file_or_to_standard_output(
    environ: dict[str, str], output: Path
) -> None:
    written = run(environ, "render", "--output", str(output))
    assert (written.returncode, written.stdout) == (0, "")
    assert "2 keys, written" in written.stderr
    printed = run(environ, "render")
    assert printed.stdout == output.read_text()


def test_render_adds_the_api_of_administrators_if_it_has_an_address(
    environ: dict[str, str],
) -> None:
    without = run(environ, "render", "--admin-target=").stdout
    assert without == run(environ, "render").stdout
    assert "/api/admin/" not in without
    given = run(environ, "render", "--admin-target=admin-1:8000", "--admin-target=admin-2:8000")
    assert "/api/admin/" in given.stdout
    assert "target: admin-2:8000" in given.stdout


def test_render_keeps_a_removed_key_and_the_file_while_the_issuer_is_unavailable(
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
    assert "was not changed" in kept.stderr
    assert output.read_text() == good


def test_render_waits_for_an_issuer_that_starts_later(
    environ: dict[str, str], admin: FakeAdmin, output: Path
) -> None:
    admin.jwks_status = 503
    with output.open("w") as file:
        process = Forked("cli", ["kong", "render", "--wait", "20"], environ, output=file)
    try:
        eventually(lambda: admin.jwks_requests >= 2)
        admin.jwks_status = 200
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert [row.kid for row in rows_in(output.read_text())] == ["test-ec", "test-rsa"]


def test_render_without_an_issuer_fails(environ: dict[str, str]) -> None:
    del environ["SCOREBOARD_ISSUER"]
    failed = run(environ, "render", "--keep-on-failure")
    assert failed.returncode == 1
    assert "SCOREBOARD_ISSUER" in failed.stderr


TEMPLATE = (kong_path() / "kong.yml").read_text()


def changed(old: str, new: str) -> bytes:
    """Return the template with one change."""
    assert old in TEMPLATE
    return TEMPLATE.replace(old, new).encode()


INVALID_TEMPLATES = {
    "empty": b"",
    "a comment": b"# nothing",
    "a list": b"- services",
    "a scalar": b"services",
    "a number": b"5",
    "no services": changed("\nservices:", "\nunused:"),
    "services null": changed("\nservices:", "\nservices:\nunused:"),
    "no consumers": changed("\nconsumers:", "\nunused:"),
    "no players": changed("username: players", "username: gamers"),
    "a route without plugins": changed("    plugins:\n    - name: jwt", "    x:\n    - name: jwt"),
    "a config that is a list": changed("config: {path: /dev/stdout}", "config: [1]"),
    "a key twice": TEMPLATE.encode() + b"\nplugins: []\n",
    "a key twice below": changed("protocol: http\n", "protocol: http\n  protocol: x\n"),
    "not UTF-8": TEMPLATE.encode() + b"# \xff\n",
    "NUL": TEMPLATE.encode() + b"\0",
    "not YAML": b"a: [",
    "a tag": b"!!python/object/apply:os.system [id]",
    "an anchor that contains itself": b"&a [*a]",
    "too large": b"#" * 2_000_000,
}
FOREIGN = [b"- a list", b"words", b"services: {}", b"\xff\xfe", b"a: 1\na: 2"]


@pytest.fixture
def in_environ(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command that fails; return its exit code and its only line."""
    code = main.run(["kong", *arguments])
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert "Traceback" not in line
    return code, line


@pytest.mark.parametrize("name", INVALID_TEMPLATES)
@pytest.mark.parametrize("verb", ["render", "sync"])
@pytest.mark.usefixtures("in_environ")
def test_an_invalid_template_is_reported_in_one_line_with_exit_code_5(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, output: Path, verb: str, name: str
) -> None:
    template = tmp_path / "template.yml"
    template.write_bytes(INVALID_TEMPLATES[name])
    code, line = refusal(capsys, verb, "--template", str(template), "--output", str(output))
    assert code == 5
    assert "template" in line
    assert len(line) < 300
    assert not output.exists()


@pytest.mark.parametrize("text", FOREIGN)
@pytest.mark.parametrize("verb", ["render", "sync"])
@pytest.mark.usefixtures("in_environ")
def test_a_file_that_was_not_rendered_is_not_replaced(
    capsys: pytest.CaptureFixture[str], output: Path, verb: str, text: bytes
) -> None:
    output.write_bytes(text)
    assert refusal(capsys, verb, "--output", str(output))[0] == 5
    assert output.read_bytes() == text


@pytest.mark.parametrize("verb", ["render", "sync"])
@pytest.mark.usefixtures("in_environ")
def test_a_file_that_is_not_regular_is_not_replaced(
    capsys: pytest.CaptureFixture[str], output: Path, verb: str
) -> None:
    """Incident: as root, --output /dev/null replaced the device by a regular file."""
    output.symlink_to("/dev/null")  # here the link would be replaced

    code, line = refusal(capsys, verb, "--output", str(output))

    assert (code, "not a regular file" in line) == (5, True)
    assert output.is_symlink()


@pytest.mark.parametrize("port", ["99999", "0", "x"])
def test_an_invalid_url_of_keys_is_an_invalid_setting(
    environ: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    port: str,
) -> None:
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("SCOREBOARD_JWKS_FILE", raising=False)
    monkeypatch.setenv("SCOREBOARD_JWKS_URL", f"http://127.0.0.1:{port}/jwks.json")

    code, line = refusal(capsys, "render")

    assert (code, "SCOREBOARD_JWKS_URL is not a valid URL" in line) == (1, True)


@pytest.mark.usefixtures("in_environ")
def test_the_template_is_not_replaced(capsys: pytest.CaptureFixture[str], output: Path) -> None:
    output.write_text(TEMPLATE)
    assert refusal(capsys, "render", "--output", str(output))[0] == 5
    assert output.read_text() == TEMPLATE


@pytest.mark.parametrize("verb", ["render", "sync"])
@pytest.mark.usefixtures("in_environ")
def test_an_unusable_file_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, output: Path, verb: str
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for option, path in (("--template", tmp_path), ("--template", tmp_path / "absent")):
        assert main.run(["kong", verb, option, str(path), "--output", str(output)]) == 2
    assert main.run(["kong", verb, "--output", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert refusal(capsys, verb, "--output", str(tmp_path / "loop"))[0] == 74


@pytest.mark.usefixtures("in_environ")
def test_a_missing_folder_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, line = refusal(capsys, "render", "--output", str(tmp_path / "absent" / "kong.yml"))
    assert code == 74
    assert line.endswith("absent/kong.yml: No such file or directory")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--interval", "nan"],
        ["--interval", "0"],
        ["--probe-port", "65536"],
        ["--admin", "localhost:8001"],
        ["--admin", "http://"],
        ["--admin", "http://[::1"],
        ["--admin", "ftp://127.0.0.1:8001"],
    ],
)
@pytest.mark.usefixtures("in_environ")
def test_invalid_options_are_refused_at_the_start(
    capsys: pytest.CaptureFixture[str], output: Path, arguments: list[str]
) -> None:
    assert main.run(["kong", "sync", "--output", str(output), *arguments]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("in_environ")
def test_a_probe_port_in_use_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], output: Path, admin: FakeAdmin
) -> None:
    port = admin.url.rpartition(":")[2]
    code, line = refusal(capsys, "sync", "--output", str(output), "--probe-port", port)
    assert (code, f"127.0.0.1:{port}" in line) == (5, True)


def test_render_names_the_keys_that_it_ignores(
    environ: dict[str, str], admin: FakeAdmin, output: Path, rsa_key: KeyPair
) -> None:
    half = {"kty": "EC", "crv": "P-256", "kid": "half", "x": "AAAA"}
    admin.jwks = json.dumps({"keys": [half, rsa_key.jwk]}).encode()
    written = run(environ, "render", "--output", str(output))
    assert written.returncode == 0
    assert "Ignored in the key set: key 1" in written.stderr
    assert [row.kid for row in rows_in(output.read_text())] == ["test-rsa"]


def test_render_fills_an_empty_file_and_does_not_keep_one(
    environ: dict[str, str], admin: FakeAdmin, output: Path
) -> None:
    output.touch()
    admin.jwks_status = 503
    # Kong does not start with an empty file, so keeping it is a failure.
    assert run(environ, "render", "--keep-on-failure", "--output", str(output)).returncode == 69
    admin.jwks_status = 200
    assert run(environ, "render", "--output", str(output)).returncode == 0
    assert len(rows_in(output.read_text())) == 2


def test_sync_starts_on_an_empty_file(
    environ: dict[str, str], admin: FakeAdmin, output: Path
) -> None:
    output.touch()
    process = Forked("cli", sync(output, admin), environ)
    try:
        eventually(lambda: output.read_text() == admin.held != "")
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_sync_loads_the_configuration_and_ends_on_sigterm(
    environ: dict[str, str], admin: FakeAdmin, output: Path, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w") as file:
        process = Forked("cli", sync(output, admin), environ, errors=file)
    try:
        eventually(lambda: bool(admin.posted) and output.exists())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    log = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    audited = [line for line in lines if line["event.dataset"] == "scoreboard.audit"]
    messages = [line["message"] for line in lines if line not in audited]
    assert messages[:2] == ["configuration_written", "gateway_synchronised"]
    assert [line["message"] for line in audited[:2]] == ["service start", "gateway configure"]
    assert "stop_requested" in messages
    assert "BEGIN PUBLIC" not in log


def test_sync_sends_a_changed_password_and_shows_it_nowhere(
    environ: dict[str, str], admin: FakeAdmin, output: Path, tmp_path: Path
) -> None:
    secret, password_file, log = (tmp_path / name for name in ("secret", "password", "log"))
    planted = ["planted-password-1", "planted-password-2"]
    secret.write_text(json.dumps({"username": "kong", "password": planted[0]}))
    environ |= {"SCOREBOARD_SECRETS": "file", "SCOREBOARD_REDIS_SECRET": str(secret)}
    command = [*KONG, "sync", "--output", str(output), "--admin", admin.url, "--probe-port", "0"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--password-file", str(password_file)], env=environ, stdout=sink, stderr=sink
        )
    try:
        eventually(lambda: planted[0] in admin.held)
        eventually(password_file.exists)
        started_s = time.monotonic()
        draft = tmp_path / "draft"
        draft.write_text(json.dumps({"username": "kong", "password": planted[1]}))
        draft.replace(secret)
        eventually(lambda: planted[1] in admin.held)
        print(f"sent after {time.monotonic() - started_s:.2f} s")  # noqa: T201 (a measurement)
        eventually(lambda: password_file.read_text() == planted[1])
        arguments = Path(f"/proc/{process.pid}/cmdline").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    printed = run(environ, "render")
    assert printed.returncode == 0
    texts = (log.read_text(), arguments, output.read_text(), printed.stdout, printed.stderr)
    assert "counters_secret_sent" in texts[0]
    assert [word for word in planted for text in texts if word in text] == []
    assert "{vault://env/redis-password}" in printed.stdout


def test_a_password_file_needs_a_secret(environ: dict[str, str], output: Path) -> None:
    failed = run(environ, "sync", "--output", str(output), "--password-file", f"{output}.password")
    assert failed.returncode != 0
    assert "SCOREBOARD_REDIS_SECRET" in failed.stderr
