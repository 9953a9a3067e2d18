"""Becomes another program that cannot outlive the process that asked for it.

Run as a script by `cli.embedded.child`: `python -I -S launch.py PARENT SIGNAL UID GID PROGRAM
ARGUMENT…`. It stays the same process, so its pid is the program's. A step of its own, because code
run between fork and exec in a process with threads may deadlock, and because taking another user id
or entering a namespace can clear the request made of the kernel: whoever does so stands before this
step. On systems without that request (all but Linux) the program does outlive a killed parent.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
KEEP_IDENTITY = -1


def main(arguments: list[str]) -> None:
    """Take the identity, ask for SIGNAL at the parent's death, become PROGRAM."""
    parent, signal_number, user, group = (int(word) for word in arguments[:4])
    program = arguments[4:]
    if user != KEEP_IDENTITY:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    # What a non-interactive shell's `&` made deaf would stay so through exec.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)
    # The parent may have died before the kernel knew what to do about it.
    if os.getppid() != parent:
        sys.exit(1)
    try:
        os.execv(program[0], program)  # noqa: S606 - the caller's program, no shell
    except OSError as error:
        sys.exit(f"{program[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
