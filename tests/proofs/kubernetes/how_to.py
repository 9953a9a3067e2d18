"""The commands of docs/how-to/kubernetes.md, run against the control plane."""

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from tests.proofs.kubernetes import programs
from tests.proofs.kubernetes.control_plane import Cluster
from tests.support.repository import ROOT

PAGE: Final = ROOT / "docs/how-to/kubernetes.md"
COMMANDS_S: Final = 180


def commands_of(section: str) -> str:
    """Return the block of commands in a section of the page that applies an overlay."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if "kubectl apply" in block]
    return found


def run(cluster: Cluster, commands: str, repository: Path) -> None:
    """Run commands in a copy of the repository; they must succeed without a warning."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=repository,
        env={**cluster.environment, "PATH": f"{programs.kubernetes()}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMANDS_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning:" not in done.stderr, done.stderr
