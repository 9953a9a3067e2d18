"""Services of `up`: the summary of their logs, and the report of an exit."""

import json
from pathlib import Path

import pytest

from cli.running.service import Service, summarize_log_tail, wait_until_ready
from scoreboard.errors import ServiceExited, WaitTimeout
from tests.support.eventually import eventually


def line(message: str, **fields: str) -> str:
    return json.dumps({"message": message, **fields})


def test_log_tail_contains_events_with_their_reasons(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text(
        "\n".join(
            [
                line("long_ago"),
                line("api_listening"),
                line("process_failed", **{"event.reason": "no room"}),
                line("process_crashed", **{"error.stack_trace": "Traceback …\nValueError: x"}),
                "scoreboard: a plain line",
            ]
        )
    )

    assert summarize_log_tail(log) == (
        "api_listening | process_failed: no room | process_crashed: ValueError: x | "
        "scoreboard: a plain line"
    )
    assert summarize_log_tail(tmp_path / "none.log") == ""


def test_log_tail_contains_no_credentials(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("cannot reach redis://:hunter2@127.0.0.1 with Bearer eyJhbGciOi.eyJzdWIi.c2ln\n")

    words = summarize_log_tail(log)

    assert "hunter2" not in words
    assert "eyJ" not in words


@pytest.fixture
def make_service(tmp_path: Path):
    made: list[Service] = []

    def make(program: str, **options: str) -> Service:
        service = Service("api", ["-c", program], {}, tmp_path / "logs" / "api.log", **options)
        made.append(service)
        service.start()
        return service

    yield make
    for service in made:
        service.kill()


def test_a_service_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A `flusher.py` in the current folder was run in place of the flusher, with its passwords.
    (tmp_path / "flusher.py").write_text("print('stray')")
    (tmp_path / "sitecustomize.py").write_text("print('stray')")
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "logs" / "flusher.log"
    service = Service("flusher", ["-m", "flusher"], {"PYTHONPATH": f":.:{tmp_path}/lib"}, log)

    service.start()

    eventually(lambda: not service.is_running)
    assert "stray" not in log.read_text()
    assert "REDIS_URL is not set" in log.read_text()


def test_a_service_that_exits_is_reported_with_its_log(make_service) -> None:
    service = make_service("import sys; sys.exit('scoreboard: port 8000: in use')")
    eventually(lambda: not service.is_running)

    with pytest.raises(ServiceExited, match=r"exited with code 1; .*: scoreboard: port 8000"):
        service.check()


def test_a_service_that_ignores_sigterm_is_killed(make_service) -> None:
    ignore_sigterm = (
        "import signal,time; signal.signal(15, signal.SIG_IGN); print('set', flush=1); "
    )
    cooperative = make_service("import time; time.sleep(60)")
    assert cooperative.stop()
    assert cooperative.pid is None

    ignoring = make_service(ignore_sigterm + "time.sleep(60)")
    ignoring._drain_s = -2.5  # half a second in total
    eventually(lambda: "set" in ignoring.log.read_text())
    assert not ignoring.stop()
    assert ignoring.exit_code == -9


def test_one_previous_log_is_kept(make_service, tmp_path: Path) -> None:
    service = make_service("print('first')")
    eventually(lambda: not service.is_running)
    service.start()
    eventually(lambda: not service.is_running)

    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["api.log", "api.log.1"]


def test_wait_until_ready_raises_for_dead_and_slow_services(
    make_service, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = make_service("pass", ready_url="http://127.0.0.1:1/health/ready")
    with pytest.raises(ServiceExited):
        wait_until_ready([dead], lambda: None)

    monkeypatch.setattr("cli.running.service.READY_TIMEOUT_S", 0.2)
    slow = make_service("import time; time.sleep(60)", ready_url="http://127.0.0.1:1/x")
    with pytest.raises(WaitTimeout, match="does not answer"):
        wait_until_ready([slow], lambda: None)
