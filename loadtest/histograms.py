"""Named HDR histograms of durations: fixed memory, 0.1 % resolution, mergeable across processes."""

from __future__ import annotations

from collections.abc import Mapping

from hdrh.histogram import HdrHistogram

__all__ = ["LARGEST_S", "PERCENTILES", "Histograms"]

LARGEST_S = 600.0
"""Longer durations are recorded as this one, never left out."""
SIGNIFICANT_DIGITS = 3
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

_LARGEST_US = int(LARGEST_S * 1e6)


class Histograms:
    """Durations by name, in microseconds inside and in milliseconds when read."""

    def __init__(self) -> None:
        self._by_name: dict[str, HdrHistogram] = {}

    def record(self, name: str, seconds: float) -> None:
        """Add one duration; what is below a microsecond (or negative) counts as zero."""
        self._histogram(name).record_value(min(max(int(seconds * 1e6), 0), _LARGEST_US))

    def names(self) -> list[str]:
        """The names that have values, sorted."""
        return sorted(self._by_name)

    def count(self, name: str) -> int:
        """How many values there are under `name`."""
        histogram = self._by_name.get(name)
        return 0 if histogram is None else int(histogram.get_total_count())

    def percentile_ms(self, name: str, percentile: float) -> float:
        """Milliseconds. NaN if there is no value."""
        histogram = self._by_name.get(name)
        if histogram is None:
            return float("nan")
        return float(histogram.get_value_at_percentile(percentile)) / 1e3

    def max_ms(self, name: str) -> float:
        """Milliseconds. NaN if there is no value."""
        histogram = self._by_name.get(name)
        return float("nan") if histogram is None else float(histogram.get_max_value()) / 1e3

    def summary_ms(self, name: str) -> dict[str, float]:
        """`p50` … `p99.9`, `max` and `count` of one name; only `count` if there is no value."""
        count = self.count(name)
        if not count:
            return {"count": 0}
        percentiles = {f"p{p:g}": round(self.percentile_ms(name, p), 3) for p in PERCENTILES}
        return {**percentiles, "max": round(self.max_ms(name), 3), "count": count}

    def add(self, other: Histograms) -> None:
        """Take the values of another set in."""
        for name, histogram in other._by_name.items():
            self._histogram(name).add(histogram)

    def encode(self) -> dict[str, str]:
        """Every value, as compressed base64 text by name: what `decode` reads."""
        return {name: histogram.encode().decode("ascii") for name, histogram in self._by_name.items()}

    @classmethod
    def decode(cls, encoded: Mapping[str, str]) -> Histograms:
        """Undo `encode`."""
        histograms = cls()
        for name, text in encoded.items():
            histograms._histogram(name).add(HdrHistogram.decode(text.encode("ascii")))
        return histograms

    def _histogram(self, name: str) -> HdrHistogram:
        histogram = self._by_name.get(name)
        if histogram is None:
            histogram = self._by_name[name] = HdrHistogram(1, _LARGEST_US, SIGNIFICANT_DIGITS)
        return histogram
