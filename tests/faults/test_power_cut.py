"""A power cut loses unsynced writes, and with the required settings no acknowledged one.

The other half shows that the test can see a loss: set to sync once a second, Redis loses
acknowledged actions, and the promise is broken.
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
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "synced"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(tmp_path: Path, notes: Path) -> dict[str, str]:
    compiler = shutil.which("cc")
    if compiler is None:
        assert not os.environ.get("CI"), "CI must have a C compiler"
        pytest.skip("needs a C compiler (cc)")
    library = tmp_path / "synced_size.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "SYNCED_SIZES": str(notes)}


def power_cut(notes: Path) -> Fault:
    async def inflict(stack: Stack, chance: random.Random) -> None:
        """Build up a backlog before PostgreSQL, then cut the power and restore it."""
        stack.signal("flusher", signal.SIGSTOP)
        await asyncio.sleep(chance.uniform(0.3, 0.7))  # pace: of the fault, nothing is awaited
        await asyncio.to_thread(stack.valkey.kill)
        file = stack.append_only_file
        note = notes / str(file.stat().st_ino)
        os.truncate(file, int(note.read_text()) if note.exists() else 0)
        await asyncio.to_thread(stack.valkey.start)
        stack.signal("flusher", signal.SIGCONT)

    return Fault("power_cut", inflict)


@pytest.mark.timeout(120)
async def test_a_power_cut_loses_nothing_acknowledged(
    tmp_path: Path, notes: Path, environment: dict[str, str]
) -> None:
    """I1–I6: every answer came after its fsync."""
    valkey = EmbeddedValkey(tmp_path / "valkey", environment=environment)

    report = await run_campaign(tmp_path, [power_cut(notes)] * 4, clients=8, valkey=valkey)

    assert report.violations == []
    assert report.acknowledged > 200


@pytest.mark.timeout(120)
async def test_the_power_cut_is_detected_with_fsync_every_second(
    tmp_path: Path, notes: Path, environment: dict[str, str]
) -> None:
    valkey = EmbeddedValkey(
        tmp_path / "valkey", environment=environment, settings={"appendfsync": "everysec"}
    )

    report = await run_campaign(
        tmp_path, [power_cut(notes)] * 3, clients=8, valkey=valkey, settle_s=5
    )

    assert any(sentence.startswith(("I1", "I5", "at rest")) for sentence in report.violations)
