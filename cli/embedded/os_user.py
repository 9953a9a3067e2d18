"""The user that PostgreSQL runs as: it refuses root, and its user id must be in the user database.

Invariants: no user is created, and the mode and owner of files that this project did not create are
not changed.
"""

import os
import pwd
import subprocess
from dataclasses import dataclass

from cli.embedded.binaries import find_program
from scoreboard.errors import EmbeddedFailed


@dataclass(frozen=True)
class ProcessUser:
    """How to run a program as a user that PostgreSQL accepts.

    ``prefix`` runs a command in a user namespace, in which the files of this user appear as an
    ordinary user's. ``user`` and ``group`` change to another user, who must own the data folder.
    """

    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None


def choose_postgres_user(*, allow_namespace: bool = True) -> ProcessUser:
    """Choose a user that PostgreSQL accepts: this one, a namespace's, or another one.

    Raises EmbeddedFailed if none is possible.
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
        f"PostgreSQL needs a named user, but user id {os.geteuid()} has no name; "
        "set REDIS_URL and DATABASE_URL to use your own servers",
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
            "PostgreSQL does not run as root, and there is no other user; "
            "set REDIS_URL and DATABASE_URL to use your own servers",
        )
    return accounts.get("nobody") or next(iter(accounts.values()))


def _runs(command: list[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
