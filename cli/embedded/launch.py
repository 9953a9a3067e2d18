"""Exec a program that the kernel ends when its parent ends.

`cli.embedded.child` runs this script: `python -I -S launch.py PARENT SIGNAL UID GID PROGRAM
ARGUMENT…`. The process id stays the same. It is a separate script because code between fork and
exec can deadlock in a process with threads, and because a change of the user id or a new namespace
can clear PR_SET_PDEATHSIG, so these must come before it. On systems other than Linux the program
outlives a killed parent.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
KEEP_IDENTITY = -1


def main(arguments: list[str]) -> None:
    """Set the user and the parent-death signal, and exec PROGRAM."""
    parent, signal_number, user, group = (int(word) for word in arguments[:4])
    program = arguments[4:]
    if user != KEEP_IDENTITY:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    # Signals that a non-interactive shell ignores for `&` would stay ignored after exec.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)
    # The parent may have ended before the call of prctl.
    if os.getppid() != parent:
        sys.exit(1)
    try:
        os.execv(program[0], program)  # noqa: S606 - the caller's program, no shell
    except OSError as error:
        sys.exit(f"{program[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
