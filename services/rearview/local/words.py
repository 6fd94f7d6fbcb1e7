"""What a service and its processes say to each other, over one pipe each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rearview.config import ServiceConfig

__all__ = ["Ask", "Card", "Failed", "Go", "Order", "Said", "Starting", "They", "Told"]


@dataclass(frozen=True, slots=True)
class Order:
    """What a process is to be."""

    name: str
    """Its own: no other process of the service ever has it."""
    config: ServiceConfig
    span: int | None
    """Index of the span of which it is a replica; None: it is an ingress."""
    log: str
    """The file that takes its standard output and error."""
    environment: Mapping[str, str]
    """Of the service's process, which that of a process forked elsewhere need not be."""
    generation: str
    """Of the service: one that is started later has a greater one."""


@dataclass(frozen=True, slots=True)
class Starting:
    """It is alive and not ready."""

    text: str
    """What it does, in a few words; empty: nothing worth telling."""


@dataclass(frozen=True, slots=True)
class Card:
    """It is ready, and this is what it says of itself: several times a second."""

    content: Mapping[str, Any]
    healthy: bool
    """Whether it need not be replaced."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It ends, and this is why, in one line."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Who are the replicas?"""


Said = Starting | Card | Failed | Ask
"""By a process to the service."""


@dataclass(frozen=True, slots=True)
class Go:
    """Stop serving, and end."""


@dataclass(frozen=True, slots=True)
class They:
    """The answer to `Ask`: what each replica says of itself."""

    replicas: Sequence[Mapping[str, Any]]


Told = Go | They
"""By the service to a process."""
