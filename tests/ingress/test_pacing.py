"""Which frame starts next, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rearview.contract.stream import DropPolicy
from rearview.errors import DropReason, Reason, Refused
from rearview.ingress.pacing import WIRE_SLACK_FRAMES, Pacer

pytestmark = pytest.mark.unit

BUDGET_S = 0.5


def pacer(policy: DropPolicy, max_in_flight: int = 2, max_waiting: int = 3) -> Pacer[int]:
    return Pacer(policy, max_in_flight, max_waiting, BUDGET_S)


def start_all(subject: Pacer[int], now: float = 0.0) -> list[int]:
    started: list[int] = []
    while (frame := subject.take(now)[0]) is not None:
        started.append(frame)
    return started


def test_latest_replaces_the_waiting_frame_and_returns_its_credit() -> None:
    subject = pacer(DropPolicy.LATEST)
    for frame in range(2):
        assert subject.offer(frame, 0.0) == []
    assert start_all(subject) == [0, 1]
    assert subject.offer(2, 0.0) == []
    credit = subject.credit()
    assert subject.offer(3, 0.0) == [(2, DropReason.SUPERSEDED)]
    assert subject.credit() == credit + 1
    subject.finished()
    assert start_all(subject) == [3]


def test_latest_supersedes_no_frame_that_could_start_at_once() -> None:
    subject = pacer(DropPolicy.LATEST, max_in_flight=3)
    assert [subject.offer(frame, 0.0) for frame in range(3)] == [[], [], []]
    assert subject.offer(3, 0.0) == [(0, DropReason.SUPERSEDED)]
    assert start_all(subject) == [1, 2, 3]


def test_latest_lets_a_client_send_on_while_everything_is_busy() -> None:
    subject = pacer(DropPolicy.LATEST)
    for frame in range(1_000):
        subject.offer(frame, frame / 30)
        subject.take(frame / 30)
    assert subject.waiting() == 1
    assert subject.in_flight() == 2


def test_frames_in_flight_are_bounded() -> None:
    subject = pacer(DropPolicy.LOSSLESS, max_in_flight=2, max_waiting=3)
    for frame in range(5):
        subject.offer(frame, 0.0)
    assert start_all(subject) == [0, 1]
    subject.finished()
    assert start_all(subject) == [2]


def test_lossless_stops_the_sender_instead_of_dropping() -> None:
    subject = pacer(DropPolicy.LOSSLESS, max_in_flight=2, max_waiting=3)
    assert subject.credit() == 5
    for frame in range(5):
        assert subject.offer(frame, 0.0) == []
    with pytest.raises(Refused) as caught:
        subject.offer(5, 1e9)
    assert caught.value.reason is Reason.CREDIT_EXCEEDED
    assert (subject.received(), subject.waiting()) == (5, 5)


def test_taking_a_frame_gives_no_credit_but_finishing_it_does() -> None:
    subject = pacer(DropPolicy.LOSSLESS)
    subject.offer(0, 0.0)
    subject.take(0.0)
    assert subject.credit() == 5
    subject.finished()
    assert subject.credit() == 6


def test_deadline_drops_waiting_frames_older_than_the_budget_as_late() -> None:
    subject = pacer(DropPolicy.DEADLINE, max_in_flight=1)
    for frame, now in enumerate((0.0, 0.1, 0.2)):
        subject.offer(frame, now)
    assert subject.take(0.2) == (0, [])
    assert subject.take(0.65) == (None, [(1, DropReason.LATE)])
    subject.finished()
    assert subject.take(0.7) == (2, [])


def test_a_frame_as_old_as_the_budget_still_starts() -> None:
    subject = pacer(DropPolicy.DEADLINE)
    subject.offer(0, 0.0)
    assert subject.take(BUDGET_S) == (0, [])


def test_an_arrival_drives_out_frames_that_are_too_old() -> None:
    subject = pacer(DropPolicy.DEADLINE)
    subject.offer(0, 0.0)
    assert subject.offer(1, 1.0) == [(0, DropReason.LATE)]


@pytest.mark.parametrize("policy", DropPolicy)
def test_only_deadline_calls_a_picture_late(policy: DropPolicy) -> None:
    assert not pacer(policy).is_late(0.0, BUDGET_S)
    assert pacer(policy).is_late(0.0, BUDGET_S + 0.001) is (policy is DropPolicy.DEADLINE)


def test_a_frame_rejected_at_the_gate_uses_credit_and_returns_it() -> None:
    subject = pacer(DropPolicy.LOSSLESS)
    for count in range(1, 100):
        subject.rejected()
        assert (subject.received(), subject.credit()) == (count, count + 5)


def test_a_rejected_frame_beyond_the_credit_is_refused_too() -> None:
    subject = pacer(DropPolicy.LOSSLESS)
    for frame in range(5):
        subject.offer(frame, 0.0)
    with pytest.raises(Refused):
        subject.rejected()


def test_the_first_credit_is_the_window() -> None:
    assert pacer(DropPolicy.LATEST).credit() == 2 + 1 + WIRE_SLACK_FRAMES
    assert pacer(DropPolicy.LOSSLESS).credit() == 2 + 3
    assert pacer(DropPolicy.DEADLINE).credit() == 2 + 3


class Conservation(RuleBasedStateMachine):
    """Any order of calls: every frame comes out once and in order, nothing is held beyond the window."""

    @initialize(policy=st.sampled_from(DropPolicy), in_flight=st.integers(1, 4), waiting=st.integers(1, 4))
    def open(self, policy: DropPolicy, in_flight: int, waiting: int) -> None:
        self.policy = policy
        self.max_in_flight = in_flight
        self.pacer: Pacer[int] = Pacer(policy, in_flight, waiting, BUDGET_S)
        self.window = self.pacer.credit()
        self.now = 0.0
        self.offered: list[int] = []
        self.out: list[int] = []
        self.started = self.finished_frames = self.dropped = self.rejected_frames = 0
        self.last_credit = 0

    def drop(self, dropped: list[tuple[int, DropReason]]) -> None:
        assert not (dropped and self.policy is DropPolicy.LOSSLESS)
        expected = DropReason.LATE if self.policy is DropPolicy.DEADLINE else DropReason.SUPERSEDED
        assert all(reason is expected for _, reason in dropped)
        self.out += [frame for frame, _ in dropped]
        self.dropped += len(dropped)

    @rule(gap_s=st.sampled_from((0.0, 0.033, 0.2, 1.0)))
    def wait(self, gap_s: float) -> None:
        self.now += gap_s

    @rule()
    def offer(self) -> None:
        frame = len(self.offered)
        if self.pacer.received() >= self.pacer.credit():
            with pytest.raises(Refused):
                self.pacer.offer(frame, self.now)
            return
        self.offered.append(frame)
        self.drop(self.pacer.offer(frame, self.now))

    @rule()
    def reject(self) -> None:
        if self.pacer.received() < self.pacer.credit():
            self.pacer.rejected()
            self.rejected_frames += 1

    @rule()
    def take(self) -> None:
        frame, dropped = self.pacer.take(self.now)
        self.drop(dropped)
        if frame is not None:
            self.out.append(frame)
            self.started += 1

    @rule()
    def finish(self) -> None:
        if self.pacer.in_flight():
            self.pacer.finished()
            self.finished_frames += 1

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "pacer"):
            return
        assert self.out == self.offered[: len(self.out)]
        assert len(self.out) + self.pacer.waiting() == len(self.offered)
        assert self.pacer.in_flight() == self.started - self.finished_frames <= self.max_in_flight
        assert self.pacer.received() == len(self.offered) + self.rejected_frames
        answered = self.dropped + self.finished_frames + self.rejected_frames
        assert self.pacer.credit() == answered + self.window >= self.last_credit
        assert self.pacer.waiting() + self.pacer.in_flight() <= self.window
        if self.policy is DropPolicy.LATEST:
            assert self.pacer.waiting() <= max(1, self.max_in_flight - self.pacer.in_flight())
        self.last_credit = self.pacer.credit()


TestConservation = Conservation.TestCase
TestConservation.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, derandomize=True, database=None
)
