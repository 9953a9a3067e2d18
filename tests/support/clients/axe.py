"""axe-core, the accessibility checker, in a page of the browser tests.

Its package is pinned in tests/javascript/package-lock.json and checks the rules of WCAG 2.2 AA and
what axe calls best practices.
"""

import functools
from typing import Any

from playwright.async_api import Page

from tests.support.clients import npm
from tests.support.repository import ROOT

HERE = ROOT / "tests/javascript"
RUN = """async () => {
  const { violations } = await axe.run(document, {
    runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
  });
  return violations.flatMap(({ id, nodes }) =>
    nodes.map(({ html, failureSummary }) => [id, html.slice(0, 200), failureSummary]));
}"""


@functools.cache
def _source() -> str:
    npm.install(HERE)
    return (HERE / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


async def violations(page: Page) -> list[Any]:
    """Return the rules that the page breaks, each with the element and an explanation."""
    await page.evaluate(_source())
    return await page.evaluate(RUN)
