"""A fake AWS Secrets Manager (moto) on loopback."""

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

from scoreboard.security import credentials
from scoreboard.security.secret_backends import aws_client

_numbers = itertools.count(1)


def make_aws_client() -> Any:
    """Make another client than that of the process."""
    return aws_client.__wrapped__()


class SecretsManager:
    """A running fake; `client` has the rights of an operator."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer  # the import takes half a second

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        # moto's state belongs to the process, so secrets of earlier tests would still exist.
        with urlopen(Request(f"{self.url}/moto-api/reset", method="POST"), timeout=30):
            pass
        self._client: Any = None

    @property
    def client(self) -> Any:
        self._client = self._client or make_aws_client()
        return self._client

    def create(self, username: str, password: str, **more: object) -> str:
        """Create a secret; return its name."""
        name = f"scoreboard/test/{next(_numbers)}"
        self.client.create_secret(Name=name, SecretString=_document(username, password, more))
        return name

    def put(self, name: str, username: str, password: str) -> str:
        """Store new credentials as the current version; return the version's id."""
        document = _document(username, password, {})
        return self.client.put_secret_value(SecretId=name, SecretString=document)["VersionId"]

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
        self._server.stop()


def _document(username: str, password: str, more: dict[str, object]) -> str:
    return json.dumps({"username": username, "password": password} | more)


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Set the AWS environment variables of a process with an identity; remove the machine's."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setattr(credentials, "_stores", {})
    aws_client.cache_clear()
    yield monkeypatch
    if aws_client.cache_info().currsize:
        aws_client().close()
        aws_client.cache_clear()


@pytest.fixture
def secrets_manager(aws_environment: pytest.MonkeyPatch) -> Iterator[SecretsManager]:
    server = SecretsManager()
    aws_environment.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", server.url)
    try:
        yield server
    finally:
        server.stop()
