"""How `scoreboard up` ends."""

import threading
from pathlib import Path

import pytest

from cli.running.plan import Plan, UpOptions
from cli.running.system import System


class StopSetDuringCheck(threading.Event):
    """A stop event that is set right after a wait for it has timed out."""

    def wait(self, timeout: float | None = None) -> bool:
        was_set = super().wait(0)
        self.set()
        return was_set


def test_a_signal_during_a_check_stops_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(System, "_start", lambda _self: None)
    plan = Plan(UpOptions(data_dir=tmp_path, api_port=0, ws_port=0))

    System(plan, StopSetDuringCheck()).run()
