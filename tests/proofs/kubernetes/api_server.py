"""A small client of the API server: objects as dictionaries, watches as streams of events."""

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

Object = dict[str, Any]

MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        try:
            self.message = response.json()["message"]
        except (ValueError, KeyError):
            self.message = response.text
        super().__init__(f"{response.request.method} {response.request.url}: {self.message}")


class ApiServer:
    """Requests to one API server as one user."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self._client = httpx.Client(base_url=url, verify=context, timeout=30, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        content_type: str = "application/json",
        **parameters: str,
    ) -> Object:
        """Send a request and return the object in the reply.

        Raises ApiError for any other status than success.
        """
        response = self._client.request(
            method,
            path,
            params=parameters,
            content=None if body is None else json.dumps(body),
            headers={} if body is None else {"content-type": content_type},
        )
        if not response.is_success:
            raise ApiError(response)
        content = response.headers.get("content-type", "")
        return response.json() if content.startswith("application/json") else {}

    def get(self, path: str, **parameters: str) -> Object:
        """Return an object, or a list of objects as the server sends it."""
        return self.request("GET", path, **parameters)

    def items(self, path: str, **parameters: str) -> list[Object]:
        """Return the objects of a list."""
        return self.get(path, **parameters)["items"]

    def create(self, path: str, body: Object) -> Object:
        """Create an object."""
        return self.request("POST", path, body)

    def patch(self, path: str, body: Object, content_type: str = MERGE) -> Object:
        """Change an object."""
        return self.request("PATCH", path, body, content_type=content_type)

    def delete(self, path: str, body: Object | None = None, **parameters: str) -> Object:
        """Delete an object."""
        return self.request("DELETE", path, body, **parameters)

    @contextmanager
    def watch(self, path: str, see: Callable[[str, Object], None]) -> Iterator["Watched"]:
        """Call ``see`` with each existing object (as ADDED) and then with each change.

        A watch reports every change in the order in which the server stored it, so a state that
        lasts a millisecond is seen. Leaving the block waits until all changes made before have
        been seen, and raises what ``see`` raised.
        """
        listed = self.get(path)
        watched = Watched(int(listed["metadata"]["resourceVersion"]))
        for item in listed["items"]:
            see("ADDED", item)
        parameters = {
            "watch": "1",
            "resourceVersion": listed["metadata"]["resourceVersion"],
        }
        with self._client.stream(
            "GET", path, params=parameters, timeout=httpx.Timeout(30, read=None)
        ) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise ApiError(response)
            thread = threading.Thread(target=watched.follow, args=(response, see), daemon=True)
            thread.start()
            try:
                yield watched
                watched.catch_up(self, path)
            finally:
                watched.stopping.set()
                hang_up(response)
                thread.join(10)
        watched.check()


@dataclass
class Watched:
    """How far a watch has come."""

    version: int
    stopping: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    def follow(self, response: httpx.Response, see: Callable[[str, Object], None]) -> None:
        """Read events until the stream ends."""
        try:
            for line in response.iter_lines():
                event = json.loads(line)
                assert event["type"] != "ERROR", event["object"]
                see(event["type"], event["object"])
                self.version = int(event["object"]["metadata"]["resourceVersion"])
        except (httpx.HTTPError, OSError) as error:
            if not self.stopping.is_set():
                self.failure = error
        except BaseException as error:  # noqa: BLE001 - raised in the thread of the test
            self.failure = error

    def check(self) -> None:
        """Raise what the watch or its callback raised."""
        if self.failure is not None:
            raise self.failure

    def catch_up(self, server: ApiServer, path: str, within_s: float = 10) -> None:
        """Wait until the newest change of the objects that still exist was seen."""
        items = server.items(path)
        newest = max((int(item["metadata"]["resourceVersion"]) for item in items), default=0)
        deadline = time.monotonic() + within_s
        while self.version < newest:
            self.check()
            assert time.monotonic() < deadline, "the watch is behind"
            time.sleep(0.01)


def hang_up(response: httpx.Response) -> None:
    """End the connection of a stream that another thread is reading."""
    connection = response.extensions["network_stream"].get_extra_info("socket")
    with socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
