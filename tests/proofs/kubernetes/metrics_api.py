"""The metrics API of the pods, as metrics-server provides it, with figures that a test sets.

The API server reaches it through the aggregation layer and shows it the certificate of the front
proxy; without that certificate it answers nothing.
"""

import json
import ssl
import threading
from base64 import b64encode
from collections import defaultdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

from tests.proofs.kubernetes.api_server import ApiServer, Object
from tests.proofs.kubernetes.certificates import Identity
from tests.proofs.kubernetes.kubelet import now

NAME: Final = "metrics-server"
NAMESPACE: Final = "kube-system"
HOST: Final = f"{NAME}.{NAMESPACE}.svc"
"""The name that the API server expects in the certificate."""
GROUP: Final = "metrics.k8s.io"
VERSION: Final = "v1beta1"
COMPONENT: Final = "app.kubernetes.io/name"


class MetricsApi:
    """Serves processor use of the pods that are ready; see ``millicores``."""

    def __init__(self, server: ApiServer, port: int, identity: Identity, proxies: Path) -> None:
        self.server = server
        self.port = port
        self.millicores: defaultdict[str, int] = defaultdict(lambda: 10)
        """Of each pod, by the label app.kubernetes.io/name."""
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity.certificate, identity.key)
        context.load_verify_locations(proxies)
        context.verify_mode = ssl.CERT_REQUIRED
        # The handshake is left to the thread of the connection, so that none delays the others.
        self._http.socket = context.wrap_socket(
            self._http.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)

    def register(self, authority: Path) -> None:
        """Register this API at the API server, with its address."""
        port = {"port": self.port}
        self.server.create(
            f"/api/v1/namespaces/{NAMESPACE}/services",
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": NAME, "namespace": NAMESPACE},
                "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [port]},
            },
        )
        self.server.create(
            "/apis/apiregistration.k8s.io/v1/apiservices",
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": f"{VERSION}.{GROUP}"},
                "spec": {
                    "group": GROUP,
                    "version": VERSION,
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                    "caBundle": b64encode(authority.read_bytes()).decode(),
                    "service": {"name": NAME, "namespace": NAMESPACE, **port},
                },
            },
        )

    def reply(self, target: str) -> Object | None:
        """Return the object at a path, or None if there is none."""
        address = urlsplit(target)
        parts = address.path.strip("/").split("/")
        if parts == ["apis", GROUP, VERSION]:
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{GROUP}/{VERSION}",
                "resources": [
                    {
                        "name": "pods",
                        "singularName": "",
                        "namespaced": True,
                        "kind": "PodMetrics",
                        "verbs": ["get", "list"],
                    }
                ],
            }
        if parts[:4] != ["apis", GROUP, VERSION, "namespaces"] or parts[5:] != ["pods"]:
            return None
        selector = {key: value[0] for key, value in parse_qs(address.query).items()}
        pods = self.server.items(
            f"/api/v1/namespaces/{parts[4]}/pods",
            labelSelector=selector.get("labelSelector", ""),
        )
        return {
            "kind": "PodMetricsList",
            "apiVersion": f"{GROUP}/{VERSION}",
            "metadata": {},
            "items": [self._use(pod) for pod in pods if is_running(pod)],
        }

    def _use(self, pod: Object) -> Object:
        metadata = pod["metadata"]
        millicores = self.millicores[metadata["labels"].get(COMPONENT, "")]
        share = millicores // len(pod["spec"]["containers"])
        return {
            "metadata": {key: metadata.get(key, {}) for key in ("name", "namespace", "labels")},
            "timestamp": now(),
            "window": "1s",
            "containers": [
                {"name": container["name"], "usage": {"cpu": f"{share}m", "memory": "64Mi"}}
                for container in pod["spec"]["containers"]
            ],
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 60

            def do_GET(self) -> None:
                found = api.reply(self.path)
                body = json.dumps(found or {}).encode()
                self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        return Handler


def is_running(pod: Object) -> bool:
    """Return whether a pod uses the processor."""
    return pod["status"].get("phase") == "Running"
