"""A power cut loses unsynced writes; with the required settings, no acknowledged action is lost.

The second test shows that a loss is detected: with a sync per second, Redis loses acknowledged
actions.
"""

import asyncio
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from cli.embedded.servers import EmbeddedValkey
from tests.faults.campaign import run_campaign
from tests.faults.faults import Fault
from tests.faults.stack import Stack

SOURCE = Path(__file__).with_name("synced_size.c")


@pytest.fixture
def synced_sizes(tmp_path: Path) -> Path:
    folder = tmp_path / "synced"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(tmp_path: Path, synced_sizes: Path) -> dict[str, str]:
    compiler = shutil.which("cc")
    if compiler is None:
        assert not os.environ.get("CI"), "CI must have a C compiler"
        pytest.skip("needs a C compiler (cc)")
    library = tmp_path / "synced_size.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "SYNCED_SIZES": str(synced_sizes)}


def power_cut(synced_sizes: Path) -> Fault:
    async def inflict(stack: Stack, chance: random.Random) -> None:
        """Let the stream grow, then truncate the unsynced part of the file, as a power cut does."""
        stack.signal("flusher", signal.SIGSTOP)
        await asyncio.sleep(chance.uniform(0.3, 0.7))  # pace: the backlog grows under load
        await asyncio.to_thread(stack.valkey.kill)
        file = stack.append_only_file
        note = synced_sizes / str(file.stat().st_ino)
        os.truncate(file, int(note.read_text()) if note.exists() else 0)
        await asyncio.to_thread(stack.valkey.start)
        stack.signal("flusher", signal.SIGCONT)

    return Fault("power_cut", inflict)


async def test_a_power_cut_loses_no_acknowledged_action(
    tmp_path: Path, synced_sizes: Path, environment: dict[str, str]
) -> None:
    """I1–I6: every response is sent after its fsync."""
    valkey = EmbeddedValkey(tmp_path / "valkey", environment=environment)

    report = await run_campaign(tmp_path, [power_cut(synced_sizes)] * 4, clients=8, valkey=valkey)

    assert report.violations == []
    assert report.acknowledged > 200


async def test_the_power_cut_is_detected_with_fsync_every_second(
    tmp_path: Path, synced_sizes: Path, environment: dict[str, str]
) -> None:
    valkey = EmbeddedValkey(
        tmp_path / "valkey", environment=environment, settings={"appendfsync": "everysec"}
    )

    report = await run_campaign(
        tmp_path, [power_cut(synced_sizes)] * 3, clients=8, valkey=valkey, settle_s=5
    )

    assert any(sentence.startswith(("I1", "I5", "while paused")) for sentence in report.violations)
