"""A session with its tasks and threads, without gRPC and without replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rearview.config import LimitsConfig
from rearview.contract.controls import WeightedControl
from rearview.contract.events import Event, FrameAnswered, FrameDropped, ImageCoded
from rearview.contract.frame import control_plane
from rearview.contract.memories import CacheSettings
from rearview.contract.settings import Settings
from rearview.contract.stream import Continuity, DropPolicy, ImageFormat
from rearview.directory.protocol import Lease
from rearview.errors import DropReason, Reason, Refused
from rearview.ingress.budget import Budgets
from rearview.ingress.edge import Edge
from rearview.ingress.feed import SENT_AGAIN
from rearview.ingress.inherited import Inherited
from rearview.ingress.intake import ControlIn, FrameIn
from rearview.ingress.past import Checkpoint
from rearview.ingress.session import IngressSession
from rearview.ingress.state import EdgeState
from support.edge import SESSION, TENANT, NotingSender, lane, picture, terms
from support.raw_stream import eventually

pytestmark = pytest.mark.unit


class Clock:
    """Seconds that only the test moves."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """A session, what it sends and what it tells."""

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        state: EdgeState | None,
        input_bytes: int = 1 << 30,
        budgets: Budgets | None = None,
        **options: Any,
    ) -> None:
        self.clock, self.sender = Clock(), NotingSender()
        self.events: list[Event] = []
        self.faults: list[BaseException] = []
        sender, events = self.sender, self.events.append
        shared = budgets or Budgets()
        edge = Edge("pocket", LimitsConfig(), sender, executor, events, input_bytes, self.clock, shared)
        lease = Lease(SESSION, TENANT.name, ("fused#1",), "ingress#0", 1, 0.0, 0.0)
        inherited = None if state is None else Inherited.answered(state)
        self.session = IngressSession(
            terms(**options), lease, lane(), edge, on_fault=self.faults.append, inherited=inherited
        )

    def offer(self, *indices: int) -> None:
        for index in indices:
            image = picture(index).tobytes()
            frame = FrameIn(index, (0, 0), ImageFormat.RGB, image, self.clock.now)
            self.session.receive(frame, None)

    def answer_all(self) -> None:
        """The lane in force answers for all lanes."""
        for frame in self.sender.frames:
            self.session.on_frame(replace(frame, epoch=self.session.lane.epoch))

    @property
    def outcomes(self) -> list[bytes | DropReason]:
        book = self.session.book
        places = range(book.first_kept, book.released)
        return [answer.outcome for place in places if (answer := book.answer(place)) is not None]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@asynccontextmanager
async def stage(
    executor: ThreadPoolExecutor, state: EdgeState | None = None, **options: Any
) -> AsyncIterator[Stage]:
    one = Stage(executor, state, **options)
    try:
        yield one
    finally:
        one.session.end()
        assert one.faults == []


async def test_what_happened_is_told(executor: ThreadPoolExecutor) -> None:
    async with stage(executor, policy=DropPolicy.DEADLINE) as one:
        one.offer(0, 0, 1)
        await eventually(lambda: len(one.sender.frames) == 2)
        one.clock.now += 0.25
        one.session.on_frame(one.sender.frames[0])
        await eventually(lambda: one.session.book.translated == 1)
        one.clock.now += 0.5
        one.session.on_frame(one.sender.frames[1])
        assert one.outcomes == [
            picture(0).tobytes(),
            DropReason.INDEX_NOT_INCREASING,
            DropReason.LATE,
        ]
        told = [event for event in one.events if isinstance(event, FrameAnswered | FrameDropped)]
        assert told == [
            FrameDropped(DropReason.INDEX_NOT_INCREASING),
            FrameAnswered("pocket", 0.25),
            FrameDropped(DropReason.LATE),
        ]
        assert sum(isinstance(event, ImageCoded) for event in one.events) == 3


async def test_to_lose_a_lane_is_not_to_lose_the_session(executor: ThreadPoolExecutor) -> None:
    async with stage(executor) as one:
        one.offer(0)
        await eventually(lambda: len(one.sender.frames) == 1)
        one.offer(1)  # Its picture is being decoded when the lane is lost.
        one.session.lose_lane()
        one.offer(*range(2, one.session.frame_credit))
        with pytest.raises(Refused) as refused:
            one.offer(99)
        assert refused.value.reason is Reason.CREDIT_EXCEEDED
        one.session.on_frame(one.sender.frames[0])  # Too late: that lane counts no more.
        assert one.outcomes == []
        assert [frame.epoch for frame in one.sender.frames] == [1]
        start = one.session.kept.unanswered
        assert start == 0
        await one.session.resume(lane(2), start, Continuity.EXACT)
        received = one.session.received
        assert received > 4

        def all_answered() -> bool:
            one.answer_all()
            return len(one.outcomes) == received

        await eventually(all_answered)
        assert one.outcomes == [picture(index).tobytes() for index in range(received)]
        assert {frame.epoch for frame in one.sender.frames[1:]} == {2}
        assert [frame.ordinal for frame in one.sender.frames] == [0, *range(received)]
        assert one.session.past.told_moved() is Continuity.EXACT
        assert one.session.past.moved == []


async def test_a_session_goes_on_from_another_ones_state(executor: ThreadPoolExecutor) -> None:
    async with stage(executor) as first:
        first.offer(0, 1, 1)
        await eventually(lambda: len(first.sender.frames) == 2)
        first.answer_all()
        await eventually(lambda: first.session.book.translated == 2)
        state = EdgeState.from_json(first.session.state.to_json())
    async with stage(executor, state) as second:
        session = second.session
        assert (session.received, session.book.translated, session.book.dropped) == (3, 2, 1)
        second.offer(1, 2)
        await eventually(lambda: len(second.sender.frames) == 1)
        (frame,) = second.sender.frames
        assert (frame.place, frame.frame_index, frame.ordinal) == (4, 2, 2)
        assert second.outcomes == [DropReason.INDEX_NOT_INCREASING]
        assert session.state.translated == 2


async def test_the_lane_hears_of_acknowledged_answers(executor: ThreadPoolExecutor) -> None:
    async with stage(executor) as one:
        one.offer(0, 1)
        await eventually(lambda: len(one.sender.frames) == 2)
        one.answer_all()
        await eventually(lambda: one.session.book.released == 2)
        one.session.sent(2)
        assert one.sender.acknowledged == []
        one.session.acknowledge(1)
        one.session.acknowledge(2)
        assert one.sender.acknowledged == [(1, 0), (1, 1)]


async def test_a_fault_in_a_sessions_own_task_is_told(executor: ThreadPoolExecutor) -> None:
    async with stage(executor) as one:
        executor.shutdown()
        one.offer(0)
        await eventually(lambda: len(one.faults) == 1)
        one.faults.clear()


@pytest.mark.parametrize("checkpointed", [False, True], ids=["never", "once"])
async def test_a_session_without_checkpoints_goes_on_however_little_is_kept(
    executor: ThreadPoolExecutor, checkpointed: bool
) -> None:
    size = len(picture(0).tobytes())
    async with stage(executor, input_bytes=5 * size, cache=CacheSettings()) as one:
        session = one.session
        for index in range(30):
            one.offer(index)
            await eventually(lambda sent=index + 1: len(one.sender.frames) >= sent)
            one.answer_all()
            if checkpointed and index == 3:
                session.keep(Checkpoint(3, [b"past"]), expects=False)
            session.sent(session.book.released)
        await eventually(lambda: session.book.translated == 30)
        assert session.feed.inputs.num_bytes <= 5 * size


async def test_a_tenant_that_keeps_too_much_waits_and_forgets_nothing(executor: ThreadPoolExecutor) -> None:
    size, budgets = len(picture(0).tobytes()), Budgets()
    async with (
        stage(executor, budgets=budgets, cache=CacheSettings()) as one,
        stage(executor, budgets=budgets, cache=CacheSettings()) as other,
    ):
        budget = budgets.of(one.session.tenant)
        one.session.past.expects_checkpoints = other.session.past.expects_checkpoints = True
        one.offer(0, 1)
        await eventually(lambda: len(one.sender.frames) == 2)
        budget.max_bytes = 2 * size
        other.offer(0)
        one.answer_all()  # They stay: no checkpoint has them.
        await eventually(lambda: one.session.book.translated == 2)
        assert (budget.num_bytes, other.sender.frames) == (2 * size, [])
        assert other.session.feed.inputs.half_full(), "it is time for a checkpoint of any of them"
        one.session.keep(Checkpoint(0, [b"past"]))
        await eventually(lambda: len(other.sender.frames) == 1)
        assert budget.num_bytes == 2 * size
    assert budget.num_bytes == 0


async def test_what_is_sent_again_waits_at_the_ingress(executor: ThreadPoolExecutor) -> None:
    frames = 3 * SENT_AGAIN
    async with stage(executor, cache=CacheSettings()) as one:
        session = one.session
        session.past.expects_checkpoints = True
        for index in range(frames):
            one.offer(index)
            await eventually(lambda sent=index + 1: len(one.sender.frames) >= sent)
            one.answer_all()
            await eventually(lambda answered=index + 1: session.book.released >= answered)
            session.sent(session.book.released)
        sent = len(one.sender.frames)
        session.lose_lane()
        resuming = asyncio.create_task(session.resume(lane(2), 0, Continuity.EXACT))
        most, answered = 0, sent
        while answered < sent + frames:
            await eventually(lambda: len(one.sender.frames) > answered)  # noqa: B023
            frame = one.sender.frames[answered]
            most, answered = max(most, len(one.sender.frames) - answered), answered + 1
            session.on_frame(replace(frame, epoch=2))
        await resuming
        assert [frame.ordinal for frame in one.sender.frames[sent:]] == list(range(frames))
        assert 1 <= most <= SENT_AGAIN
        assert session.book.translated == frames


async def test_what_came_for_controls_goes_into_another_lane_with_its_frame(
    executor: ThreadPoolExecutor,
) -> None:
    """Of what acts under the settings of each; a filler shows it too."""
    poses = [picture(50 + index) for index in range(3)]
    async with stage(executor, cache=CacheSettings(), warm_up_frames=4) as one:
        for index, (pose, weight) in enumerate(zip(poses, (1.0, 0.0, 0.5), strict=True)):
            one.session.apply(Settings("a", controls=(WeightedControl("pose", weight),)))
            sent = ControlIn("pose", ImageFormat.RGB, pose.tobytes())
            shown = FrameIn(index, (0, 0), ImageFormat.RGB, picture(index).tobytes(), one.clock.now, (sent,))
            one.session.receive(shown, None)
        one.session.finish()
        await eventually(lambda: len(one.sender.frames) == 4)
        kept = [each.admitted.waiting.frame for each in one.session.feed.inputs.since(0)]
        assert [len(frame.controls) for frame in kept] == [1, 0, 1, 1], "what does not act is not kept"
        one.session.lose_lane()
        await one.session.resume(lane(2), 0, Continuity.EXACT)
        first, again = one.sender.frames[:4], one.sender.frames[4:]
        assert [frame.ordinal for frame in again] == [0, 1, 2, 3]
        for frames in (first, again):
            found = [(frame.planes or {}).get(control_plane("pose")) for frame in frames]
            for index, at in ((0, 0), (2, 2), (3, 2)):
                assert np.array_equal(found[index], poses[at]), index
            assert found[1] is None


async def test_a_lane_that_answers_nothing_is_sent_no_more_than_a_bound(executor: ThreadPoolExecutor) -> None:
    async with stage(executor) as one:
        inputs = one.session.feed.inputs
        one.offer(0)
        await eventually(lambda: len(one.sender.frames) == 1)
        for ordinal in range(1, 2 * SENT_AGAIN):
            inputs.add(replace(inputs.since(0)[0], ordinal=ordinal))
        one.session.lose_lane()
        resuming = asyncio.create_task(one.session.resume(lane(2), 0, Continuity.EXACT))
        await eventually(lambda: len(one.sender.frames) == 1 + SENT_AGAIN)
        assert not resuming.done()
        one.session.lose_lane()
        await resuming
        assert len(one.sender.frames) == 1 + SENT_AGAIN
