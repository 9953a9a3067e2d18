"""Programs of Prometheus and its exporters, and what the tests read from rules and expressions."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import promql_parser
import yaml

from tests.support import tools
from tests.support.repository import ROOT

PROMETHEUS: Final = ROOT / "deploy/prometheus"
RULES: Final = sorted((PROMETHEUS / "rules").glob("*.yml"))

PACKAGES: Final = {
    "nginx": "nginx",
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "amtool": "prometheus-alertmanager",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "prometheus-redis-exporter": "prometheus-redis-exporter",
    "prometheus-postgres-exporter": "prometheus-postgres-exporter",
    "systemd-analyze": "systemd",
}
"""The Debian package of each program."""

KONG: Final = ROOT / "tests/deploy/kong.prom"
"""What Kong's plugin exports, as far as it is used."""

NAMES_OF_KONG: Final = frozenset(re.findall(r"^(kong_\w+)\{", KONG.read_text(), re.MULTILINE))

COMPARISONS: Final = frozenset({"==", "!=", ">", "<", ">=", "<="})

Entity = dict[str, Any]
Expression = promql_parser.Expr


def program(name: str) -> str:
    """Return the path of a program; skip the test if it is missing, in CI fail."""
    return tools.program(name, PACKAGES[name])


def run(name: str, *arguments: object) -> str:
    """Run a program in the folder of Prometheus; return its output, or fail with it."""
    done = subprocess.run(
        [program(name), *map(str, arguments)],
        cwd=PROMETHEUS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=140,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@cache
def rules() -> list[Entity]:
    """Return every rule of deploy/prometheus/rules."""
    documents = [yaml.safe_load(path.read_text()) for path in RULES]
    return [rule for document in documents for group in document["groups"]
            for rule in group["rules"]]  # fmt: skip


def alerts() -> list[Entity]:
    """Return the rules that fire."""
    return [rule for rule in rules() if "alert" in rule]


def parts_of(expression: Expression) -> Iterator[Expression]:
    """Yield an expression and all that it consists of."""
    yield expression
    match expression:
        case promql_parser.BinaryExpr():
            children = [expression.lhs, expression.rhs]
        case promql_parser.Call():
            children = list(expression.args)
        case promql_parser.AggregateExpr():
            children = [expression.expr, *([expression.param] if expression.param else [])]
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            children = [expression.expr]
        case promql_parser.MatrixSelector():
            children = [expression.vector_selector]
        case _:
            children = []
    for child in children:
        yield from parts_of(child)


def selectors_of(text: str) -> list[promql_parser.VectorSelector]:
    """Return the selectors of an expression. Raises ValueError if it cannot be parsed."""
    parts = parts_of(promql_parser.parse(text))
    return [part for part in parts if isinstance(part, promql_parser.VectorSelector)]


def operands_of(text: str) -> list[str]:
    """Return the parts of an expression that must have data while nothing is wrong.

    A comparison has no result while its condition is false, and absent() none while there is data;
    therefore their operands must have data. Both sides of `or` must, since one hides the other.
    """
    return list(dict.fromkeys(str(part) for part in _operands(promql_parser.parse(text))))


def _operands(expression: Expression) -> Iterator[Expression]:
    match expression:
        case promql_parser.BinaryExpr() if str(expression.op) in COMPARISONS or str(
            expression.op
        ) in {"and", "or", "unless"}:
            yield from _operands(expression.lhs)
            yield from _operands(expression.rhs)
        case promql_parser.Call() if expression.func.name == "absent":
            yield from _operands(expression.args[0])
        case promql_parser.ParenExpr():
            yield from _operands(expression.expr)
        case promql_parser.NumberLiteral():
            pass
        case _:
            yield expression
            yield from (
                part for part in parts_of(expression)
                if isinstance(part, promql_parser.VectorSelector)
            )  # fmt: skip


def base_name(metric: str) -> str:
    """Return a metric's name without the suffix of a histogram's series."""
    return re.sub(r"_(bucket|count|sum)$", "", metric)


@cache
def documented_metrics() -> frozenset[str]:
    """Return the names on the page of metrics, which is made from the code's registry."""
    text = (ROOT / "docs/reference/metrics.md").read_text()
    return frozenset(re.findall(r"^\| `(scoreboard_\w+)`", text, re.MULTILINE))


NOT_EXPORTED: Final = (
    frozenset(
        {
            "scoreboard_accept_to_commit_seconds",
            "scoreboard_accept_to_viewer_seconds",
            "scoreboard_pg_pool_connections",
            "scoreboard_pg_pool_waiting",
            "scoreboard_pg_pool_errors_total",
            "scoreboard_redis_up",
            "scoreboard_postgres_up",
            "scoreboard_dead_letters",
            "scoreboard_secret_version_info",
            "scoreboard_secret_rotation_age_seconds",
            "scoreboard_drift_users",
            "scoreboard_verify_total",
            "scoreboard_verify_last_success_timestamp_seconds",
            "scoreboard_backup_last_success_timestamp_seconds",
        }
    )
    - documented_metrics()
)
"""Metrics that rules and dashboards already use and that no service exports yet."""


def unknown_metrics(text: str) -> set[str]:
    """Return the metrics of an expression with our prefix that the code does not have."""
    known = documented_metrics() | NOT_EXPORTED
    named = {str(selector.name) for selector in selectors_of(text)}
    ours = {name for name in named if name.startswith("scoreboard_")}
    return {name for name in ours if name not in known and base_name(name) not in known}
