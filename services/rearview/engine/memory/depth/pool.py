"""The running range of a session's depth maps: session memory of the encode operator.

A depth map is relative, so it is scaled to [0, 1] before it conditions anything. Upstream takes the least
and greatest depth over the warm-up frames together and then per frame, which jumps after the warm-up and
flickers whenever an outlier enters (reference note of Live2Diff, section 4.3). Here every frame, those of
the warm-up too, is scaled by a running range: it widens at once, so that no map leaves [0, 1], and narrows
slowly. Another scene begins with a range of its own. What surprises: encode rows of a session then have an
order, as denoising rows do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.engine.memory.slots import SlotPool
from rearview.engine.rows import Row

__all__ = ["NARROWING_PER_FRAME", "DepthRange", "next_range"]

NARROWING_PER_FRAME = 0.02
"""Share of the way to a frame's own range that a wider running range goes back per frame: half of it in 34
frames, so that an outlier fades over more than a second instead of flickering."""
EXPORT_FORMAT = 1
UNKNOWN = (float("inf"), float("-inf"))
"""The range of nothing: any frame's widens it to its own."""


def next_range(range_B2: Tensor, seen_B2: Tensor) -> Tensor:
    """The running range after a frame, (B, 2): least and greatest depth that stand for 0 and 1.

    `range_B2`: before it; (inf, -inf) before the first frame. `seen_B2`: the frame's own least and greatest
    depth. The result holds both ends of `seen_B2`, in exact arithmetic and in floating point.
    """
    narrowed_B2 = torch.where(range_B2.isfinite(), range_B2.lerp(seen_B2, NARROWING_PER_FRAME), seen_B2)
    low_B = torch.minimum(narrowed_B2[:, 0], seen_B2[:, 0])
    high_B = torch.maximum(narrowed_B2[:, 1], seen_B2[:, 1])
    return torch.stack([low_B, high_B], dim=1)


class DepthRange:
    """A `TemporalMemory` of one range per session. A row's view is its range, (B, 2) for a batch."""

    def __init__(
        self, num_slots: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype`: that of latents, float32 or, in exactness tests, float64."""
        self._slots = SlotPool(num_slots)
        self._device = device or torch.device("cpu")
        self._ranges = torch.tensor([UNKNOWN] * num_slots, dtype=dtype, device=self._device)
        self._scenes: list[int | None] = [None] * num_slots
        """Per slot that of the last frame. None: there was no frame, and the range is not known."""
        self._sessions: set[str] = set()

    def allocate(self, spec: SessionSpec) -> None:
        self._slots.allocate(spec.session_id)
        self._sessions.add(spec.session_id)

    def free(self, session_id: str) -> None:
        slot = self._slots.free(session_id)
        if slot is not None:
            self._sessions.remove(session_id)
            self._forget(slot)

    def reset(self, session_id: str) -> None:
        self._forget(self._slots.slot(session_id))

    def warm_up_frames(self, spec: SessionSpec) -> int:
        """None: a range is there from the first frame on."""
        return 0

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        """Depth is made in encode, and only for sessions with a cache: without one nothing reads it."""
        return operator.kind is OperatorKind.ENCODE and spec.cache is not None

    def write_due(self, row: Row) -> bool:
        """Every row with depth writes its range, so that this is part of what each costs."""
        return False

    def gather(self, rows: Sequence[Row]) -> Tensor | None:
        """Ranges (B, 2) before these frames; None where rows have no depth."""
        deep = [self.keeps_order(row.frame.spec, row.operator) for row in rows]
        if not all(deep):
            assert not any(deep), "rows with and without depth in one forward"
            return None
        slots = [self._slots.slot(row.session_id) for row in rows]
        ranges = self._ranges[torch.tensor(slots, device=self._device)]
        for index, (row, slot) in enumerate(zip(rows, slots, strict=True)):
            if self._scenes[slot] != row.settings.scene:
                ranges[index] = ranges.new_tensor(UNKNOWN)
        return ranges

    @torch.inference_mode()
    def scatter(self, rows: Sequence[Row], update: Tensor | None) -> None:
        """`update`: ranges (B, 2) after these frames."""
        if update is None:
            return
        slots = [self._slots.slot(row.session_id) for row in rows]
        assert len(set(slots)) == len(slots), "two frames of a session in one forward"
        self._ranges[torch.tensor(slots, device=self._device)] = update.to(self._ranges)
        for row, slot in zip(rows, slots, strict=True):
            self._scenes[slot] = row.settings.scene

    def export(self, session_id: str) -> Mapping[str, Any]:
        slot = self._slots.slot(session_id)
        return {
            "format": EXPORT_FORMAT,
            "range": self._ranges[slot].cpu().clone(),
            "scene": self._scenes[slot],
        }

    def import_(self, session_id: str, state: Mapping[str, Any]) -> None:
        slot, content = self._slots.slot(session_id), state.get("range")
        if state.get("format") != EXPORT_FORMAT:
            raise ValueError(f"the export's format is {state.get('format')}, here it is {EXPORT_FORMAT}")
        if not isinstance(content, Tensor) or content.shape != (2,) or content.dtype != self._ranges.dtype:
            raise ValueError(f"the export has no depth range of two {self._ranges.dtype}")
        scene = state.get("scene")
        if scene is None:
            self._forget(slot)
            return
        if not (isinstance(scene, int) and content.isfinite().all() and content[0] <= content[1]):
            raise ValueError("the export's depth range is not one")
        self._ranges[slot] = content
        self._scenes[slot] = scene

    def bytes_per_session(self, spec: SessionSpec) -> int:
        return 2 * self._ranges.element_size()

    @property
    def free_slots(self) -> int:
        return self._slots.free_slots

    def check_integrity(self) -> None:
        """Also asserts that a range is known where there was a frame, and nowhere else."""
        self._slots.check_integrity()
        owned = {self._slots.slot(name) for name in self._sessions}
        for slot, (low, high) in enumerate(self._ranges.tolist()):
            known = self._scenes[slot] is not None
            assert (low, high) != UNKNOWN if known else (low, high) == UNKNOWN, f"slot {slot}: {low}, {high}"
            assert not known or low <= high, f"slot {slot} has the range {low} to {high}"
            assert not known or slot in owned, f"slot {slot} is free and has a range"

    def _forget(self, slot: int) -> None:
        self._ranges[slot] = self._ranges.new_tensor(UNKNOWN)
        self._scenes[slot] = None
