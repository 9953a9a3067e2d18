"""Nodes without containers: each does over the API what a kubelet does, and starts no process.

A node uses the certificate of its kubelet, so the API server applies the rights of a kubelet
(authorizer `Node`, admission `NodeRestriction`).

What it does: registers the node and renews its lease; starts the pods that the scheduler binds to
it: reads the ConfigMaps, Secrets, claims and tokens that they need, completes init containers in
their order, starts sidecars, reports Running and later Ready; completes pods that are not restarted
(Jobs); on deletion keeps the pod for as long as it stops, at most its grace period, and then
removes it.

What it refuses, with the reason of a real kubelet: an image name that cannot be parsed
(InvalidImageName), an image that does not exist (MISSING, ImagePullBackOff), a ConfigMap, Secret
or key that does not exist (CreateContainerConfigError, or FailedMount for a volume), a claim that
is not bound, a CSI driver (none is installed), and `runAsNonRoot` without a numeric user, as it
knows no image.

What it does not do: run a container, a probe or a `preStop`, so each takes `start_s` or `stop_s`;
enforce limits, mount volumes, check a NetworkPolicy, evict under pressure.
"""

import asyncio
import contextlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final, Self

import httpx

from tests.proofs.kubernetes.api_server import MERGE, STRATEGIC, Object
from tests.proofs.kubernetes.certificates import Authority, client_context

MISSING: Final = "missing"
"""The tag of an image that the registry does not have."""
UNHEALTHY: Final = "unhealthy"
"""The tag of an image whose containers run and never become ready."""
ZONES: Final = ("zone-a", "zone-b", "zone-c")
LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
LEASE_S: Final = 40
RENEW_S: Final = 10
RETRY_S: Final = 0.2
CAPACITY: Final = {"cpu": "4", "memory": "16Gi", "pods": "110", "ephemeral-storage": "100Gi"}
"""Of one node: an ordinary machine with four processors."""
PRESSURES: Final = ("MemoryPressure", "DiskPressure", "PIDPressure")
_IMAGE: Final = re.compile(
    r"[a-z0-9]+([._-]+[a-z0-9]+)*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:\w[\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_EXPANSION: Final = re.compile(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)")


class CannotStartError(Exception):
    """A container or a volume cannot be prepared now; a kubelet tries again."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@dataclass
class Started:
    """What the containers of a pod were started with."""

    pod: Object
    environment: dict[str, dict[str, str]] = field(default_factory=dict)
    """By container: the variables of the manifest, resolved."""
    injected: dict[str, str] = field(default_factory=dict)
    """The variables that a kubelet adds for services; the manifest does not name them."""
    tokens: dict[str, str] = field(default_factory=dict)
    """By audience: the tokens of the service account that a volume asks for."""


class Nodes:
    """The nodes of a cluster, two in each of three zones, in a thread of their own."""

    def __init__(
        self,
        url: str,
        authority: Authority,
        *,
        start_s: float = 0.4,
        stop_s: float = 0.6,
    ) -> None:
        self.url = url
        self.authority = authority
        self.start_s = start_s
        self.stop_s = stop_s
        self.started: dict[str, Started] = {}
        """By the uid of the pod."""
        self.failures: list[BaseException] = []
        self._addresses = (f"10.244.{n // 250}.{n % 250 + 2}" for n in count())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nodes", daemon=True)
        self._running: list[Future[None]] = []
        self.names = [f"node-{zone[-1]}{n}" for n in (1, 2) for zone in ZONES]

    def __enter__(self) -> Self:
        self._thread.start()
        for name in self.names:
            kubelet = Kubelet(self, name, f"zone-{name[5]}")
            self.spawn(kubelet.run())
        return self

    def __exit__(self, *_: object) -> None:
        for future in self._running:
            future.cancel()
        stopped = asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
        stopped.result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine until the nodes stop; what it raises is kept in ``failures``."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - the tests see it in `failures`
                self.failures.append(error)

        self._running.append(asyncio.run_coroutine_threadsafe(guarded(), self._loop))

    def next_address(self) -> str:
        """Return the address of a new pod."""
        return next(self._addresses)

    async def _stop(self) -> None:
        """Wait until the nodes, which were cancelled, have closed their connections."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=10)


