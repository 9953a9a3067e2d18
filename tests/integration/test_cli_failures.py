"""Every failure of a command is one line and a documented exit code.

Incidents: logins without rights, a standby, a full disk, a closed pipe and an interrupt during an
import ended in tracebacks.
"""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import click
import psycopg
import pytest
import redis
from psycopg import sql

from cli.group import scoreboard
from scoreboard.security.tokens import LocalIssuer
from tests.support.clients.commands import Run
from tests.support.clients.forked import run_forked
from tests.support.eventually import eventually

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("scoreboard")
PASSWORD = "s3cretTiger"
NOWHERE = {
    "REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:1/0",
    "DATABASE_URL": f"postgresql://scott:{PASSWORD}@127.0.0.1:1/db",
    "SCOREBOARD_JWKS_URL": "http://127.0.0.1:1/jwks.json",
    "SCOREBOARD_ISSUER": "http://127.0.0.1:1",
}
DOCUMENTED = {
    int(code)
    for code in re.findall(
        r"^\| (\d+) \|", (ROOT / "docs/reference/cli.md").read_text(), re.MULTILINE
    )
}
ACT = ("--reason", "cheating", "--yes")
WORDS = {
    "up": ("--api-port", "0", "--ws-port", "0", "--issuer-port", "0"),
    "token": ("--sub", "alice"),
    "simulate": ("--api", "http://127.0.0.1:1", "--seconds", "3"),
    "board create": ("weekly",),
    "board reshard": ("main", "--partitions", "2"),
    "board set": ("weekly", "--private"),
    "board show": ("weekly",),
    "board archive": ("weekly",),
    "board unarchive": ("weekly",),
    "board delete": ("weekly", "--yes"),
    "board apply": ("boards.toml",),
    "board watch": ("--url", "ws://127.0.0.1:1/ws/scoreboard"),
    "user show": ("alice",),
    "user set": ("alice", "--name", "Alice"),
    "user import": ("users.csv",),
    "proof sign": ("--user", "alice", "--action", "win:1", "--points", "5"),
    "action show": ("win",),
    "action set": ("win", "5"),
    "action disable": ("win",),
    "repair": ("--yes",),
    "backup record": ("s3://backups/1.dump",),
    "dead apply": ("1", "--yes"),
    "secrets rotate": ("db", "rotator/database"),
    "secrets retire": ("db", "rotator/database"),
    "secrets status": ("db", "rotator/database"),
    "dead discard": ("1", "--reason", "invalid", "--yes"),
    "kong sync": ("--output", "kong.yml"),
    "lua call submit": ("--user", "alice", "--action", "win:1", "--points", "5"),
    "lua call standing": ("--user", "alice"),
    "lua call neighbours": ("--packed", "1", "--partition", "0"),
    "export board": ("main",),
    "export user": ("alice",),
    "user erase": ("alice", "--yes"),
    "user ban": ("alice", *ACT),
    "user unban": ("alice", *ACT),
    "score correct": ("alice", "5", *ACT),
    "action void": ("win:1", "--user", "alice", *ACT),
    "window void": ("--user", "alice", "--from", "2026-07-01", "--to", "2026-07-02", *ACT),
    "act undo": ("018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f11", *ACT),
    "act resume": ("018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f11",),
    "held release": ("1", *ACT),
    "held void": ("1", *ACT),
    "ledger separate": ("cup",),
    "ledger detach": ("main", "--yes"),
    "ledger attach": ("main",),
    "season list": ("main",),
    "season top": ("main", "2026-W48"),
    "season revise": ("main", "2026-W48", "--reason", "test", "--yes"),
}
"""The arguments with which a command connects to the servers."""
SERVES = {"kong sync"}
"""Commands that keep running while their servers are unavailable."""
REPORTS = {"config check": 1, "status": 69}
"""Commands that print the state of each server, and their exit codes if none is reachable."""
NEEDS_NOTHING = {"config show", "config example", "lua list", "lua show"}
STARTS_A_SYSTEM = {f"bench {load}" for load in ("all", "flush", "http", "lua", "read", "ws")}
"""Commands that start a system of their own if none is named."""


