"""As whom PostgreSQL runs. It refuses root, and needs its user id in the password database.

Called by `cli.embedded.servers`. What stays true: no user is made, and no mode or owner is changed
of anything this project did not make itself.
"""

import os
import pwd
import subprocess
from dataclasses import dataclass

from cli.embedded.binaries import find_program
from scoreboard.errors import EmbeddedFailed


@dataclass(frozen=True)
class ProcessUser:
    """How to run a program as an accepted user.

    ``prefix`` runs the rest of a command in a user namespace, where our files look like an ordinary
    user's; ``user`` and ``group`` really become another user, whose folder must then be its own.
    """

    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None


def choose_postgres_user(*, allow_namespace: bool = True) -> ProcessUser:
    """Choose an identity that PostgreSQL accepts: ours, a namespace's, or another user's.

    Raises EmbeddedFailed where none of them is possible.
    """
    if os.geteuid() != 0 and _has_account(os.geteuid()):
        return ProcessUser()
    account = _ordinary_account()
    unshare, probe = find_program("unshare"), find_program("true")
    if unshare and probe and allow_namespace:
        prefix = (
            unshare,
            "--user",
            f"--map-user={account.pw_uid}",
            f"--map-group={account.pw_gid}",
        )
        if _runs([*prefix, probe]):
            return ProcessUser(prefix=prefix)
    if os.geteuid() == 0:
        return ProcessUser(user=account.pw_uid, group=account.pw_gid)
    raise EmbeddedFailed(
        f"PostgreSQL needs a named user, and user id {os.geteuid()} has no name here: "
        "set REDIS_URL and DATABASE_URL to servers of yours",
    )


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _ordinary_account() -> pwd.struct_passwd:
    accounts = {account.pw_name: account for account in pwd.getpwall() if account.pw_uid != 0}
    if not accounts:
        raise EmbeddedFailed(
            "PostgreSQL refuses to run as root, and there is no other user here: "
            "set REDIS_URL and DATABASE_URL to servers of yours",
        )
    return accounts.get("nobody") or next(iter(accounts.values()))


def _runs(command: list[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
