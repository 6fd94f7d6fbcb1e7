"""The last seconds of a tile: rate, latency, where it goes, and what was dropped. `now` in seconds."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from math import ceil

from rearview.client import SpanTiming, Timings
from rearview.studio.said import Stats

__all__ = ["Figures"]

WINDOW_S = 2.0


@dataclass(frozen=True, slots=True)
class _Answer:
    at_s: float
    latency_s: float
    spans: tuple[SpanTiming, ...]


class Figures:
    """Kept for one tile; bounded by the frames of its window."""

    def __init__(self) -> None:
        self._answers: deque[_Answer] = deque()
        self._drops: Counter[str] = Counter()

    def translated(self, now: float, latency_s: float, timings: Timings) -> None:
        """A picture was given to the page, so long after its frame came."""
        self._answers.append(_Answer(now, latency_s, timings.spans))
        self._forget(now)

    def dropped(self, reason: str) -> None:
        """A frame has no picture."""
        self._drops[reason] += 1

    def said(self, tile: int, now: float) -> Stats:
        """As the page is told. `drops` counts since the tile was opened."""
        self._forget(now)
        latencies = sorted(answer.latency_s * 1000 for answer in self._answers)
        queues: defaultdict[str, list[float]] = defaultdict(list)
        works: defaultdict[str, list[float]] = defaultdict(list)
        for span in (span for answer in self._answers for span in answer.spans):
            queues[span.span].append(span.queue_s * 1000)
            works[span.span].append(span.compute_s * 1000)
        spans = [
            {"name": name, "queue_ms": _mean(queues[name]), "work_ms": _mean(works[name])} for name in queues
        ]
        return Stats(
            tile=tile,
            fps=round(len(self._answers) / WINDOW_S, 2),
            p50_ms=_share(latencies, 0.5),
            p95_ms=_share(latencies, 0.95),
            spans=spans,
            drops=dict(self._drops),
        )

    def _forget(self, now: float) -> None:
        while self._answers and self._answers[0].at_s <= now - WINDOW_S:
            self._answers.popleft()


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3)


def _share(ordered: list[float], share: float) -> float | None:
    """The value below which a share of them lies; None of nothing."""
    return round(ordered[ceil(share * len(ordered)) - 1], 3) if ordered else None
