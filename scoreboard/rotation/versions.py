"""The versions of one secret: current, pending and previous; in AWS Secrets Manager or in files.

Invariants: the current version changes in one atomic step; the version before it stays readable
until ``discard``; no repr and no error contains a document. All methods block.
"""

import datetime as dt
import fcntl
import os
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

from msgspec import Struct

from scoreboard.errors import OperatorMistake, SecretsUnavailable
from scoreboard.runtime.settings import Secret
from scoreboard.security.secret_backends import DOCUMENT_BYTES_MAX, aws_client, call_aws

_SUFFIXES: Final = (".pending", ".previous", ".lock")
"""Of the files beside a secret."""

_ACCESS_LIST: Final = "system.posix_acl_access"

SKEW_IGNORED_S: Final = 5.0
"""Difference of clocks that is not corrected: dates of HTTP have seconds, and answers take time."""


class Stage(StrEnum):
    """The staging labels of AWS Secrets Manager."""

    CURRENT = "AWSCURRENT"
    PENDING = "AWSPENDING"
    PREVIOUS = "AWSPREVIOUS"


class Stages(Struct, frozen=True):
    """The ids of a secret's versions. ``changed_at_s`` is the Unix time of its last change."""

    current: str | None
    pending: str | None
    previous: str | None
    changed_at_s: float


class Versions(Protocol):
    """The versions of one secret. Ids may be logged, documents never."""

    @property
    def name(self) -> str:
        """The name or path of the secret."""
        ...

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude other rotations of the secret where the store can.

        Raises OperatorMistake if there is one.
        """
        ...

    def describe(self) -> Stages:
        """Return the ids of the versions.

        Raises SecretsUnavailable.
        """
        ...

    def read(self, stage: Stage) -> Secret | None:
        """Return the document of a stage; None if the stage has no value.

        Raises SecretsUnavailable.
        """
        ...

    def put_pending(self, document: Secret, token: str | None = None) -> str:
        """Store a pending version and return its id; ``token`` is the id that AWS has chosen.

        Raises SecretsUnavailable.
        """
        ...

    def promote(self, pending: str) -> None:
        """Make the pending version the current one, and the current one the previous.

        Raises OperatorMistake if ``pending`` is not the pending version, SecretsUnavailable.
        """
        ...

    def discard(self, stage: Stage) -> None:
        """Remove the pending or the previous version; nothing happens if there is none.

        Raises SecretsUnavailable.
        """
        ...


class AwsVersions:
    """A secret of AWS Secrets Manager, by name or ARN."""

    def __init__(self, name: str) -> None:
        self.name: Final = name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Do nothing: two rotations see each other by the pending version."""
        yield

    def describe(self) -> Stages:
        """Return the ids of the versions; a pending version that is also current does not count."""
        answer = self._call("describe_secret")
        ids: dict[str, str] = {
            stage: version
            for version, stages in answer.get("VersionIdsToStages", {}).items()
            for stage in stages
        }
        current, pending = ids.get(Stage.CURRENT), ids.get(Stage.PENDING)
        changed: dt.datetime = answer.get("LastChangedDate") or answer["CreatedDate"]
        skew_s = _skew_s(answer)
        return Stages(
            current,
            None if pending == current else pending,
            ids.get(Stage.PREVIOUS),
            changed.timestamp() + skew_s,
        )

    def read(self, stage: Stage) -> Secret | None:
        """Return the document of a stage. Secrets Manager creates pending versions without one."""
        answer = self._call("get_secret_value", missing_ok=True, VersionStage=stage.value) or {}
        if stage is Stage.PENDING and Stage.CURRENT in answer.get("VersionStages", ()):
            return None  # the label stays on a promoted version
        text: str = answer.get("SecretString", "")
        return Secret(text) if text else None

    def put_pending(self, document: Secret, token: str | None = None) -> str:
        """Store a pending version; repeating the call with the same token changes nothing."""
        chosen = token or str(uuid.uuid4())
        self._call(
            "put_secret_value",
            ClientRequestToken=chosen,
            SecretString=document.reveal(),
            VersionStages=[Stage.PENDING.value],
        )
        return chosen

    def promote(self, pending: str) -> None:
        """Move the label AWSCURRENT; Secrets Manager moves AWSPREVIOUS with it.

        The label AWSPENDING stays: to remove it by another call tells Secrets Manager that the
        rotation did not succeed (AWS Secrets Manager User Guide, "Lambda rotation functions").
        """
        found = self.describe()
        if found.current == pending:
            return
        if found.pending != pending or found.current is None:
            raise OperatorMistake(f"{pending} is not the pending version of {self.name}")
        self._call(
            "update_secret_version_stage",
            VersionStage=Stage.CURRENT.value,
            MoveToVersionId=pending,
            RemoveFromVersionId=found.current,
        )

    def discard(self, stage: Stage) -> None:
        """Remove the label from its version."""
        found = self.describe()
        version = found.pending if stage is Stage.PENDING else found.previous
        if version is not None:
            self._call(
                "update_secret_version_stage",
                VersionStage=stage.value,
                RemoveFromVersionId=version,
            )

    def _call(self, operation: str, *, missing_ok: bool = False, **arguments: object) -> Any:  # noqa: ANN401 (boto3's)
        def call() -> Any:  # noqa: ANN401 (boto3's)
            client = aws_client()
            try:
                return getattr(client, operation)(SecretId=self.name, **arguments)
            except client.exceptions.ResourceNotFoundException:
                if missing_ok:
                    return None
                raise

        return call_aws(self.name, call)


