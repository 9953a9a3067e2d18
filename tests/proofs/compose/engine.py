"""A container engine of the proof's own, apart from any that this machine has.

dockerd and containerd are Debian's, unpacked into the cache. They run in PID, mount and network
namespaces of their own, with a private ``/run``; slirp4netns connects them to the internet.
Bridges, iptables rules, mounts and processes therefore exist in these namespaces only: the kernel
removes them when the first process ends. Only control groups are shared with the machine;
``remove`` removes those of the engine.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import tools
from tests.support.eventually import eventually

HERE = Path(__file__).parent
PACKAGES = ("docker.io", "containerd", "runc", "tini", "slirp4netns", "libslirp0")
HOST_PROGRAMS = ("unshare", "mount", "ip", "iptables", "iptables-save")
"""Programs with libraries or tables of their own, used as the machine has them."""

START_S = 60
STOP_S = 120
CGROUPS = Path("/sys/fs/cgroup")
CLONE_NEWNET = 0x40000000  # <linux/sched.h>; os.setns is new in Python 3.12

BOOT = r"""
set -eu
mount -t tmpfs tmpfs /run
echo nameserver 10.0.2.3 >/run/resolv.conf
mount --bind /run/resolv.conf "$(readlink -f /etc/resolv.conf 2>/dev/null || echo /etc/resolv.conf)"
ip link set lo up
while ! ip link show tap0 >/dev/null 2>&1; do sleep 0.05; done
exec "$@"
"""
"""What the first process of the namespaces does before it becomes tini, which starts dockerd."""


class Engine:
    """dockerd with its data in ``folder``; ``start`` after ``cut_power`` is a reboot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.log = folder / "dockerd.log"
        self._root = tools.debian_packages(PACKAGES)
        self._init: subprocess.Popen[bytes] | None = None
        self._slirp: subprocess.Popen[bytes] | None = None

    @property
    def environ(self) -> dict[str, str]:
        """Return the variables with which Docker's client uses this engine."""
        return {"DOCKER_HOST": f"unix://{self.socket}"}

    @property
    def client(self) -> Path:
        """Return Docker's client of the engine's version."""
        return self._root / "usr/bin/docker"

    @property
    def init_id(self) -> int:
        """Return the id, on the machine, of the first process in the namespaces."""
        assert self._init is not None
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        return int(eventually(lambda: children.read_text().split(), within_s=START_S)[0])

    def enter_network(self) -> None:
        """Move the calling thread, and what it starts, to the network of the published ports."""
        enter_network(Path(f"/proc/{self.init_id}/ns/net"))

    def start(self) -> None:
        """Start the engine and wait until it answers; a failure skips the proof."""
        self.socket.unlink(missing_ok=True)
        bin_, sbin = self._root / "usr/bin", self._root / "usr/sbin"
        dockerd = [
            *(sbin / "dockerd", "-H", f"unix://{self.socket}", "--data-root", self.folder / "data"),
            *("--exec-root", "/run/docker", "--pidfile", "/run/docker.pid"),
            *(
                "--exec-opt",
                "native.cgroupdriver=cgroupfs",
                "--cgroup-parent",
                f"/{self.folder.name}",
            ),
            *("--oom-score-adjust", "0", "--userland-proxy-path", sbin / "docker-proxy"),
            *("--init-path", bin_ / "docker-init"),
            *("--bip", "10.90.0.1/24", "--default-address-pool", "base=10.91.0.0/16,size=24"),
        ]
        command = [
            *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", BOOT, "boot", bin_ / "tini", "-g", "--", *dockerd),
        ]
        with self.log.open("ab") as log:
            self._init = subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, "PATH": f"{bin_}:{sbin}:{os.environ['PATH']}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self._slirp = subprocess.Popen(
                [
                    *(str(bin_ / "slirp4netns"), "--configure", "--mtu", "65520"),
                    *("--disable-host-loopback", str(self.init_id), "tap0"),
                ],
                env={**os.environ, "LD_LIBRARY_PATH": str(self._root / "usr/lib/x86_64-linux-gnu")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            eventually(self._answers, within_s=START_S)
            self.socket.chmod(0o666)  # the folder is the proof's own
        except AssertionError:
            self.cut_power()
            tools.unavailable("the container engine", self.log.read_text(errors="replace"))

    def _answers(self) -> bool:
        assert self._init is not None
        done = subprocess.run(
            [str(self.client), "version"],
            env={**os.environ, **self.environ},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=START_S,
        )
        return done.returncode == 0

    def shut_down(self) -> None:
        """Stop containers and engine in order, as a shutdown of the machine does."""
        if self._init is not None:
            os.kill(self.init_id, signal.SIGTERM)
            self._init.wait(STOP_S)
        self.cut_power()

    def cut_power(self) -> None:
        """End every process of the engine and of its containers at once."""
        for process in (self._init, self._slirp):
            if process is not None:
                process.kill()  # unshare --kill-child: the first process, and with it all others
                process.wait(STOP_S)
        self._init = self._slirp = None

    def remove(self) -> None:
        """Stop the engine and remove what it has left: control groups and its folder."""
        self.cut_power()
        eventually(lambda: remove_cgroups(self.folder.name), within_s=STOP_S)
        shutil.rmtree(self.folder)


def enter_network(namespace: Path) -> None:
    """Move the calling thread to a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def remove_cgroups(name: str) -> bool:
    """Remove an engine's control groups; return whether none is left."""
    for path in cgroups(name):
        try:
            path.rmdir()
        except OSError:
            return False
    return not cgroups(name)


def cgroups(name: str) -> list[Path]:
    """Return an engine's control groups, the innermost first."""
    tops = [*CGROUPS.glob(name), *CGROUPS.glob(f"*/{name}")]
    found = [folder for top in tops for folder, _, _ in os.walk(top, topdown=False)]
    return [Path(folder) for folder in found]


def traces(name: str) -> dict[str, str]:
    """Return what an engine could leave on this machine: rules, links, routes, mounts, groups.

    Its control groups have the name of its folder.
    """

    def output(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout

    rules = output("iptables-save").splitlines()
    return {
        "rules": "\n".join(line for line in rules if line[:1] not in {"#", ":"}),
        "links": output("ip", "-brief", "link"),
        "routes": output("ip", "route", "show", "table", "all"),
        "mounts": Path("/proc/self/mounts").read_text(),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "control groups": "\n".join(map(str, cgroups(name))),
    }


@contextmanager
def running_engine(folder: Path) -> Iterator[Engine]:
    """Run an engine during the block, in whose network this thread is; leave nothing of it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        tools.unavailable("the container engine", "it needs root on Linux")
    for program in HOST_PROGRAMS:
        if shutil.which(program) is None:
            tools.unavailable(program, "it is not installed; .ci/run lists the packages")
    before = traces(folder.name)
    engine = Engine(folder)
    with Path("/proc/thread-self/ns/net").open() as own:
        try:
            engine.start()
            engine.enter_network()
            yield engine
        finally:
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C
            try:
                enter_network(Path(f"/proc/self/fd/{own.fileno()}"))
                engine.remove()
                assert traces(folder.name) == before
            finally:
                signal.signal(signal.SIGINT, handler)
