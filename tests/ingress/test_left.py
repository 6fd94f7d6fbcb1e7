"""What an ingress leaves at the last span: when it is worth a message, and what a new lane gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rearview.contract.frame import ANSWER, ANSWER_SIZE, NO_PLACE, PICTURE, UNSEEN
from rearview.contract.retained import RETAINED_BYTES
from rearview.errors import DropReason
from rearview.ingress.left import LeftAnswers
from support.edge import EdgeCore, lane, picture, terms

pytestmark = pytest.mark.unit

PIXELS = picture(0).nbytes


class Session:
    """Frames that all come back at once, before the client acknowledges any."""

    def __init__(self, room: int = 3) -> None:
        self.core = EdgeCore(terms())
        self.left = LeftAnswers(self.core.feed, self.core.book, room * PIXELS)
        self.core.feed.leave = self._leave  # type: ignore[method-assign]

    def _leave(self, frame: object) -> None:
        self.core.sender.left.append(frame)  # type: ignore[arg-type]

    def answer(self, count: int, image: bytes = b"jpeg") -> None:
        """So many frames more, each encoded as `image` and its number."""
        for _ in range(count):
            number = self.core.book.received
            self.core.offer(number, picture(number))
            frame = self.core.sender.frames[-1]
            self.core.feed.take_back(frame.ordinal)
            self.core.intake.came_back(frame.ordinal, lost=False)
            encoded = image + b"%d" % number
            self.core.book.settle(frame.place, encoded, 0.0)
            self.core.book.sent(number + 1)
            self.left.encoded(frame, encoded)

    def acknowledge(self, received_answers: int) -> None:
        self.core.book.acknowledge(received_answers)
        self.core.feed.acknowledge(self.core.book.first_kept)

    @property
    def places(self) -> list[int]:
        """Of what was left, as it was."""
        return [frame.place for frame in self.core.sender.left]


def test_whoever_acknowledges_soon_causes_no_message() -> None:
    session = Session()
    for number in range(40):
        session.answer(1)
        session.acknowledge(max(0, number - 1))
    assert session.places == []


def test_of_whoever_does_not_the_last_span_gets_the_answers() -> None:
    session = Session()
    session.answer(10)
    assert session.places == list(range(3, 10))
    frame = session.core.sender.left[0]
    assert frame.planes is not None
    assert frame.planes.keys() == {ANSWER, ANSWER_SIZE}
    assert frame.planes[ANSWER].tobytes() == b"jpeg3"
    assert (frame.ordinal, frame.frame_index) == (3, 3)
    session.acknowledge(9)
    session.answer(4)
    assert session.places[7:] == [13], "9 is there encoded; of the others three have room as pixels"


def test_what_is_no_smaller_or_has_no_place_stays_as_it_is() -> None:
    session = Session(room=0)
    session.answer(2, b"x" * PIXELS)
    frame = session.core.sender.frames[0]
    session.left.encoded(replace(frame, place=NO_PLACE), b"jpeg")  # Of a lane of version 1.
    assert session.places == []


def test_what_is_run_once_more_is_left_if_it_was_answered() -> None:
    session = Session(room=1)
    session.answer(3)
    frames = session.core.sender.frames
    session.core.sender.left.clear()
    for frame in (*frames, replace(frames[1], place=UNSEEN), replace(frames[1], planes=None)):
        session.left.came_again(frame)
    assert session.places == [1, 2], "the first stays in pixels, the others have no place or no picture"


def test_another_lane_gets_the_newest_of_what_it_will_not_make() -> None:
    session = Session()
    session.answer(8)
    session.core.offer(99, picture(0), DropReason.IMAGE_INVALID)
    session.acknowledge(2)
    session.core.sender.left.clear()
    session.left.hand_over(6)
    assert session.places == [5, 4, 3, 2]
    assert [frame.ordinal for frame in session.core.sender.left] == [5, 4, 3, 2]
    session.core.sender.left.clear()
    session.left.hand_over(1 << 30)
    assert session.places == [7, 6, 5, 4, 3, 2]


def test_another_lane_gets_no_more_than_it_has_room_for() -> None:
    session = Session(room=RETAINED_BYTES // PIXELS)
    session.answer(8, b"x" * (PIXELS // 2))
    session.left.hand_over(8)
    assert session.places == [7]


def test_without_a_lane_nothing_is_left() -> None:
    core = EdgeCore(terms())
    core.offer(0, picture(0))
    frame = core.sender.frames[0]
    core.feed.leave(frame)
    core.feed.attach(lane(2), 1)
    core.feed.leave(frame)
    assert [each.epoch for each in core.sender.left] == [1, 2]
    core.sender.is_closed = True
    core.feed.leave(frame)
    core.feed.detach()
    core.feed.leave(replace(frame, planes={PICTURE: np.empty(0, np.uint8)}))
    assert len(core.sender.left) == 2
