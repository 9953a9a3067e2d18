"""`scoreboard up` as a process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Up = dict[str, Any]


def run_up(folder: Path, *more: str) -> Iterator[Up]:
    """Run the system with its data in ``folder``; yield what `up --json` prints."""
    environment = {
        name: text
        for name, text in os.environ.items()
        if "SCOREBOARD" not in name and name not in {"REDIS_URL", "DATABASE_URL"}
    }
    ports = ["--api-port", "0", "--ws-port", "0"]
    words = ["up", "--data-dir", str(folder), *ports, "--json", *more]
    with (folder.parent / f"{folder.name}.log").open("w+") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "cli", *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            log.seek(0)
            assert line, log.read()
            yield json.loads(line)
        finally:
            running.terminate()
            running.communicate(timeout=40)
