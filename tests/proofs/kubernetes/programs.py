"""The programs of the control plane, built by Go from pinned modules.

The control plane is Kubernetes itself, not an imitation: what it refuses, a cluster refuses.
"""

from functools import cache
from pathlib import Path

from tests.support.tools import go_programs

HERE = Path(__file__).parent
VERSION = "v1.37.2"
"""The version of `k8s.io/kubernetes` in control-plane/go.mod, which its programs report."""
_MAJOR, _MINOR, _ = VERSION.removeprefix("v").split(".")
_VERSION_FLAGS = " ".join(
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in (("gitVersion", VERSION), ("gitMajor", _MAJOR), ("gitMinor", _MINOR))
)
_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")


@cache
def kubernetes() -> Path:
    """Return the folder of kube-apiserver, kube-controller-manager, kube-scheduler and kubectl."""
    return go_programs(
        HERE / "control-plane",
        [f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES],
        ldflags=f"-s -w {_VERSION_FLAGS}",
    )


@cache
def etcd() -> Path:
    """Return the program etcd, which Go names after its folder."""
    return go_programs(HERE / "etcd", ["go.etcd.io/etcd/server/v3"]) / "server"
