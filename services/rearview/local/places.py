"""A place that a process is to fill: who fills it, how it is, and when the next one may be started.

Decides and does nothing: no process, no clock. As Serve does, who has died comes back under a new name, and
who is not heard or says that it is not healthy is to be killed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any

from rearview.local.words import Card, Said

__all__ = ["INGRESS", "Place", "State"]

INGRESS = "ingress"
"""Name of the places that are no span's."""
SILENT_S = 5.0
"""A process that says nothing for so long is given up: it is stopped, or its event loop hangs."""
SILENT_AT_START_S = 60.0
"""The same before it is ready: imports let nothing else run, and a disk may be slow."""
FIRST_DELAY_S, LAST_DELAY_S = 0.5, 30.0
"""Before the second start in a row that comes to nothing, and the most that doubling makes of it."""
STEADY_S = 10.0
"""Whoever was ready for so long has not failed to start."""

NOTHING: Mapping[str, Any] = MappingProxyType({})


class State(Enum):
    """Of whoever fills a place."""

    DOWN = "down"
    """It has ended, and the next one is not started yet."""
    STARTING = "starting"
    UP = "up"


class Place:
    """One replica of a span, or one ingress. `now` is in seconds of any clock that only rises."""

    def __init__(self, name: str, span: int | None) -> None:
        """`span`: its index; None for an ingress."""
        self.name, self.span = name, span
        self.id = ""
        """Of whoever fills it, or did last."""
        self.state = State.DOWN
        self.card: Mapping[str, Any] = NOTHING
        """What it last said of itself; nothing before it is ready, nor after it has ended."""
        self.is_healthy = True
        self._heard_s = self._ready_s = self._due_s = 0.0
        self._failures = 0

    def is_due(self, now: float) -> bool:
        """Whether somebody is to be started."""
        return self.state is State.DOWN and now >= self._due_s

    def filled(self, id: str, now: float) -> None:
        """Somebody was started."""
        self.id, self.state, self._heard_s = id, State.STARTING, now
        self.card, self.is_healthy = NOTHING, True

    def heard(self, said: Said, now: float) -> None:
        """It has said something."""
        self._heard_s = now
        if isinstance(said, Card):
            if self.state is State.STARTING:
                self.state, self._ready_s = State.UP, now
            self.card, self.is_healthy = said.content, said.healthy

    def fails(self, now: float) -> bool:
        """Whether it must be killed, since it does not end by itself."""
        patience_s = SILENT_S if self.state is State.UP else SILENT_AT_START_S
        is_silent = now - self._heard_s > patience_s
        return self.state is not State.DOWN and (is_silent or not self.is_healthy)

    def is_fresh(self, within_s: float, now: float) -> bool:
        """Whether it is ready and was heard of late."""
        return self.state is State.UP and now - self._heard_s <= within_s

    def excuse(self, late_s: float) -> None:
        """Nobody has listened for so long: it may have spoken."""
        self._heard_s += late_s

    def ended(self, now: float) -> None:
        """It is no more. The next one is due at once, unless this one was hardly ever there."""
        was_steady = self.state is State.UP and now - self._ready_s >= STEADY_S
        was_up = self.state is State.UP
        self._failures = 0 if was_steady else self._failures + 1
        delay_s = 0.0
        if not was_steady and not (was_up and self._failures == 1):
            delay_s = min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures - 1, 10))
        self.state, self._due_s, self.card = State.DOWN, now + delay_s, NOTHING
