"""The frames that a session's lane was sent, as the client sent them, to be sent once more where it is lost.

Kept from some ordinal on, without a gap, until a checkpoint has what they did or nothing can need them. Bytes
as received: a tenth of the pixels. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from rearview.ingress.budget import Budget
from rearview.ingress.intake import Admitted

__all__ = ["Input", "Inputs"]


@dataclass(frozen=True, slots=True)
class Input:
    """What went into the lane under one ordinal."""

    ordinal: int
    admitted: Admitted
    """The frame; of a filler the one that it shows."""
    is_filler: bool = False

    @property
    def num_bytes(self) -> int:
        """Of the images; a filler shares its own with the frame that it shows."""
        return 0 if self.is_filler else self.admitted.waiting.frame.num_bytes


class Inputs:
    """Those of one session, by ordinal."""

    def __init__(self, first: int, max_bytes: int, budget: Budget | None = None) -> None:
        """`first`: the ordinal that is sent next. `budget`: the tenant's; by default nobody shares it."""
        self._first, self._max_bytes = first, max_bytes
        self._budget = budget or Budget(max_bytes)
        self._inputs: deque[Input] = deque()
        self.num_bytes = 0

    def add(self, sent: Input) -> None:
        """The next ordinal was sent."""
        assert sent.ordinal == self.following, f"ordinal {sent.ordinal} after {self.following - 1}"
        self._inputs.append(sent)
        self.num_bytes += sent.num_bytes
        self._budget.take(sent.num_bytes)

    def forget(self, before: int) -> None:
        """Nothing before that ordinal will be sent again."""
        had = self.num_bytes
        while self._inputs and self._first < before:
            self.num_bytes -= self._inputs.popleft().num_bytes
            self._first += 1
        self._budget.give_back(had - self.num_bytes)

    def fit(self, before: int) -> None:
        """Forget the oldest before that ordinal until it is full no more."""
        while self.full() and self._first < before:
            self.forget(self._first + 1)

    def since(self, ordinal: int) -> Sequence[Input]:
        """What was sent from that ordinal on, which must be kept; a copy."""
        assert self._first <= ordinal <= self.following, f"ordinal {ordinal} is not kept"
        return tuple(islice(self._inputs, ordinal - self._first, None))

    @property
    def first(self) -> int:
        """The first ordinal that is kept; the following one if none is."""
        return self._first

    @property
    def following(self) -> int:
        """The ordinal that is sent next."""
        return self._first + len(self._inputs)

    def reach(self, ordinal: int) -> bool:
        """Whether it was sent."""
        return self.following > ordinal

    def half_full(self) -> bool:
        """Whether it is time to make room."""
        return 2 * self.num_bytes >= self._max_bytes or self._budget.half_full()

    def full(self) -> bool:
        """Whether no more should be sent before something is forgotten."""
        return self.num_bytes >= self._max_bytes or self._budget.full()
