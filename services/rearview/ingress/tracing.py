"""The traces of one session's frames: who passes a frame on notes when, and the answer's going ends it.

Without traces, and for frames that have none, a note is a look into an empty table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from rearview.contract.events import Events, FrameTraced
from rearview.contract.frame import Frame
from rearview.contract.session import SessionSpec
from rearview.contract.traces import Caller, Entry, FrameTrace, Sampling, read_traceparent, trace_id_of
from rearview.errors import DropReason
from rearview.ingress.book import Answer, Receipt
from rearview.ingress.lane import Lane

__all__ = ["FrameTraces", "caller_of"]

TRACEPARENT = "traceparent"


def caller_of(metadata: Iterable[tuple[str, Any]] | None) -> Caller | None:
    """The trace that a call belongs to, by its metadata; None if it says nothing that can be read."""
    for key, value in metadata or ():
        if key == TRACEPARENT:
            return read_traceparent(value if isinstance(value, str) else value.decode("latin-1"))
    return None


class FrameTraces:
    """Those of one session. For one event loop."""

    def __init__(
        self, spec: SessionSpec, model: str, sampling: Sampling, events: Events, clock: Callable[[], float]
    ) -> None:
        self._spec, self._model = spec, model
        self._sampling, self._events, self._clock = sampling, events, clock
        self._open: dict[int, FrameTrace] = {}
        """By place, in order."""
        self.caller: Caller | None = None
        """Of the stream that feeds the session."""

    def received(self, receipt: Receipt) -> None:
        """A frame has come."""
        ratio = self._sampling.ratio_for(self.caller)
        if not ratio:
            return
        spec, place = self._spec, receipt.place
        trace_id = trace_id_of(spec.session_id, place)
        if self._sampling.takes(trace_id, ratio):
            numbers = place, receipt.frame_index, receipt.received_s
            named = spec.session_id, spec.tenant, self._model
            self._open[place] = FrameTrace(trace_id, *named, *numbers, self.caller)

    def taken(self, place: int) -> None:
        """Its turn has come."""
        if (trace := self._open.get(place)) is not None and trace.taken_s is None:
            trace.taken_s = self._clock()

    def decoded(self, place: int) -> None:
        """Its pixels are there."""
        if (trace := self._open.get(place)) is not None and trace.decoded_s is None:
            trace.decoded_s = self._clock()

    def enters(self, frame: Frame[Any], lane: Lane) -> Frame[Any]:
        """The frame as it is sent into a lane, where its spans are to tell of it if it is traced."""
        if (trace := self._open.get(frame.place)) is None:
            return frame
        trace.ordinal = frame.ordinal
        trace.entries.append(Entry(self._clock(), lane.epoch, lane.replicas))
        return replace(frame, trace_id=trace.trace_id)

    def answered(self, answer: Answer) -> None:
        """It has its outcome."""
        if (trace := self._open.get(answer.receipt.place)) is not None:
            outcome = answer.outcome
            trace.outcome = outcome.name.lower() if isinstance(outcome, DropReason) else "translated"
            trace.answered_s = answer.answered_s
            trace.back_s, trace.timings = answer.work.back_s, answer.work.timings

    def sent(self, before: int) -> None:
        """Answers before that place were handed to the connection."""
        while self._open and (place := next(iter(self._open))) < before:
            trace = self._open.pop(place)
            trace.sent_s = self._clock()
            self._events(FrameTraced(trace))
