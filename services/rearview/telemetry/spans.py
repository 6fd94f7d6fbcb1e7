"""From what the ingress knows of a frame to the spans of its trace. Pure.

All times but arrivals are durations, or on the one clock of the ingress. An arrival is on the wall clock of
the replica's machine, which may be off. What is certain is the order: a frame came to a span after it had
left the one before, and was in each for as long as that says. So a span is drawn where its arrival says, as
far as it fits between its neighbours; if it does not fit its clock is off, and it is shifted by as little as
makes it fit (`rearview.clock.shift_s`). Durations are never changed; links are what is left between spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rearview.contract.frame import Timing
from rearview.contract.traces import FrameTrace

__all__ = ["Piece", "pieces_of"]

Value = str | int | float | bool
LEAST_SHIFT_S = 0.001
"""Less is how long it takes to read two clocks, and is not told."""
LEAST_QUEUE_S = 0.0001
"""Between two forwards of a frame; less is no waiting."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One span of a trace."""

    name: str
    """One of few."""
    start_s: float
    """On the ingress's monotonic clock."""
    end_s: float
    parent: int | None
    """Index of the piece that it is a part of; None: it is the whole."""
    attributes: Mapping[str, Value] = field(default_factory=dict)
    is_error: bool = False


def pieces_of(trace: FrameTrace, wall_s: float) -> Sequence[Piece]:
    """The whole first, each before its parts. `wall_s`: what the ingress's wall clock says at zero of its
    monotonic one.
    """
    drawing = _Drawing(trace, wall_s)
    drawing.draw()
    return drawing.pieces


class _Drawing:
    def __init__(self, trace: FrameTrace, wall_s: float) -> None:
        self._trace, self._wall_s = trace, wall_s
        self.pieces: list[Piece] = []

    def draw(self) -> None:
        trace = self._trace
        answered_s = trace.sent_s if trace.answered_s is None else trace.answered_s
        whole = self._add(
            "frame", trace.received_s, trace.sent_s, None, _of_frame(trace), trace.outcome == "fault"
        )
        entered_s = trace.entries[0].time_s if trace.entries else answered_s
        taken_s, decoded_s = trace.taken_s, trace.decoded_s
        self._add("wait", trace.received_s, answered_s if taken_s is None else taken_s, whole)
        if taken_s is not None:
            self._add("decode", taken_s, answered_s if decoded_s is None else decoded_s, whole)
        if decoded_s is not None:
            self._add("admit", decoded_s, entered_s, whole)
        self._draw_lanes(whole, answered_s if trace.back_s is None else trace.back_s)
        if trace.back_s is not None:
            self._add("encode image", trace.back_s, answered_s, whole)
        self._add("answer", answered_s, trace.sent_s, whole)

    def _draw_lanes(self, whole: int, back_s: float) -> None:
        entries = self._trace.entries
        ends = [*(after.time_s for _, after in pairwise(entries)), back_s]
        for entry, end_s in zip(entries, ends, strict=False):
            is_lost = entry is not entries[-1]
            attributes: dict[str, Value] = {"rearview.lane.epoch": entry.epoch, "rearview.lane.lost": is_lost}
            lane = self._add("lane", entry.time_s, end_s, whole, attributes, is_lost)
        if entries and self._trace.timings:
            self._draw_spans(lane, entries[-1].time_s, back_s, entries[-1].replicas)

    def _draw_spans(self, lane: int, sent_s: float, back_s: float, replicas: Sequence[str]) -> None:
        timings = self._trace.timings
        left_s, at_s = sum(map(_duration, timings)), sent_s
        for index, timing in enumerate(timings):
            latest_s = back_s - left_s
            told_s = timing.arrived_s - self._wall_s if timing.arrived_s else at_s
            start_s = max(at_s, min(told_s, latest_s))
            attributes: dict[str, Value] = {"rearview.span": timing.span}
            if index < len(replicas):
                attributes["rearview.replica"] = replicas[index]
            if abs(start_s - told_s) > LEAST_SHIFT_S:
                attributes["rearview.clock.shift_s"] = start_s - told_s
            self._add("link", at_s, start_s, lane)
            at_s = start_s + _duration(timing)
            self._draw_forwards(self._add(timing.span, start_s, at_s, lane, attributes), timing, start_s)
            left_s -= _duration(timing)
        self._add("link", at_s, back_s, lane)

    def _draw_forwards(self, span: int, timing: Timing, start_s: float) -> None:
        at_s = start_s
        for forward in timing.forwards:
            began_s = start_s + forward.start_s
            if began_s - at_s >= LEAST_QUEUE_S:
                self._add("queue", at_s, began_s, span)
            at_s = began_s + forward.seconds
            attributes: dict[str, Value] = {"rearview.batch.rows": forward.rows}
            operator, _, step = forward.operator.partition("-")
            if step:
                attributes["rearview.denoise.step"] = int(step)
            self._add(operator, began_s, at_s, span, attributes)

    def _add(
        self,
        name: str,
        start_s: float,
        end_s: float,
        parent: int | None,
        attributes: Mapping[str, Value] | None = None,
        is_error: bool = False,
    ) -> int:
        self.pieces.append(Piece(name, start_s, max(start_s, end_s), parent, attributes or {}, is_error))
        return len(self.pieces) - 1


def _duration(timing: Timing) -> float:
    return timing.queue_s + timing.compute_s


def _of_frame(trace: FrameTrace) -> dict[str, Value]:
    return dict(_told(trace))


def _told(trace: FrameTrace) -> Iterator[tuple[str, Value]]:
    yield "session.id", trace.session_id
    yield "rearview.tenant", trace.tenant
    yield "rearview.model", trace.model
    yield "rearview.frame.place", trace.place
    yield "rearview.frame.index", trace.frame_index
    yield "rearview.outcome", trace.outcome
    if trace.ordinal is not None:
        yield "rearview.frame.ordinal", trace.ordinal
