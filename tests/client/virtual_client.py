"""A client of the virtual server: the machine with a shell that has neither loop nor clock."""

from __future__ import annotations

from client.virtual_server import VirtualServer
from rearview.client import (
    ControlApplied,
    Dropped,
    ImageFormat,
    Notice,
    Reconnect,
    SettingsChange,
    Translated,
    Unreachable,
)
from rearview.client.ledger import Input
from rearview.client.losses import Loss
from rearview.client.machine import Connect, HalfClose, Machine, Phase, Wait, Write

__all__ = ["CUT", "PATIENT", "Client", "frame_indices"]

CUT = Loss(Unreachable("cut"), is_transient=True)
PATIENT = Reconnect(give_up_after_s=1e9, open_timeout_s=1e9)
MAX_STEPS = 10_000
"""No session here needs so many to end: more is a deadlock."""


class Client:
    """A shell without I/O: it carries out what the machine says when it is told to, at the time `now`."""

    def __init__(self, server: VirtualServer, window: int = 32, reconnect: Reconnect = PATIENT) -> None:
        self.server, self.now = server, 100.0
        self.machine = Machine({"prompt": "ink", "answer_window": window}, reconnect, "host:1")
        self.is_connected = False
        self.num_read = 0
        """Frames of which an answer was read from the connection."""
        self.answers: list[Translated | Dropped | ControlApplied | Notice] = []

    def connect(self) -> Connect | Wait | None:
        """Do what the machine says without a connection; returns what that was."""
        action = self.machine.connect(self.now)
        if isinstance(action, Connect):
            self.machine.received(self.server.accept(action.first, self.num_read), self.now)
            self.is_connected = self.machine.phase is not Phase.ENDED
        elif isinstance(action, Wait):
            assert action.until_s is not None
            assert action.until_s > self.now
        return action

    def write(self) -> Write | HalfClose | Wait:
        action = self.machine.next_write(self.now)
        if not isinstance(action, Wait):
            self.server.to_server.append(action)
        if isinstance(action, HalfClose):
            self.machine.half_closed()
        return action

    def can_read(self) -> bool:
        return self.is_connected and bool(self.server.to_client) and self.machine.has_room()

    def read(self) -> None:
        response = self.server.to_client.popleft()
        self.machine.received(response, self.now)
        if response is None:
            self.is_connected = False
        else:
            self.num_read += response.WhichOneof("message") in ("frame", "dropped")

    def take(self) -> None:
        answer = self.machine.take()
        if answer is not None:
            self.answers.append(answer)

    def lose(self, loss: Loss = CUT, received_frames: int | None = None) -> None:
        """The connection is lost, and with it the frames after the first `received_frames`."""
        kept = len(self.server.frames) if received_frames is None else received_frames
        self.server.cut(self.num_read, kept)
        self.is_connected = False
        self.machine.lost(loss, self.now)

    def frame(self, index: int | None = None) -> Input:
        return self.machine.frame(b"jpeg", index, 0.0, ImageFormat.JPEG)

    def control(self, seed: int) -> Input:
        return self.machine.control(SettingsChange(seed=seed))

    def write_all(self) -> None:
        while not isinstance(self.write(), Wait):
            self.server.deliver()

    def settle(self) -> None:
        """Go on without losses until nothing is left to do; raises AssertionError for a deadlock."""
        server = self.server
        for _ in range(MAX_STEPS):
            if not self.is_connected:
                if (action := self.connect()) is None:
                    break
                if isinstance(action, Wait) and action.until_s is not None:
                    self.now = action.until_s
            elif self.can_read():
                self.read()
            elif server.to_server:
                server.deliver()
            elif server.can_answer_control():
                server.answer_control()
            elif server.can_answer_frame():
                server.answer_frame()
            elif server.can_finish():
                server.finish()
            elif self.machine.num_waiting_answers:
                self.take()
            elif isinstance(self.write(), Wait):
                return
        else:
            raise AssertionError("deadlock")
        while self.machine.num_waiting_answers:
            self.take()


def frame_indices(client: Client) -> list[int]:
    """Of the answers that were taken."""
    return [one.frame_index for one in client.answers if isinstance(one, Translated | Dropped)]
