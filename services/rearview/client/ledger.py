"""What was sent and not yet answered: the exactly-once part of a session, without I/O or clock.

    submit ─► pending ─ take ─► unanswered ─ answered / control_answered ─► forgotten
                 ▲                  │
                 └──── resume ──────┘   what the server has not received goes back, in order

Frames are numbered by their place in the session; the server's `frame_credit`, `received_frames` and
`received_answers` count the same way, over all connections. A control has no number of its own: it stands
before the frame that follows it. Two things about controls after a lost connection surprise:

* One whose answer is missing is sent again, although the server may have applied it, and so is one that
  was answered if the server lost a frame from before it. To make that exact, the settings from before the
  first of them go ahead (`RESTORE_ID`): settings are absolute values.
* One that was answered is kept until the frames before it are answered, for that reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rearview.errors import Fault, Reason
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["RESTORE_ID", "Input", "Ledger"]

RESTORE_ID = 0
"""control_id of the ledger's own controls; users' ids begin with 1."""


@dataclass(eq=False)
class Input:
    """One frame or control on its way. `number` is its frame_index or control_id."""

    message: pb.TranslateRequest
    number: int
    is_frame: bool
    on_taken: Callable[[], None] = lambda: None
    """Called when it is first handed to a connection."""
    taken_s: float | None = None
    """The caller's clock at that time."""
    frames_before: int = 0
    """How many frames of the session stand before it."""
    is_acknowledged: bool = False
    """Of a control: whether its answer came."""
    settings_before: pb.Settings | None = None
    """Of an acknowledged control: all settings that it changed."""


@dataclass
class Ledger:
    """The inputs of one session. Not thread-safe."""

    frame_credit: int = 0
    """How many frames may have been sent in all."""
    settings: pb.Settings = field(default_factory=pb.Settings)
    """All settings after the last acknowledged control."""
    received_answers: int = 0
    """How many frames have been answered in all."""
    sent_frames: int = 0
    """How many frames were handed to the present connection or received over former ones."""
    _pending: deque[Input] = field(default_factory=deque)
    _unanswered: deque[Input] = field(default_factory=deque)

    @property
    def num_unanswered_frames(self) -> int:
        """Frames that are waiting to be sent or answered."""
        return sum(item.is_frame for item in (*self._pending, *self._unanswered))

    @property
    def is_empty(self) -> bool:
        """Whether everything submitted has been answered."""
        return not self._pending and not self._unanswered

    @property
    def has_pending(self) -> bool:
        """Whether something is waiting to be sent."""
        return bool(self._pending)

    def submit(self, item: Input) -> None:
        """Add an input at the end."""
        self._pending.append(item)

    def withdraw(self, item: Input) -> bool:
        """Take back an input that was never sent. False: it was, and will be answered."""
        if item.taken_s is not None or item not in self._pending:
            return False
        self._pending.remove(item)
        return True

    def take(self, now: float) -> Input | None:
        """The next input to send, now counted as sent; None if there is none or no credit for it."""
        if not self._pending:
            return None
        item = self._pending[0]
        if item.is_frame and self.sent_frames >= self.frame_credit:
            return None
        self._unanswered.append(self._pending.popleft())
        if item.taken_s is None:
            item.taken_s, item.frames_before = now, self.sent_frames
            item.on_taken()
        self.sent_frames += item.is_frame
        self._forget()
        return item

    def answered(self, frame_index: int) -> Input:
        """Forget the frame that this answer is for. Raises Fault unless it is the oldest unanswered one."""
        item = next((item for item in self._unanswered if item.is_frame), None)
        if item is None or item.number != frame_index:
            expected = f"expected {item.number}" if item is not None else "but none is unanswered"
            raise Fault(Reason.INTERNAL, f"answer for frame {frame_index}, {expected}")
        self._unanswered.remove(item)
        self.received_answers += 1
        self._forget()
        return item

    def control_answered(self, control_id: int, settings: pb.Settings) -> Input | None:
        """Note the answer to a control. None: it was noted before, or the control is the ledger's own."""
        for item in self._unanswered:
            if not item.is_frame and item.number == control_id and not item.is_acknowledged:
                item.is_acknowledged, item.settings_before = True, self.settings
                self.settings = settings
                self._forget()
                return item
        return None

    def resume(self, received_frames: int, frame_credit: int) -> None:
        """Put back what the server has not received. Raises Fault if the numbers cannot be."""
        newest = self.received_answers + sum(item.is_frame for item in self._unanswered)
        if not self.received_answers <= received_frames <= newest:
            raise Fault(
                Reason.INTERNAL,
                f"the server has received {received_frames} frames, "
                f"the client has {self.received_answers} answers and has sent {newest} frames",
            )
        kept, again = self._split(received_frames)
        redone = next((item for item in again if not item.is_frame and item.taken_s is not None), None)
        if redone is not None:
            again.insert(0, _restoring(redone.settings_before or self.settings))
        self._unanswered, self._pending = deque(kept), deque(again)
        self.sent_frames = received_frames
        self.frame_credit = frame_credit

    def _split(self, received_frames: int) -> tuple[list[Input], list[Input]]:
        """What the server has, and what is to be sent (again), both in order."""
        kept: list[Input] = []
        again: list[Input] = []
        number = self.received_answers
        for item in (*self._unanswered, *self._pending):
            if item.is_frame:
                (kept if number < received_frames else again).append(item)
                number += 1
            elif item.number != RESTORE_ID:
                done = item.is_acknowledged and item.frames_before <= received_frames
                (kept if done else again).append(item)
        return kept, again

    def _forget(self) -> None:
        """Drop acknowledged controls that no loss of frames can call for again."""
        while self._unanswered:
            item = self._unanswered[0]
            if not item.is_acknowledged or item.frames_before > self.received_answers:
                return
            self._unanswered.popleft()


def _restoring(settings: pb.Settings) -> Input:
    control = pb.Control(control_id=RESTORE_ID, settings=settings)
    return Input(pb.TranslateRequest(control=control), RESTORE_ID, False, is_acknowledged=True)
