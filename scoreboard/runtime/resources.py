"""Package data: the scripts of lua/, the statements of sql/, and the folders web and kong."""

from functools import cache
from importlib.resources import as_file, files
from pathlib import Path


@cache
def script(name: str) -> bytes:
    """Return the text of ``lua/<name>.lua``."""
    return files("lua").joinpath(f"{name}.lua").read_bytes()


@cache
def query(name: str) -> bytes:
    """Return the text of ``sql/queries/<name>.sql``."""
    return files("sql").joinpath("queries", f"{name}.sql").read_bytes()


@cache
def grants() -> bytes:
    """Return the statements that grant privileges to the services' roles."""
    return files("sql").joinpath("grants.sql").read_bytes()


def migrations_path() -> Path:
    """Return the folder of migrations on disk."""
    with as_file(files("sql").joinpath("migrations")) as path:
        return path


def web_path() -> Path:
    """Return the folder of the live page: next to the packages in a checkout, or in the wheel."""
    packaged = Path(__file__).parents[1] / "_web"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "web"


def kong_path() -> Path:
    """Return the folder of the gateway: next to the packages in a checkout, or in the wheel."""
    packaged = Path(__file__).parents[1] / "_kong"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "kong"
