"""The book of answers: every frame received has exactly one outcome, and outcomes leave in order.

A frame gets its *place* when it is received and its outcome whenever that is known; it is released once all
frames before it have theirs. A released answer is kept until the client has acknowledged it, or until too
many newer ones were sent. One that was sent may lose its picture sooner, if its tenant keeps too many bytes.
Pure: no clock, no task, no picture is looked into. What surprises: the book is bounded by the credit that
follows from it. A client may have received frames outstanding only for as long as it reads, so that at most
`2 * RETAINED_ANSWERS` frames are in the book, whoever stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from rearview.contract.frame import Timing
from rearview.contract.share import Share
from rearview.contract.size import NO_SIZE, Size
from rearview.errors import DropReason, InvalidRequest, Reason, StreamEnded

__all__ = ["NO_WORK", "RETAINED_ANSWERS", "Answer", "Book", "Outcome", "Receipt", "Work"]

RETAINED_ANSWERS = 64
"""Answers kept for a client that does not say what it has received."""

Outcome: TypeAlias = bytes | DropReason
"""The encoded picture, or why there is none."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """That a frame was received."""

    place: int
    """Its number among the frames received, from 0."""
    frame_index: int
    """The client's number, echoed."""
    presentation_offset: tuple[int, int]
    """Seconds and nanoseconds, echoed."""
    received_s: float
    is_numbered: bool = True
    """Else `frame_index` is a guess, until the answer to the frame before it is released."""
    is_counted: bool = False
    """Whether another ingress has told of the outcome: each is counted once."""
    size: Size = NO_SIZE
    """Of the frame, and of its picture."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a frame's answer took."""

    started_s: float | None = None
    """When the frame entered its lane; None if it never did."""
    codec_s: float = 0.0
    timings: tuple[Timing, ...] = ()
    back_s: float | None = None
    """When it came back; None if it never did."""
    pixel_steps: int = 0
    """Width times height times denoising steps, of one that has passed them."""


