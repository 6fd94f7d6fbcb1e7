"""The one interface of temporal memory: what a session remembers, in slots that the engine owns.

A forward never changes a pool. It reads a view (`gather`) and returns an update, and `scatter` applies
that update when the engine commits the row. A window row (`Row.window`) is one sample of the view and of
the update per frame, and reads what was there before it. All methods sit behind this protocol: the feature
bank (keys, values and outputs per session, step and layer), the temporal KV cache, the range of depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rearview.contract.chain import Operator
from rearview.contract.session import SessionSpec
from rearview.engine.rows import Row

__all__ = ["MemoryUpdate", "MemoryView", "TemporalMemory"]

MemoryView = Any
"""What a batch of rows may read; passed to the UNet as an argument. Valid until the next `scatter`."""
MemoryUpdate = Any
"""What a batch of rows would write; returned by the forward."""


class TemporalMemory(Protocol):
    """Sessions' pasts. No method is thread-safe: the engine is the only caller."""

    def allocate(self, spec: SessionSpec) -> None:
        """Take slots for all `spec.max_steps` steps. Raises Refused(NO_CAPACITY); changes nothing then."""

    def free(self, session_id: str) -> None:
        """Give the slots back; what they held can no longer be read. Unknown sessions are ignored."""

    def reset(self, session_id: str) -> None:
        """Forget the past, keep the slots: the next frame finds them as in a new session."""

    def warm_up_frames(self, spec: SessionSpec) -> int:
        """How many of the session's first frames go through every step together, as one window row, and
        again after a change that makes what they left worthless. 0: none, frames never wait for others.
        """

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        """Whether rows of `operator`, which is not a denoising step, read or write the session's memory,
        so that one runs after the other. Denoising steps always keep order.
        """

    def write_due(self, row: Row) -> bool:
        """Whether committing `row` writes more than every row of its group does, at a cost of its own.
        Depends on the ordinal and the slot, never on load.
        """

    def gather(self, rows: Sequence[Row]) -> MemoryView:
        """What these rows read, in their order. Changes nothing."""

    def scatter(self, rows: Sequence[Row], update: MemoryUpdate) -> None:
        """Write what the rows left. The only change to a pool outside allocate/free/reset."""

    def export(self, session_id: str) -> Mapping[str, Any]:
        """The session's past, keyed by (step, layer), never by slot or span; a copy."""

    def import_(self, session_id: str, state: Mapping[str, Any]) -> None:
        """Put an export into the session's (allocated) slots. Raises ValueError if it does not fit."""

    def bytes_per_session(self, spec: SessionSpec) -> int:
        """Bytes that `allocate(spec)` takes from the pool. What the engine holds of frames in flight and
        for shadow windows (`warmup.StepWarmUp`) is host memory, and not among them.
        """

    @property
    def free_slots(self) -> int:
        """Sessions that still fit."""

    def check_integrity(self) -> None:
        """Assert that slots are owned once, and that what is not owned is empty."""
