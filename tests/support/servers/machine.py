"""A systemd of its own, as the first process of new namespaces, for tests of units.

It sees this machine's root read-only below a temporary layer, has its own processes, cgroups and
mounts, and shares the network, so that units reach servers of the test on loopback. Only systemd,
journald and the units of the test run. It needs root, overlayfs and cgroups of version 2.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.eventually import eventually

ROOT = Path(__file__).parents[3]
START_S = 60.0
COMMAND_S = 120.0
SYSTEMD = Path("/usr/lib/systemd/systemd")
CGROUPS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
TARGET = "scoreboard-test.target"

ENTER = r"""
set -eu
root=$1 seed=$2 python=$3 source=$4
mount --make-rprivate /
mount -t tmpfs tmpfs "$root"
mkdir "$root/upper" "$root/work" "$root/merged"
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" "$root/merged"
cd "$root/merged"
mkdir -p opt/python opt/source old
mount --bind "$python" opt/python
mount --bind "$source" opt/source
cp -a "$seed/." .
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount --rbind /dev dev
# What a machine starts besides these units
for wants in sysinit basic local-fs sockets timers multi-user; do
  for folder in usr/lib/systemd/system etc/systemd/system; do
    if [ -d "$folder/$wants.target.wants" ]; then
      mount -t tmpfs tmpfs "$folder/$wants.target.wants"
    fi
  done
done
ln -s /usr/lib/systemd/system/systemd-journald.socket usr/lib/systemd/system/sockets.target.wants/
ln -s /usr/lib/systemd/system/systemd-journald.service usr/lib/systemd/system/sysinit.target.wants/
for unit in systemd-journald-audit.socket systemd-remount-fs.service tmp.mount dbus.socket; do
  ln -sf /dev/null "etc/systemd/system/$unit"
done
mkdir -p etc/systemd/journald.conf.d
printf '[Journal]\nReadKMsg=no\nStorage=volatile\n' > etc/systemd/journald.conf.d/test.conf
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\n' > "etc/systemd/system/$5"
# An interpreter may name its library by a path that only this user can reach.
mkdir -p etc/ld.so.conf.d
echo /opt/python/lib > etc/ld.so.conf.d/000-test.conf
chroot . /sbin/ldconfig
pivot_root . old
umount -l old
# As on a machine: systemd passes credentials to units by a mount.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /usr/lib/systemd/systemd --system "--unit=$5" --show-status=no --log-target=journal
"""


def missing() -> str:
    """Return why this machine cannot run a systemd of its own; empty if it can."""
    if os.geteuid() != 0:
        return "systemd in namespaces needs root"
    if _cgroups() is None:
        return "there is no cgroup hierarchy of version 2"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlayfs"
    return ""


def _cgroups() -> Path | None:
    return next((one for one in CGROUPS if (one / "cgroup.procs").exists()), None)


class Machine:
    """A machine with the files of ``seed``; `/opt/scoreboard` is an installation of this source."""

    def __init__(self, seed: Path) -> None:
        self.seed = seed
        self._pid = 0
        self._outer: subprocess.Popen[bytes] | None = None
        self._mount = Path(tempfile.mkdtemp(prefix="scoreboard-machine-"))
        cgroups = _cgroups()
        assert cgroups is not None
        self._cgroup = cgroups / self._mount.name

    def start(self) -> None:
        """Start systemd and wait until its basic target is reached."""
        self._install()
        self._cgroup.mkdir()
        enter = (
            f"echo $$ > {self._cgroup}/cgroup.procs; exec unshare --cgroup --mount --pid --fork "
            '--uts --ipc sh -c "$0" sh "$@"'
        )
        self._outer = subprocess.Popen(
            [
                *("sh", "-c", enter, ENTER, str(self._mount), str(self.seed)),
                *(str(Path(sys.base_prefix).resolve()), str(ROOT), TARGET),
            ],
            stdin=subprocess.DEVNULL,
        )
        eventually(self._find, within_s=START_S)
        eventually(
            lambda: self.systemctl("is-active", TARGET).stdout.strip() == "active",
            within_s=START_S,
        )

    def _find(self) -> bool:
        assert self._outer is not None
        assert self._outer.poll() is None, "the namespaces could not be made"
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        if not children.split():
            return False
        self._pid = int(children.split()[0])
        command = Path(f"/proc/{self._pid}/cmdline").read_bytes().split(b"\0")[0]
        return command == str(SYSTEMD).encode()

    def stop(self) -> None:
        """End systemd, and with it every process of its namespace."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        if self._outer is not None:
            try:
                self._outer.wait(COMMAND_S)
            except subprocess.TimeoutExpired:
                self._outer.kill()
                self._outer.wait()
        eventually(self._remove_cgroups, within_s=COMMAND_S)
        self._mount.rmdir()

    def _remove_cgroups(self) -> bool:
        """Remove the cgroups; return whether no process is left in them."""
        with contextlib.suppress(OSError):
            for folder, _, _ in os.walk(self._cgroup, topdown=False):
                Path(folder).rmdir()
        return not self._cgroup.exists()

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return subprocess.run(
            ["nsenter", "--target", str(self._pid), "-m", "-p", "-u", "-i", "-C", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run systemctl inside."""
        return self.run("systemctl", "--no-pager", *words)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--value", "--property", name, unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """Return the log of a unit."""
        return self.run("journalctl", "--no-pager", "--output", "cat", "--unit", unit).stdout

    def _install(self) -> None:
        """Write an environment like that of docs/how-to/systemd.md; it imports this source."""
        folder = self.seed / "opt/scoreboard"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = folder / "lib" / version / "site-packages"
        (folder / "bin").mkdir(parents=True)
        packages.mkdir(parents=True)
        (folder / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
        (folder / "bin/python").symlink_to(f"/opt/python/bin/{version}")
        site = next(Path(sys.prefix).glob("lib/python3*/site-packages")).relative_to(ROOT)
        (packages / "source.pth").write_text(f"/opt/source/{site}\n/opt/source\n")
        command = folder / "bin/scoreboard"
        command.write_text("#!/opt/scoreboard/bin/python -P\nfrom cli.main import main\nmain()\n")
        command.chmod(0o755)
