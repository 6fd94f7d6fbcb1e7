"""What the sessions of a replica take of it, by what they declared and by what a frame costs here.

The replica is the last word on its capacity: an ingress may not know yet of what another has opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rearview.contract.cost import FrameCost, fits
from rearview.contract.lease import NO_LOAD, Load
from rearview.contract.session import SessionSpec
from rearview.errors import Reason, Refused

__all__ = ["Admitted"]

RETRY_AFTER_S = 2.0


class Admitted:
    """The loads of one replica's sessions. For one event loop."""

    def __init__(self, span: str, max_load: float | None) -> None:
        """`max_load`: the share of the replica's time that new sessions may take it to; None: any."""
        self._span, self._max_load = span, max_load
        self.cost: FrameCost | None = None
        """What a frame costs here; None: it was not measured."""
        self._loads: dict[str, tuple[float, float]] = {}
        """By session: its share of the replica's time, and its pixels per second."""

    def check(self, spec: SessionSpec, request: Mapping[str, Any]) -> None:
        """Raises Refused(NO_CAPACITY) for a new session that does not fit.

        A session that goes on from elsewhere fits: it would rather be late than end.
        """
        declared = request.get("declared", {})
        if declared.get("goes_on", False):
            return
        others = sum(share for each, (share, _) in self._loads.items() if each != spec.session_id)
        if not fits(others + self._share(spec, _load(request)), self._max_load):
            raise Refused(
                Reason.NO_CAPACITY,
                "the replica has no time for so many frames",
                retry_after_s=RETRY_AFTER_S,
                metadata={"span": self._span, "limit": "load"},
            )

    def add(self, spec: SessionSpec, request: Mapping[str, Any]) -> None:
        """The session is open, or on its way."""
        load = _load(request)
        self._loads[spec.session_id] = (self._share(spec, load), load.pixels_per_s)

    def remove(self, session_id: str) -> None:
        """The session has ended. Unknown ones are ignored."""
        self._loads.pop(session_id, None)

    def describe(self) -> Mapping[str, Any]:
        """What placement needs to know."""
        return {
            "cost": None if self.cost is None else asdict(self.cost),
            "share": sum(share for share, _ in self._loads.values()),
            "pixels_per_s": sum(pixels for _, pixels in self._loads.values()),
        }

    def _share(self, spec: SessionSpec, load: Load) -> float:
        if self.cost is None:
            return 0.0
        return self.cost.share(load, spec.max_steps, is_cached=spec.cache is not None)


def _load(request: Mapping[str, Any]) -> Load:
    """An owner that says nothing of it is of the release before."""
    declared = request.get("declared")
    return NO_LOAD if declared is None else Load(declared["frames_per_s"], declared["pixels_per_s"])
