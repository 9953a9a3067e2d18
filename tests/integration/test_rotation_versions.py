"""The versions of a secret, in files and in AWS Secrets Manager (moto)."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from scoreboard.errors import OperatorMistake, SecretsUnavailable
from scoreboard.rotation.versions import AwsVersions, FileVersions, Stage, Versions
from scoreboard.runtime.settings import Secret
from tests.support.fakes.aws import SecretsManager

OLD, NEW, NEWER = (
    Secret(f'{{"username":"api","password":"{word}"}}') for word in ("old", "new", "newer")
)


@pytest.fixture(params=["file", "aws"])
def make_versions(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Versions]:
    """Return a function that opens the same secret, whose current version is OLD."""
    if request.param == "file":
        path = tmp_path / "redis"
        path.write_text(OLD.reveal())
        return lambda: FileVersions(path)
    manager: SecretsManager = request.getfixturevalue("secrets_manager")
    name = manager.create("api", "old")
    return lambda: AwsVersions(name)


def documents(versions: Versions) -> tuple[str | None, ...]:
    """Return the passwords of current, pending and previous."""
    found = (versions.read(stage) for stage in (Stage.CURRENT, Stage.PENDING, Stage.PREVIOUS))
    return tuple(None if one is None else one.reveal().split('"')[-2] for one in found)


def test_a_new_secret_has_a_current_version_only(make_versions: Callable[[], Versions]) -> None:
    versions = make_versions()
    found = versions.describe()

    assert documents(versions) == ("old", None, None)
    assert found.current
    assert (found.pending, found.previous) == (None, None)


def test_a_pending_version_becomes_current_and_the_current_one_previous(
    make_versions: Callable[[], Versions],
) -> None:
    versions = make_versions()
    before = versions.describe()

    token = versions.put_pending(NEW)
    assert documents(versions) == ("old", "new", None)
    assert versions.describe().pending == token
    versions.promote(token)

    found = make_versions().describe()
    assert documents(make_versions()) == ("new", None, "old")
    assert (found.current, found.pending, found.previous) == (token, None, before.current)
    assert found.changed_at_s >= before.changed_at_s


def test_promoting_again_changes_nothing(make_versions: Callable[[], Versions]) -> None:
    versions = make_versions()
    token = versions.put_pending(NEW)
    versions.promote(token)
    after = versions.describe()

    make_versions().promote(token)

    assert versions.describe() == after
    assert documents(versions) == ("new", None, "old")


def test_only_the_pending_version_can_be_promoted(make_versions: Callable[[], Versions]) -> None:
    versions = make_versions()
    first = versions.put_pending(NEW)
    second = versions.put_pending(NEWER)

    with pytest.raises(OperatorMistake, match="pending version"):
        versions.promote(first)

    assert documents(versions) == ("old", "newer", None)
    versions.promote(second)
    assert documents(versions) == ("newer", None, "old")


def test_the_previous_version_is_replaced_by_the_next_rotation(
    make_versions: Callable[[], Versions],
) -> None:
    versions = make_versions()
    versions.promote(versions.put_pending(NEW))
    versions.promote(versions.put_pending(NEWER))

    assert documents(versions) == ("newer", None, "new")


@pytest.mark.parametrize("stage", [Stage.PENDING, Stage.PREVIOUS])
def test_a_version_can_be_discarded_repeatedly(
    stage: Stage, make_versions: Callable[[], Versions]
) -> None:
    versions = make_versions()
    versions.promote(versions.put_pending(NEW))
    versions.put_pending(NEWER)

    versions.discard(stage)
    versions.discard(stage)

    assert (
        documents(versions)
        == {
            Stage.PENDING: ("new", None, "old"),
            Stage.PREVIOUS: ("new", "newer", None),
        }[stage]
    )


def test_a_missing_secret_has_no_versions(tmp_path: Path, secrets_manager: SecretsManager) -> None:
    assert FileVersions(tmp_path / "none").describe().current is None
    with pytest.raises(SecretsUnavailable, match="ResourceNotFoundException"):
        AwsVersions("scoreboard/none").describe()


def test_no_repr_shows_a_document(make_versions: Callable[[], Versions]) -> None:
    versions = make_versions()
    versions.put_pending(NEW)

    assert "new" not in f"{versions!r} {versions.describe()!r} {versions.read(Stage.PENDING)!r}"


def test_an_interrupted_promotion_of_a_file_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "redis"
    path.write_text(OLD.reveal())
    versions = FileVersions(path)
    token = versions.put_pending(NEW)
    path.with_name("redis.previous").hardlink_to(path)  # as a process that ended here leaves it

    assert documents(versions) == ("old", "new", "old")
    assert versions.describe().previous is None
    versions.promote(token)

    assert documents(versions) == ("new", None, "old")


def test_a_draft_that_a_killed_process_left_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "redis"
    path.write_text(OLD.reveal())
    (tmp_path / ".redis.previous.new").hardlink_to(path)
    (tmp_path / ".new-x").write_text("half of a doc")
    versions = FileVersions(path)

    versions.promote(versions.put_pending(NEW))
    versions.promote(versions.put_pending(NEWER))

    assert documents(versions) == ("newer", None, "new")


def test_a_new_file_has_the_mode_and_owner_of_the_current_one(tmp_path: Path) -> None:
    path = tmp_path / "redis"
    path.write_text(OLD.reveal())
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 4321, 4321)
    expected = path.stat()
    versions = FileVersions(path)

    versions.promote(versions.put_pending(NEW))

    found = path.stat()
    assert found.st_mode == expected.st_mode
    assert (found.st_uid, found.st_gid) == (expected.st_uid, expected.st_gid)


def test_one_rotation_of_a_file_runs_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "redis"
    path.write_text(OLD.reveal())
    (tmp_path / "database").write_text(OLD.reveal())

    with FileVersions(path).lock():
        with pytest.raises(OperatorMistake, match="in progress"), FileVersions(path).lock():
            pass
        with FileVersions(tmp_path / "database").lock():
            pass
    with FileVersions(path).lock():
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "redis"

    with pytest.raises(SecretsUnavailable, match=f"{path}"):
        FileVersions(path).put_pending(NEW)


@pytest.mark.parametrize(
    "name", ["", "/", ".", "..", "api/..", "redis.pending", "redis.previous", ".redis.lock"]
)
def test_a_path_that_is_not_that_of_a_secret_is_refused(name: str) -> None:
    with pytest.raises(OperatorMistake, match="path of a secret"):
        FileVersions(Path(name))


def test_a_folder_is_not_a_secret(tmp_path: Path) -> None:
    versions = FileVersions(tmp_path)

    with pytest.raises(SecretsUnavailable, match="not a file"):
        versions.describe()
    with pytest.raises(SecretsUnavailable, match="not a file"), versions.lock():
        pass
    assert not tmp_path.with_name(f".{tmp_path.name}.lock").exists()


def test_a_symbolic_link_is_not_rotated(tmp_path: Path) -> None:
    """As Kubernetes mounts a secret: a rename would replace the link and leave the file."""
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "redis").write_text(OLD.reveal())
    path = tmp_path / "redis"
    path.symlink_to("..data/redis")
    versions = FileVersions(path)

    with pytest.raises(OperatorMistake, match="symbolic link"), versions.lock():
        pass

    assert versions.describe().current
    assert documents(versions) == ("old", None, None)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["..data", "redis"]


def test_a_missing_secret_gets_no_lock_file(tmp_path: Path) -> None:
    with (
        pytest.raises(SecretsUnavailable, match="No such file"),
        FileVersions(tmp_path / "redis").lock(),
    ):
        pass

    assert not list(tmp_path.iterdir())


def test_a_new_file_has_the_access_control_list_of_the_current_one(tmp_path: Path) -> None:
    """As `setfacl -m u:4321:r` sets it: the mode's group bits are then those of the list."""
    path = tmp_path / "redis"
    path.write_text(OLD.reveal())
    entries = ((0x01, 6, -1), (0x02, 4, 4321), (0x04, 0, -1), (0x10, 4, -1), (0x20, 0, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("this file system has no access control lists")
    versions = FileVersions(path)

    versions.promote(versions.put_pending(NEW))

    assert os.getxattr(path, "system.posix_acl_access") == acl
