"""A session at the ingress: every frame received is answered exactly once, in order.

Three do the work, each without a clock or a task: the *intake* decides which frames enter the lane and under
which ordinal and settings, the *feed* sends them there and knows which are there, the *book* keeps one
outcome for each, in order. This moves frames between them, waits for what takes time, and tells what
happened. A session outlives the stream that feeds it, and its lane too. It knows neither gRPC nor protobuf:
`stream.py` reads and writes.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from rearview.contract.frame import Frame
from rearview.contract.settings import Settings
from rearview.contract.size import Size
from rearview.contract.stream import Continuity
from rearview.control.recovery import Kept, frames_to_rebuild
from rearview.directory.protocol import Lease
from rearview.errors import DropReason, Reason, Refused
from rearview.ingress.book import NO_WORK, Outcome, Work
from rearview.ingress.codec import BadImage
from rearview.ingress.coder import Coder
from rearview.ingress.edge import Edge
from rearview.ingress.feed import Feed, Sent
from rearview.ingress.gate import Gate
from rearview.ingress.inherited import Inherited
from rearview.ingress.intake import Dropped, FrameIn, Intake, Waiting
from rearview.ingress.keeping import Keeping
from rearview.ingress.lane import Lane
from rearview.ingress.left import LeftAnswers, size_of
from rearview.ingress.notes import Notes
from rearview.ingress.options import Terms
from rearview.ingress.outcomes import Outcomes, work_of
from rearview.ingress.past import Checkpoint, Past
from rearview.ingress.state import EdgeState
from rearview.ingress.tasks import Tasks
from rearview.ingress.tracing import FrameTraces

__all__ = ["IngressSession"]


class IngressSession:
    """One session. For one event loop."""

    def __init__(
        self,
        terms: Terms,
        lease: Lease,
        lane: Lane,
        edge: Edge,
        on_fault: Callable[[BaseException], None],
        inherited: Inherited | None = None,
    ) -> None:
        """`on_fault` is told when one of the session's own tasks fails; it must end the session.

        `inherited`: by a session that goes on.
        """
        self.spec, self.options, self.tenant = terms.spec, terms.options, terms.tenant
        self.lease, self.model, self.resume_token = lease, edge.model, terms.resume_token
        self._edge, self.on_fault = edge, on_fault
        given = inherited or Inherited.none(terms)
        self.intake = Intake(terms, edge.limits, given.state, given.in_lane)
        self.book, self.gate = given.book, Gate()
        self.traces = FrameTraces(self.spec, edge.model, edge.sampling, edge.events, edge.clock)
        self._keeping = Keeping(edge, self.tenant, self.book, given.state.next_ordinal, self.gate.came_back)
        to = self.spec.session_id, lane, edge.sender, edge.events, self._keeping.inputs
        self.feed = Feed(*to, given.in_lane, self.traces.enters)
        self.past = Past(frames_to_rebuild(terms.spec, terms.warm_up_frames, forgets=terms.forgets))
        self.past.begin(lane.kernels, given.kernels)
        self.notes = Notes(terms, self.feed, lambda: self.state)
        self.outcomes = Outcomes(edge, self.book, terms, self.traces)
        self._left = LeftAnswers(self.feed, self.book, dropped=given.dropped)
        self._coder, self._tasks = Coder(*edge.coding, self.traces), Tasks(on_fault)
        self._changed, self._startable = asyncio.Event(), asyncio.Event()
        self._tell_warm_up()
        self._tasks.spawn(self._start_frames())

    def receive(self, frame: FrameIn, refusal: DropReason | None) -> None:
        """Take a frame; `refusal` is why it cannot be used. Raises Refused(CREDIT_EXCEEDED)."""
        if self.received >= self.frame_credit:
            raise Refused(
                Reason.CREDIT_EXCEEDED,
                "more frames were sent than `frame_credit` allows",
                metadata={"frame_credit": str(self.frame_credit)},
            )
        numbers = frame.frame_index, frame.presentation_offset
        receipt = self.outcomes.receive(*numbers, frame.received_s, self.size)
        self._drop(self.intake.receive(frame, receipt, refusal or self._left.why_dropped(receipt.place)))
        self._startable.set()

    def apply(self, settings: Settings) -> None:
        """Frames received from now on are translated under `settings`."""
        self.intake.apply(settings)
        self.notes.changed()

    def finish(self) -> None:
        """No frame will follow: a warm-up that is under way gets fillers."""
        self.intake.finish()
        self._startable.set()

    def acknowledge(self, received_answers: int) -> None:
        """The client has so many answers. Raises InvalidRequest if there are not so many."""
        self.book.acknowledge(received_answers)
        self.feed.acknowledge(self.book.first_kept)

    def sent(self, place: int) -> None:
        """Answers before `place` were handed to the connection."""
        self.outcomes.sent(place)
        self.feed.acknowledge(self.book.first_kept)

    async def wait_for_change(self) -> None:
        """Return when an answer was released, or `wake` was called, since the last call."""
        await self._changed.wait()
        self._changed.clear()

    def wake(self) -> None:
        """Make `wait_for_change` return."""
        self._changed.set()

    @property
    def settings(self) -> Settings:
        return self.intake.settings

    @property
    def size(self) -> Size:
        """Of frames received from now on."""
        return self.spec.size_under(self.settings)

    @property
    def received(self) -> int:
        return self.book.received

    @property
    def frame_credit(self) -> int:
        """Frames that the client may have sent in all."""
        return min(self.intake.credit, self.book.credit)

    @property
    def starves(self) -> bool:
        """Whether answers are owed and nothing happens until the client sends more."""
        return self.book.owes and self.intake.starves

    @property
    def state(self) -> EdgeState:
        """What another ingress needs to go on, apart from what is in flight."""
        return self.intake.state(self.book.translated, self.book.dropped)

    def holds(self, token: str) -> bool:
        """Whether `token` is the session's resume token."""
        return hmac.compare_digest(token.encode(), self.resume_token.encode())

    def end(self) -> None:
        """Stop the session's own work. What is answered can still be sent."""
        self._tasks.cancel()
        self._keeping.end()

    @property
    def kept(self) -> Kept:
        """What there is to go on from in another lane."""
        inputs = self.feed.inputs
        return Kept(inputs.first, inputs.following, self.feed.unanswered, self.past.checkpointed)

    @property
    def lane(self) -> Lane:
        """The lane, or the one that was lost last."""
        return self.feed.lane

    def lose_lane(self) -> None:
        """The lane is gone: frames wait, within their credit, until there is another one."""
        self.past.lane_lost(self.kept)
        self.feed.detach()
        self.gate.shut()
        self.gate.came_back()  # Whoever waits for a frame is to see that none will.

    async def resume(self, lane: Lane, start: int, continuity: Continuity) -> Continuity:
        """Go on in `lane`, which expects the ordinal `start`: what was sent from there on goes first.
        `continuity`: of its past. Returns what the client is told.
        """
        again = self.feed.inputs.since(start)
        self.feed.attach(lane, start)
        self.notes.again()
        self._left.hand_over(start)
        if continuity is not Continuity.EXACT:
            self.intake.restart(start)
        for lost in self.feed.lost_before(start):
            self.on_frame(lost)
        if again:
            self.past.replayed_to = self.feed.inputs.following
        told = self.past.goes_on(continuity, lane.kernels)
        self.wake()
        for kept in again:
            waiting = kept.admitted.waiting
            size = self.spec.size_under(waiting.settings)
            decoded = await self._coder.decode(waiting, *size, look=False)
            await self.gate.wait(partial(self.feed.takes_again, kept, lane))
            if not self.feed.is_in(lane):
                return told  # Lost meanwhile.
            self.feed.send_again(kept, decoded.planes, self._edge.clock())
        self.gate.open()
        self._startable.set()
        return told

    def on_frame(self, frame: Frame[NDArray[Any]]) -> None:
        """A picture has come back, or word that it will not."""
        if not self.feed.is_current(frame):
            return
        self.intake.came_back(frame.ordinal, lost=frame.is_lost)
        self.notes.came_back()
        if not self.intake.may_repeat:
            self.feed.forget()
        if frame.is_lost:
            self._tell_warm_up()
        self._startable.set()
        sent = self.feed.take_back(frame.ordinal)
        self._forget_inputs()
        self.gate.came_back()
        if sent is None:
            self._left.came_again(frame)
            return
        self.book.recognise(frame.place, frame.frame_index, frame.presentation_offset, size_of(frame))
        work = work_of(sent, frame, self.spec, self._edge.clock())
        reason = self.intake.judge(sent.admitted, self._edge.clock(), lost=frame.is_lost)
        if reason is not None or frame.planes is None:
            self.notes.forgot()
            self._settle(sent.place, reason or DropReason.FAULT, work)
        else:
            self._tasks.spawn(self._finish(sent, frame, work))

    async def _start_frames(self) -> None:
        while True:
            await self._startable.wait()
            await self.gate.passage(self._keeping.full)
            taken, dropped = self.intake.take(self._edge.clock())
            self._drop(dropped)
            if taken is not None:
                await self._start(taken)
            else:
                self._startable.clear()
                fillers = self.intake.fill_up(is_exhausted=self.book.is_exhausted)
                self.feed.repeat(fillers, self._edge.clock())
            self._tell_warm_up()

    async def _start(self, waiting: Waiting) -> None:
        place, size = waiting.receipt.place, self.spec.size_under(waiting.settings)
        try:
            decoded = await self._coder.decode(waiting, *size, look=self.intake.looks)
        except BadImage as error:
            self.intake.spoiled()
            self._drop([(place, error.reason)])
            return
        await self.gate.passage(self._keeping.full)
        admitted = self.intake.admit(waiting, decoded.seen, self._edge.clock(), decoded.shown)
        if admitted is None:
            self._drop([(place, DropReason.UNCHANGED)], Work(codec_s=decoded.seconds))
            return
        self.notes.admitted(admitted)
        self.feed.send(admitted, decoded.planes, decoded.seconds, may_repeat=self.intake.may_repeat)

    def keep(self, checkpoint: Checkpoint | None, *, expects: bool = True) -> None:
        """Go on from the checkpoint if the lane is lost: frames up to it need not be sent again. None: there
        is no new one; `expects`: whether frames are kept until there is.
        """
        self.past.expects_checkpoints = expects
        if self.feed.is_attached:  # Else a lane is being opened from what there is.
            self.past.checkpoint = checkpoint or self.past.checkpoint
            self._forget_inputs()
        self.gate.came_back()

    def _forget_inputs(self) -> None:
        self.past.let_go(self.feed.inputs, self.kept)

    async def _finish(self, sent: Sent, frame: Frame[NDArray[Any]], work: Work) -> None:
        quality = sent.admitted.waiting.settings.jpeg_quality
        image, seconds = await self._coder.encode(frame, self.options.answer_format, quality)
        self._settle(sent.place, image, replace(work, codec_s=work.codec_s + seconds))
        self._left.encoded(frame, image)

    def _tell_warm_up(self) -> None:
        if self.intake.warm_up_missing:
            self.wake()  # There may be more credit than any answer could say.

    def _drop(self, dropped: Dropped, work: Work = NO_WORK) -> None:
        self._left.dropped(dropped)
        for place, reason in dropped:
            self._settle(place, reason, work)

    def _settle(self, place: int, outcome: Outcome, work: Work = NO_WORK) -> None:
        """Give a frame its one outcome, and tell."""
        self.outcomes.settle(place, outcome, work)
        self.wake()
