"""Runs a `scoreboard` command line in a process of its own that kills itself at a point.

python -m tests.support.killed_command POINT ARGUMENT…

POINT is ``before`` or ``after``, the name of a method of Store or of a function of
scoreboard.recovery.reshard, and the number of its call: ``after:open:2``. At ``interrupt`` in place
of the former two, the process gets a SIGINT before the call, as by Ctrl-C.
"""

import os
import signal
import sys
from typing import Any

from cli.main import run
from scoreboard.recovery import reshard
from scoreboard.store.store import Store


def arm(when: str, name: str, number: int) -> None:
    """Let the process kill itself at a call."""
    owner: Any = reshard if hasattr(reshard, name) else Store
    real = getattr(owner, name)
    calls = 0

    async def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        is_here = calls == number
        if is_here and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if is_here and when == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        reply = await real(*arguments, **named)
        if is_here and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    setattr(owner, name, call)


if __name__ == "__main__":
    when, name, number = sys.argv[1].split(":")
    arm(when, name, int(number))
    sys.exit(run(sys.argv[2:]))
