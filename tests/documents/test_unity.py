"""The example for Unity compiles against what it uses of Unity."""

import subprocess
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.tools import program


def test_the_example_for_unity_compiles(tmp_path: Path) -> None:
    sources = [*(ROOT / "docs/clients").glob("*.cs"), ROOT / "tests/documents/unity.cs"]
    options = ["-langversion:7", "-warn:4", "-warnaserror", "-target:library"]

    done = subprocess.run(
        [
            program("mcs", "mono-mcs"),
            *options,
            f"-out:{tmp_path / 'example.dll'}",
            "-r:System.Net.Http",
            *map(str, sources),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