class Kubelet:
    """One node."""

    def __init__(self, nodes: Nodes, name: str, zone: str) -> None:
        self.nodes = nodes
        self.name = name
        self.zone = zone
        identity = nodes.authority.issue(f"system:node:{name}", groups=("system:nodes",))
        context = client_context(nodes.authority.certificate, identity)
        self.api = AsyncApi(nodes.url, context)
        self._pods: dict[str, RunningPod] = {}

    async def run(self) -> None:
        """Register the node and serve it."""
        async with self.api, asyncio.TaskGroup() as tasks:
            await self._register()
            tasks.create_task(self._renew())
            async for kind, pod in self.api.watch(
                "/api/v1/pods", fieldSelector=f"spec.nodeName={self.name}"
            ):
                self._see(kind, pod, tasks)

    def _see(self, kind: str, pod: Object, tasks: asyncio.TaskGroup) -> None:
        uid = pod["metadata"]["uid"]
        if kind == "DELETED":
            if known := self._pods.pop(uid, None):
                known.end()
            return
        known = self._pods.get(uid)
        if known is None:
            known = self._pods[uid] = RunningPod(self, pod)
            tasks.create_task(known.live())
        known.update(pod)

    async def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": self.zone,
            "topology.kubernetes.io/region": "region-1",
        }
        await self.api.until_created(
            "/api/v1/nodes",
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": self.name, "labels": labels},
            },
        )
        await self.api.until_created(
            LEASES,
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name, "namespace": "kube-node-lease"},
                "spec": {"holderIdentity": self.name, "leaseDurationSeconds": LEASE_S},
            },
        )
        conditions = [("Ready", "True", "KubeletReady")]
        conditions += [(pressure, "False", f"KubeletHasNo{pressure}") for pressure in PRESSURES]
        status = {
            "capacity": CAPACITY,
            "allocatable": CAPACITY,
            "addresses": [{"type": "Hostname", "address": self.name}],
            "conditions": [
                {
                    "type": kind,
                    "status": value,
                    "reason": reason,
                    "lastHeartbeatTime": now(),
                    "lastTransitionTime": now(),
                }
                for kind, value, reason in conditions
            ],
        }
        await self.api.request(
            "PATCH", f"/api/v1/nodes/{self.name}/status", {"status": status}, STRATEGIC
        )

    async def _renew(self) -> None:
        while True:
            spec = {"renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
            with contextlib.suppress(httpx.HTTPError):
                await self.api.request("PATCH", f"{LEASES}/{self.name}", {"spec": spec}, MERGE)
            await asyncio.sleep(RENEW_S)


class RunningPod:
    """A pod that is bound to a node, until it is removed."""

    def __init__(self, kubelet: Kubelet, pod: Object) -> None:
        self.kubelet = kubelet
        self.api = kubelet.api
        self.nodes = kubelet.nodes
        self.pod = pod
        self.path = (
            f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        )
        self._address = self.nodes.next_address()
        self._deleted = asyncio.Event()
        self._states: dict[str, Object] = {}

    def update(self, pod: Object) -> None:
        """Take the new version of the pod, which may be one that is deleted."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._deleted.set()

    def end(self) -> None:
        """Stop what is left of the pod, which no longer exists."""
        self._deleted.set()

    async def live(self) -> None:
        """Start the pod, and stop it when it is deleted."""
        running = asyncio.create_task(self._run())
        deleted = asyncio.create_task(self._deleted.wait())
        try:
            await asyncio.wait({running, deleted}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            await deleted
        finally:
            running.cancel()
            deleted.cancel()
            await asyncio.gather(running, deleted, return_exceptions=True)
        await self._stop()

    async def _run(self) -> None:
        spec = self.pod["spec"]
        if self.pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
            return
        started = await self._prepare()
        self.nodes.started[self.pod["metadata"]["uid"]] = started
        for container in spec.get("initContainers", []):
            sidecar = container.get("restartPolicy") == "Always"
            await self._start(container, started)
            await asyncio.sleep(self.nodes.start_s)
            self._set(container, running() if sidecar else completed(), ready=True)
            await self._report("Pending", initialized=False)
        for container in spec["containers"]:
            await self._start(container, started)
        await self._report("Running")
        await asyncio.sleep(self.nodes.start_s)
        if spec.get("restartPolicy", "Always") == "Always":
            for container in spec["containers"]:
                self._set(container, running(), ready=not image_is(container, UNHEALTHY))
            await self._report("Running")
        else:
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                self._set(container, completed(), ready=False)
            await self._report("Succeeded")

    async def _prepare(self) -> Started:
        """Return what the containers get, once all of it exists."""
        started = Started(self.pod)
        for container in [
            *self.pod["spec"].get("initContainers", []),
            *self.pod["spec"]["containers"],
        ]:
            self._set(container, waiting("PodInitializing", ""), ready=False)
        await self._report("Pending", initialized=False)
        await self._until_prepared(None, lambda: self._mount(started))
        started.injected = service_environment(self.pod, await self.api.items("/api/v1/services"))
        return started

    async def _start(self, container: Object, started: Started) -> None:
        async def create() -> None:
            check_container(self.pod, container)
            variables = await self._environment(container)
            started.environment[container["name"]] = variables

        await self._until_prepared(container, create)
        self._set(container, running(), ready=False)

    async def _until_prepared(
        self, container: Object | None, prepare: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        shown = None
        while True:
            try:
                return await prepare()
            except CannotStartError as problem:
                if shown != (shown := (problem.reason, str(problem))):
                    for each in [container] if container else self.pod["spec"]["containers"]:
                        self._set(each, waiting(*shown), ready=False)
                    await self._report("Pending", initialized=container is not None)
                await asyncio.sleep(RETRY_S)

    async def _mount(self, started: Started) -> None:
        for volume in self.pod["spec"].get("volumes", []):
            if "configMap" in volume:
                await self._check_keys("configmaps", volume["configMap"], "name")
            elif "secret" in volume:
                await self._check_keys("secrets", volume["secret"], "secretName")
            elif "persistentVolumeClaim" in volume:
                name = volume["persistentVolumeClaim"]["claimName"]
                claim = await self._read("persistentvolumeclaims", name, "FailedMount")
                if claim["status"].get("phase") != "Bound":
                    raise CannotStartError("FailedMount", f"claim {name} is not bound")
            elif "csi" in volume:
                driver = volume["csi"]["driver"]
                raise CannotStartError("FailedMount", f"CSI driver {driver} is not registered")
            elif "projected" in volume:
                for source in volume["projected"]["sources"]:
                    await self._project(source, started)
            elif "emptyDir" not in volume and "downwardAPI" not in volume:
                raise CannotStartError("FailedMount", f"{volume} is not supported by these nodes")

    async def _project(self, source: Object, started: Started) -> None:
        if "configMap" in source:
            await self._check_keys("configmaps", source["configMap"], "name")
        elif "secret" in source:
            await self._check_keys("secrets", source["secret"], "name")
        elif "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            audience = wanted.get("audience", "")
            metadata, spec = self.pod["metadata"], self.pod["spec"]
            request = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {
                    "audiences": [audience] if audience else [],
                    "expirationSeconds": wanted["expirationSeconds"],
                    "boundObjectRef": {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                    },
                },
            }
            account = f"serviceaccounts/{spec['serviceAccountName']}/token"
            path = f"/api/v1/namespaces/{metadata['namespace']}/{account}"
            response = await self.api.send("POST", path, request)
            if not response.is_success:
                raise CannotStartError("FailedMount", response.text)
            started.tokens[audience] = response.json()["status"]["token"]

    async def _check_keys(self, kind: str, source: Object, name_field: str) -> None:
        if source.get("optional"):
            return
        found = await self._read(kind, source[name_field], "FailedMount")
        for item in source.get("items", []):
            if item["key"] not in values(found):
                raise CannotStartError(
                    "FailedMount", f"{kind} {source[name_field]} has no key {item['key']}"
                )

    async def _read(self, kind: str, name: str, reason: str) -> Object:
        namespace = self.pod["metadata"]["namespace"]
        response = await self.api.send("GET", f"/api/v1/namespaces/{namespace}/{kind}/{name}")
        if not response.is_success:
            raise CannotStartError(reason, response.json()["message"])
        return response.json()

    async def _environment(self, container: Object) -> dict[str, str]:
        reason = "CreateContainerConfigError"
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            for field_name, kind in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
                if (reference := source.get(field_name)) and not reference.get("optional"):
                    found = await self._read(kind, reference["name"], reason)
                    prefix = source.get("prefix", "")
                    variables |= {prefix + key: value for key, value in values(found).items()}
        for entry in container.get("env", []):
            if (origin := entry.get("valueFrom")) is None:
                variables[entry["name"]] = expand(entry.get("value", ""), variables)
                continue
            for field_name, kind in (
                ("configMapKeyRef", "configmaps"),
                ("secretKeyRef", "secrets"),
            ):
                if reference := origin.get(field_name):
                    if reference.get("optional"):
                        continue
                    found = values(await self._read(kind, reference["name"], reason))
                    if reference["key"] not in found:
                        raise CannotStartError(
                            reason, f"{reference['name']} has no key {reference['key']}"
                        )
                    variables[entry["name"]] = found[reference["key"]]
            if reference := origin.get("fieldRef"):
                variables[entry["name"]] = self._field(reference["fieldPath"])
        return variables

    def _field(self, path: str) -> str:
        if path in {"status.podIP", "status.podIPs"}:
            return self._address
        if path == "status.hostIP":
            return "10.8.0.1"
        value: Any = self.pod
        for part in path.split("."):
            value = value.get(part, {})
        return value if isinstance(value, str) else ""

    def _set(self, container: Object, state: Object, *, ready: bool) -> None:
        self._states[container["name"]] = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": ready,
            "started": "running" in state,
            "restartCount": 0,
            "state": state,
        }

    async def _report(self, phase: str, *, initialized: bool = True) -> None:
        spec = self.pod["spec"]
        serving = [
            self._states[container["name"]]
            for container in [*spec.get("initContainers", []), *spec["containers"]]
            if container in spec["containers"] or container.get("restartPolicy") == "Always"
        ]
        ready = phase == "Running" and all(state["ready"] for state in serving)
        conditions = {
            "PodReadyToStartContainers": True,
            "Initialized": initialized,
            "ContainersReady": ready,
            "Ready": ready,
        }
        status: Object = {
            "phase": phase,
            "hostIP": "10.8.0.1",
            "hostIPs": [{"ip": "10.8.0.1"}],
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "startTime": self.pod.get("status", {}).get("startTime") or now(),
            "conditions": [
                {"type": kind, "status": str(value), "lastTransitionTime": now()}
                for kind, value in conditions.items()
            ],
            "containerStatuses": [self._states[each["name"]] for each in spec["containers"]],
        }
        if "initContainers" in spec:
            status["initContainerStatuses"] = [
                self._states[each["name"]] for each in spec["initContainers"]
            ]
        # The pod may be gone; the watch says so next.
        await self.api.send("PATCH", f"{self.path}/status", {"status": status}, STRATEGIC)

    async def _stop(self) -> None:
        metadata = self.pod["metadata"]
        await asyncio.sleep(min(self.nodes.stop_s, metadata.get("deletionGracePeriodSeconds", 0)))
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": metadata["uid"]},
        }
        await self.api.send("DELETE", self.path, body)


class AsyncApi:
    """Requests of a kubelet."""

    def __init__(self, url: str, context: Any) -> None:
        self._client = httpx.AsyncClient(base_url=url, verify=context, timeout=30, trust_env=False)
        self._requests: set[asyncio.Future[httpx.Response]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._requests:
            await asyncio.wait(self._requests, timeout=5)
        await self._client.aclose()

    async def send(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> httpx.Response:
        """Send a request and return the reply, whatever its status is."""
        headers = {} if body is None else {"content-type": content_type}
        content = None if body is None else json.dumps(body)
        request = asyncio.ensure_future(
            self._client.request(method, path, content=content, headers=headers)
        )
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)
        # A connection that is being made when its request is cancelled would stay open.
        return await asyncio.shield(request)

    async def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """Send a request that must succeed and return the object."""
        response = await self.send(method, path, body, content_type)
        assert response.is_success, f"{method} {path}: {response.text}"
        return response.json()

    async def items(self, path: str) -> list[Object]:
        """Return the objects of a list."""
        return (await self.request("GET", path))["items"]

    async def until_created(self, path: str, body: Object, within_s: float = 30) -> None:
        """Create an object; the API server may still be creating what that needs."""
        async with asyncio.timeout(within_s):
            while True:
                response = await self.send("POST", path, body)
                if response.is_success or response.status_code == httpx.codes.CONFLICT:
                    return
                await asyncio.sleep(RETRY_S)

    async def watch(self, path: str, **parameters: str) -> AsyncIterator[tuple[str, Object]]:
        """Yield the existing objects as ADDED and then every change, without an end."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                listed = (await self._client.get(path, params=parameters)).raise_for_status().json()
                for item in listed["items"]:
                    yield "ADDED", item
                version = listed["metadata"]["resourceVersion"]
                stream = self._client.stream(
                    "GET",
                    path,
                    params={**parameters, "watch": "1", "resourceVersion": version},
                    timeout=httpx.Timeout(30, read=None),
                )
                async with stream as response:
                    async for line in response.aiter_lines():
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            break
                        yield event["type"], event["object"]
            await asyncio.sleep(RETRY_S)


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def waiting(reason: str, message: str) -> Object:
    """Return the state of a container that has not started."""
    return {"waiting": {"reason": reason, "message": message}}


def running() -> Object:
    """Return the state of a container that runs."""
    return {"running": {"startedAt": now()}}


def completed() -> Object:
    """Return the state of a container that has ended with success."""
    end = {"exitCode": 0, "reason": "Completed", "startedAt": now(), "finishedAt": now()}
    return {"terminated": end}


def values(holder: Object) -> dict[str, str]:
    """Return the keys and values of a ConfigMap or a Secret."""
    data = holder.get("data", {})
    if holder["kind"] == "Secret":
        return {key: b64decode(value).decode(errors="replace") for key, value in data.items()}
    return {**data, **holder.get("binaryData", {})}


def expand(text: str, variables: dict[str, str]) -> str:
    """Replace $(NAME) by a variable that is already known, as a kubelet does."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _EXPANSION.sub(replace, text)


def image_is(container: Object, tag: str) -> bool:
    """Return whether the image of a container has a tag."""
    return container["image"].split("@")[0].endswith(f":{tag}")


def check_container(pod: Object, container: Object) -> None:
    """Refuse a container that a kubelet does not create.

    Raises CannotStartError.
    """
    if not _IMAGE.fullmatch(container["image"]):
        raise CannotStartError(
            "InvalidImageName", f"couldn't parse image name {container['image']!r}"
        )
    if image_is(container, MISSING):
        raise CannotStartError("ImagePullBackOff", f"{container['image']}: not found")
    security = {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}
    if security.get("runAsNonRoot"):
        user = security.get("runAsUser")
        if user is None:
            raise CannotStartError(
                "CreateContainerConfigError",
                "runAsNonRoot is true and the manifest names no user: the image decides",
            )
        if user == 0:
            raise CannotStartError("CreateContainerConfigError", "runAsUser breaks runAsNonRoot")


def service_environment(pod: Object, services: Sequence[Object]) -> dict[str, str]:
    """Return the variables that a kubelet injects for services.

    Those of `default/kubernetes` are always injected; those of the services in the namespace of
    the pod are unless `enableServiceLinks` is false.
    """
    variables: dict[str, str] = {}
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        master = (metadata["namespace"], metadata["name"]) == ("default", "kubernetes")
        linked = metadata["namespace"] == pod["metadata"]["namespace"] and pod["spec"].get(
            "enableServiceLinks", True
        )
        if not (master or linked) or spec.get("clusterIP", "None") == "None":
            continue
        prefix = metadata["name"].upper().replace("-", "_")
        host, ports = spec["clusterIP"], spec["ports"]
        variables[f"{prefix}_SERVICE_HOST"] = host
        variables[f"{prefix}_SERVICE_PORT"] = str(ports[0]["port"])
        variables[f"{prefix}_PORT"] = f"{ports[0]['protocol'].lower()}://{host}:{ports[0]['port']}"
        for port in ports:
            if port.get("name"):
                label = port["name"].upper().replace("-", "_")
                variables[f"{prefix}_SERVICE_PORT_{label}"] = str(port["port"])
            link = f"{prefix}_PORT_{port['port']}_{port['protocol']}"
            variables[link] = f"{port['protocol'].lower()}://{host}:{port['port']}"
            variables[f"{link}_PROTO"] = port["protocol"].lower()
            variables[f"{link}_PORT"] = str(port["port"])
            variables[f"{link}_ADDR"] = host
    return variables
