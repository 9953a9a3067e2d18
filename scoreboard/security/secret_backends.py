"""Where secrets are kept: AWS Secrets Manager, files, environment variables.

``credentials`` reads through the backends here, each in a thread of its own; ``rotation`` writes to
AWS through the same client. boto3 is known nowhere else.
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
"""A rotated secret is in use everywhere within this time, at some 5 calls per 10 minutes each."""

FILE_TTL_S: Final = 5.0
"""A look at the file's date costs microseconds, so it is taken often."""

DOCUMENT_BYTES_MAX: Final = 65_536
"""What AWS allows for one secret."""


class Credentials(Struct, frozen=True):
    """A login. ``version`` names the version of the secret it came from, and may be logged."""

    username: str
    password: Secret
    version: str


class _Document(Struct, frozen=True):
    """A secret as it is stored; what else it holds is somebody else's."""

    password: Annotated[str, Meta(min_length=1)]
    username: str = ""


class Backend(Protocol):
    """Where a secret is kept. ``read`` blocks and runs in a thread, one call at a time."""

    ttl_s: float

    def read(self) -> Credentials:
        """Read the current version.

        Raises SecretsUnavailable.
        """
        ...


def parse(name: str, document: str | bytes, version: str) -> Credentials:
    """Read the JSON of a secret.

    Raises SecretsUnavailable, naming the secret and nothing of what is in it.
    """
    try:
        found = msgspec.json.decode(document, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise SecretsUnavailable(f"{name} is no JSON object with username and password") from None
    return Credentials(found.username, Secret(found.password), version)


class AwsBackend:
    """A secret of AWS Secrets Manager, by name or ARN: its version AWSCURRENT."""

    ttl_s = AWS_TTL_S

    def __init__(self, name: str) -> None:
        self._name = name
        self._client: Any = None

    def read(self) -> Credentials:
        """Get the current version.

        Raises SecretsUnavailable with the code AWS answered, or the kind of failure.
        """
        answer = call_aws(self._name, lambda: self._ready().get_secret_value(SecretId=self._name))
        return parse(self._name, answer.get("SecretString", ""), answer["VersionId"])

    def _ready(self) -> Any:  # noqa: ANN401 (boto3 makes its classes at run time)
        self._client = self._client or make_aws_client()
        return self._client


class FileBackend:
    """A secret in a file, as orchestrators mount them; read again when the file has changed."""

    ttl_s = FILE_TTL_S

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: Credentials | None = None

    def read(self) -> Credentials:
        """Read the file, unless it is the one that was read last.

        Raises SecretsUnavailable.
        """
        try:
            found = self._path.stat()
            # The inode too: a mount is replaced as a whole, and may keep the dates of its making.
            version = f"{found.st_mtime_ns}-{found.st_ino}-{found.st_size}"
            if self._held is None or self._held.version != version:
                with self._path.open("rb") as file:
                    document = file.read(DOCUMENT_BYTES_MAX)
                self._held = parse(str(self._path), document, version)
        except OSError as error:
            raise SecretsUnavailable(f"{self._path}: {error.strerror}") from error
        return self._held


class EnvironmentBackend:
    """A secret in an environment variable; that cannot change while the process runs."""

    ttl_s = 3600.0

    def __init__(self, variable: str) -> None:
        self._variable = variable

    def read(self) -> Credentials:
        """Read the variable.

        Raises SecretsUnavailable.
        """
        return parse(self._variable, os.environ.get(self._variable, ""), "environment")


def make_backend(kind: str, name: str) -> Backend:
    """Choose where a secret of the settings is kept: ``aws``, ``file`` or ``env``."""
    match kind:
        case "aws":
            return AwsBackend(name)
        case "file":
            return FileBackend(Path(name))
        case _:
            return EnvironmentBackend(name)


def make_aws_client() -> Any:  # noqa: ANN401 (boto3 makes its classes at run time)
    """Make a client of AWS Secrets Manager, its limits said; blocks for some 0.4 s.

    Region, identity and ``AWS_ENDPOINT_URL_SECRETS_MANAGER`` come from the environment, by AWS's
    own rules.
    """
    # Here, not above: the import takes 0.3 s and 20 MB, which only deployments on AWS need.
    from boto3.session import Session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    limits = Config(
        connect_timeout=2, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 3}
    )
    return Session().client("secretsmanager", config=limits)


def call_aws(name: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 (as above)
    """Make a call about a secret.

    Raises SecretsUnavailable with the code AWS answered, or the kind of failure.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        return call()
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "an error")
        raise SecretsUnavailable(f"{name}: AWS answered {code}") from error
    except BotoCoreError as error:
        raise SecretsUnavailable(f"{name}: {type(error).__name__}") from error
