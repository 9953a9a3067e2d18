"""Backends of secrets: AWS Secrets Manager, files, environment variables.

scoreboard.security.credentials reads them in threads. Only this module uses boto3.
"""

import os
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import SecretInvalid, SecretsUnavailable
from scoreboard.runtime.settings import Secret

FILE_TTL_MAX_S: Final = 5.0
"""Checking the file's date takes microseconds, so it is done often."""

CURRENT_STAGE: Final = "AWSCURRENT"
"""Always named: a version that a rotation is still testing must not be used."""

DOCUMENT_BYTES_MAX: Final = 65_536
"""The limit of AWS."""


class Credentials(Struct, frozen=True):
    """A login. ``version`` is the version of the secret, and may be logged.

    ``created_at_s`` is when that version was created (seconds since 1970), 0 if not known.
    """

    username: str
    password: Secret
    version: str
    created_at_s: float = 0.0


class _Document(Struct, frozen=True):
    """The document of a secret; other members are ignored."""

    # Both servers' drivers end a text at NUL.
    password: Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*$")]
    username: Annotated[str, Meta(pattern=r"^[^\x00]*$")] = ""


class Backend(Protocol):
    """A backend of one secret. ``read`` blocks; it is called in a thread, one call at a time."""

    ttl_s: float

    def read(self) -> Credentials:
        """Read the current version.

        Raises SecretsUnavailable.
        """
        ...


def parse(name: str, document: str | bytes, version: str, created_at_s: float = 0.0) -> Credentials:
    """Parse the JSON of a secret.

    Raises SecretInvalid, naming the secret, but none of its content.
    """
    found = _decode(document)
    del document  # tracebacks may show local variables
    if isinstance(found, str):
        raise SecretInvalid(f"{name} must be a JSON object with username and password: {found}")
    return Credentials(found.username, Secret(found.password), version, created_at_s)


def _decode(document: str | bytes) -> _Document | str:
    """Return the document, or what is wrong with it, without its content."""
    if len(document) > DOCUMENT_BYTES_MAX:
        return f"it is larger than {DOCUMENT_BYTES_MAX} bytes"
    try:
        return msgspec.json.decode(document, type=_Document)
    except UnicodeError:
        return "it is not UTF-8"
    except msgspec.ValidationError as error:
        field = next((name for name in _Document.__struct_fields__ if name in str(error)), None)
        if field is None:
            return "it is not a JSON object"
        return f"its {field} is missing, empty, or not a text"
    except msgspec.DecodeError:
        return "it is not JSON"


class AwsBackend:
    """The version AWSCURRENT of a secret in AWS Secrets Manager, by name or ARN."""

    def __init__(self, name: str, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self._name = name

    def read(self) -> Credentials:
        """Read the current version.

        Raises SecretsUnavailable with the error code of AWS, or the type of the failure.
        """
        return parse(
            self._name,
            *_parts_of(
                self._name,
                call_aws(
                    self._name,
                    lambda: aws_client().get_secret_value(
                        SecretId=self._name, VersionStage=CURRENT_STAGE
                    ),
                ),
            ),
        )


def _parts_of(name: str, answer: dict[str, Any]) -> tuple[str, str, float]:
    """Return the document of a secret, its version and when that was created, as AWS answered.

    Raises SecretInvalid, SecretsUnavailable.
    """
    document, version = answer.get("SecretString"), answer.get("VersionId")
    created = answer.get("CreatedDate")
    created_at_s = created.timestamp() if isinstance(created, datetime) else 0.0
    is_binary = "SecretBinary" in answer
    if isinstance(document, str) and document and isinstance(version, str):
        return document, version, created_at_s
    has_text = isinstance(document, str) and bool(document)
    del answer, document  # tracebacks may show local variables
    if is_binary:
        raise SecretInvalid(f"{name}: the secret is binary; store the JSON as text (SecretString)")
    if not has_text:
        raise SecretInvalid(f"{name}: the secret has no text value (SecretString)")
    raise SecretsUnavailable(f"{name}: AWS returned no version of the secret")


class FileBackend:
    """A secret in a file, as mounted by orchestrators; read again when the file changes."""

    def __init__(self, path: Path, ttl_s: float = FILE_TTL_MAX_S) -> None:
        self.ttl_s = min(ttl_s, FILE_TTL_MAX_S)
        self._path = path
        self._held: Credentials | None = None

    def read(self) -> Credentials:
        """Read the file if it has changed since the last read.

        Raises SecretsUnavailable.
        """
        try:
            if self._held is None or self._held.version != _version_of(self._path.stat()):
                with self._path.open("rb") as file:
                    # Of the open file: the path may name another one by now.
                    status = os.fstat(file.fileno())
                    self._held = parse(
                        str(self._path),
                        file.read(DOCUMENT_BYTES_MAX + 1),
                        _version_of(status),
                        status.st_mtime,
                    )
        except OSError as error:
            raise SecretsUnavailable(f"{self._path}: {error.strerror}") from error
        return self._held


def _version_of(status: os.stat_result) -> str:
    # Include the inode: a replaced mount may keep the modification time.
    return f"{status.st_mtime_ns}-{status.st_ino}-{status.st_size}"


class EnvironmentBackend:
    """A secret in an environment variable, which is constant while the process runs."""

    def __init__(self, variable: str, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self._variable = variable

    def read(self) -> Credentials:
        """Read the variable.

        Raises SecretInvalid.
        """
        return parse(self._variable, os.environ.get(self._variable, ""), "environment")


def make_backend(kind: str, name: str, ttl_s: float) -> Backend:
    """Make the backend of a secret: ``aws``, ``file`` or ``env``."""
    match kind:
        case "aws":
            return AwsBackend(name, ttl_s)
        case "file":
            return FileBackend(Path(name), ttl_s)
        case _:
            return EnvironmentBackend(name, ttl_s)


@cache
def aws_client() -> Any:  # noqa: ANN401 (boto3 makes its classes at run time)
    """Return this process's client of AWS Secrets Manager; the first call blocks for about 0.4 s.

    All secrets and threads share it. Region, identity and ``AWS_ENDPOINT_URL_SECRETS_MANAGER``
    come from the environment, as boto3 defines.
    """
    # A local import, because it takes 0.3 s and 20 MB, and only deployments on AWS need it.
    from boto3.session import Session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    limits = Config(
        connect_timeout=2, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 3}
    )
    return Session().client("secretsmanager", config=limits)


_HINTS: Final = {
    "AccessDeniedException": "this identity needs secretsmanager:{operation} for the secret",
    "DecryptionFailure": "this identity needs kms:Decrypt for the key of the secret",
    "InvalidRequestException": "the secret may be scheduled for deletion",
    "ExpiredTokenException": "the identity of this process has expired",
}


def call_aws(name: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 (as above)
    """Call AWS about a secret.

    Raises SecretsUnavailable with the error code of AWS, or the type of the failure. It has no
    cause, because messages and frames of the client contain answers of AWS.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415

    try:
        return call()
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "an error"))
        hint = _HINTS.get(code, "").format(operation=error.operation_name)
        reason = f"AWS returned {code}" + (f" ({hint})" if hint else "")
    except Exception as error:  # noqa: BLE001 (also ValueError for an invalid endpoint)
        reason = f"the call to AWS failed with {type(error).__name__}"
    raise SecretsUnavailable(f"{name}: {reason}")
