"""The book of answers: one outcome for each frame, in order, none lost, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rearview.contract.frame import Timing
from rearview.contract.share import Share
from rearview.contract.size import Size
from rearview.errors import DropReason, InvalidRequest, Reason, StreamEnded
from rearview.ingress.book import RETAINED_ANSWERS, Answer, Book, Outcome, Receipt, Work

pytestmark = pytest.mark.unit

OUTCOMES = st.one_of(st.binary(max_size=4), st.sampled_from(DropReason))


class AnyOrder(RuleBasedStateMachine):
    """A client, a lane and a connection that do what they like, within the book's credit."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Book()
        self.received = 0
        self.outcomes: dict[int, Outcome] = {}
        self.sent = self.acknowledged = self.credit = 0

    @property
    def released(self) -> int:
        return next(place for place in range(self.received + 1) if place not in self.outcomes)

    @rule(count=st.integers(1, 24))
    def receive(self, count: int) -> None:
        for _ in range(min(count, self.book.credit - self.received)):
            receipt = self.book.receive(10 * self.received, (self.received, 0), float(self.received))
            assert receipt.place == self.received
            self.received += 1

    @rule(data=st.data(), outcomes=st.lists(OUTCOMES, min_size=1, max_size=24))
    def settle(self, data: st.DataObject, outcomes: list[Outcome]) -> None:
        still_open = [place for place in range(self.received) if place not in self.outcomes]
        some = data.draw(st.permutations(still_open))
        for place, outcome in zip(some, outcomes, strict=False):
            self.book.settle(place, outcome, 1000.0)
            self.outcomes[place] = outcome

    @precondition(lambda self: self.outcomes)
    @rule(data=st.data())
    def settle_twice(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.outcomes)))
        with pytest.raises(AssertionError):
            self.book.settle(place, b"again", 1000.0)

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        self.sent = data.draw(st.integers(self.sent, self.released))
        self.book.sent(self.sent)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        received_answers = data.draw(st.integers(0, self.released))
        self.book.acknowledge(received_answers)
        self.acknowledged = max(self.acknowledged, min(received_answers, self.sent))

    @rule(beyond=st.integers(1, 5))
    def acknowledge_what_is_not_there(self, beyond: int) -> None:
        with pytest.raises(InvalidRequest) as caught:
            self.book.acknowledge(self.released + beyond)
        assert caught.value.reason is Reason.SETTING_OUT_OF_RANGE

    @invariant()
    def every_outcome_is_there_in_order_until_it_may_go(self) -> None:
        first = max(self.acknowledged, self.sent - RETAINED_ANSWERS)
        assert self.book.first_kept == first
        for place in range(first, self.released):
            answer = self.book.answer(place)
            assert answer is not None
            assert (answer.receipt.place, answer.outcome) == (place, self.outcomes[place])
            assert answer.receipt.frame_index == 10 * place
        assert self.book.answer(self.released) is None
        if first:
            with pytest.raises(StreamEnded):
                self.book.answer(first - 1)

    @invariant()
    def counts_are_those_of_the_frames(self) -> None:
        dropped = sum(isinstance(outcome, DropReason) for outcome in self.outcomes.values())
        assert (self.book.dropped, self.book.translated) == (dropped, len(self.outcomes) - dropped)
        assert (self.book.received, self.book.released) == (self.received, self.released)
        assert self.book.owes == (self.released < self.received)

    @invariant()
    def it_is_bounded_and_credit_never_falls(self) -> None:
        assert self.received <= self.book.credit == self.sent + RETAINED_ANSWERS
        assert self.book.is_exhausted == (self.received == self.book.credit)
        assert self.book.credit >= self.credit
        self.credit = self.book.credit
        held = len(self.book._open) + len(self.book._released)
        assert held == self.received - self.book.first_kept <= 2 * RETAINED_ANSWERS
        assert len(self.book._known) <= len(self.book._open)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(deadline=None, max_examples=50)


def test_an_answer_says_what_it_took() -> None:
    book = Book()
    receipt = book.receive(7, (1, 500), 2.0)
    work = Work(2.5, 0.25, (Timing("fused", 0.1, 0.2),))
    assert book.settle(0, b"picture", 3.0, work) == Answer(receipt, b"picture", 3.0, work)
    assert receipt == Receipt(0, 7, (1, 500), 2.0)


def test_a_book_may_begin_where_another_one_has_ended() -> None:
    book = Book(first=5, translated=3, dropped=2)
    assert (book.received, book.released, book.credit) == (5, 5, 5 + RETAINED_ANSWERS)
    assert book.receive(9, (0, 0), 0.0).place == 5
    book.settle(5, b"p", 0.0)
    assert (book.translated, book.dropped) == (4, 2)
    with pytest.raises(StreamEnded):
        book.answer(4)


def test_no_frame_is_taken_beyond_the_credit() -> None:
    book = Book()
    for number in range(RETAINED_ANSWERS):
        book.receive(number, (0, 0), 0.0)
    with pytest.raises(AssertionError, match="credit"):
        book.receive(RETAINED_ANSWERS, (0, 0), 0.0)


