"""A PostgreSQL cluster created once per process; test servers start on copies of it.

A copy takes a tenth of the time of initdb. It is a copy of a stopped cluster.
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
    """Create the cluster; return None if it cannot be copied.

    Clusters of different versions differ, so ``program`` is the key of the cache. The cluster of
    another user is a link to another folder, and is not copied.
    """
    del program
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
