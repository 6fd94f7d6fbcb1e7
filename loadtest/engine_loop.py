"""Sessions that feed an engine: from bytes to bytes, each a closed loop, or on schedule.

A closed loop sends its next frame when one comes back, so the engine is never idle and never overrun. It runs
on from the warm-up into what is timed, so that what is timed is the middle of a stream: neither its first
frames nor its last ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rearview.contract.chain import OperatorKind
from rearview.contract.frame import PICTURE, Frame
from rearview.contract.session import SessionSpec
from rearview.engine.engine import Engine
from rearview.engine.player import Player, planes_of
from rearview.engine.rows import StepResult
from torch import Tensor

__all__ = ["Answer", "Frames", "Loop", "percentile"]


class Frames:
    """Random pictures; those of a session follow each other, and each session begins elsewhere."""

    def __init__(self, pixels: int, count: int = 16) -> None:
        """`count`: different ones. `pixels`: of a side."""
        generator = torch.Generator().manual_seed(1)
        shape = (count, pixels, pixels, 3)
        pictures = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        self._side = pixels
        self._bytes = [bytearray(picture.numpy().tobytes()) for picture in pictures]

    def bytes_of(self, session_id: str, ordinal: int) -> bytearray:
        """Of one frame, H x W x 3."""
        return self._bytes[(7 * int(session_id[1:]) + ordinal) % len(self._bytes)]

    def picture(self, session_id: str, ordinal: int) -> Tensor:
        """(H, W, 3) uint8, over the bytes in place."""
        flat = torch.frombuffer(self.bytes_of(session_id, ordinal), dtype=torch.uint8)
        return flat.view(self._side, self._side, 3)


@dataclass(frozen=True, slots=True)
class Answer:
    """A picture that came back."""

    session_id: str
    ordinal: int
    latency_s: float
    picture: bytes


class Loop:
    """See the module's docstring. One thread."""

    def __init__(
        self,
        engine: Engine,
        sessions: Sequence[SessionSpec],
        frames: Frames,
        *,
        in_flight: int,
        warm_up_frames: int = 0,
    ) -> None:
        """`in_flight`: frames of a session at a time. `warm_up_frames`: those that have to come together
        before the first picture.
        """
        self.sessions, self.batches = sessions, list[int]()
        """`batches`: rows of each denoising forward."""
        self._engine, self._frames, self._in_flight = engine, frames, in_flight
        self._first = max(in_flight, warm_up_frames)
        self._player = Player(engine, watch=self._watch)
        self._sent: dict[tuple[str, int], float] = {}
        """When frames that are not back were sent."""
        self._next: dict[str, int] = {}
        self._interval_s = 0.0
        """0: frames are not on schedule."""
        self._due_s: dict[str, float] = {}
        """On schedule, when each session's next frame comes."""
        self._is_ending = False
        self._leaving: Iterator[Frame[Tensor]] = iter(())

    def open(self) -> None:
        """Open the sessions and send their first frames."""
        for spec in self.sessions:
            self._player.open(spec)
            self._next[spec.session_id] = 0
        self._leaving = self._player.left(self._send_due, self._wait_for_due)
        for spec in self.sessions:
            for _ in range(self._first):
                self._send(spec.session_id, time.monotonic())

    def answers(self, rounds: int) -> list[Answer]:
        """Play on until so many pictures for each session are back."""
        return [self._answer(next(self._leaving)) for _ in range(rounds * len(self.sessions))]

    def pace(self, fps: float) -> None:
        """From now on frames come on schedule, whatever comes back."""
        self._interval_s = 1.0 / fps
        self._due_s = dict.fromkeys(self._next, time.monotonic() + self._interval_s)

    def end(self) -> None:
        """Let what is in flight come back, and close the sessions."""
        self._is_ending = True
        for spec in self.sessions:
            self._player.flush(spec.session_id)
        for frame in self._leaving:
            self._answer(frame)
        for spec in self.sessions:
            self._engine.close(spec.session_id)

    def _answer(self, frame: Frame[Tensor]) -> Answer:
        content = planes_of(frame)[PICTURE].cpu().numpy().tobytes()
        latency_s = time.monotonic() - self._sent.pop((frame.session_id, frame.ordinal))
        self._engine.retained.acknowledge(frame.session_id, frame.ordinal)
        waiting = sum(name == frame.session_id for name, _ in self._sent)
        if not self._interval_s and not self._is_ending and waiting < self._in_flight:
            self._send(frame.session_id, time.monotonic())
        return Answer(frame.session_id, frame.ordinal, latency_s, content)

    def _send(self, name: str, due_s: float) -> None:
        ordinal = self._next[name]
        self._sent[name, ordinal] = due_s
        self._player.admit(name, ordinal, {PICTURE: self._frames.picture(name, ordinal)})
        self._next[name] = ordinal + 1

    def _send_due(self) -> None:
        """A frame that is due while a step runs waits for it, and is late by so much."""
        if self._is_ending:
            return
        for name, due_s in self._due_s.items():
            if due_s <= time.monotonic():
                self._send(name, due_s)
                self._due_s[name] = due_s + self._interval_s

    def _wait_for_due(self) -> bool:
        """On schedule something always comes, until the end."""
        if self._is_ending or not self._due_s:
            return False
        time.sleep(max(0.0, min(self._due_s.values()) - time.monotonic()))
        return True

    def _watch(self, engine: Engine, result: StepResult) -> None:
        if result.batch is not None and result.batch.failed:
            raise RuntimeError("a forward has failed: see the log")
        if result.batch is not None and result.batch.kind is OperatorKind.DENOISE:
            self.batches.append(result.batch.rows)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