def verbs_of(group: click.Group, prefix: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from verbs_of(command, f"{prefix}{name} ")
        else:
            yield prefix + name


VERBS = sorted(set(verbs_of(scoreboard)) - SERVES)


def run(
    folder: Path, *words: str, before: object = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command line as a process in a folder, with only these settings.

    ``before`` is called in a new interpreter, before the program starts.
    """
    environment = {"PATH": "/usr/bin:/bin", **settings}
    if before is None:
        return run_forked("cli", words, environment, folder=folder)
    return subprocess.run(
        [str(COMMAND), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
        env=environment,
        preexec_fn=before,
    )


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    file = tmp_path / "users.csv"
    file.write_text("userId,name\nalice,Alice\n")
    return file


def check_line(code: int, err: str) -> None:
    assert code in DOCUMENTED - {0}, err
    assert "Traceback" not in err
    assert PASSWORD not in err
    *others, last = err.splitlines()
    assert last.startswith("scoreboard: "), err
    assert len(last) < 400
    assert all(line.startswith(("Acting on ", "Running on ", "Logs are in ")) for line in others)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - NEEDS_NOTHING))
def test_unavailable_servers_are_reported_in_one_line(verb: str, users_file: Path) -> None:
    words = (*verb.split(), *WORDS.get(verb, ()))

    done = run(users_file.parent, *words, **NOWHERE)

    if verb in REPORTS:
        assert done.returncode == REPORTS[verb]
        assert done.stdout.count("\n") >= 4
        assert PASSWORD not in done.stdout + done.stderr
    else:
        check_line(done.returncode, done.stderr)


@pytest.mark.parametrize(
    "verb", sorted(set(VERBS) - NEEDS_NOTHING - STARTS_A_SYSTEM - {"up", "bench clean"})
)
def test_a_command_without_a_system_explains_what_to_do(
    verb: str, users_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cli import main

    monkeypatch.chdir(users_file.parent)
    for name in os.environ:
        if name.startswith("SCOREBOARD_") or name in NOWHERE:
            monkeypatch.delenv(name)
    words = [*verb.split(), *WORDS.get(verb, ())]
    if "--url" in words:
        words = words[: words.index("--url")]

    code = main.run(words)

    errors = capsys.readouterr().err
    check_line(code, errors)
    if not verb.startswith("kong"):
        assert code == 5
        assert "scoreboard up" in errors or "--url" in errors


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_prints_help_on_a_narrow_terminal(verb: str, tmp_path: Path) -> None:
    done = run(tmp_path, *verb.split(), "--help", COLUMNS="1", TERM="dumb")

    assert (done.returncode, done.stderr) == (0, "")


DATA = (("config", "show"), ("config", "example"), ("board", "list"), ("--help",), ("--version",))


@pytest.mark.parametrize("words", DATA, ids=" ".join)
def test_a_closed_pipe_on_stdout_is_not_an_error(
    words: Sequence[str], database_url: str, redis_url: str, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [COMMAND, *words],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "REDIS_URL": redis_url, "DATABASE_URL": database_url},
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", DATA, ids=" ".join)
def test_a_full_disk_behind_stdout_is_reported_in_one_line_with_exit_code_74(
    words: Sequence[str], tmp_path: Path
) -> None:
    if words[0] == "board":
        words = ("config", "example")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [COMMAND, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=30,
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
        )

    check_line(done.returncode, done.stderr)
    assert done.returncode == 74
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("words", [("config", "show"), ("kong", "render")], ids=" ".join)
def test_a_closed_stdout_is_reported_in_one_line_with_exit_code_74(
    words: Sequence[str], tmp_path: Path
) -> None:
    """Incident: kong render wrote nothing to a closed stdout and succeeded."""
    LocalIssuer.create(tmp_path / "issuer", issuer="http://127.0.0.1:1")
    issuer = {"SCOREBOARD_JWKS_FILE": "issuer/jwks.json", "SCOREBOARD_ISSUER": "http://127.0.0.1:1"}

    done = run(
        tmp_path,
        *words,
        before=lambda: os.close(1),
        **{**NOWHERE, **issuer, "SCOREBOARD_JWKS_URL": ""},
    )

    check_line(done.returncode, done.stderr)
    assert done.returncode == 74


@pytest.mark.parametrize("closed", [0, 2])
def test_a_closed_stdin_or_stderr_does_not_change_the_output(closed: int, tmp_path: Path) -> None:
    done = run(tmp_path, "config", "example", before=lambda: os.close(closed))

    assert done.returncode == 0
    assert done.stdout.startswith("# Every setting")


def test_an_import_from_a_closed_stdin_is_refused(
    redis_url: str, database_url: str, tmp_path: Path
) -> None:
    done = run(
        tmp_path,
        *("user", "import", "-"),
        before=lambda: os.close(0),
        REDIS_URL=redis_url,
        DATABASE_URL=database_url,
    )

    check_line(done.returncode, done.stderr)
    assert done.returncode == 5
    assert "stdin is closed" in done.stderr


def test_a_full_disk_behind_stderr_does_not_change_the_exit_code(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [COMMAND, "board", "list"],
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
            timeout=30,
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
        )

    assert (done.returncode, done.stdout) == (5, b"")


@pytest.fixture
def login(database_url: str) -> Iterator[str]:
    """Return the URL of the test's database for a role that can only read."""
    parts = urlsplit(database_url)
    name = f"reader_{parts.path.strip('/')}"
    role = sql.Identifier(name)
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(PASSWORD))
        )
        admin.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(role))
        try:
            yield f"postgresql://{name}:{PASSWORD}@{parts.hostname}:{parts.port}{parts.path}"
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
            admin.execute(sql.SQL("DROP ROLE {}").format(role))


