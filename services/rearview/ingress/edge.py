"""What all sessions of an ingress share."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from rearview.config import LimitsConfig, ServiceConfig
from rearview.contract.events import Events
from rearview.contract.traces import NO_SAMPLING, Sampling
from rearview.ingress.budget import Budgets
from rearview.ingress.feed import Sender
from rearview.ingress.lane import LaneSender

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
    sampling: Sampling = NO_SAMPLING
    """Which frames are traced."""

    @classmethod
    def of(cls, config: ServiceConfig, executor: Executor, events: Events) -> Edge:
        """That of a service."""
        means, sampling = (LaneSender(), executor, events), config.telemetry.sampling
        return cls(config.model.name, config.limits, *means, config.recovery.input_bytes, sampling=sampling)

    @property
    def coding(self) -> tuple[Executor, Events, Callable[[], float]]:
        """What a session's `Coder` needs of it."""
        return self.executor, self.events, self.clock
