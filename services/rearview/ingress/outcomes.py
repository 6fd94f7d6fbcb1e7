"""The outcomes of one session's frames, and what is told of them: for metrics, and for no frame's sake."""

from __future__ import annotations

from typing import Any

from rearview.contract.events import FirstPicture, FrameAnswered, FrameDropped, FrameUsed, Played
from rearview.contract.frame import Frame
from rearview.contract.session import SessionSpec
from rearview.contract.size import Size
from rearview.errors import DropReason
from rearview.ingress.book import NO_WORK, Answer, Book, Outcome, Receipt, Work
from rearview.ingress.edge import Edge
from rearview.ingress.feed import Sent
from rearview.ingress.options import Terms
from rearview.ingress.playout import Playout
from rearview.ingress.tracing import FrameTraces

__all__ = ["Outcomes", "work_of"]


class Outcomes:
    """Gives frames their outcomes."""

    def __init__(self, edge: Edge, book: Book, terms: Terms, traces: FrameTraces) -> None:
        self._edge, self._book, self._traces = edge, book, traces
        self._tenant, self._budget_s = terms.tenant.name, terms.options.budget_s
        self._session_id = terms.spec.session_id
        book.on_delivered = self._delivered
        self._asked_s = terms.asked_s
        """None: the first picture has been told of, or was another ingress's to tell."""
        self._playout = Playout()
        self._before: tuple[float, float] | None = None
        """When the frame of the last picture came, and when that could be sent."""
        if terms.asked_s is not None:
            edge.events(Played(self._tenant, queued_s=edge.clock() - terms.asked_s))

    def receive(
        self, frame_index: int, presentation_offset: tuple[int, int], received_s: float, size: Size
    ) -> Receipt:
        """A frame has come: see `Book.receive`."""
        receipt = self._book.receive(frame_index, presentation_offset, received_s, size)
        self._traces.received(receipt)
        return receipt

    def sent(self, place: int) -> None:
        """Answers before `place` were handed to the connection."""
        self._book.sent(place)
        self._traces.sent(place)

    def settle(self, place: int, outcome: Outcome, work: Work = NO_WORK) -> None:
        """Give a frame its one outcome, and tell of all that is released, unless another ingress has."""
        before, now = self._book.released, self._edge.clock()
        answer = self._book.settle(place, outcome, now, work)
        self._traces.answered(answer)
        if isinstance(outcome, DropReason) and not answer.receipt.is_counted:
            self._edge.events(FrameDropped(outcome))
        for released in range(before, self._book.released):
            found = self._book.find(released)
            assert found is not None, f"answer {released} was released and is not kept"
            self._released(found, now)

    def leave(self) -> None:
        """Another ingress goes on with the session: what its client has not acknowledged is that one's."""
        self._book.on_delivered = lambda _: None

    def end(self) -> None:
        """Nothing will be asked for again. May be called once."""
        for answer in self._book.kept:
            self._book.on_delivered(answer)
        self.leave()

    def _delivered(self, answer: Answer) -> None:
        outcome, work = answer.outcome, answer.work
        is_dropped = isinstance(outcome, DropReason) and not answer.is_forgotten
        told = outcome.name.lower() if isinstance(outcome, DropReason) and is_dropped else "translated"
        named = self._tenant, self._session_id, self._edge.model
        device_s = sum(timing.device_s for timing in work.timings)
        self._edge.events(FrameUsed(*named, answer.receipt.place, told, work.pixel_steps, device_s))

    def _released(self, answer: Answer, now: float) -> None:
        has_picture = not isinstance(answer.outcome, DropReason)
        received_s = answer.receipt.received_s
        shows = has_picture or answer.outcome is DropReason.UNCHANGED
        played_s, stalled_s = self._playout.answered(received_s, now, shows=shows)
        if played_s or stalled_s:
            self._edge.events(Played(self._tenant, played_s, stalled_s))
        if has_picture:
            self._tell_picture(received_s, now, is_counted=answer.receipt.is_counted)

    def _tell_picture(self, received_s: float, now: float, *, is_counted: bool) -> None:
        model, before = self._edge.model, self._before
        jitter_s = None if before is None else abs((now - before[1]) - (received_s - before[0]))
        self._before = received_s, now
        if not is_counted:
            is_late = now - received_s > self._budget_s
            self._edge.events(FrameAnswered(model, now - received_s, is_late, jitter_s))
        if self._asked_s is not None:
            self._edge.events(FirstPicture(model, now - self._asked_s))
            self._asked_s = None


def work_of(sent: Sent, frame: Frame[Any], spec: SessionSpec, now: float) -> Work:
    """What a frame took that has come back."""
    settings = sent.admitted.settings
    pixel_steps = 0 if frame.is_lost else spec.size_under(settings).pixels * settings.steps
    return Work(sent.admitted.started_s, sent.codec_s, frame.timings, now, pixel_steps)