NO_WORK = Work()


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one frame."""

    receipt: Receipt
    outcome: Outcome
    answered_s: float
    work: Work
    gap_frames: int | None = None
    """Of the first picture of another size: how many frames since the last one of the size before had none,
    though their clients wanted one. None: it is not the first.
    """
    is_forgotten: bool = False
    """Whether it had a picture, which was sent."""


class Book:
    """The answers of one session. Times are on one monotonic clock, the caller's."""

    def __init__(self, *, first: int = 0, translated: int = 0, dropped: int = 0) -> None:
        """`first`: the place of the next frame; all before it are answered and acknowledged.

        `translated`, `dropped`: how many of these had a picture, and how many had none.
        """
        self.translated, self.dropped = translated, dropped
        self._open: deque[Receipt] = deque()
        """Frames that are not released, in order."""
        self._known: dict[int, Answer] = {}
        """Their answers, of those that have one, by place."""
        self._released: deque[Answer] = deque()
        """Answers in order, from place `_first_kept` on."""
        self._first_kept = first
        self._sent = first
        self.num_bytes = 0
        """Of the pictures in it."""
        self._share, self._on_forgotten = Share(), lambda: None
        self.on_delivered: Callable[[Answer], None] = _nobody_told
        """Is told of each answer that will not be asked for again, in order."""
        self._counted: frozenset[int] = frozenset()
        """Places of frames whose outcome another ingress has told, if they come again."""
        self._last_index: int | None = None
        """The client's number of the frame whose answer was released last."""
        self._last_size, self._missing = NO_SIZE, 0
        """Of the last picture that was released, and frames since then that have none."""

    @classmethod
    def rebuilt(
        cls,
        *,
        received: int,
        outcomes: Mapping[int, Outcome],
        received_answers: int,
        now: float,
        receipts: Mapping[int, Receipt] | None = None,
        indices: Sequence[int] = (),
        counted: Collection[int] = (),
    ) -> Book:
        """A book from what others know of it, `received_answers` of which the client has.

        `received`: how many frames were received in all, as the first span or the client knows. `outcomes`,
        by place: what a former owner has kept. `receipts`, by place: frames that the spans know of, which
        stay open if they have no outcome. `indices`: the client's numbers of all frames from place
        `received_answers` on; where they end, one is numbered on from the frame before it. What nobody knows
        never entered a lane: DropReason.FAULT. `counted`: places of which another ingress has told the
        outcome, and whose frames may come again. Counters start at nothing: they are in the session's state.
        """
        assert received_answers <= received, f"{received_answers} answers to {received} frames"
        book, known = cls(first=received_answers), receipts or {}
        book._counted = frozenset(counted)
        index = received_answers - 1
        for at, place in enumerate(range(received_answers, received)):
            index = indices[at] if at < len(indices) else index + 1
            told = at < len(indices)
            book._open.append(known.get(place) or Receipt(place, index, (0, 0), now, is_numbered=told))
            index = book._open[-1].frame_index
        for place in range(received_answers, received):
            outcome = outcomes.get(place, None if place in known else DropReason.FAULT)
            if outcome is not None:
                book.settle(place, outcome, now)
        return book

    def counts_to(self, share: Share, on_forgotten: Callable[[], None] = lambda: None) -> None:
        """Its pictures count to `share` from now on. `on_forgotten` is told of each that goes for it."""
        num_bytes = self.num_bytes
        self._count(-num_bytes)
        self._share, self._on_forgotten = share, on_forgotten
        self._count(num_bytes)
        share.make_room()

    def receive(
        self, frame_index: int, presentation_offset: tuple[int, int], now: float, size: Size = NO_SIZE
    ) -> Receipt:
        """A frame has come. Beyond `credit` none may come."""
        assert self.received < self.credit, f"{self.received} frames with credit for {self.credit}"
        place = self.received
        is_counted = place in self._counted
        receipt = Receipt(place, frame_index, presentation_offset, now, is_counted=is_counted, size=size)
        self._open.append(receipt)
        return receipt

    def receipt(self, place: int) -> Receipt:
        """Of a frame that is not released."""
        return self._open[place - self.released]

    def recognise(
        self, place: int, frame_index: int, presentation_offset: tuple[int, int], size: Size = NO_SIZE
    ) -> None:
        """What a frame that has come back says of itself: a rebuilt book may not have known. Frames that know
        no place are none of the book's.
        """
        at = place - self.released
        if 0 <= at < len(self._open):
            known = self._open[at]
            self._open[at] = replace(
                known,
                frame_index=frame_index,
                presentation_offset=presentation_offset,
                size=size if known.size == NO_SIZE else known.size,
            )

    def settle(self, place: int, outcome: Outcome, now: float, work: Work = NO_WORK) -> Answer:
        """Give a frame its one outcome, and release what is now answered in order."""
        assert self.released <= place < self.received, f"frame {place} is not open"
        assert place not in self._known, f"frame {place} has two outcomes"
        answer = Answer(self._open[place - self.released], outcome, now, work)
        if isinstance(outcome, DropReason):
            self.dropped += 1
        else:
            self.translated += 1
            self._count(len(outcome))
        self._known[place] = answer
        while self._open and self._open[0].place in self._known:
            self._release(self._known.pop(self._open.popleft().place))
        self._share.make_room()
        return answer

    def _release(self, answer: Answer) -> None:
        receipt = answer.receipt
        if not receipt.is_numbered and self._last_index is not None:
            answer = replace(answer, receipt=replace(receipt, frame_index=self._last_index + 1))
        self._last_index = answer.receipt.frame_index
        self._released.append(self._measured(answer))

    def _measured(self, answer: Answer) -> Answer:
        """With its gap."""
        if isinstance(answer.outcome, DropReason):
            self._missing += answer.outcome is not DropReason.UNCHANGED
            return answer
        (before, size), gap = (self._last_size, answer.receipt.size), self._missing
        self._last_size, self._missing = size, 0
        is_resized = before != size and NO_SIZE not in (before, size)
        return replace(answer, gap_frames=gap) if is_resized else answer

    def answer(self, place: int) -> Answer | None:
        """The answer to the frame of that place; None if it is not released yet.

        Raises StreamEnded if it is no longer kept.
        """
        if place < self._first_kept:
            raise StreamEnded(
                Reason.SESSION_UNKNOWN, "answers before the resumed position are no longer kept"
            )
        at = place - self._first_kept
        return self._released[at] if at < len(self._released) else None

    def find(self, place: int) -> Answer | None:
        """The answer to the frame of that place, released or not; None if there is none, or none any more."""
        at = place - self._first_kept
        return self._released[at] if 0 <= at < len(self._released) else self._known.get(place)

    def sent(self, place: int) -> None:
        """Answers before `place` were handed to the connection."""
        assert place <= self.released, f"{place} answers sent of {self.released}"
        self._sent = max(self._sent, place)
        self._keep_from(self._sent - RETAINED_ANSWERS)
        self._share.make_room()

    def acknowledge(self, received_answers: int) -> None:
        """The client has so many answers: they need not be kept.

        Raises InvalidRequest(SETTING_OUT_OF_RANGE) if there are not so many.
        """
        if received_answers > self.released:
            raise InvalidRequest(
                Reason.SETTING_OUT_OF_RANGE,
                "more answers were received than were sent",
                metadata={"field": "received_answers"},
            )
        self._keep_from(min(received_answers, self._sent))

    def forget_oldest(self) -> bool:
        """Of the answers that were sent, let go of the oldest picture: who asks for it again will get
        DropReason.FAULT. False: none has one.
        """
        for at in range(self._sent - self._first_kept):
            answer = self._released[at]
            if num_bytes := _bytes_of(answer):
                self._released[at] = replace(answer, outcome=DropReason.FAULT, is_forgotten=True)
                self._count(-num_bytes)
                self._on_forgotten()
                return True
        return False

    @property
    def received(self) -> int:
        """Frames that have come."""
        return self.released + len(self._open)

    @property
    def released(self) -> int:
        """Answers that are known, in order."""
        return self._first_kept + len(self._released)

    @property
    def first_kept(self) -> int:
        """Place of the first answer that may be asked for again, or will be."""
        return self._first_kept

    @property
    def kept(self) -> Sequence[Answer]:
        """Answers that may be asked for again, or will be; in order."""
        return tuple(self._released)

    @property
    def owes(self) -> bool:
        """Whether a received frame has no answer that could be sent."""
        return bool(self._open)

    @property
    def credit(self) -> int:
        """Frames that may be received in all. A reader that stands still earns no more."""
        return self._sent + RETAINED_ANSWERS

    @property
    def is_exhausted(self) -> bool:
        """Whether no frame may come before more answers are sent."""
        return self.received >= self.credit

    def _keep_from(self, place: int) -> None:
        while self._first_kept < place:
            answer = self._released.popleft()
            self._count(-_bytes_of(answer))
            self._first_kept += 1
            self.on_delivered(answer)

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._share.count(self, num_bytes)


def _nobody_told(answer: Answer) -> None:
    """What becomes of it is nobody's concern."""


def _bytes_of(answer: Answer) -> int:
    return 0 if isinstance(answer.outcome, DropReason) else len(answer.outcome)
