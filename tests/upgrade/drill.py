"""The full drill: every pair of versions, the documented order and others, forward and back.

    python -m tests.upgrade.drill --actions 200 --clients 8 --to later

prints each step with the actions that were counted and the answers after which clients repeated an
action. The exit code is 1 if an invariant was violated. (`make upgrade-drill`)
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.upgrade import versions
from tests.upgrade.rollout import COMMANDS, ORDER, Report, rolling
from tests.upgrade.versions import Version

ORDERS = {
    "as documented": ORDER,
    "api first": ("api", "streamer", "flusher"),
    "streamer first": ("streamer", "flusher", "api"),
}


async def drill(
    folder: Path,
    old: Version,
    new: Version,
    order: Sequence[str],
    *,
    actions: int,
    clients: int,
) -> Report:
    """Upgrade under load, kill each old process once after the migrations, and roll back."""
    async with rolling(folder, old, clients=clients, pace_s=0.02, fsync=True) as rollout:
        await rollout.prepare_upgrade(new, actions=actions)
        for role in ORDER:
            await rollout.crash(role, actions=actions)
        for role in order:
            await rollout.replace(role, new, actions=actions)
        await rollout.roll_back(old, order, actions=actions)
        await rollout.replace_all(new, order, actions=actions, commands=COMMANDS)
        await rollout.finish()
    return rollout.report


async def main(arguments: argparse.Namespace) -> int:
    """Run every drill; return the exit code."""
    is_violated = False
    with tempfile.TemporaryDirectory(prefix="upgrade-") as made:
        folder = Path(made)
        previous, current = versions.previous(), versions.current()
        later = versions.later(folder / "later")
        for old, new in ((previous, current), (previous, later), (current, later)):
            if arguments.to not in {None, new.name}:
                continue
            for name, order in ORDERS.items():
                place = folder / f"{old.name}-{new.name}-{name.replace(' ', '-')}"
                place.mkdir()
                report = await drill(
                    place, old, new, order, actions=arguments.actions, clients=arguments.clients
                )
                print(f"\n{old.name} → {new.name}, {name}\n{report}", flush=True)
                is_violated = is_violated or bool(report.violations)
    return int(is_violated)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actions", type=int, default=200, help="actions in each state")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--to", choices=("current", "later"), help="only upgrades to this version")
    sys.exit(asyncio.run(main(parser.parse_args())))