class FileVersions:
    """A secret in a file; its pending and previous versions are beside it.

    A version's id is its modification time and inode, which a rename keeps.
    """

    def __init__(self, path: Path) -> None:
        """Raise OperatorMistake for a path that is not that of a current version."""
        # A glob such as api/redis* finds the other versions too.
        if path.name in {"", ".."} or path.suffix in _SUFFIXES:
            raise OperatorMistake(f"{str(path)!r} is not the path of a secret")
        self._paths: Final = {
            Stage.CURRENT: path,
            Stage.PENDING: path.with_name(f"{path.name}.pending"),
            Stage.PREVIOUS: path.with_name(f"{path.name}.previous"),
        }

    @property
    def name(self) -> str:
        """The path of the current version."""
        return str(self._paths[Stage.CURRENT])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the file ``.NAME.lock`` beside the secret; the lock ends with the process.

        Raises OperatorMistake for a symbolic link too, and SecretsUnavailable for a missing secret.
        """
        path = self._paths[Stage.CURRENT]
        if path.is_symlink():
            # A rename would replace the link, and leave the file that services may read.
            raise OperatorMistake(f"{path} is a symbolic link; name the file that it leads to")
        version, _ = self._stat(Stage.CURRENT)
        if version is None:
            raise SecretsUnavailable(f"{path}: No such file or directory")
        lock = path.with_name(f".{path.name}.lock")
        with _translate(lock):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OperatorMistake(
                    f"Another rotation of {path} is in progress; try again when it has ended"
                ) from None
            yield
        finally:
            os.close(handle)

    def describe(self) -> Stages:
        """Return the ids of the versions.

        A previous version that is also current is left from an interrupted ``promote`` and does
        not count.
        """
        current, changed_at_s = self._stat(Stage.CURRENT)
        pending, _ = self._stat(Stage.PENDING)
        previous, _ = self._stat(Stage.PREVIOUS)
        return Stages(current, pending, None if previous == current else previous, changed_at_s)

    def read(self, stage: Stage) -> Secret | None:
        """Return the document of a stage."""
        with _translate(self._paths[stage]):
            try:
                with self._paths[stage].open("rb") as file:
                    document = file.read(DOCUMENT_BYTES_MAX)
            except FileNotFoundError:
                return None
        try:
            return Secret(document.decode())
        except UnicodeDecodeError:
            raise SecretsUnavailable(f"{self._paths[stage]} is not UTF-8") from None

    def put_pending(self, document: Secret, token: str | None = None) -> str:
        """Write the pending version, with the owner, the mode and the ACL of the current one."""
        del token  # the id follows from the file
        path = self._paths[Stage.PENDING]
        with _translate(path):
            facts = self._paths[Stage.CURRENT].stat()
            handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(document.reveal().encode())
                    file.flush()
                    os.fchmod(handle, facts.st_mode & 0o777)
                    if (facts.st_uid, facts.st_gid) != (os.geteuid(), os.getegid()):
                        os.fchown(handle, facts.st_uid, facts.st_gid)
                    _copy_access_list(self._paths[Stage.CURRENT], handle)
                    os.fsync(handle)
                Path(draft).replace(path)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)
        version, _ = self._stat(Stage.PENDING)
        if version is None:
            raise SecretsUnavailable(f"{path} was removed while it was written")
        return version

    def promote(self, pending: str) -> None:
        """Link the current version as the previous one, then rename the pending one over it."""
        found = self.describe()
        if found.current == pending:
            return
        if found.pending != pending:
            raise OperatorMistake(f"{self.name} has another pending version than {pending}")
        current, previous = self._paths[Stage.CURRENT], self._paths[Stage.PREVIOUS]
        with _translate(current):
            if found.previous is not None or not previous.exists():
                draft = previous.with_name(f".{previous.name}.new")
                draft.unlink(missing_ok=True)
                draft.hardlink_to(current)
                draft.replace(previous)
            self._paths[Stage.PENDING].replace(current)
            _sync_folder(current.parent)

    def discard(self, stage: Stage) -> None:
        """Remove the file of a stage."""
        if stage is Stage.CURRENT:
            raise ValueError("the current version cannot be discarded")
        with _translate(self._paths[stage]):
            self._paths[stage].unlink(missing_ok=True)

    def _stat(self, stage: Stage) -> tuple[str | None, float]:
        with _translate(self._paths[stage]):
            try:
                facts = self._paths[stage].stat()
            except FileNotFoundError:
                return None, 0.0
        if not stat.S_ISREG(facts.st_mode):
            raise SecretsUnavailable(f"{self._paths[stage]} is not a file")
        # The change time: of the current version, it is the time of its rename.
        return f"{facts.st_mtime_ns}-{facts.st_ino}", facts.st_ctime


def _skew_s(answer: Any) -> float:  # noqa: ANN401 (boto3's)
    """Return by how much this machine's clock is ahead of AWS; 0 within the header's resolution."""
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    if "date" not in headers:
        return 0.0
    ahead_s = time.time() - parsedate_to_datetime(headers["date"]).timestamp()
    return ahead_s if abs(ahead_s) > SKEW_IGNORED_S else 0.0


@contextmanager
def _translate(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SecretsUnavailable(f"{path}: {error.strerror or type(error).__name__}") from error


def _copy_access_list(path: Path, handle: int) -> None:
    """Copy the POSIX ACL of a file, if any: a service may read its secret by it only."""
    if sys.platform != "linux":
        return
    try:
        names = os.listxattr(path)
    except OSError:  # the file system has none
        return
    if _ACCESS_LIST in names:
        os.setxattr(handle, _ACCESS_LIST, os.getxattr(path, _ACCESS_LIST))


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
