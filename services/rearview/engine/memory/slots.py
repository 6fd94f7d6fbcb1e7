"""Which session owns which slot. Bookkeeping only: tensors belong to the memories."""

from __future__ import annotations

from rearview.errors import Reason, Refused

__all__ = ["SlotPool"]

RETRY_AFTER_S = 2.0
"""Hint to a refused client: sessions end at human pace, not at frame pace."""


class SlotPool:
    """`num_slots` numbered places, each owned by one session at most."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._slot_of: dict[str, int] = {}

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def allocate(self, session_id: str) -> int:
        """Take a slot. Raises Refused(NO_CAPACITY) when all are owned."""
        assert session_id not in self._slot_of, "session already has a slot"
        if not self._free:
            raise Refused(Reason.NO_CAPACITY, "every slot is in use", retry_after_s=RETRY_AFTER_S)
        slot = self._free.pop()
        self._slot_of[session_id] = slot
        return slot

    def free(self, session_id: str) -> int | None:
        """Give the session's slot back; None if it has none."""
        slot = self._slot_of.pop(session_id, None)
        if slot is not None:
            self._free.append(slot)
        return slot

    def slot(self, session_id: str) -> int:
        """The session's slot. KeyError if it has none."""
        return self._slot_of[session_id]

    def check_integrity(self) -> None:
        """Assert that every slot is either free or owned by exactly one session."""
        owned = list(self._slot_of.values())
        assert sorted(owned + self._free) == list(range(self._num_slots)), (
            f"slots {sorted(owned)} owned and {sorted(self._free)} free are not 0..{self._num_slots - 1}"
        )
