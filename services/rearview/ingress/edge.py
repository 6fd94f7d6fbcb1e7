"""What all sessions of an ingress share."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from rearview.config import LimitsConfig
from rearview.contract.events import Events, FrameAnswered, FrameDropped
from rearview.errors import DropReason
from rearview.ingress.book import Answer
from rearview.ingress.budget import Budgets
from rearview.ingress.feed import Sender

__all__ = ["Edge"]


@dataclass(frozen=True, slots=True)
class Edge:
    """What all sessions of an ingress share."""

    model: str
    limits: LimitsConfig
    sender: Sender
    executor: Executor
    """Decodes and encodes images."""
    events: Events
    input_bytes: int
    """Images of one session that are kept to be sent again."""
    clock: Callable[[], float] = time.monotonic
    budgets: Budgets = field(default_factory=Budgets)
    """The same, of all sessions of a tenant."""

    def count(self, answer: Answer) -> None:
        """Tell of a frame's outcome, unless another ingress has."""
        if answer.receipt.is_counted:
            return
        if isinstance(answer.outcome, DropReason):
            self.events(FrameDropped(answer.outcome))
        else:
            self.events(FrameAnswered(self.model, answer.answered_s - answer.receipt.received_s))
