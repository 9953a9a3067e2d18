"""Practise the runbook on a running system that has a fault.

    python -m tests.drills start            # a random fault; Ctrl-C ends the drill
    python -m tests.drills start --faults 3 --seed 7
    python -m tests.drills check            # in another terminal: is the system well again?
    python -m tests.drills reveal           # what was injected

`start` prints the alert that is on the pager and how to open a shell with the runbook's functions.
It draws other faults than the drill before.
"""

import argparse
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path

from cli.signals import StopFlag
from tests.drills.checks import find_problems
from tests.drills.faults import FAULTS, Fault
from tests.drills.place import Place
from tests.drills.system import DrillSystem
from tests.support.eventually import eventually

CHECK_EVERY_S = 3.0
ALERT_MAX_S = 90.0
"""Longest time until an alert fires after its fault was injected."""

PLAY_S = 5.0
"""How long players act before a fault."""

RECORDS = "injected"
BEFORE = ".before"
"""The end of the name of the file, beside the folder, that lists the last drill's faults."""


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
    start.add_argument("--not", dest="without", action="append", default=[], choices=sorted(FAULTS),
                       metavar="NAME", help="a fault that is not drawn; repeatable")  # fmt: skip
    start.add_argument("--only", choices=sorted(FAULTS), help="a fault by name, to see its effect")
    inject = commands.add_parser(
        "inject", help="inject a fault into the running system; the drill announces no alert for it"
    )
    inject.add_argument("name", choices=sorted(FAULTS))
    commands.add_parser("check", help="exit 0 if the system is well, else list what is wrong")
    commands.add_parser("reveal", help="name the injected faults")
    given = parser.parse_args()
    if given.command == "start":
        before = given.folder.absolute().with_name(given.folder.absolute().name + BEFORE)
        without = {*given.without, *(before.read_text().split() if before.exists() else ())}
        names = [given.only] if given.only else draw(given.faults, given.seed, without)
        if not given.only:
            before.write_text("\n".join(names))
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


def draw(count: int, seed: int | None, without: AbstractSet[str]) -> list[str]:
    """Draw different faults, none of ``without`` and no two of one alert unless there are too few.

    The same seed and exclusions draw the same faults.
    """
    names = sorted(name for name, one in FAULTS.items() if one.is_drawn and name not in without)
    random.Random(seed).shuffle(names)
    alerts: dict[str, str] = {}
    for name in names:
        alerts.setdefault(FAULTS[name].alert, name)
    first = list(alerts.values())
    return [*first, *(name for name in names if name not in first)][:count]


def _run(folder: Path, faults: list[Fault]) -> int:
    if (folder / "parts").exists():
        print(f"{folder} is in use or left over; end its drill, or remove it", file=sys.stderr)
        return 1
    ended = StopFlag()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    print("Starting a system with players; this takes about 20 seconds …", flush=True)
    system = DrillSystem(folder)
    try:
        system.start()
    except Exception as error:  # noqa: BLE001 (any error is why the drill cannot start)
        reason = str(error) or type(error).__name__
        print(f"The start failed: {reason}", file=sys.stderr)
        print(f"Read the logs in {folder}, then remove it", file=sys.stderr)
        return 1
    try:
        print(f"Open a shell in another terminal:  bash --rcfile {system.folder}/env.sh")
        print("Follow docs/how-to/runbook.md. Ctrl-C ends the drill.", flush=True)
        for one in faults:
            if not _practise(system.place, one, ended):
                return 1
        print("All faults are repaired. The system runs until Ctrl-C.", flush=True)
        ended.wait()
        return 0
    finally:
        system.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _practise(place: Place, one: Fault, ended: StopFlag) -> bool:
    """Inject a fault and wait until the system is well; return False if the drill was ended."""
    if ended.wait(PLAY_S):
        return False
    one.inject(place)
    eventually(lambda: find_problems(place), within_s=30)
    if one.is_alerting is not None:
        _wait_for_alert(place, one.is_alerting, ended)
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


def _wait_for_alert(place: Place, is_alerting: Callable[[Place], bool], ended: StopFlag) -> None:
    """Wait until a metric reaches the threshold of the alert, or the drill is ended."""
    deadline = time.monotonic() + ALERT_MAX_S
    while not is_alerting(place) and time.monotonic() < deadline:
        if ended.wait(CHECK_EVERY_S):
            return


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description."""


if __name__ == "__main__":
    sys.exit(main())
