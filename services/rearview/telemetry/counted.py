"""A gauge that counts what there is when it is asked, where a count kept by events would drift."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Gauge
from prometheus_client.metrics_core import Metric

__all__ = ["CountedGauge"]

Counts = Mapping[tuple[str, ...], int]
"""By the values of all labels."""


def _nothing() -> Counts:
    return {}


class CountedGauge(Gauge):
    """Asks `count` at each scrape, on the scrape's thread. What has been counted once goes on at zero."""

    count: Callable[[], Counts] = staticmethod(_nothing)

    def collect(self) -> Iterable[Metric]:
        """See `Gauge.collect`."""
        for labels in [labels for sample in super().collect() for labels in self._labels_of(sample)]:
            self.labels(*labels).set(0)
        for labels, number in self.count().items():
            self.labels(*labels).set(number)
        return super().collect()

    def _labels_of(self, metric: Metric) -> list[tuple[str, ...]]:
        return [tuple(sample.labels[name] for name in self._labelnames) for sample in metric.samples]
