"""What was sent and not yet answered: the exactly-once part of a session, without I/O or clock.

    submit ─► take ─► answered / control_answered ─► forgotten
                ▲              │
                └─── resume ───┘   what the server has not received goes out again, in order

Frames are numbered by their place in the session; the server's `frame_credit`, `received_frames` and
`received_answers` count the same way, over all connections. A control has no number of its own: it stands
before the frame that follows it. Two things about controls after a lost connection surprise:

* One whose answer is missing is sent again, although the server may have applied it, and so is one that
  was answered if the server lost a frame from before it. To make that exact, the settings from before the
  first of them go ahead (`RESTORE_ID`): settings are absolute values. Going back changes nothing by itself,
  since a server compares what frames are under. So where the frame sent again first is the first under a new
  prompt too, its blend begins with it, and where it is not, the one under way goes on.
* One that was answered is kept until the frames before it are answered, for that reason.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rearview.contract.settings import SINGLE_OF
from rearview.contract.size import Size
from rearview.errors import Fault, Reason
from rearview.v1 import settings_pb2
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
    taken_s: float | None = None
    """When it was first handed to a connection, on the caller's clock; None: not yet."""
    frames_before: int = 0
    """How many frames of the session stand before it."""
    is_acknowledged: bool = False
    """Of a control: whether its answer came, and the server cannot have gone back behind it since."""
    is_reported: bool = False
    """Of a control: whether its answer was given to the user."""
    settings_before: settings_pb2.Settings = field(default_factory=settings_pb2.Settings)
    """Of an acknowledged control: all settings that it changed."""


@dataclass
class Ledger:
    """The inputs of one session. Not thread-safe."""

    frame_credit: int = 0
    """How many frames may have been sent in all."""
    settings: settings_pb2.Settings = field(default_factory=settings_pb2.Settings)
    """All settings after the last acknowledged control."""
    received_answers: int = 0
    """How many frames have been answered in all."""
    sent_frames: int = 0
    """How many frames were handed to the present connection or received over former ones."""
    _items: deque[Input] = field(default_factory=deque)
    """What is not forgotten, in the user's order, sent or not."""
    _outgoing: deque[Input] = field(default_factory=deque)
    """What is still to be sent on this connection."""

    @property
    def num_unanswered_frames(self) -> int:
        """Frames that are waiting to be sent or answered."""
        return sum(item.is_frame for item in self._items)

    @property
    def sent_indices(self) -> list[int]:
        """Numbers of the frames that were sent and not answered, in order."""
        return [item.number for item in self._items if item.is_frame and item.taken_s is not None]

    @property
    def size(self) -> Size:
        """That of the next frame to be submitted, if no control is refused whose answer is missing; zeros
        where the server says none.
        """
        width, height = self.settings.width, self.settings.height
        for item in self._items:
            if not item.is_frame and not item.is_acknowledged:
                asked = item.message.control.settings
                width = asked.width if asked.HasField("width") else width
                height = asked.height if asked.HasField("height") else height
        return Size(width, height)

    @property
    def is_empty(self) -> bool:
        """Whether everything submitted has been answered."""
        return not self._items

    @property
    def has_outgoing(self) -> bool:
        """Whether something is waiting to be sent."""
        return bool(self._outgoing)

    def submit(self, item: Input) -> Input:
        """Add an input at the end; returns it."""
        self._items.append(item)
        self._outgoing.append(item)
        return item

    def withdraw(self, item: Input) -> bool:
        """Take back an input that was never sent. False: it was, and will be answered."""
        if item.taken_s is not None or item not in self._outgoing:
            return False
        self._items.remove(item)
        self._outgoing.remove(item)
        return True

    def take(self, now: float) -> Input | None:
        """The next input to send, now counted as sent; None if there is none or no credit for it."""
        if not self._outgoing:
            return None
        item = self._outgoing[0]
        if item.is_frame and self.sent_frames >= self.frame_credit:
            return None
        self._outgoing.popleft()
        if item.taken_s is None:
            item.taken_s, item.frames_before = now, self.sent_frames
        self.sent_frames += item.is_frame
        return item

    def answered(self, frame_index: int) -> float:
        """Forget the frame that this answer is for; returns when it was taken.

        Raises Fault unless it is the oldest unanswered one.
        """
        item = next((item for item in self._items if item.is_frame), None)
        if item is None or item.taken_s is None or item.number != frame_index:
            expected = f"expected {item.number}" if item is not None else "but none is unanswered"
            raise Fault(Reason.INTERNAL, f"answer for frame {frame_index}, {expected}")
        self._items.remove(item)
        self.received_answers += 1
        self._forget()
        return item.taken_s

    def control_answered(self, control_id: int, settings: settings_pb2.Settings) -> Input | None:
        """Note the answer to a control. None: the user has it already, or the control is the ledger's own."""
        for item in self._items:
            if not item.is_frame and item.number == control_id and not item.is_acknowledged:
                item.is_acknowledged, item.settings_before = True, self.settings
                self.settings = settings
                was_reported, item.is_reported = item.is_reported, True
                self._forget()
                return None if was_reported else item
        return None

    def resume(
        self, received_frames: int, frame_credit: int, settings: settings_pb2.Settings | None = None
    ) -> None:
        """Prepare a new connection: send again what the server lacks, also of settings. Raises Fault if that
        cannot be.
        """
        newest = self.received_answers + sum(
            item.is_frame and item.taken_s is not None for item in self._items
        )
        if not self.received_answers <= received_frames <= newest:
            raise Fault(
                Reason.INTERNAL,
                f"the server has received {received_frames} frames, "
                f"the client has {self.received_answers} answers and has sent {newest} frames",
            )
        self.sent_frames, self.frame_credit = received_frames, frame_credit
        again = self._lacking(received_frames)
        redone = [item for item in again if not item.is_frame and item.taken_s is not None]
        if redone and redone[0].is_acknowledged:
            self.settings = redone[0].settings_before
        if redone or settings not in (None, self.settings):
            again = [_restoring(self.settings), *again]
        self._outgoing = deque(again)
        for item in redone:
            item.is_acknowledged = False

    def _lacking(self, received_frames: int) -> list[Input]:
        """What the server needs, again or for the first time, in order."""
        lacking: list[Input] = []
        number = self.received_answers
        for item in self._items:
            if item.is_frame:
                has_it = number < received_frames
                number += 1
            else:
                has_it = item.is_acknowledged and item.frames_before <= received_frames
            if not has_it:
                lacking.append(item)
        return lacking

    def _forget(self) -> None:
        """Drop acknowledged controls that no loss of frames can call for again."""
        while self._items and self._items[0].is_acknowledged:
            if self._items[0].frames_before > self.received_answers:
                return
            self._items.popleft()


def _restoring(settings: settings_pb2.Settings) -> Input:
    """A control that restores `settings`, so that what follows finds what it found."""
    restored = settings_pb2.Settings()
    restored.CopyFrom(settings)
    message: Any = restored
    for several, single in SINGLE_OF.items():
        if getattr(message, several):
            message.ClearField(single)  # The two replace each other.
    control = pb.Control(control_id=RESTORE_ID, settings=restored)
    return Input(pb.TranslateRequest(control=control), RESTORE_ID, False)
