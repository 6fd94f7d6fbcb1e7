"""What a replica reports for autoscaling: what it holds, and what it has heard of who comes to ingresses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sized
from typing import Any

from rearview.control.reports import UNKNOWN_S, Report
from rearview.replica.admitted import Admitted

__all__ = ["Reporting"]

FRESH_S = 10.0
"""An ingress that has told nothing for so long tells nothing of the age of frames any more."""
MAX_INGRESSES = 64
"""Counts of so many are kept, gone ones included: without them the sum would fall."""


class Reporting:
    """Of one replica. For one event loop."""

    def __init__(self, span: str, admitted: Admitted, sessions: Sized, clock: Callable[[], float]) -> None:
        """Made when the start begins. `sessions`: those that hold a slot. `clock`: monotonic seconds."""
        self._span, self._admitted, self._sessions, self._clock = span, admitted, sessions, clock
        self.is_leaving = False
        """Whether the replica takes no session any more."""
        self._began_s, self._start_s, self._started_s = clock(), 0.0, 0.0
        self._heard: dict[str, tuple[Mapping[str, Any], float]] = {}

    def started(self) -> None:
        """The start is over."""
        self._start_s, self._started_s = self._clock() - self._began_s, time.time()

    def hear(self, told: Mapping[str, Any]) -> None:
        """What an ingress tells: see `ingress/demand.py`."""
        self._heard.pop(told["ingress"], None)
        self._heard[told["ingress"]] = told, self._clock()
        while len(self._heard) > MAX_INGRESSES:
            del self._heard[next(iter(self._heard))]

    def report(self) -> Report:
        """All of it."""
        every, now = self._heard.values(), self._clock()
        ages_s = [
            told["frame_age_s"]
            for told, at in every
            if now - at < FRESH_S and told["binding"] == self._span and told["frame_age_s"] is not None
        ]
        return Report(
            share=self._admitted.share,
            sessions=len(self._sessions),
            slots=self._admitted.slots,
            start_s=self._start_s,
            is_leaving=self.is_leaving,
            asked=sum(told["asked"] for told, _ in every),
            refused=sum(told["refused"].get(self._span, 0) for told, _ in every),
            frame_age_s=max(ages_s, default=UNKNOWN_S),
        )

    def describe(self) -> Mapping[str, Any]:
        """The same as numbers, with when the replica was ready, on the machine's wall clock."""
        report = self.report().described()
        return {"draining": self.is_leaving, "started_s": self._started_s, "report": report}
