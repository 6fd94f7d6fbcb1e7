"""The running range of a session's depth maps: session memory of the encode operator.

A depth map is relative, so it is scaled to [0, 1] before it conditions anything. Scaling the warm-up frames
by their joint range and every later one by its own, as the original does (methods 3.9), jumps after the
warm-up and flickers whenever an outlier enters. Here every frame, those of the warm-up too, is scaled by a
running range: it widens at once, so that no map leaves [0, 1], and narrows slowly. Another scene, or another
size of frames, begins with a range of its own. What surprises: encode rows of a session then have an order,
as denoising rows do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.contract.size import Size
from rearview.engine.memory.depth.view import DEPTH_RANGE, DepthUpdate, DepthView
from rearview.engine.memory.export import NO_STEP, Chunk, Json, check_fields, check_number, check_tensors
from rearview.engine.memory.protocol import Memory, Write
from rearview.engine.memory.slots import SlotPool
from rearview.engine.rows import Row

__all__ = ["NARROWING_PER_FRAME", "DepthRange", "next_range"]

NARROWING_PER_FRAME = 0.02
"""Share of the way to a frame's own range that a wider running range goes back per frame: half of it in 34
frames, so that an outlier fades over more than a second instead of flickering."""
EXPORT_FORMAT = 2


class _Of(NamedTuple):
    """What a range is of."""

    scene: int
    size: Size

    @classmethod
    def row(cls, row: Row) -> _Of:
        return cls(row.settings.scene, row.size)


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


class DepthRange(Memory[DepthView, DepthUpdate]):
    """One range per session. Only sessions with a temporal cache have depth: without one nothing reads it."""

    kind = DEPTH_RANGE
    operators = frozenset({OperatorKind.ENCODE})

    def __init__(
        self, num_slots: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype`: that of latents, float32 or, in exactness tests, float64."""
        self._slots = SlotPool(num_slots)
        self._device = device or torch.device("cpu")
        self._ranges = torch.tensor([UNKNOWN] * num_slots, dtype=dtype, device=self._device)
        self._of: list[_Of | None] = [None] * num_slots
        """Per slot that of the last frame. None: there was no frame, and the range is not known."""
        self._sessions: dict[str, SessionSpec] = {}

    def allocate(self, spec: SessionSpec) -> None:
        """Take a slot. Raises Refused(NO_CAPACITY)."""
        self._slots.allocate(spec.session_id)
        self._sessions[spec.session_id] = spec

    def free(self, session_id: str) -> None:
        slot = self._slots.free(session_id)
        if slot is not None:
            del self._sessions[session_id]
            self._forget(slot)

    def reset(self, session_id: str) -> None:
        self._forget(self._slots.slot(session_id))

    def group(self, spec: SessionSpec, operator: Operator) -> Hashable:
        """Of the rows of a forward all have depth or none has."""
        return spec.cache is not None

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        """Where there is depth: a frame's range depends on that of the frame before it."""
        return spec.cache is not None

    def changes_past(self, row: Row) -> bool:
        return row.frame.spec.cache is not None

    def gather(self, rows: Sequence[Row]) -> DepthView | None:
        """Ranges before these frames; None where rows have no depth."""
        deep = [row.frame.spec.cache is not None for row in rows]
        if not all(deep):
            assert not any(deep), "rows with and without depth in one forward"
            return None
        slots = [self._slots.slot(row.session_id) for row in rows]
        ranges = self._ranges[torch.tensor(slots, device=self._device)]
        for index, (row, slot) in enumerate(zip(rows, slots, strict=True)):
            if self._of[slot] != _Of.row(row):
                ranges[index] = ranges.new_tensor(UNKNOWN)
        return DepthView(ranges)

    @torch.inference_mode()
    def prepare(self, rows: Sequence[Row], update: DepthUpdate) -> Write:
        """`update`: ranges after these frames, in their order."""
        slots = [self._slots.slot(row.session_id) for row in rows]
        assert len(set(slots)) == len(slots), "two frames of a session in one forward"
        assert update.range_B2.shape == (len(slots), 2), f"{update.range_B2.shape} of {len(slots)} frames"
        of = {slot: _Of.row(row) for row, slot in zip(rows, slots, strict=True)}
        return partial(self._commit, of, update.range_B2.to(self._ranges))

    def export(self, session_id: str) -> Iterator[Chunk]:
        """One chunk: the range, and the scene (None: nothing is known) and size that it is of."""
        slot = self._slots.slot(session_id)
        of = self._of[slot]
        known = {"scene": None} if of is None else {"scene": of.scene, **of.size._asdict()}
        values: dict[str, Json] = {**self._header(), **known}
        yield Chunk(DEPTH_RANGE.name, values=values, tensors=(self._ranges[slot].cpu().clone(),))

    def prepare_import(self, session_id: str, chunks: Iterable[Chunk]) -> Write:
        """Raises ValueError for an export of another type, and for a range that is none."""
        slot, found = self._slots.slot(session_id), list(chunks)
        if len(found) != 1 or found[0].step != NO_STEP:
            raise ValueError(f"the export has {len(found)} ranges of depth")
        (chunk,) = found
        check_fields(chunk.values, self._header())
        (content,) = check_tensors(chunk.tensors, NO_STEP, "the depth range", [(2,)], self._ranges.dtype)
        if chunk.values.get("scene", "") is None:
            return partial(self._forget, slot)
        spec = self._sessions[session_id]
        sized = {"width": spec.width, "height": spec.height, **chunk.values}  # Releases before say no size.
        size = Size(*(check_number(sized, name, 0) for name in Size._fields))
        of = _Of(check_number(chunk.values, "scene", 0), size)
        if not (content.isfinite().all() and content[0] <= content[1]):
            raise ValueError("the export's depth range is not one")
        return partial(self._commit, {slot: of}, content[None])

    def bytes_per_session(self, spec: SessionSpec) -> int:
        """The same for every session."""
        return 2 * self._ranges.element_size()

    @property
    def free_slots(self) -> int:
        return self._slots.free_slots

    def check_integrity(self) -> None:
        """Also asserts that a range is known where there was a frame, and nowhere else."""
        self._slots.check_integrity()
        owned = {self._slots.slot(name) for name in self._sessions}
        for slot, (low, high) in enumerate(self._ranges.tolist()):
            known = self._of[slot] is not None
            assert (low, high) != UNKNOWN if known else (low, high) == UNKNOWN, f"slot {slot}: {low}, {high}"
            assert not known or low <= high, f"slot {slot} has the range {low} to {high}"
            assert not known or slot in owned, f"slot {slot} is free and has a range"

    def _header(self) -> dict[str, Json]:
        return {"format": EXPORT_FORMAT, "dtype": str(self._ranges.dtype)}

    @torch.inference_mode()
    def _commit(self, of: dict[int, _Of], ranges_B2: Tensor) -> None:
        """`of`: by slot, in the order of the ranges."""
        self._ranges[torch.tensor(list(of), device=self._device)] = ranges_B2.to(self._device)
        for slot, what in of.items():
            self._of[slot] = what

    def _forget(self, slot: int) -> None:
        self._ranges[slot] = self._ranges.new_tensor(UNKNOWN)
        self._of[slot] = None
