"""One session in every order of events, against a server in memory: exactly once, in order, bounded.

Hypothesis plays the user, the wire and the server: it sends, withholds, answers, and cuts the connection
anywhere, after which the server may have lost any frames that the client has no answer for.
"""

from __future__ import annotations

import pytest
from client.virtual_client import CUT, Client, frame_indices
from client.virtual_server import VirtualServer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rearview.client import ControlApplied
from rearview.client.ledger import Input
from rearview.client.machine import Connect, Phase

pytestmark = pytest.mark.unit

MAX_FRAME_WINDOW = 6
"""The most frames that a server lets a client send ahead of answers; drawn anew for each connection."""


class Sessions(RuleBasedStateMachine):
    """A user, a client, a server and the connections between them, in any order."""

    @initialize(frame_window=st.integers(1, MAX_FRAME_WINDOW), window=st.integers(1, 9))
    def begin(self, frame_window: int, window: int) -> None:
        self.window = window
        self.client = Client(VirtualServer(frame_window), window)
        self.machine, self.server = self.client.machine, self.client.server
        self.script: list[Input] = []
        """What the user has submitted and not taken back."""
        self.pending: Input | None = None
        self.next_index, self.num_controls = 0, 0
        self.is_finished = False

    def _submit(self, item: Input) -> None:
        self.script.append(item)
        self.pending = item

    def _may_submit(self) -> bool:
        return self.machine.is_begun() and self.pending is None and not self.is_finished

    @precondition(lambda self: self._may_submit())
    @rule(gap=st.integers(0, 2))
    def send(self, gap: int) -> None:
        index = self.next_index + gap
        self.next_index = index + 1
        self._submit(self.client.frame(index if gap else None))

    @precondition(lambda self: self._may_submit())
    @rule()
    def control(self) -> None:
        self.num_controls += 1
        self._submit(self.client.control(seed=self.num_controls))
        assert self.script[-1].number == self.num_controls

    @precondition(lambda self: self.pending is not None)
    @rule()
    def cancel(self) -> None:
        assert self.pending is not None
        assert self.machine.withdraw(self.pending)
        self.script.remove(self.pending)
        self.pending = None

    @precondition(lambda self: self._may_submit())
    @rule()
    def finish(self) -> None:
        self.machine.finish()
        self.is_finished = True

    @precondition(lambda self: self.machine.num_waiting_answers)
    @rule()
    def take(self) -> None:
        self.client.take()

    @precondition(lambda self: self.client.is_connected and self._may_submit())
    @rule(are_frames=st.lists(st.booleans(), min_size=2, max_size=6))
    def send_several(self, are_frames: list[bool]) -> None:
        for is_frame in are_frames:
            if is_frame:
                self.send(0)
            else:
                self.control()
            self.client.write()
            if self.pending is None or not self.machine.is_sent(self.pending):
                return
            self.pending = None

    @precondition(lambda self: self.client.is_connected)
    @rule()
    def hurry_controls(self) -> None:
        """Controls are answered, and read as far as there is room, before the frames that they follow."""
        while self.server.to_server:
            self.server.deliver()
        while self.server.can_answer_control():
            self.server.answer_control()
        while self.client.can_read():
            self.client.read()

    @precondition(lambda self: not self.client.is_connected)
    @rule(frame_window=st.integers(1, MAX_FRAME_WINDOW))
    def connect(self, frame_window: int) -> None:
        self.server.frame_window = frame_window
        self.client.connect()

    @precondition(lambda self: self.client.is_connected)
    @rule(count=st.integers(1, 4))
    def write(self, count: int) -> None:
        for _ in range(count):
            self.client.write()

    @precondition(lambda self: self.client.can_read())
    @rule(count=st.integers(1, 4))
    def read(self, count: int) -> None:
        while count and self.client.can_read():
            self.client.read()
            count -= 1

    @precondition(lambda self: self.server.to_server)
    @rule(count=st.integers(1, 4))
    def deliver(self, count: int) -> None:
        while count and self.server.to_server:
            self.server.deliver()
            count -= 1

    @precondition(lambda self: self.client.is_connected and self.server.can_answer_frame())
    @rule(is_dropped=st.booleans())
    def answer_frame(self, is_dropped: bool) -> None:
        self.server.answer_frame(is_dropped)

    @precondition(lambda self: self.client.is_connected and self.server.can_answer_control())
    @rule()
    def answer_control(self) -> None:
        self.server.answer_control()

    @precondition(lambda self: self.client.is_connected and self.server.can_finish())
    @rule()
    def end_call(self) -> None:
        self.server.finish()

    @precondition(lambda self: self.client.is_connected and self.machine.has_room())
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        first, last = self.client.num_read, len(self.server.frames)
        self.client.lose(received_frames=data.draw(st.integers(first, last), "received_frames"))

    @precondition(lambda self: not self.client.is_connected)
    @rule()
    def fail_to_connect(self) -> None:
        if isinstance(self.machine.connect(self.client.now), Connect):
            self.machine.lost(CUT, self.client.now)

    @rule(gap_s=st.sampled_from((0.01, 0.5, 5.0)))
    def wait(self, gap_s: float) -> None:
        self.client.now += gap_s

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "client"):
            return
        if self.pending is not None and self.machine.is_sent(self.pending):
            self.pending = None
        frames = [item.number for item in self.script if item.is_frame]
        received = frame_indices(self.client)
        assert received == frames[: len(received)]
        controls = [item.number for item in self.script if not item.is_frame]
        applied = [one for one in self.client.answers if isinstance(one, ControlApplied)]
        assert [one.control_id for one in applied] == controls[: len(applied)]
        assert [one.received_frames for one in applied] == self._places()[: len(applied)]
        assert self.machine.num_waiting_answers <= self.window
        # All that is unanswered is in the server's window, in the reader's, or waits in `send`.
        unanswered = self.machine.num_unanswered_frames
        assert unanswered == len(frames) - self.client.num_read
        assert unanswered <= MAX_FRAME_WINDOW + self.window + 1
        if not self.server.is_half_closed:
            assert self.server.answer_credit <= len(received) + self.window

    def _places(self) -> list[int]:
        """How many frames stand before each control."""
        places, count = [], 0
        for item in self.script:
            count += item.is_frame
            if not item.is_frame:
                places.append(count)
        return places

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        self.client.settle()
        if not self.is_finished:
            self.machine.finish()
            self.client.settle()
        self.holds()
        assert self.machine.phase is Phase.ENDED
        assert self.machine.take() is None
        assert self.machine.num_unanswered_frames == 0
        assert frame_indices(self.client) == [item.number for item in self.script if item.is_frame]
        controls = [one.control_id for one in self.client.answers if isinstance(one, ControlApplied)]
        assert controls == [item.number for item in self.script if not item.is_frame]
        wanted, seed = [], 0
        for item in self.script:
            seed = seed if item.is_frame else item.number
            if item.is_frame:
                wanted.append((item.number, seed))
        assert self.server.frames == wanted


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, derandomize=True, database=None
)