WRITES = (
    ("action", "set", "win", "5"),
    ("user", "set", "alice", "--name", "Alice"),
    ("user", "import", "users.csv"),
    ("board", "create", "weekly"),
)


@pytest.mark.parametrize("words", WRITES, ids=" ".join)
def test_a_database_login_without_rights_is_reported_in_one_line_with_exit_code_4(
    words: Sequence[str], command: Run, login: str, users_file: Path, monkeypatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", login)

    done = command(*words)

    check_line(done.code, done.err)
    assert done.code == 4
    assert "permission denied" in done.err


@pytest.mark.parametrize("words", WRITES, ids=" ".join)
def test_a_read_only_database_is_reported_in_one_line_with_exit_code_5(
    words: Sequence[str], command: Run, database_url: str, users_file: Path, monkeypatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    name = sql.Identifier(urlsplit(database_url).path.strip("/"))
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name)
        )

    done = command(*words)

    check_line(done.code, done.err)
    assert done.code == 5
    assert "read-only" in done.err


@pytest.mark.one_server
def test_a_wrong_password_is_reported_in_one_line_without_the_password(
    command: Run, database_url: str, redis_url: str, monkeypatch
) -> None:
    parts = urlsplit(redis_url)
    monkeypatch.setenv("REDIS_URL", f"redis://:{PASSWORD}@{parts.hostname}:{parts.port}/0")
    done = command("board", "top")
    check_line(done.code, done.err)
    assert done.code == 69
    assert "invalid username-password pair" in done.err

    parts = urlsplit(database_url)
    where = f"{parts.hostname}:{parts.port}{parts.path}"
    monkeypatch.setenv("DATABASE_URL", f"postgresql://{parts.username}:{PASSWORD}@{where}")
    done = command("board", "list")
    check_line(done.code, done.err)
    assert done.code == 69
    assert "password authentication failed" in done.err


