"""Practise the runbook on a running system that has a fault.

    python -m tests.drills start            # a random fault; Ctrl-C ends the drill
    python -m tests.drills start --faults 3 --seed 7
    python -m tests.drills check            # in another terminal: is the system well again?
    python -m tests.drills reveal           # what was injected

`start` prints the alert that is on the pager and how to open a shell with the runbook's functions.
"""

import argparse
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from tests.drills.checks import find_problems
from tests.drills.faults import FAULTS, Fault
from tests.drills.place import Place
from tests.drills.system import DrillSystem
from tests.support.eventually import eventually

CHECK_EVERY_S = 3.0
PLAY_S = 5.0
"""How long players act before a fault."""

RECORDS = "injected"


def main() -> int:
    """Run a drill, or a command on the running one."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.drills", description=__doc__, formatter_class=_Formatter
    )
    parser.add_argument("--folder", type=Path, default=Path(".drill"), help="default: .drill")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start a system and inject faults, one after another")
    start.add_argument("--faults", type=int, default=1, help="how many; default: 1")
    start.add_argument("--seed", type=int, help="choose the same faults again")
    start.add_argument("--only", choices=sorted(FAULTS), help="a fault by name, to see its effect")
    inject = commands.add_parser("inject", help="inject a fault into the running system")
    inject.add_argument("name", choices=sorted(FAULTS))
    commands.add_parser("check", help="exit 0 if the system is well, else list what is wrong")
    commands.add_parser("reveal", help="name the injected faults")
    given = parser.parse_args()
    if given.command == "start":
        names = [given.only] if given.only else _draw(given.faults, given.seed)
        return _run(given.folder, [FAULTS[name] for name in names])
    place = Place.load(given.folder.absolute())
    if given.command == "inject":
        FAULTS[given.name].inject(place)
        return 0
    if given.command == "reveal":
        print((place.folder / RECORDS).read_text(), end="")
        return 0
    problems = find_problems(place)
    print("\n".join(problems) or "The system is well.")
    return 1 if problems else 0


def _draw(count: int, seed: int | None) -> list[str]:
    names = sorted(name for name, one in FAULTS.items() if one.is_drawn)
    return random.Random(seed).sample(names, min(count, len(names)))


def _run(folder: Path, faults: list[Fault]) -> int:
    if (folder / "parts").exists():
        print(f"{folder} is in use or left over; end its drill, or remove it", file=sys.stderr)
        return 1
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    print("Starting a system with players …", flush=True)
    try:
        with DrillSystem(folder) as system:
            print(f"Open a shell in another terminal:  bash --rcfile {system.folder}/env.sh")
            print("Follow docs/how-to/runbook.md. Ctrl-C ends the drill.", flush=True)
            for one in faults:
                if not _practise(system.place, one, ended):
                    return 1
            print("All faults are repaired. The system runs until Ctrl-C.", flush=True)
            ended.wait()
            return 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _practise(place: Place, one: Fault, ended: threading.Event) -> bool:
    """Inject a fault and wait until the system is well; return False if the drill was ended."""
    if ended.wait(PLAY_S):
        return False
    one.inject(place)
    eventually(lambda: find_problems(place), within_s=30)
    with (place.folder / RECORDS).open("a") as file:
        file.write(f"{one.name}: {one.story}\n")
    began_s = time.monotonic()
    print(f"\n{time.strftime('%H:%M:%S')}  ALERT {one.alert}", flush=True)
    while not ended.wait(CHECK_EVERY_S):
        if not find_problems(place):
            took_s = time.monotonic() - began_s
            print(f"{time.strftime('%H:%M:%S')}  repaired after {took_s:.0f} s.")
            print(f"The fault was {one.name}: {one.story}", flush=True)
            return True
    print(f"\nThe fault was {one.name}: {one.story}")
    return False


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description."""


if __name__ == "__main__":
    sys.exit(main())
