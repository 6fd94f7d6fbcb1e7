"""What the sessions of a replica take of it: slots of the memory that was planned, and time, by what they
declared and by what a frame costs here.

The replica is the last word on its capacity: an ingress may not know yet of what another has opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rearview.contract.cost import FrameCost, fits
from rearview.contract.lease import NO_LOAD, Load
from rearview.contract.memory_plan import MemoryPlan
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.errors import Reason, Refused
from rearview.transport.wire import decode_settings

__all__ = ["Admitted", "Declared"]

RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Declared:
    """What a session says that it takes."""

    spec: SessionSpec
    load: Load
    settings: Settings
    """The newest: their guidance decides how often a frame is predicted."""
    goes_on: bool
    """It comes from elsewhere: it would rather be late than end."""

    @classmethod
    def told(cls, spec: SessionSpec, request: Mapping[str, Any]) -> Declared:
        """As OPEN tells it; an owner of a release before says less. Raises WireError."""
        told = request.get("declared", {})
        settings = told.get("settings")
        return cls(
            spec,
            Load(told["frames_per_s"], told["pixels_per_s"]) if told else NO_LOAD,
            spec.settings if settings is None else decode_settings(settings),
            told.get("goes_on", False),
        )

    def under(self, settings: Settings) -> Declared:
        """The same when it goes on under others: of frames of another size there are as many."""
        pixels = self.spec.size_under(settings).pixels
        load = replace(self.load, pixels_per_s=self.load.frames_per_s * pixels)
        return replace(self, settings=settings, load=load)

    def share(self, cost: FrameCost | None) -> float:
        """Of the replica's time."""
        if cost is None:
            return 0.0
        spec = self.spec
        return cost.share(self.load, spec.max_steps, is_cached=spec.cache is not None, settings=self.settings)


class Admitted:
    """The loads of one replica's sessions. For one event loop."""

    def __init__(self, span: str, max_load: float | None) -> None:
        """`max_load`: the share of the replica's time that new sessions may take it to; None: any."""
        self._span, self._max_load = span, max_load
        self.cost: FrameCost | None = None
        """What a frame costs here; None: it was not measured."""
        self._plan: MemoryPlan | None = None
        self._sessions: dict[str, Declared] = {}
        """By id."""

    def planned(self, plan: MemoryPlan) -> None:
        """The replica will have that memory. May be called by any thread, before the replica serves."""
        self._plan = plan

    @property
    def slots(self) -> int:
        """Sessions that it holds; 0 before that is known."""
        return 0 if self._plan is None else self._plan.slots

    @property
    def share(self) -> float:
        """Of the replica's time, what its sessions declare. 0 where costs were not measured."""
        return sum(each.share(self.cost) for each in self._sessions.values())

    def check(self, asked: Declared) -> None:
        """Raises Refused(NO_CAPACITY) for a new session that does not fit."""
        if asked.goes_on:
            return
        others = [each for name, each in self._sessions.items() if name != asked.spec.session_id]
        if not fits(sum(each.share(self.cost) for each in (*others, asked)), self._max_load):
            raise Refused(
                Reason.NO_CAPACITY,
                "the replica has no time for so many frames",
                retry_after_s=RETRY_AFTER_S,
                metadata={"span": self._span, "limit": "load"},
            )

    def add(self, declared: Declared) -> None:
        """The session is open, or on its way."""
        self._sessions[declared.spec.session_id] = declared

    def changed(self, session_id: str, settings: Settings) -> None:
        """The session goes on under others. It is never refused for them. Unknown ones are ignored."""
        if session_id in self._sessions:
            self._sessions[session_id] = self._sessions[session_id].under(settings)

    def remove(self, session_id: str) -> None:
        """The session has ended. Unknown ones are ignored."""
        self._sessions.pop(session_id, None)

    def describe(self) -> Mapping[str, Any]:
        """What placement and operators need to know."""
        return {
            "slots": self.slots,
            "memory": "" if self._plan is None else str(self._plan),
            "cost": None if self.cost is None else self.cost.described(),
            "share": self.share,
            "pixels_per_s": sum(each.load.pixels_per_s for each in self._sessions.values()),
        }
