"""What axe-core finds on a page into which it was put."""

from __future__ import annotations

__all__ = ["SERIOUS"]

SERIOUS = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  const serious = found.violations.filter((one) => ["serious", "critical"].includes(one.impact));
  const said = (one) => `${one.html.slice(0, 160)} ${one.failureSummary}`;
  return serious.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map(said).join(" | ")}`);
}"""
"""A script for `page.evaluate`: serious and critical findings, as texts."""
