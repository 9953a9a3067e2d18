"""Find every log call of the code, for the reference page of events and for a test."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("api", "streamer", "flusher", "cli", "scoreboard")
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")


AUDIT_FUNCTIONS = ("write_audit", "audit_refusal")
AUDIT = "audit"
"""The level of audit lines; scoreboard.runtime.audit writes them."""


class LogCall(NamedTuple):
    """One call. ``event`` is empty if it is not a constant; ``fields`` has None for ``**``."""

    module: str
    line: int
    level: str
    event: str
    fields: tuple[str | None, ...]


def log_calls() -> Iterator[LogCall]:
    """Return the calls of the loggers of all modules."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path == ROOT / "scoreboard/runtime/audit.py":
                continue
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and (level := _level(node.func)):
                    yield LogCall(module, node.lineno, level, _event(node), _fields(node))


def _level(called: ast.expr) -> str:
    """Return the level of a call of ``_log`` or ``get_logger(…)``; empty for another call."""
    if isinstance(called, ast.Name) and called.id in AUDIT_FUNCTIONS:
        return AUDIT
    if not isinstance(called, ast.Attribute) or called.attr not in LEVELS:
        return ""
    owner = called.value.func if isinstance(called.value, ast.Call) else called.value
    is_logger = isinstance(owner, ast.Name) and owner.id in {"_log", "get_logger"}
    return called.attr if is_logger else ""


def _event(node: ast.Call) -> str:
    match node.args:
        case [ast.Constant(value=str(event)), *_]:
            return event
        case _:
            return ""


def _fields(node: ast.Call) -> tuple[str | None, ...]:
    return tuple(keyword.arg for keyword in node.keywords)
