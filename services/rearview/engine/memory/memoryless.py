"""No past at all: per-frame translation. Slots are still taken, since they bound a replica's sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rearview.contract.chain import Operator
from rearview.contract.session import SessionSpec
from rearview.engine.memory.protocol import MemoryUpdate, MemoryView
from rearview.engine.memory.slots import SlotPool
from rearview.engine.rows import Row
from rearview.errors import InvalidRequest, Reason

__all__ = ["Memoryless"]


class Memoryless:
    """The `TemporalMemory` of a model that translates every frame by itself."""

    def __init__(self, num_slots: int) -> None:
        self._slots = SlotPool(num_slots)

    def allocate(self, spec: SessionSpec) -> None:
        """Also raises InvalidRequest if the session asks for a past: it would be ignored in silence."""
        for name, kind in {"bank": "feature bank", "cache": "temporal cache"}.items():
            if getattr(spec, name) is not None:
                text = f"this service keeps no {kind}"
                raise InvalidRequest(Reason.SETTING_OUT_OF_RANGE, text, metadata={"field": name})
        self._slots.allocate(spec.session_id)

    def free(self, session_id: str) -> None:
        self._slots.free(session_id)

    def reset(self, session_id: str) -> None:
        pass  # There is nothing to forget.

    def warm_up_frames(self, spec: SessionSpec) -> int:
        return 0

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        return False

    def write_due(self, row: Row) -> bool:
        return False

    def gather(self, rows: Sequence[Row]) -> MemoryView:
        return None

    def scatter(self, rows: Sequence[Row], update: MemoryUpdate) -> None:
        assert update is None, "a memoryless model returned an update"

    def export(self, session_id: str) -> Mapping[str, Any]:
        return {}

    def import_(self, session_id: str, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError("a memoryless model cannot take a past")

    def bytes_per_session(self, spec: SessionSpec) -> int:
        return 0

    @property
    def free_slots(self) -> int:
        return self._slots.free_slots

    def check_integrity(self) -> None:
        self._slots.check_integrity()