def test_of_answers_that_were_sent_the_oldest_pictures_go_where_a_tenant_keeps_too_many_bytes() -> None:
    book, share, gone = Book(), Share(10), []
    for number in range(6):
        book.receive(number, (0, 0), 0.0)
    book.settle(0, b"four", 1.0)
    book.counts_to(share, lambda: gone.append(book.num_bytes))
    assert share.num_bytes == 4
    book.settle(1, DropReason.LATE, 1.0)
    for place in (3, 2):
        book.settle(place, b"four", 1.0)
    assert (share.num_bytes, gone, share.holds_back(book)) == (12, [], True), "none was sent"
    book.sent(3)
    assert (share.num_bytes, gone, share.holds_back(book)) == (8, [8], False)
    assert [answer.outcome for answer in book.kept] == [DropReason.FAULT, DropReason.LATE, b"four", b"four"]
    assert (book.translated, book.dropped) == (3, 1), "each was told once"
    book.acknowledge(2)
    assert share.num_bytes == 8
    book.counts_to(Share())
    assert share.num_bytes == 0
    book.sent(4)
    book.acknowledge(4)
    assert book.num_bytes == 0


# Rebuilt by an ingress that has not seen the frames: from what the spans and the client know of places.


def filled() -> Book:
    """Eight frames: 3 was dropped before the lane, 5 and 7 are in it."""
    book = Book()
    for place in range(8):
        book.receive(100 + place, (place, 0), float(place))
    for place in (4, 2, 0, 6, 1):
        book.settle(place, b"%d" % place, 10.0)
    book.settle(3, DropReason.SUPERSEDED, 10.0)
    return book


def kept(book: Book) -> list[tuple[int, Outcome]]:
    answers = [book.answer(place) for place in range(book.first_kept, book.released)]
    return [(answer.receipt.frame_index, answer.outcome) for answer in answers if answer is not None]


def rebuilt() -> Book:
    lane = {place: Receipt(place, 100 + place, (place, 0), float(place)) for place in (2, 4, 5, 6, 7)}
    pictures = {place: b"%d" % place for place in (2, 4, 6)}
    return Book.rebuilt(received=8, outcomes=pictures, received_answers=2, now=10.0, receipts=lane)


def test_a_rebuilt_book_goes_on_where_the_client_is() -> None:
    book, original = rebuilt(), filled()
    original.sent(2)
    original.acknowledge(2)
    assert (book.received, book.released, book.first_kept) == (8, 5, 2)
    assert (book.received, book.released, book.first_kept) == (
        original.received,
        original.released,
        original.first_kept,
    )
    for both in (book, original):
        both.settle(5, b"5", 11.0)
        both.settle(7, b"7", 11.0)
    lost = (103, DropReason.FAULT)
    assert [one if one[0] != 103 else lost for one in kept(original)] == kept(book)
    assert not book.owes


def test_a_frame_that_nobody_knows_is_numbered_after_the_one_before_it() -> None:
    """Frames of the lane tell their numbers when they come; a client need not say those of the others."""
    lane = {place: Receipt(place, place, (0, 0), 0.0) for place in (2, 5)}
    book = Book.rebuilt(received=6, outcomes={}, received_answers=2, now=10.0, receipts=lane)
    for place in (5, 2):
        book.recognise(place, 100 + place, (0, 0))
        book.settle(place, b"%d" % place, 11.0)
    fault = DropReason.FAULT
    assert kept(book) == [(102, b"2"), (103, fault), (104, fault), (105, b"5")]


def test_a_book_is_rebuilt_where_nothing_is_kept() -> None:
    book = Book.rebuilt(received=3, outcomes={}, received_answers=0, now=0.0)
    assert kept(book) == [(place, DropReason.FAULT) for place in range(3)]
    empty = Book.rebuilt(received=3, outcomes={}, received_answers=3, now=0.0)
    assert (empty.received, empty.released, empty.owes) == (3, 3, False)


def test_the_first_picture_of_another_size_says_how_many_before_it_have_none() -> None:
    book, large, small = Book(), Size(128, 128), Size(64, 128)
    picture, late, unchanged = b"p", DropReason.LATE, DropReason.UNCHANGED
    outcomes = [
        (large, picture, None),
        (large, late, None),
        (large, picture, None),
        (large, late, None),
        (large, unchanged, None),
        (small, DropReason.IMAGE_SIZE_MISMATCH, None),
        (small, picture, 2),
        (small, picture, None),
        (large, picture, 0),
    ]
    for place, (size, _, _) in enumerate(outcomes):
        book.receive(place, (0, 0), 0.0, size)
    for place, (_, outcome, _) in reversed(list(enumerate(outcomes))):
        book.settle(place, outcome, 1.0)
    found = [book.answer(place) for place in range(len(outcomes))]
    assert [answer and answer.gap_frames for answer in found] == [gap for _, _, gap in outcomes]


def test_a_size_that_nobody_knows_is_no_other_one() -> None:
    book = Book.rebuilt(received=2, outcomes={0: b"p", 1: b"p"}, received_answers=0, now=0.0)
    book.receive(2, (0, 0), 0.0, Size(64, 64))
    book.settle(2, b"p", 1.0)
    assert [(answer := book.answer(place)) and answer.gap_frames for place in range(3)] == [None] * 3
