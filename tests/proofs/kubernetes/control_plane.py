"""A Kubernetes control plane on loopback: etcd, API server, controllers and scheduler.

The processes are the real programs. They listen on free ports, keep their files in one folder, and
are stopped by their process ids.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import httpx

from cli.embedded.child import Process, kill, spawn
from cli.embedded.ports import find_free_port
from tests.proofs.kubernetes import metrics_api, programs, storage
from tests.proofs.kubernetes.api_server import ApiServer
from tests.proofs.kubernetes.certificates import (
    Authority,
    client_context,
    write_kubeconfig,
    write_service_account_keys,
)
from tests.proofs.kubernetes.kubelet import AsyncApi, Nodes
from tests.support.eventually import eventually

HOST: Final = "127.0.0.1"
START_S: Final = 90
KUBECTL_S: Final = 120
SERVICES: Final = "10.96.0.0/16"
SERVICE_ADDRESS: Final = "10.96.0.1"
"""The first address of the range is that of the API server itself."""
ISSUER: Final = "https://kubernetes.default.svc"


@dataclass
class Cluster:
    """A control plane with nodes."""

    api: ApiServer
    nodes: Nodes
    metrics: metrics_api.MetricsApi
    kubeconfig: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment in which kubectl is the administrator."""
        return {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            # kubectl keeps there what the API server offers.
            "KUBECACHEDIR": str(self.kubeconfig.with_name("cache")),
        }

    def run(
        self, *arguments: str | Path, stdin: str | None = None, timeout: float = KUBECTL_S
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator and return what it did."""
        return subprocess.run(
            [str(programs.kubernetes() / "kubectl"), *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=self.environment,
        )

    def kubectl(
        self, *arguments: str | Path, stdin: str | None = None, timeout: float = KUBECTL_S
    ) -> str:
        """Run kubectl, which must succeed without a warning, and return its output."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"kubectl {arguments}: {done.stdout}{done.stderr}"
        assert "Warning:" not in done.stderr, f"kubectl {arguments}: {done.stderr}"
        return done.stdout


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run a control plane and its nodes."""
    with ExitStack() as stack:
        plane = stack.enter_context(_ControlPlane(folder))
        api = ApiServer(plane.url, client_context(plane.authority.certificate, plane.administrator))
        stack.callback(api.close)
        metrics = metrics_api.MetricsApi(
            api,
            find_free_port(),
            plane.authority.issue("metrics-server", hosts=(metrics_api.HOST,)),
            plane.proxies.certificate,
        )
        stack.enter_context(metrics)
        nodes = stack.enter_context(Nodes(plane.url, plane.authority))
        _prepare(plane, api, metrics, nodes)
        yield Cluster(api, nodes, metrics, plane.kubeconfig)


def _prepare(
    plane: "_ControlPlane", api: ApiServer, metrics: metrics_api.MetricsApi, nodes: Nodes
) -> None:
    """Wait until the cluster can take workloads."""

    def system_exists() -> bool:
        names = {item["metadata"]["name"] for item in api.items("/api/v1/namespaces")}
        return {"default", "kube-system", "kube-node-lease"} <= names

    eventually(system_exists, within_s=START_S)
    api.create(storage.CLASSES, storage.STORAGE_CLASS)
    administrator = client_context(plane.authority.certificate, plane.administrator)
    nodes.spawn(storage.provision(AsyncApi(plane.url, administrator)))
    metrics.register(plane.authority.certificate)

    def ready() -> bool:
        found = api.items("/api/v1/nodes")
        taints = [node["spec"].get("taints") for node in found]
        service = api.get(
            f"/apis/apiregistration.k8s.io/v1/apiservices/{metrics_api.VERSION}.{metrics_api.GROUP}"
        )
        conditions = {each["type"]: each for each in service["status"].get("conditions", [])}
        assert not nodes.failures, nodes.failures
        assert len(found) == len(nodes.names), f"{len(found)} nodes"
        assert not any(taints), taints
        assert conditions.get("Available", {}).get("status") == "True", conditions
        return True

    eventually(ready, within_s=START_S, every_s=0.1)


class _ControlPlane:
    """The processes and their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, Process] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.authority = Authority(folder, "authority")
        self.proxies = Authority(folder, "proxies")
        self.port = find_free_port()
        self.url = f"https://{HOST}:{self.port}"
        self.administrator = self.authority.issue("administrator", groups=("system:masters",))
        self.kubeconfig = write_kubeconfig(
            folder / "administrator.yml",
            self.url,
            self.authority.certificate,
            self.administrator,
        )

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing that they store is read again, and a stop in order takes seconds.
        for process in reversed(self.processes.values()):
            kill(process)

    def _start(self) -> None:
        store, peers = find_free_port(), find_free_port()
        store_url, peers_url = f"http://{HOST}:{store}", f"http://{HOST}:{peers}"
        self._spawn(
            "etcd",
            programs.etcd(),
            {
                "data-dir": self.folder / "etcd",
                "listen-client-urls": store_url,
                "advertise-client-urls": store_url,
                "listen-peer-urls": peers_url,
                "initial-advertise-peer-urls": peers_url,
                "initial-cluster": f"default={peers_url}",
                # The data ends with the test.
                "unsafe-no-fsync": "true",
            },
        )
        self._until_ready("etcd", f"{store_url}/health")
        private, public = write_service_account_keys(self.folder)
        serving = self.authority.issue(
            "kube-apiserver",
            hosts=(HOST, SERVICE_ADDRESS, "localhost", "kubernetes.default.svc"),
        )
        proxy = self.proxies.issue("front-proxy")
        kubernetes = programs.kubernetes()
        self._spawn(
            "kube-apiserver",
            kubernetes / "kube-apiserver",
            {
                "etcd-servers": store_url,
                "bind-address": HOST,
                "advertise-address": HOST,
                "secure-port": self.port,
                "endpoint-reconciler-type": "none",
                "authorization-mode": "Node,RBAC",
                "enable-admission-plugins": "NodeRestriction",
                "anonymous-auth": "false",
                "service-cluster-ip-range": SERVICES,
                "client-ca-file": self.authority.certificate,
                "tls-cert-file": serving.certificate,
                "tls-private-key-file": serving.key,
                "service-account-issuer": ISSUER,
                "service-account-key-file": public,
                "service-account-signing-key-file": private,
                "requestheader-client-ca-file": self.proxies.certificate,
                "requestheader-allowed-names": "front-proxy",
                "requestheader-username-headers": "X-Remote-User",
                "requestheader-group-headers": "X-Remote-Group",
                "requestheader-extra-headers-prefix": "X-Remote-Extra-",
                "proxy-client-cert-file": proxy.certificate,
                "proxy-client-key-file": proxy.key,
            },
        )
        context = client_context(self.authority.certificate, self.administrator)
        self._until_ready("kube-apiserver", f"{self.url}/readyz", context)
        self._spawn(
            "kube-controller-manager",
            kubernetes / "kube-controller-manager",
            {
                "kubeconfig": self._user("system:kube-controller-manager"),
                "secure-port": 0,
                "leader-elect": "false",
                "use-service-account-credentials": "true",
                "service-account-private-key-file": private,
                "root-ca-file": self.authority.certificate,
                # The defaults are 15 s, 30 s and 5 min; the figures a test feeds are exact at once.
                "horizontal-pod-autoscaler-sync-period": "2s",
                "horizontal-pod-autoscaler-initial-readiness-delay": "1s",
                "horizontal-pod-autoscaler-cpu-initialization-period": "1s",
            },
        )
        self._spawn(
            "kube-scheduler",
            kubernetes / "kube-scheduler",
            {
                "kubeconfig": self._user("system:kube-scheduler"),
                "secure-port": 0,
                "leader-elect": "false",
            },
        )

    def _user(self, name: str) -> Path:
        file = self.folder / f"{name.removeprefix('system:')}.yml"
        user = self.authority.issue(name)
        return write_kubeconfig(file, self.url, self.authority.certificate, user)

    def _spawn(self, name: str, program: Path, options: dict[str, object]) -> None:
        arguments = [f"--{option}={value}" for option, value in options.items()]
        self.processes[name] = spawn(
            [str(program), *arguments],
            on_parent_death=signal.SIGKILL,
            output=self.folder / f"{name}.log",
        )

    def _until_ready(self, name: str, url: str, context: object = True) -> None:
        process = self.processes[name]

        def ready() -> bool:
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace")
                raise RuntimeError(f"{name} ended: {log[-4000:]}")
            with suppress(httpx.TransportError):
                return client.get(url).status_code == httpx.codes.OK
            return False

        with httpx.Client(verify=context, timeout=5, trust_env=False) as client:
            eventually(ready, within_s=START_S, every_s=0.05)
