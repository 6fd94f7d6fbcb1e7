"""What all sessions of an ingress share."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from rearview.config import LimitsConfig
from rearview.contract.events import Events
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
