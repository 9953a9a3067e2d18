"""A full disk without a disk: the size of a process's files is limited to what they have."""

import resource
from contextlib import suppress

FULL_BYTES = 2048
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def limit_files(pid: int, *, is_full: bool) -> None:
    """Let the next write of a process to a file fail, or succeed again."""
    limits = (FULL_BYTES, resource.RLIM_INFINITY) if is_full else UNLIMITED
    with suppress(ProcessLookupError):
        if resource.prlimit(pid, resource.RLIMIT_FSIZE) != limits:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
