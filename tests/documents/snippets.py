"""Runs the shell blocks of a documentation page in one bash session.

A block that runs is marked ```sh run; `exit=N` after it states an exit code other than 0. A
following ```text output or ```json output block is what it must print; `…` in it matches the rest
of a line, and a line of its own any number of lines. `<!-- sh run … -->` runs without being
shown: what a reader does by other means, such as waiting or restarting services.
"""

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 150
BLOCK = re.compile(
    r"^(?:```|<!-- )sh run(?: exit=(?P<code>\d+))?\n(?P<text>.*?)^(?:```|-->)$"
    r"(?:\n+```(?:text|json) output\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
SYSTEM = re.compile(r"^<!-- system: (\w+) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """One block: ``output`` is None if any output is accepted."""

    text: str
    code: int
    output: str | None


def snippets_of(page: str) -> list[Snippet]:
    """Return the runnable blocks of a page's text, in order."""
    return [
        Snippet(found["text"], int(found["code"] or 0), found["output"])
        for found in BLOCK.finditer(page)
    ]


def system_of(page: str) -> str:
    """Return the system that a page's blocks need: `up`, `servers`, `drill`, `vite`, or none."""
    found = SYSTEM.search(page)
    return found[1] if found else ""


def pattern_of(output: str) -> re.Pattern[str]:
    """Return the pattern of a whole expected output."""
    parts = []
    for line in output.strip().splitlines():
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(re.escape(line.rstrip()).replace("…", ".*") + r" *\n")
    return re.compile("".join(parts))


def run_page(
    snippets: list[Snippet], folder: Path, environment: Mapping[str, str], preamble: str = ""
) -> None:
    """Run the blocks in ``folder``; raise AssertionError naming the first that fails."""
    logs = folder / ".snippets"
    logs.mkdir()
    lines = ["set -euo pipefail", preamble]
    for number, one in enumerate(snippets):
        lines.append(f'exec >"{logs}/{number}.out" 2>"{logs}/{number}.err"')
        if one.code:
            lines.append(f"set +e\n{one.text}\ncode=$?\nset -e\n[ $code = {one.code} ]")
        else:
            lines.append(one.text)
        lines.append(f'touch "{logs}/{number}.done"')
    process = subprocess.Popen(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(TIMEOUT_S)
    finally:
        _end(process.pid)
        process.wait()
    for number, one in enumerate(snippets):
        out, errors = (logs / f"{number}.out", logs / f"{number}.err")
        output = "\n".join(path.read_text() for path in (out, errors) if path.exists())
        assert (logs / f"{number}.done").exists(), f"{one.text}\nfailed:\n{output}"
        if one.output is not None:
            printed = "".join(f"{line.rstrip()}\n" for line in out.read_text().strip().splitlines())
            wanted = pattern_of(one.output)
            assert wanted.fullmatch(printed), f"{one.text}\nprinted:\n{output}\nnot:\n{one.output}"


def _end(group: int) -> None:
    """End the session's processes, background ones included."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
