"""Reads the scripts of lua/ and the statements of sql/ out of the installed packages."""

from functools import cache
from importlib.resources import as_file, files
from pathlib import Path


@cache
def script(name: str) -> bytes:
    """Give the text of ``lua/<name>.lua``."""
    return files("lua").joinpath(f"{name}.lua").read_bytes()


@cache
def query(name: str) -> bytes:
    """Give the text of ``sql/queries/<name>.sql``."""
    return files("sql").joinpath("queries", f"{name}.sql").read_bytes()


@cache
def grants() -> bytes:
    """Return the statements that give the services' roles their rights."""
    return files("sql").joinpath("grants.sql").read_bytes()


def migrations_path() -> Path:
    """Give the folder of migrations on disk."""
    with as_file(files("sql").joinpath("migrations")) as path:
        return path


def web_path() -> Path:
    """Give the folder of the live page: beside the packages in a checkout, inside in a wheel."""
    packaged = Path(__file__).parents[1] / "_web"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "web"


def kong_path() -> Path:
    """Give the folder of the gateway: beside the packages in a checkout, inside in a wheel."""
    packaged = Path(__file__).parents[1] / "_kong"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "kong"
