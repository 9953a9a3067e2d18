"""Run the scenario on the Docker of this machine, with the official images: `make smoke`.

It starts a project of its own name, ports and network, and removes it at the end, also after
Ctrl-C. It touches no other project. Needs docker with Compose 2.20.2 or later, and the network.
"""

import os
import signal
import sys
import time
from typing import NoReturn

from tests.proofs.compose.scenario import Load, Scenario, steps
from tests.proofs.compose.stack import Fault, Stack, check_version, own_variables
from tests.support.repository import ROOT


def say(text: str) -> None:
    """Print a line of progress."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def interrupt(*_: object) -> NoReturn:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt


def main() -> int:
    """Run all steps; return 0 if each is right."""
    signal.signal(signal.SIGTERM, interrupt)
    started = time.monotonic()
    stack = Stack(ROOT, {})
    try:
        version = check_version(stack.run)
        stack = Stack(ROOT, own_variables(f"scoreboard-smoke-{os.getpid()}", stack.run))
    except (Fault, OSError) as error:
        say(f"Docker with Compose is needed: {error}")
        return 1
    say(f"Docker Compose {version}, project {stack.name}")
    name, status = "", 1
    try:
        for name, step in steps(Scenario(stack, Load(stack), say)):
            say(f"[{time.monotonic() - started:4.0f} s] {name}")
            step()
        status = 0
    except KeyboardInterrupt:
        say("interrupted")
    except Exception as error:  # noqa: BLE001 (any error of a step is its failure)
        say(f"FAILED: {name}: {error!r}" if not str(error) else f"FAILED: {name}: {error}")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if stack.left():
            say("removing the project")
            stack.remove()
    say(f"[{time.monotonic() - started:4.0f} s] {'FAILED' if status else 'all is well'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