@pytest.mark.one_server
def test_a_redis_login_without_rights_is_reported_in_one_line_with_exit_code_4(
    command: Run, redis_url: str, monkeypatch
) -> None:
    command("board", "create", "main")
    parts = urlsplit(redis_url)
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", "limited", "on", f">{PASSWORD}", "~*", "+select")
        try:
            monkeypatch.setenv(
                "REDIS_URL", f"redis://limited:{PASSWORD}@{parts.netloc.split('@')[1]}/0"
            )
            for words in (
                ("board", "top"),
                ("reseed",),
                ("verify",),
                ("action", "set", "win", "5"),
            ):
                done = command(*words)
                check_line(done.code, done.err)
                assert done.code == 4
                assert "has no permissions to run" in done.err
        finally:
            admin.execute_command("ACL", "DELUSER", "limited")
    assert "run the command again" in done.err, "PostgreSQL has the change"


def test_a_database_without_tables_is_reported_with_the_command_to_run(
    command: Run, empty_database_url: str, monkeypatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)

    for words in (("board", "list"), ("user", "set", "alice", "--name", "A")):
        done = command(*words)
        check_line(done.code, done.err)
        assert (done.code, "scoreboard db migrate" in done.err) == (1, True)
    checked = command("config", "check")
    assert checked.code == 1
    assert "board main\tThe database schema is outdated (run scoreboard db migrate)" in checked.out


def test_the_cause_is_printed_once_with_the_address(command: Run, monkeypatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    done = command("board", "top")

    assert done.err == (
        "scoreboard: Redis is unreachable: Error 111 connecting to 127.0.0.1:1. "
        "Connect call failed ('127.0.0.1', 1)\n"
    )


@pytest.mark.parametrize("words", [("db", "migrate"), ("user", "import", "users.csv")])
def test_an_interrupt_exits_with_130_and_changes_nothing(
    words: Sequence[str], database_url: str, redis_url: str, users_file: Path
) -> None:
    with psycopg.connect(database_url) as blocker:
        blocker.execute("LOCK TABLE _yoyo_migration, users IN ACCESS EXCLUSIVE MODE")
        process = subprocess.Popen(
            [COMMAND, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=users_file.parent,
            env={"PATH": "/usr/bin:/bin", "REDIS_URL": redis_url, "DATABASE_URL": database_url},
        )
        try:
            eventually(lambda: is_waiting(database_url))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()

    assert (process.returncode, out) == (130, "")
    assert [line for line in err.splitlines() if not line.startswith("Acting on ")] == []
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)


def is_waiting(database_url: str) -> bool:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
    return row is not None and row[0] > 0


@contextmanager
def on_a_terminal(
    folder: Path, *words: str, columns: int = 80, **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, *words],
        stdin=writing,
        stdout=writing,
        stderr=writing,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "TERM": "xterm", "COLUMNS": str(columns), **settings},
    )
    os.close(writing)
    process.shown = reading  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        os.close(reading)


def read_all(process: subprocess.Popen[bytes]) -> str:
    text = b""
    while True:
        try:
            part = os.read(process.shown, 65536)  # type: ignore[attr-defined]
        except OSError:
            return text.decode()  # the other end of the terminal is closed
        if not part:
            return text.decode()
        text += part


@pytest.mark.parametrize("columns", [1, 80])
def test_names_are_printed_literally_on_a_terminal(
    columns: int, command: Run, redis_url: str, database_url: str, tmp_path: Path
) -> None:
    # Incident: `[/b]` was read as markup and ended the command; `:smile:` was replaced by an emoji.
    command("board", "create", "main")
    command("reseed")
    command("user", "set", "alice", "--name", "[/b][red]:smile:")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE users SET email = E'\\x1b[31m\\u202e' WHERE name <> ''")

    with on_a_terminal(
        *(tmp_path, "user", "show", "alice"),
        columns=columns,
        REDIS_URL=redis_url,
        DATABASE_URL=database_url,
    ) as process:
        shown = read_all(process)
        assert process.wait(60) == 0

    if columns == 80:
        assert "[/b][red]:smile:" in shown
        assert "\\x1b[31m\\u202e" in shown
    assert "\x1b[31m" not in shown
    assert "\u202e" not in shown


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_output_works_in_any_locale(
    locale: dict[str, str], command: Run, redis_url: str, database_url: str, tmp_path: Path
) -> None:
    command("board", "create", "main")
    command("reseed")
    command("user", "set", "alice", "--name", "山田\u3000太郎")
    servers = {"REDIS_URL": redis_url, "DATABASE_URL": database_url}

    table = run(tmp_path, "user", "show", "alice", **servers, **locale)
    as_json = run(tmp_path, "user", "show", "alice", "--json", **servers, **locale)

    assert (table.returncode, table.stderr) == (0, "")
    assert "name\t" in table.stdout
    assert as_json.returncode == 0
    assert '"山田\u3000太郎"' in as_json.stdout


