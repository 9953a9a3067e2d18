"""Writes the figures of benchmarks as tables between the markers of a page.

A block starts with ``<!-- bench: NAME -->`` and ends with ``<!-- end -->``. Only blocks that are
given are rewritten.
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tests.bench.aims import Result
from tests.bench.rows import BUSY_SHARE, Figures, Parameter, Row


class Published(msgspec.Struct, frozen=True):
    """The figures of a benchmark with the circumstances of their run."""

    figures: Figures
    facts: dict[str, str]
    """Date, commit, machine, versions and load, in the order of the text."""


def is_busy(figures: Figures) -> bool:
    """Return whether other programs used too much of the CPU in a measurement."""
    return max(figures.foreign, default=0.0) > BUSY_SHARE


def replace_blocks(page: str, blocks: Mapping[str, str]) -> str:
    """Return the page with these blocks rewritten.

    Raises ValueError if the page has a block not at all or twice.
    """
    for name, text in blocks.items():
        pattern = re.compile(rf"(<!-- bench: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        count = len(pattern.findall(page))
        if count != 1:
            raise ValueError(f"the page has {count} blocks named {name}")
        page = pattern.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)
    return page


def render(published: Published, own: str = "") -> str:
    """Return the tables of a benchmark; ``own`` is the variant that others are compared with."""
    tables = [_table(rows, own) for rows in _groups(published.figures.rows)]
    foreign = max(published.figures.foreign, default=0.0)
    found = published.facts | published.figures.facts
    facts = [f"{name} {text}" for name, text in found.items()]
    facts.append(f"other programs used at most {foreign:.1%} of the CPU")
    return "\n\n".join([*tables, f"*{'; '.join(facts)}.*"])


def render_aims(results: Iterable[Result]) -> str:
    """Return the table of aims."""
    lines = ["| work | aim | measured | |", "|---|---|---|---|"]
    for result in results:
        aim, measured = result
        limit = f"≤ {number(aim.limit)} {aim.unit}"
        if measured is None:
            shown, verdict = "", "not measured"
        else:
            shown = f"{number(measured)} {aim.unit}"
            verdict = "met" if result.is_met else "**missed**"
        lines.append(f"| {aim.title} | {limit} | {shown} | {verdict} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Return a number with about three digits."""
    size = abs(value)
    return f"{value:,.{0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2}f}"


def spread(values: Sequence[float]) -> str:
    """Return the median, with minimum and maximum if there are several values."""
    median = number(statistics.median(values))
    if len(values) == 1:
        return median
    return f"{median} ({number(min(values))}–{number(max(values))})"


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Group the rows whose works have the same metrics and parameters: one table for each."""
    metrics: dict[str, dict[str, None]] = {}
    for row in rows:
        metrics.setdefault(row.work, {})[row.metric] = None
    found: dict[object, list[Row]] = {}
    for row in rows:
        found.setdefault((*metrics[row.work], None, *sorted(row.parameters)), []).append(row)
    return list(found.values())


def _table(rows: Sequence[Row], own: str) -> str:
    parameters = list(rows[0].parameters)
    metrics = {row.metric: row.unit for row in rows}
    works: dict[tuple[str, tuple[Parameter, ...]], dict[str, dict[str, Row]]] = {}
    for row in rows:
        work = (row.work, tuple(row.parameters[name] for name in parameters))
        works.setdefault(work, {}).setdefault(row.variant, {})[row.metric] = row
    compared = next(iter(metrics))
    has_ratio = any(own in variants and len(variants) > 1 for variants in works.values())
    titles = ["work", *parameters, "variant"]
    if has_ratio:
        titles.append(f"{compared}: {own} ÷ this")
    titles += [f"{metric}, {unit}" if unit else metric for metric, unit in metrics.items()]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for (work, values), variants in works.items():
        shown = [f"{value:,}" if isinstance(value, int) else str(value) for value in values]
        for variant, found in variants.items():
            cells = [work, *shown, f"**{variant}**" if variant == own else variant]
            if has_ratio:
                cells.append(_ratio(variants, own, variant, compared))
            cells += [spread(found[name].values) if name in found else "" for name in metrics]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(variants: Mapping[str, Mapping[str, Row]], own: str, variant: str, metric: str) -> str:
    ours, theirs = variants.get(own, {}).get(metric), variants[variant].get(metric)
    if ours is None or theirs is None or variant == own:
        return ""
    pairs = zip(ours.values, theirs.values, strict=False)
    ratios = [one / other for one, other in pairs if other]
    return spread(ratios) if ratios else ""
