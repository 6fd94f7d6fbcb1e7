"""The forward under way, for whoever watches from another thread, and what it is expected to take."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

from rearview.engine.rows import Row, Running
from rearview.engine.scheduler import CostTable

__all__ = ["Underway"]

NEW_SHAPE_S = 0.25
"""Expected at least of a batch of a new size: kernels are chosen for it, a graph is captured."""


class Underway:
    """What an engine's own thread writes and others read, in one assignment."""

    def __init__(self, costs: CostTable) -> None:
        self.running: Running | None = None
        """The forward under way."""
        self._costs = costs
        self._done = {group: set(sizes) for group, sizes in costs.ran.items()}
        """By group, the numbers of samples with which a forward has succeeded, calibration's included."""

    @contextmanager
    def forward(self, rows: Sequence[Row]) -> Iterator[None]:
        """`rows` run inside."""
        group, samples = rows[0].group, sum(row.width for row in rows)
        self.running = Running(rows[0].operator.name, len(rows), self._expected_s(group, samples, rows))
        try:
            yield
            self._done.setdefault(group, set()).add(samples)
        finally:
            self.running = None

    def _expected_s(self, group: Hashable, samples: int, rows: Sequence[Row]) -> float | None:
        """None for the first forward of a group, and for one whose cost nobody has measured."""
        if group not in self._costs.forward_s or group not in self._done:
            return None
        writes, controls = sum(row.writes for row in rows), sum(row.controls for row in rows)
        cost_s = self._costs.seconds(group, samples, writes, controls, self._costs.drawing_s(rows))
        return cost_s if samples in self._done[group] else max(cost_s, NEW_SHAPE_S)
