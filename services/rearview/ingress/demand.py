"""Who comes to one ingress, and how old frames are when they are answered: what autoscaling has to know and
replicas do not see. Told to every replica, and reported by those (`control/reports.py`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rearview.contract.events import Event, FrameAnswered
from rearview.contract.frame import Timing
from rearview.control.reports import binding, percentile_95
from rearview.errors import Reason, Refused

__all__ = ["Demand"]

WINDOW_S = 10.0
"""Of frames that are not older, the age counts."""
SAMPLES = 1024
"""Kept at most: of more frames in the window, the last."""


class Demand:
    """Of one ingress. For one event loop."""

    def __init__(self, ingress_id: str, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds."""
        self._id, self._clock = ingress_id, clock
        self._asked = 0
        self._refused: Counter[str] = Counter()
        self._ages: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        """When a frame was answered, and how old it was then."""
        self._timings: deque[tuple[float, Sequence[Timing]]] = deque(maxlen=SAMPLES)

    def admitted(self) -> None:
        """A session was asked for, and has a lane."""
        self._asked += 1

    def refused(self, error: Refused) -> None:
        """A session was asked for and refused. It counts if a span had no room, not where a quota ended."""
        if error.reason is Reason.NO_CAPACITY:
            self._asked += 1
            self._refused[error.metadata.get("span", "")] += 1

    def __call__(self, event: Event) -> None:
        """A sink of events: pictures count."""
        if isinstance(event, FrameAnswered):
            self._ages.append((self._clock(), event.latency_s))

    def passed(self, timings: Sequence[Timing]) -> None:
        """A frame has come back, and says how long it was in each span."""
        self._timings.append((self._clock(), timings))

    def told(self) -> Mapping[str, Any]:
        """What replicas are to know. Counts are those since this ingress has started."""
        oldest = self._clock() - WINDOW_S
        queued: dict[str, list[float]] = {}
        for at, timings in self._timings:
            for each in timings if at > oldest else ():
                queued.setdefault(each.span, []).append(each.queue_s)
        waits = {span: percentile_95(every) or 0.0 for span, every in queued.items()}
        return {
            "ingress": self._id,
            "asked": self._asked,
            "refused": dict(self._refused),
            "frame_age_s": percentile_95(age for at, age in self._ages if at > oldest),
            "binding": binding(waits),
        }
