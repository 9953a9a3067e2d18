"""The machine under a benchmark: CPU time of processes and of other programs, from /proc."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
KERNEL_THREADS = 2
"""The pid of kthreadd, the parent of the kernel's threads."""


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and of the children it has waited for, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS_PER_S


def family_cpu_s(pid: int) -> float:
    """Return the CPU time of a process, its running children and those it has waited for."""
    total = cpu_s(pid)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == pid:
            total += sum(map(int, fields[11:13])) / TICKS_PER_S
    return total


def pin(pid: int, cores: Iterable[int]) -> None:
    """Keep a process, with all its threads, on these cores."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def two_cores() -> tuple[int, int] | None:
    """Return a core for the server and one for the rest, or None if there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else None


class Foreign:
    """Measures the CPU time that other programs use, from its creation on.

    Own is this process with all its descendants, which include those that have ended and were
    waited for. The kernel's threads and interrupts are not counted as foreign, since they mostly
    work for the measured programs (fsync, the loopback device). Time stolen by the hypervisor is.
    """

    def __init__(self) -> None:
        self._before = (time.monotonic(), *busy_and_own_ticks(os.getpid()))

    def elapsed_and_used_s(self) -> tuple[float, float]:
        """Return the time since the creation, and the CPU time that others used in it."""
        now = (time.monotonic(), *busy_and_own_ticks(os.getpid()))
        elapsed_s, busy, own = (
            after - before for before, after in zip(self._before, now, strict=True)
        )
        return elapsed_s, (busy - own) / TICKS_PER_S

    def share(self) -> float:
        """Return the foreign share of the machine's CPU time since the creation: 0 to 1."""
        return share_of(*self.elapsed_and_used_s())


def share_of(elapsed_s: float, used_s: float) -> float:
    """Return the share of the machine's CPU time: 0 to 1."""
    cores = os.cpu_count() or 1
    return min(1.0, max(0.0, used_s / (elapsed_s * cores))) if elapsed_s > 0 else 0.0


def busy_and_own_ticks(root: int) -> tuple[int, int]:
    """Return the ticks of all programs, and those of a process tree."""
    words = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    user, nice, system, steal = (int(words[index]) for index in (1, 2, 3, 8))
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        ticks[pid] = sum(map(int, fields[11:15]))
    own = kernel = 0
    for pid in parents:
        at: int | None = pid
        while at is not None and at not in {root, KERNEL_THREADS}:
            at = parents.get(at)
        if at == root:
            own += ticks[pid]
        elif at == KERNEL_THREADS:
            kernel += ticks[pid]
    return user + nice + system + steal - kernel, own
