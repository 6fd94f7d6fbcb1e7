"""The lane side of a session: what was sent into it, and what has come back.

A feed knows its lane, the owner's epoch, which settings the lane was told of, and every frame that is in the
lane by place and ordinal. A session outlives its lane: a feed without one keeps what it knows and sends
nothing, and with another one it goes on under that one's epoch. What an older lane still answers is ignored.
Pure but for the sender, which only queues.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rearview.contract.events import Direction, Events, FillerSent, LinkBytes
from rearview.contract.frame import NO_PLACE, UNSEEN, Frame
from rearview.contract.settings import Settings
from rearview.errors import DropReason
from rearview.ingress.inputs import Input, Inputs
from rearview.ingress.intake import Admitted
from rearview.ingress.lane import Lane
from rearview.transport.links import LinkClosed

__all__ = ["SENT_AGAIN", "Feed", "Sender", "Sent", "untraced"]

Pictures: TypeAlias = Mapping[str, NDArray[np.uint8]]
"""A frame's planes as they enter the lane: the picture, and what came for its controls."""


class Sender(Protocol):
    """What a feed needs of the lanes."""

    def send_frame(self, lane: Lane, frame: Frame[NDArray[Any]]) -> int:
        """Send a frame into the lane; returns its bytes. Raises LinkClosed."""

    def send_settings(self, lane: Lane, version: int, settings: Settings) -> None:
        """Announce settings, before the first frame under them. Raises LinkClosed."""

    def send_note(self, lane: Lane, begins: int, text: str) -> None:
        """Leave a note at the lane's first span. Raises LinkClosed."""

    def tell_dropped(self, lane: Lane, frames: Sequence[tuple[int, int, int]]) -> None:
        """Frames that never come: place, the client's number, why. Raises LinkClosed."""

    def acknowledge(self, lane: Lane, ordinal: int) -> None:
        """Nothing up to `ordinal` will be asked for again. Raises LinkClosed."""

    def leave_answer(self, lane: Lane, frame: Frame[NDArray[Any]]) -> None:
        """The last span is to keep this of a frame that came back. Raises LinkClosed."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A frame that is in the lane."""

    admitted: Admitted
    codec_s: float
    """What decoding it took."""

    @property
    def place(self) -> int:
        return self.admitted.waiting.receipt.place


SENT_AGAIN = 64
"""Frames on their way that were sent before, to another lane; more than any warm-up waits for."""
NO_PICTURES: Pictures = MappingProxyType({})
NOTHING: Mapping[int, Sent] = MappingProxyType({})


def untraced(frame: Frame[NDArray[Any]], lane: Lane) -> Frame[NDArray[Any]]:
    """A frame of which nobody makes a trace."""
    return frame


@dataclass(frozen=True, slots=True)
class _Repeated:
    """What fillers show."""

    frame: Frame[NDArray[Any]]
    admitted: Admitted


