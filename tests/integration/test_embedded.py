"""The embedded servers of `scoreboard up` and of the tests: durability, settings, failures."""

import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.embedded import binaries, child, os_user, ports, servers
from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from scoreboard.errors import EmbeddedFailed
from tests.support.eventually import eventually
from tests.support.servers.stores import OwnPostgres, OwnValkey

pytestmark = pytest.mark.slow

SERVER_TYPES = [EmbeddedValkey, EmbeddedPostgres]


def has_ended(pid: int) -> bool:
    """Return whether a process that is not a child of this one has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def listeners(port: int) -> set[str]:
    """Return the addresses, as the kernel prints them, of the listeners on a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            address, _, hexadecimal = local.partition(":")
            if state == "0A" and int(hexadecimal, 16) == port:
                found.add(address)
    return found


def query(url: str, statement: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def failure_of(server: EmbeddedServer) -> str:
    """Return the error of a failed start; check that the server is not running."""
    with pytest.raises(EmbeddedFailed) as caught:
        server.start()
    assert not server.is_running
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- data -----------------------------------------------------------------------------------------


def test_valkey_has_every_acknowledged_write_after_sigkill(own_valkey: OwnValkey):
    server = own_valkey()
    with redis.Redis.from_url(server.url) as client:
        for number in range(100):
            client.set(f"key-{number}", number)
        os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not server.is_running)

    server.start()

    with redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 100
        assert client.get("key-99") == b"99"


def test_postgres_has_every_commit_after_sigkill(own_postgres: OwnPostgres):
    server = own_postgres()
    query(server.url, "CREATE TABLE kept AS SELECT generate_series(1, 100)")
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not server.is_running)

    server.start()

    assert query(server.url, "SELECT count(*) FROM kept") == [(100,)]


@pytest.mark.parametrize("kind", SERVER_TYPES)
def test_a_stopped_server_starts_again_with_its_password(kind, tmp_path: Path):
    server = kind(tmp_path / "data")
    with server:
        pid, url = server.pid, server.url
        assert server.stop() is True
        assert server.pid is None
        assert has_ended(pid)

        server.start()

        assert server.url == url
        pid = server.pid
    assert has_ended(pid)


def test_a_server_that_does_not_stop_is_killed_at_the_deadline(own_valkey: OwnValkey):
    server = own_valkey()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)

    assert server.stop(within_s=0.2) is False

    assert has_ended(pid)


# --- settings -------------------------------------------------------------------------------------


def test_valkey_is_configured_for_durability_without_eviction(valkey_server: EmbeddedValkey):
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "maxmemory": str(1 << 30),
        "maxmemory-policy": "noeviction",
        "save": "",
        "bind": "127.0.0.1",
        "protected-mode": "yes",
        "hash-max-listpack-entries": "512",
        "dir": str(valkey_server.folder.path),
    }
    with redis.Redis.from_url(valkey_server.url, decode_responses=True) as client:
        assert client.config_get(*wanted) == wanted


def test_single_settings_can_be_overridden(own_valkey: OwnValkey, own_postgres: OwnPostgres):
    valkey = own_valkey(settings={"appendfsync": "everysec"}, maxmemory_bytes=10_000_000)
    postgres = own_postgres(settings={"max_connections": "7"}, fsync=True)

    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        got = client.config_get("appendfsync", "maxmemory", "appendonly")
    assert got == {"appendfsync": "everysec", "maxmemory": "10000000", "appendonly": "yes"}
    assert query(postgres.url, "SHOW max_connections") == [("7",)]
    assert query(postgres.url, "SHOW fsync") == [("on",)]


def test_postgres_uses_utf8_code_point_order_and_english_messages(postgres_server):
    assert query(
        postgres_server.url,
        "SELECT current_user, current_database(), datlocprovider, datlocale, "
        "pg_encoding_to_char(encoding), current_setting('lc_messages'), current_setting('timezone')"
        " FROM pg_database WHERE datname = current_database()",
    ) == [("scoreboard", "scoreboard", "b", "C.UTF-8", "UTF8", "C", "UTC")]


