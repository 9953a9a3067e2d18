"""Backends of secrets: AWS Secrets Manager, files, environment variables.

scoreboard.security.credentials reads them in threads. Only this module uses boto3.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import SecretsUnavailable
from scoreboard.runtime.settings import Secret

AWS_TTL_S: Final = 120.0
"""Maximum delay of a rotated secret; each process makes about 5 calls per 10 minutes."""

FILE_TTL_S: Final = 5.0
"""Checking the file's date takes microseconds, so it is done often."""

DOCUMENT_BYTES_MAX: Final = 65_536
"""The limit of AWS."""


class Credentials(Struct, frozen=True):
    """A login. ``version`` is the version of the secret, and may be logged."""

    username: str
    password: Secret
    version: str


class _Document(Struct, frozen=True):
    """The document of a secret; other members are ignored."""

    password: Annotated[str, Meta(min_length=1)]
    username: str = ""


class Backend(Protocol):
    """A backend of one secret. ``read`` blocks; it is called in a thread, one call at a time."""

    ttl_s: float

    def read(self) -> Credentials:
        """Read the current version.

        Raises SecretsUnavailable.
        """
        ...


def parse(name: str, document: str | bytes, version: str) -> Credentials:
    """Parse the JSON of a secret.

    Raises SecretsUnavailable, naming the secret, but none of its content.
    """
    try:
        found = msgspec.json.decode(document, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise SecretsUnavailable(
            f"{name} is not a JSON object with username and password"
        ) from None
    return Credentials(found.username, Secret(found.password), version)


class AwsBackend:
    """The version AWSCURRENT of a secret in AWS Secrets Manager, by name or ARN."""

    ttl_s = AWS_TTL_S

    def __init__(self, name: str) -> None:
        self._name = name
        self._client: Any = None

    def read(self) -> Credentials:
        """Read the current version.

        Raises SecretsUnavailable with the error code of AWS, or the type of the failure.
        """
        answer = call_aws(self._name, lambda: self._ready().get_secret_value(SecretId=self._name))
        return parse(self._name, answer.get("SecretString", ""), answer["VersionId"])

    def _ready(self) -> Any:  # noqa: ANN401 (boto3 makes its classes at run time)
        self._client = self._client or make_aws_client()
        return self._client


class FileBackend:
    """A secret in a file, as mounted by orchestrators; read again when the file changes."""

    ttl_s = FILE_TTL_S

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: Credentials | None = None

    def read(self) -> Credentials:
        """Read the file if it has changed since the last read.

        Raises SecretsUnavailable.
        """
        try:
            found = self._path.stat()
            # Include the inode: a replaced mount may keep the modification time.
            version = f"{found.st_mtime_ns}-{found.st_ino}-{found.st_size}"
            if self._held is None or self._held.version != version:
                with self._path.open("rb") as file:
                    document = file.read(DOCUMENT_BYTES_MAX)
                self._held = parse(str(self._path), document, version)
        except OSError as error:
            raise SecretsUnavailable(f"{self._path}: {error.strerror}") from error
        return self._held


class EnvironmentBackend:
    """A secret in an environment variable, which is constant while the process runs."""

    ttl_s = 3600.0

    def __init__(self, variable: str) -> None:
        self._variable = variable

    def read(self) -> Credentials:
        """Read the variable.

        Raises SecretsUnavailable.
        """
        return parse(self._variable, os.environ.get(self._variable, ""), "environment")


def make_backend(kind: str, name: str) -> Backend:
    """Make the backend of a secret: ``aws``, ``file`` or ``env``."""
    match kind:
        case "aws":
            return AwsBackend(name)
        case "file":
            return FileBackend(Path(name))
        case _:
            return EnvironmentBackend(name)


def make_aws_client() -> Any:  # noqa: ANN401 (boto3 makes its classes at run time)
    """Make a client of AWS Secrets Manager, with explicit timeouts; blocks for about 0.4 s.

    Region, identity and ``AWS_ENDPOINT_URL_SECRETS_MANAGER`` come from the environment, as boto3
    defines.
    """
    # A local import, because it takes 0.3 s and 20 MB, and only deployments on AWS need it.
    from boto3.session import Session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    limits = Config(
        connect_timeout=2, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 3}
    )
    return Session().client("secretsmanager", config=limits)


def call_aws(name: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 (as above)
    """Call AWS about a secret.

    Raises SecretsUnavailable with the error code of AWS, or the type of the failure.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        return call()
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "an error")
        raise SecretsUnavailable(f"{name}: AWS returned {code}") from error
    except BotoCoreError as error:
        raise SecretsUnavailable(f"{name}: {type(error).__name__}") from error
