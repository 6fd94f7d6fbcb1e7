"""Frames in flight and the rows that they make ready.

A row is one (session, frame, operator). `Engine._ready` holds the whole ready rule: a denoising row
(n, k) may run when (n, k-1) is done and no earlier ordinal in flight still has step k before it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from rearview.engine.chain import Operator, OperatorKind
from rearview.engine.session import Guidance, SessionSpec, Settings

__all__ = ["Frame", "FrameInput", "LaterRow", "Row", "SpanTiming", "row_width"]


@dataclass(frozen=True, slots=True)
class SpanTiming:
    """A frame's time in one span, seconds."""

    span: str
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class FrameInput:
    """A frame as it enters a span."""

    session_id: str
    ordinal: int
    payload: Tensor | None
    """Image (H, W, 3) uint8, latent (C, h, w) float32, or opaque bytes. None: dropped upstream."""
    settings_version: int = 0
    deadline_s: float = float("inf")
    """On this process's monotonic clock."""


@dataclass(slots=True)
class Frame:
    """A frame in flight in this span. Owned and changed by the engine alone."""

    spec: SessionSpec
    ordinal: int
    settings: Settings
    settings_version: int
    payload: Tensor | None
    deadline_s: float
    operators: tuple[Operator, ...]
    """Those of the span that this frame has (a frame with fewer steps has fewer)."""
    position: int = 0
    """Index in `operators` of the next one."""
    ready_s: float = 0.0
    """When its next row became ready (or the frame arrived)."""
    queue_s: float = 0.0
    compute_s: float = 0.0
    failures: int = 0
    """Times that its next row has failed; from the first on it runs alone."""

    @property
    def faulted(self) -> bool:
        return self.payload is None

    @property
    def done(self) -> bool:
        return self.faulted or self.position == len(self.operators)

    @property
    def operator(self) -> Operator:
        return self.operators[self.position]

    def remaining_steps(self) -> Iterator[int]:
        """Denoising steps still before this frame in this span."""
        for operator in self.operators[self.position :]:
            if operator.kind is OperatorKind.DENOISE:
                yield operator.step


class LaterRow(NamedTuple):
    """A row that a frame has still before it."""

    group: Hashable
    width: int = 1


def row_width(operator: Operator, settings: Settings) -> int:
    """Samples that a row takes in its network's batch: 2 where the UNet also predicts under the negative
    prompt, in every step (FULL) or in the first one (INITIALIZE).
    """
    if operator.kind is not OperatorKind.DENOISE:
        return 1
    guidance = settings.acting_guidance
    return 1 + (guidance is Guidance.FULL or (guidance is Guidance.INITIALIZE and operator.step == 0))


@dataclass(frozen=True, slots=True)
class Row:
    """One (session, frame, operator), ready to run. Reads only; the engine commits."""

    frame: Frame = field(repr=False)
    operator: Operator
    group: Hashable
    """Rows may share a forward iff their groups are equal (weights, resolution, dtype)."""
    due_s: float
    """When it must be done for its frame to meet the deadline, going on alone."""
    write_due: bool = False
    """Whether this row's commit writes temporal memory."""
    later: tuple[LaterRow, ...] = ()
    """Its frame's rows after this one, in this span."""

    @property
    def width(self) -> int:
        return row_width(self.operator, self.settings)

    @property
    def session_id(self) -> str:
        return self.frame.spec.session_id

    @property
    def ordinal(self) -> int:
        return self.frame.ordinal

    @property
    def settings(self) -> Settings:
        return self.frame.settings

    @property
    def payload(self) -> Tensor:
        payload = self.frame.payload
        assert payload is not None, f"row of a dropped frame {self.ordinal}"
        return payload
