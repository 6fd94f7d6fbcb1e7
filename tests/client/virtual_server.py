"""The server's side of one session, in memory and without time: it checks the client as the service does.

Each step is taken when the test says so: `accept`, `deliver` one message, `answer_frame`, `answer_control`,
`finish`, `cut`. What is on its way lies in `to_server` and `to_client`.
"""

from __future__ import annotations

from collections import deque

from rearview.client.machine import HalfClose, Write
from rearview.v1 import translation_service_pb2 as pb

SESSION_ID, TOKEN = "s", "t"
SIDE = 8
"""Width and height, pixels."""


class VirtualServer:
    """One session; lost connections leave it as the client may find it."""

    def __init__(self, frame_window: int, idle_timeout_s: float = 10.0) -> None:
        self.frame_window, self.idle_timeout_s = frame_window, idle_timeout_s
        self.frames: list[tuple[int, int]] = []
        """(frame_index, seed in force) of every frame received and not lost again."""
        self.heartbeat_s = 0.0
        """0: it promises nothing."""
        self.seed = 0
        self.num_answered = 0
        """Frames that were answered: those from before are known to the client."""
        self.is_open = False
        self.is_half_closed = False
        self.to_server: deque[Write | HalfClose] = deque()
        self.to_client: deque[pb.TranslateResponse | None] = deque()
        self._unanswered_controls: deque[pb.ControlApplied] = deque()
        self._frame_credit = 0
        self.answer_credit = 0

    def accept(self, first: pb.TranslateRequest, received_answers: int) -> pb.TranslateResponse:
        """Answer the first message of a connection of a client that has received so many answers."""
        if self.is_open:
            assert (first.resume.session_id, first.resume.resume_token) == (SESSION_ID, TOKEN)
            assert first.resume.received_answers == received_answers
            self.answer_credit = first.resume.answer_credit
        else:
            assert first.WhichOneof("message") == "open"
            self.answer_credit = first.open.answer_credit
        self.is_open, self.is_half_closed = True, False
        self._frame_credit = 0
        opened = pb.Opened(session_id=SESSION_ID, resume_token=TOKEN, width=SIDE, height=SIDE)
        opened.received_frames = len(self.frames)
        opened.settings.seed = self.seed
        opened.idle_timeout.FromMilliseconds(round(self.idle_timeout_s * 1000))
        opened.resume_grace.FromSeconds(60)
        if self.heartbeat_s:
            opened.heartbeat.FromMilliseconds(round(self.heartbeat_s * 1000))
        return self._with_credit(pb.TranslateResponse(opened=opened))

    def deliver(self) -> None:
        """Take the next message that is on its way."""
        action = self.to_server.popleft()
        assert not self.is_half_closed, "a message after the half-close"
        request = action.message
        match request.WhichOneof("message"):
            case "frame":
                index = request.frame.frame_index
                assert len(self.frames) < self._frame_credit, "more frames than credit"
                assert not self.frames or index > self.frames[-1][0], "frames out of order"
                self.frames.append((index, self.seed))
            case "control":
                self.seed = request.control.settings.seed
                applied = pb.ControlApplied(control_id=request.control.control_id)
                applied.settings.seed = self.seed
                self._unanswered_controls.append(applied)
            case "credit":
                assert request.credit.received_answers <= self.num_answered
                self.answer_credit = max(self.answer_credit, request.credit.answer_credit)
            case other:
                raise AssertionError(f"unexpected message: {other}")
        self.is_half_closed = isinstance(action, HalfClose)

    def can_answer_frame(self) -> bool:
        return self.num_answered < min(len(self.frames), self.answer_credit)

    def answer_frame(self, is_dropped: bool = False) -> None:
        """Send the answer to the oldest unanswered frame."""
        index, _ = self.frames[self.num_answered]
        self.num_answered += 1
        if is_dropped:
            response = pb.TranslateResponse(dropped=pb.Dropped(frame_index=index))
        else:
            response = pb.TranslateResponse(frame=pb.TranslatedFrame(frame_index=index))
        self.to_client.append(self._with_credit(response))

    def can_answer_control(self) -> bool:
        return bool(self._unanswered_controls)

    def answer_control(self) -> None:
        """Send the answer to the oldest unanswered control, also before those to the frames before it."""
        applied = self._unanswered_controls.popleft()
        self.to_client.append(self._with_credit(pb.TranslateResponse(control_applied=applied)))

    def can_finish(self) -> bool:
        is_over = self.num_answered == len(self.frames) and not self._unanswered_controls
        return self.is_half_closed and is_over and None not in self.to_client

    def finish(self) -> None:
        """End the call with OK."""
        self.to_client.append(None)

    def cut(self, received_answers: int, received_frames: int) -> None:
        """Lose the connection and what was on it, and all but the first `received_frames` frames."""
        assert received_answers <= received_frames <= len(self.frames)
        self.to_server.clear()
        self.to_client.clear()
        self._unanswered_controls.clear()
        del self.frames[received_frames:]
        self.num_answered = received_answers

    def _with_credit(self, response: pb.TranslateResponse) -> pb.TranslateResponse:
        self._frame_credit = max(self._frame_credit, self.num_answered + self.frame_window)
        response.frame_credit = self._frame_credit
        return response