class Feed:
    """The frames of one session in its lane."""

    def __init__(
        self,
        session_id: str,
        lane: Lane,
        sender: Sender,
        events: Events,
        inputs: Inputs,
        in_lane: Mapping[int, Sent] = NOTHING,
        traced: Callable[[Frame[NDArray[Any]], Lane], Frame[NDArray[Any]]] = untraced,
    ) -> None:
        """`inputs`: what was sent, kept to be sent again. `in_lane`: what another ingress has sent, by
        ordinal. `traced` makes of a client's frame what is sent of it.
        """
        self.inputs, self.session_id = inputs, session_id
        self._sender, self._events, self._traced = sender, events, traced
        self._lane, self._is_attached = lane, True
        self._returned = -1
        """The last ordinal that has come back from this lane."""
        self._told = 0
        """The version of settings that the lane knows; it is opened with version 0."""
        self._in_lane = dict(in_lane)
        """By ordinal."""
        self._answering = deque((sent.place, ordinal) for ordinal, sent in sorted(in_lane.items()))
        """Place and ordinal of frames whose answers may be asked for again, in order."""
        self._last: _Repeated | None = None
        """None where no filler can be needed: it is a whole picture."""

    @property
    def lane(self) -> Lane:
        """The lane, or the one that was lost last."""
        return self._lane

    @property
    def is_attached(self) -> bool:
        """Whether there is a lane. Without one nothing may be sent."""
        return self._is_attached

    def is_in(self, lane: Lane) -> bool:
        """Whether that is the lane, and not lost."""
        return self._is_attached and self._lane is lane

    @property
    def returned(self) -> int:
        """The last ordinal that has come back from this lane, or went before it."""
        return self._returned

    @property
    def in_lane(self) -> Mapping[int, Sent]:
        """Frames that have not come back, by ordinal."""
        return MappingProxyType(self._in_lane)

    @property
    def awaited(self) -> Sequence[tuple[int, int]]:
        """Place and ordinal of frames whose answers may be asked for again, in order; a copy."""
        return tuple(self._answering)

    @property
    def unanswered(self) -> int:
        """The first ordinal whose frame has not come back; the following one if none is missing."""
        return min(self._in_lane, default=self.inputs.following)

    def attach(self, lane: Lane, start: int) -> None:
        """From now on frames go into `lane`, which expects the ordinal `start`, and knows the settings of its
        first frame, or version 0.
        """
        assert lane.epoch > self._lane.epoch, f"epoch {lane.epoch} is not newer than {self._lane.epoch}"
        self._lane, self._is_attached, self._told = lane, True, 0
        self._returned = start - 1

    def detach(self) -> None:
        """The lane is lost: what it still sends is ignored."""
        self._is_attached = False

    def send(self, admitted: Admitted, pictures: Pictures, codec_s: float, *, may_repeat: bool) -> None:
        """An admitted frame into the lane, with its fillers. `may_repeat`: a later filler may show it too."""
        numbers = admitted.numbers
        self.repeat(numbers.completing, admitted.started_s)
        frame = self._frame(admitted, numbers.ordinal, pictures, admitted.deadline_s)
        self._last = _Repeated(frame, admitted)
        self._announce(admitted.settings_version, admitted.settings)
        self.repeat(numbers.fillers, admitted.started_s)
        self._in_lane[numbers.ordinal] = Sent(admitted, codec_s)
        self._answering.append((frame.place, numbers.ordinal))
        self.inputs.add(Input(numbers.ordinal, admitted))
        self._send(self._traced(frame, self._lane))
        if not may_repeat:
            self.forget()

    def takes_again(self, kept: Input, lane: Lane) -> bool:
        """Whether it is the turn of what was sent to a lane that is lost: pictures wait at the ingress, as
        bytes, and not at a replica as pixels. Also if it never will be.
        """
        return kept.ordinal - self._returned <= SENT_AGAIN or not self.is_in(lane)

    def send_again(self, kept: Input, pictures: Pictures, now: float) -> None:
        """What was sent to a lane that is lost, under its ordinal and settings and with its budget anew. Of
        what the client has, and of fillers, the picture is not made once more.
        """
        self._announce(kept.admitted.settings_version, kept.admitted.settings)
        frame = self._frame(kept.admitted, kept.ordinal, pictures, now + kept.admitted.budget_s)
        is_awaited = not kept.is_filler and kept.ordinal >= self._first_awaited
        self._send(self._traced(frame, self._lane) if is_awaited else replace(frame, place=UNSEEN))

    def lost_before(self, start: int) -> Sequence[Frame[NDArray[Any]]]:
        """Word of the frames that this lane will not answer, since it begins at `start` and they are not sent
        again: those of another ingress, whose images are not here.
        """
        return [
            replace(self._frame(sent.admitted, ordinal, NO_PICTURES, 0.0), planes=None)
            for ordinal, sent in sorted(self._in_lane.items())
            if ordinal < start
        ]

    def repeat(self, ordinals: range, now: float) -> None:
        """Send the last frame once more under each of these ordinals: fillers, whose answers nobody takes."""
        for ordinal in ordinals:
            assert self._last is not None, f"no frame to repeat as {ordinal}"
            shown = self._last.admitted
            deadline_s, epoch = now + shown.budget_s, self._lane.epoch
            self.inputs.add(Input(ordinal, shown, is_filler=True))
            self._send(
                replace(self._last.frame, ordinal=ordinal, place=NO_PLACE, deadline_s=deadline_s, epoch=epoch)
            )
            self._events(FillerSent())

    def forget(self) -> None:
        """No filler will have to repeat the last frame."""
        self._last = None

    def note(self, begins: int, text: str) -> None:
        """Leave a note for another ingress, which holds if the lane has been given ordinal `begins`."""
        if self._is_attached:
            with contextlib.suppress(LinkClosed):  # The loss itself is told to the lane's owner.
                self._sender.send_note(self._lane, begins, text)

    def tell_dropped(self, frames: Mapping[int, tuple[int, DropReason]]) -> None:
        """Tell another ingress of frames that never come, by place: the client's number, and why."""
        if self._is_attached and frames:
            told = [(place, index, reason.value) for place, (index, reason) in frames.items()]
            with contextlib.suppress(LinkClosed):  # The loss itself is told to the lane's owner.
                self._sender.tell_dropped(self._lane, told)

    @property
    def _first_awaited(self) -> int:
        """The first ordinal whose answer may be asked for again."""
        return self._answering[0][1] if self._answering else self.inputs.following

    def is_current(self, frame: Frame[NDArray[Any]]) -> bool:
        """Whether the frame comes from the lane, not from one that another owner, or this one, had before."""
        return self._is_attached and frame.epoch == self._lane.epoch

    def take_back(self, ordinal: int) -> Sent | None:
        """What was sent under an ordinal that has come back. None: a filler, or it has come before."""
        self._returned = max(self._returned, ordinal)
        return self._in_lane.pop(ordinal, None)

    def acknowledge(self, first_kept: int) -> None:
        """Answers before place `first_kept` will not be asked for again: the lane may let go of theirs."""
        ordinal = -1
        while self._answering and self._answering[0][0] < first_kept:
            ordinal = self._answering.popleft()[1]
        if ordinal < 0 or not self._is_attached:
            return
        with contextlib.suppress(LinkClosed):  # A lane that is gone keeps nothing.
            self._sender.acknowledge(self._lane, ordinal)

    def leave(self, frame: Frame[NDArray[Any]]) -> None:
        """The lane's last span is to keep this of a frame that came back, from this lane or one before."""
        if self._is_attached:
            with contextlib.suppress(LinkClosed):  # A lane that is gone keeps nothing.
                self._sender.leave_answer(self._lane, frame.carrying(frame.planes, epoch=self._lane.epoch))

    def _frame(
        self, admitted: Admitted, ordinal: int, pictures: Pictures, deadline_s: float
    ) -> Frame[NDArray[Any]]:
        receipt = admitted.waiting.receipt
        return Frame(
            self.session_id,
            ordinal,
            pictures,
            settings_version=admitted.settings_version,
            deadline_s=deadline_s,
            place=receipt.place,
            frame_index=receipt.frame_index,
            presentation_offset=receipt.presentation_offset,
            epoch=self._lane.epoch,
        )

    def _announce(self, version: int, settings: Settings) -> None:
        if version == self._told:
            return
        self._told = version
        with contextlib.suppress(LinkClosed):  # The loss itself is told to the lane's owner.
            self._sender.send_settings(self._lane, version, settings)

    def _send(self, frame: Frame[NDArray[Any]]) -> None:
        assert self._is_attached, f"ordinal {frame.ordinal} is sent without a lane"
        with contextlib.suppress(LinkClosed):  # The loss itself is told to the lane's owner.
            num_bytes = self._sender.send_frame(self._lane, frame)
            self._events(LinkBytes("ingress", Direction.SENT, num_bytes))