UNREADABLE = b"caf\xe9"


@pytest.mark.parametrize("name", [UNREADABLE, b"a\nb", "\u202ea".encode()], ids=repr)
def test_up_refuses_a_folder_whose_name_is_not_plain_text(name: bytes, tmp_path: Path) -> None:
    done = subprocess.run(
        [os.fsencode(COMMAND), b"up", b"--data-dir", name],
        capture_output=True,
        check=False,
        timeout=30,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
    )

    assert done.returncode == 5
    assert done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--api", "http://127.0.0.1:99999"),
        ("--api", "http://127.0.0.1:0"),
        ("--api", "ftp://127.0.0.1"),
        ("--api", "http://127.0.0.1:1", "--seconds", "nan"),
        ("--api", "http://127.0.0.1:1", "--seconds", "inf"),
    ],
    ids=" ".join,
)
def test_simulate_rejects_invalid_options(options: Sequence[str], tmp_path: Path) -> None:
    done = run(tmp_path, "simulate", *options)

    assert done.returncode == 2
    assert "Invalid value for '--" in done.stderr


@pytest.mark.parametrize("url", ["http://x", "ws://[::1", "ws://", "nonsense", "ws://x:port/"])
def test_an_invalid_streamer_address_is_refused(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "board", "watch", "--url", url)

    check_line(done.returncode, done.stderr)
    assert done.returncode == 5


@pytest.mark.parametrize(
    "words",
    [
        ("up", "--data-dir", b"/proc/nowhere"),
        ("up", "--data-dir", b"users.csv"),
        ("board", "top", "--data-dir", UNREADABLE),
        ("token", "--sub", "alice", "--data-dir", UNREADABLE),
        ("token", "--sub", "alice", "--data-dir", b"users.csv"),
        ("user", "import", UNREADABLE),
    ],
    ids=repr,
)
def test_an_unusable_path_is_reported_without_a_traceback(
    words: Sequence[str | bytes], users_file: Path
) -> None:
    done = subprocess.run(
        [os.fsencode(COMMAND), *map(os.fsencode, words)],
        capture_output=True,
        check=False,
        timeout=30,
        cwd=users_file.parent,
        env={"PATH": "/usr/bin:/bin"},
    )

    assert done.returncode in DOCUMENTED - {0}
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


def test_a_folder_instead_of_a_file_is_refused(command: Run, tmp_path: Path) -> None:
    assert command("user", "import", str(tmp_path)).code == 2
    assert command("user", "import", str(tmp_path / "nothing.csv")).code == 2


def test_the_limit_of_open_files_is_reported_without_a_traceback(tmp_path: Path) -> None:
    def limit_open_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))

    done = run(tmp_path, "board", "list", before=limit_open_files, **NOWHERE)

    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback_without_the_password(tmp_path: Path) -> None:
    done = run(tmp_path, "--debug", "board", "list", **NOWHERE)

    assert done.returncode == 69
    assert "Traceback" in done.stderr
    assert PASSWORD not in done.stderr


def test_the_status_of_a_missing_secret_has_no_time_of_a_change(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        *("secrets", "status", "redis", "api/redis", "--json"),
        REDIS_URL="redis://127.0.0.1:1",
        SCOREBOARD_SECRETS="file",
    )

    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["current"] is None
    assert found["changed_s_ago"] is None
