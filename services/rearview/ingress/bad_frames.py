"""Frames in a row that could not be used: after too many of them a stream ends.

Those that came in a size that was refused count for nothing, as long as their client may not know of that.
"""

from __future__ import annotations

from rearview.errors import DropReason, InvalidRequest, Reason
from rearview.ingress.book import RETAINED_ANSWERS, Outcome

__all__ = ["BadFrames"]

REASONS = frozenset(
    {
        DropReason.IMAGE_EMPTY,
        DropReason.IMAGE_INVALID,
        DropReason.IMAGE_NOT_BASELINE,
        DropReason.IMAGE_SIZE_MISMATCH,
        DropReason.IMAGE_TOO_LARGE,
        DropReason.CONTROLS_TOO_MANY,
        DropReason.CONTROL_UNKNOWN,
        DropReason.CONTROL_INVALID,
        DropReason.CONTROL_SIZE_MISMATCH,
    }
)
NOTHING = range(0)


class BadFrames:
    """Those of one stream."""

    def __init__(self, most: int, first: int = 0) -> None:
        """`most`: so many in a row end it. `first`: place of the first frame that comes by it: answers to
        those before, which a resumed stream sends again, were counted by theirs.
        """
        self._most, self._first, self._in_a_row = most, first, 0
        self._excused = NOTHING
        """Places of frames that count for nothing."""

    def size_refused(self, place: int) -> None:
        """Another size was refused before the frame of that place. Frames from it on may come in it, until
        one comes in the right size, or more than any client sends before it hears of the refusal. What is
        above the tenant's rate between them is not looked into.
        """
        if place not in (self._excused.stop, self._excused.start):
            self._excused = range(place, place)

    def came(self, place: int, refusal: DropReason | None) -> None:
        """A frame has come; `refusal` is why it cannot be used."""
        is_next = place == self._excused.stop and len(self._excused) < RETAINED_ANSWERS
        if is_next and refusal in (DropReason.IMAGE_SIZE_MISMATCH, DropReason.RATE_LIMITED):
            self._excused = range(self._excused.start, place + 1)

    def answered(self, place: int, outcome: Outcome) -> None:
        """The answer to the frame of that place was sent. Raises InvalidRequest(TOO_MANY_BAD_FRAMES)."""
        # To look a picture up in a set is to hash it, all of it.
        if not (isinstance(outcome, DropReason) and outcome in REASONS):
            self._in_a_row = 0
        elif place >= self._first and place not in self._excused:
            self._in_a_row += 1
        if self._in_a_row >= self._most:
            text = f"{self._in_a_row} frames in a row could not be used"
            raise InvalidRequest(Reason.TOO_MANY_BAD_FRAMES, text)
