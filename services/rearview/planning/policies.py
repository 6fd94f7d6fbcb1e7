"""How many replicas, by several policies that are asked the same question.

`Ours` is the service's own `control.scaling`. The others are what is usual, at their best: `Utilisation` is
the rule of Kubernetes' horizontal autoscaler with its own tolerance, stabilisation and limit of growth, over
any figure of a replica that it is given.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rearview.control.scaling import START, Figures, Phase, ReplicaNow, ScalingState, SpanNow, decide

__all__ = ["Fixed", "Ours", "Policy", "Utilisation"]


class Policy(Protocol):
    """Says how many replicas there are to be."""

    @property
    def moves(self) -> bool:
        """Whether sessions leave a replica that is to go, and one that is full for one that is empty."""

    def wanted(self, span: SpanNow, now: float) -> int:
        """Replicas that serve or start. What it is told of the past it keeps."""


@dataclass
class Ours:
    """The service's own."""

    figures: Figures
    state: ScalingState = START
    moves: bool = True

    def wanted(self, span: SpanNow, now: float) -> int:
        """Where the service would get to."""
        decision, self.state = decide(span, self.figures, self.state, now)
        return decision.wanted


@dataclass
class Fixed:
    """As many as there are GPUs for."""

    replicas: int
    moves: bool = False

    def wanted(self, span: SpanNow, now: float) -> int:
        """Always the same."""
        return self.replicas


@dataclass
class Utilisation:
    """desired = replicas that are ready x their figure / the figure that is wanted."""

    used: Callable[[ReplicaNow], float]
    """Of a replica, what is to be near `target`."""
    target: float
    max_replicas: int
    min_replicas: int = 1
    tolerance: float = 0.1
    stabilisation_s: float = 300.0
    """So long the most that was desired holds."""
    moves: bool = False
    _desired: deque[tuple[float, int]] = field(default_factory=deque)

    def wanted(self, span: SpanNow, now: float) -> int:
        """The autoscaler's answer. What starts counts as unused where more are desired, as there."""
        current = self._current(span.replicas)
        self._desired.append((now, self._raw(span.replicas, current)))
        while self._desired[0][0] < now - self.stabilisation_s:
            self._desired.popleft()
        desired = self._desired[-1][1]
        if desired < current:
            desired = min(current, max(count for _, count in self._desired))
        # It may double, or grow by four, in 15 s.
        desired = min(desired, max(2 * current, current + 4))
        return min(self.max_replicas, max(self.min_replicas, desired))

    def _current(self, replicas: Sequence[ReplicaNow]) -> int:
        return sum(each.phase is not Phase.LEAVING for each in replicas)

    def _raw(self, replicas: Sequence[ReplicaNow], current: int) -> int:
        ready = [self.used(each) for each in replicas if each.phase is Phase.SERVING]
        if not ready:
            return max(1, current)
        ratio = sum(ready) / len(ready) / self.target
        if ratio > 1.0 and current > len(ready):
            ratio = sum(ready) / current / self.target
            if ratio <= 1.0:
                return current
        if abs(ratio - 1.0) <= self.tolerance:
            return current
        return math.ceil(ratio * (current if ratio > 1.0 else len(ready)) - 1e-9)
