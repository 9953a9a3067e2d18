"""A PostgreSQL cluster made once per process; servers of the tests start on copies of it.

A copy takes a tenth of the time of initdb. Invariant: a copy is taken of a stopped cluster.
"""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from cli.embedded import binaries
from cli.embedded.servers import EmbeddedPostgres


def copy_postgres(folder: Path) -> Path:
    """Copy a new cluster, with its password, to ``folder`` unless the folder exists; return it."""
    template = _template(binaries.find_postgres().path("postgres"))
    if template is not None and not folder.exists():
        shutil.copytree(template, folder, copy_function=shutil.copy)
        folder.chmod(0o700)
    return folder


@functools.cache
def _template(program: str) -> Path | None:
    """Make the cluster with one PostgreSQL; None where it cannot be copied.

    A cluster that belongs to another user lies elsewhere, behind a link.
    """
    del program  # the key of the cache: clusters of different versions differ
    root = Path(tempfile.mkdtemp(prefix="scoreboard-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folder = root / "postgres"
    with EmbeddedPostgres(folder, fsync=False):
        pass
    if (folder / "cluster").is_symlink():
        return None
    for name in ("lock", "server.log"):
        (folder / name).unlink()
    return folder