def test_the_servers_listen_only_on_loopback(valkey_server, postgres_server):
    assert listeners(valkey_server.port) == {"0100007F"}
    assert listeners(postgres_server.port) == {"0100007F"}
    assert query(postgres_server.url, "SHOW unix_socket_directories") == [("",)]


def test_a_connection_without_the_password_is_refused(valkey_server, postgres_server):
    client = redis.Redis(port=valkey_server.port, retry=Retry(NoBackoff(), 0))
    with client, pytest.raises(redis.AuthenticationError):
        client.ping()
    url = postgres_server.url.replace(postgres_server.password, "guess")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)


@pytest.mark.parametrize("fixture", ["valkey_server", "postgres_server"])
def test_the_password_is_only_in_private_files(fixture: str, request: pytest.FixtureRequest):
    server = request.getfixturevalue(fixture)
    for part in ("cmdline", "environ"):
        assert server.password.encode() not in Path(f"/proc/{server.pid}/{part}").read_bytes()
    assert server.password not in repr(server)
    files = [path for path in server.folder.path.iterdir() if path.is_file()]
    assert files
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERVER_TYPES)
def test_a_port_in_use_is_reported_with_its_settings(kind, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        line = failure_of(kind(tmp_path / "data", port))

    assert f"127.0.0.1:{port}" in line
    assert "Address already in use" in line


@pytest.mark.parametrize("kind", SERVER_TYPES)
def test_a_folder_with_other_files_is_left_untouched(kind, tmp_path: Path):
    (tmp_path / "PG_VERSION").write_text("15")

    line = failure_of(kind(tmp_path))

    assert str(tmp_path) in line
    assert "PG_VERSION" in line
    assert [path.name for path in tmp_path.iterdir()] == ["PG_VERSION"]


@pytest.mark.parametrize("kind", SERVER_TYPES)
def test_a_folder_of_another_user_is_left_untouched(kind, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    line = failure_of(kind(tmp_path))

    assert f"belongs to user id {tmp_path.stat().st_uid}" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", SERVER_TYPES)
def test_a_second_server_on_the_same_folder_is_refused(kind, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("cli.embedded.data_folder.LOCK_WAIT_S", 0.1)
    with kind(tmp_path / "data") as first:
        line = failure_of(kind(tmp_path / "data"))

        assert first.is_running
        assert f"already uses {tmp_path / 'data'} (process {first.pid})" in line


def test_a_path_that_is_not_a_folder_is_refused_by_name(tmp_path: Path):
    (tmp_path / "file").touch()

    assert f"Cannot use the data folder {tmp_path / 'file'}" in failure_of(
        EmbeddedValkey(tmp_path / "file")
    )


def test_a_cluster_of_another_major_version_is_refused(tmp_path: Path):
    with EmbeddedPostgres(tmp_path / "data", fsync=False) as server:
        server.stop()
        (tmp_path / "data" / "cluster" / "PG_VERSION").write_text("9\n")

        assert "was created by PostgreSQL 9, but this is 1" in failure_of(server)


def test_a_changed_password_file_is_reported(tmp_path: Path):
    with EmbeddedPostgres(tmp_path / "data", fsync=False) as server:
        server.stop()
        (tmp_path / "data" / "postgres-password").write_text("changed")

        assert "password differs from the one in the data folder" in failure_of(server)


def test_an_invalid_setting_is_reported_with_the_last_log_lines(tmp_path: Path):
    valkey = EmbeddedValkey(tmp_path / "valkey", settings={"appendfsync": "sometimes"})
    postgres = EmbeddedPostgres(tmp_path / "postgres", settings={"max_connections": "many"})

    assert "must be one of the following: everysec" in failure_of(valkey)
    assert 'invalid value for parameter "max_connections"' in failure_of(postgres)


def test_an_error_does_not_contain_the_password(tmp_path: Path):
    server = EmbeddedValkey(tmp_path, password="hunter2", settings={"masterauth": "hunter2 more"})

    line = failure_of(server)

    assert "masterauth" in line
    assert "hunter2" not in line


def test_missing_programs_are_reported_with_the_package_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(binaries, "_package_folders", lambda _name: [])
    monkeypatch.setattr(binaries, "_postgres_folders", lambda: iter([tmp_path]))
    monkeypatch.setenv("PATH", str(tmp_path))

    for kind, variable in ((EmbeddedValkey, "REDIS_URL"), (EmbeddedPostgres, "DATABASE_URL")):
        line = failure_of(kind(tmp_path / variable))
        assert "scoreboard[embedded]" in line
        assert variable in line


def test_redis_server_of_the_system_is_used_without_the_wheel(
    tmp_path: Path, own_valkey: OwnValkey, monkeypatch
):
    (tmp_path / "redis-server").symlink_to(binaries.find_valkey())
    monkeypatch.setattr(binaries, "_package_folders", lambda _name: [])
    monkeypatch.setenv("PATH", str(tmp_path))

    server = own_valkey()

    assert b"redis-server" in Path(f"/proc/{server.pid}/cmdline").read_bytes()


# --- PostgreSQL -----------------------------------------------------------------------------------


def test_a_stale_process_id_of_another_process_does_not_prevent_a_start(own_postgres: OwnPostgres):
    server = own_postgres()
    pid_file = server.folder.path / "cluster" / "postmaster.pid"
    text = pid_file.read_text()
    server.kill()
    other = child.spawn(["/bin/sleep", "60"], on_parent_death=signal.SIGKILL)
    try:
        pid_file.write_text(text.replace(text.split("\n")[0], str(other.pid), 1))

        server.start()

        assert query(server.url, "SELECT 1") == [(1,)]
    finally:
        child.kill(other)


def test_an_interrupted_initdb_does_not_prevent_a_start(tmp_path: Path):
    with EmbeddedPostgres(tmp_path / "data", fsync=False) as server:
        server.stop()
        (tmp_path / "data" / "cluster").rename(tmp_path / "data" / "making")

        server.start()

        assert query(server.url, "SELECT 1") == [(1,)]


def test_postgres_of_the_system_is_used_without_the_wheel(own_postgres: OwnPostgres, monkeypatch):
    monkeypatch.setattr(binaries, "_package_folders", lambda _name: [])
    try:
        programs = binaries.find_postgres()
    except EmbeddedFailed:
        pytest.skip("PostgreSQL is not installed on this system, only the wheel")

    server = own_postgres()

    version = query(server.url, "SHOW server_version_num")[0][0]
    assert int(version) // 10000 == programs.major
    assert query(server.url, "SELECT 'Z' < 'a'") == [(True,)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")
def test_root_without_user_namespaces_runs_postgres_as_another_user(
    tmp_path: Path,
    monkeypatch,
    request: pytest.FixtureRequest,
):
    reached = Path(binaries.find_postgres().path("postgres")).resolve()
    if not all(folder.stat().st_mode & stat.S_IXOTH for folder in reached.parents):
        pytest.skip(f"only root can reach {reached}")
    monkeypatch.setattr(os_user, "_runs", lambda _command: False)
    modes = {path: path.stat() for path in (tmp_path, *tmp_path.parents)}

    with EmbeddedPostgres(tmp_path / "data", fsync=False) as server:
        folder = (tmp_path / "data" / "cluster").resolve().parent
        request.addfinalizer(lambda: shutil.rmtree(folder))
        query(server.url, "CREATE TABLE kept ()")
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        server.kill()
        # With user namespaces available again, the cluster keeps its owner.
        monkeypatch.undo()
        server.start()
        assert query(server.url, "SELECT * FROM kept") == []

    for path, before in modes.items():
        now = path.stat()
        assert (now.st_uid, now.st_gid, now.st_mode) == (
            before.st_uid,
            before.st_gid,
            before.st_mode,
        )
    assert folder.parent == Path("/var/tmp")


def test_a_user_without_a_name_is_refused_with_advice(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(os_user, "_runs", lambda _command: False)

    with pytest.raises(EmbeddedFailed, match="54321 has no name; set REDIS_URL"):
        os_user.choose_postgres_user()


# --- the end of the parent ------------------------------------------------------------------------

_PARENT = """
import signal, sys
from pathlib import Path
from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
folder = Path(sys.argv[1])
servers = [EmbeddedValkey(folder / "valkey"), EmbeddedPostgres(folder / "postgres", fsync=False)]
for server in servers:
    server.start()
print(*(server.pid for server in servers), flush=True)
signal.pause()
"""


def test_servers_end_with_a_killed_parent_and_start_again(
    tmp_path: Path,
    own_valkey: OwnValkey,
    own_postgres: OwnPostgres,
):
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(has_ended(pid) for pid in pids)
        parent.kill()

    eventually(lambda: all(has_ended(pid) for pid in pids))

    with redis.Redis.from_url(own_valkey(tmp_path / "valkey").url) as client:
        assert client.ping()
    assert query(own_postgres(tmp_path / "postgres").url, "SELECT 1") == [(1,)]


def test_the_servers_run_in_their_own_sessions(valkey_server, postgres_server):
    for server in (valkey_server, postgres_server):
        assert os.getsid(server.pid) == server.pid
        assert os.getsid(server.pid) != os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel watches threads on Linux only")
def test_a_child_outlives_the_thread_that_started_it():
    started: list[child.Process] = []

    def start() -> None:
        process = child.spawn(["/bin/sleep", "60"], on_parent_death=signal.SIGKILL)
        started.append(process)
        eventually(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    eventually(lambda: not Path(f"/proc/self/task/{thread.native_id}").exists())

    try:
        with pytest.raises(subprocess.TimeoutExpired):
            started[0].wait(0.2)
    finally:
        child.kill(started[0])


def test_a_child_of_an_ended_parent_does_not_start():
    launcher = Path(servers.__file__).with_name("launch.py")
    other_pid = str(os.getppid())
    words = [other_pid, str(int(signal.SIGTERM)), "-1", "-1", "/bin/echo", "started"]

    done = subprocess.run(
        [sys.executable, "-I", "-S", str(launcher), *words],
        capture_output=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stdout == b""


def test_free_ports_are_free_and_not_in_the_ephemeral_range():
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = find_free_port()

    assert port < first_ephemeral
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_free_port_is_given_to_one_caller_only(monkeypatch):
    port, other = find_free_port(), find_free_port()
    elsewhere = f"""
import random
from cli.embedded.ports import find_free_port
random.randint = lambda *_: draws.pop(0)
draws = [{port}, {other}, 31999, 31998, 31997, 31996]
print(find_free_port())
"""
    monkeypatch.setattr(random, "randint", lambda *_: next(draws))
    draws = iter([port, other, *range(31_900, 31_950)])

    done = subprocess.run(
        [sys.executable, "-c", elsewhere], capture_output=True, text=True, timeout=30, check=True
    )

    assert find_free_port() not in {port, other}
    assert int(done.stdout) not in {port, other}


def test_only_the_last_ports_stay_reserved():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(ports._RESERVATIONS + 20):
        find_free_port()

    assert len(list(Path("/proc/self/fd").iterdir())) <= before + ports._RESERVATIONS


# --- the fixtures ---------------------------------------------------------------------------------


def test_fixtures_return_an_empty_valkey_and_a_migrated_database(redis_url, database_url):
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")
    assert query(database_url, "SELECT count(*) FROM score_events") == [(0,)]
    query(database_url, "DROP TABLE score_events CASCADE")


def test_changes_of_the_previous_test_are_removed(redis_url, database_url):
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
    assert query(database_url, "SELECT count(*) FROM score_events") == [(0,)]
