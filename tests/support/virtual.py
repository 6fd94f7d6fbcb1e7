"""Whole streams through an engine in virtual time: arrivals on schedule, a clock that forwards move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rearview.contract.chain import OperatorKind
from rearview.contract.frame import Frame
from rearview.contract.session import SessionSpec
from rearview.contract.stream import DropPolicy
from rearview.engine.engine import Engine
from rearview.engine.player import Player
from rearview.engine.scheduler import CostTable
from rearview.ingress.pacing import Pacer
from torch import Tensor

from support.frames import entering
from support.toy import Clock, toy_payload

ISSUE_COSTS = CostTable({OperatorKind.DENOISE: {1: 0.006, 2: 0.007}})
"""t(rows) = 5 + rows ms for a denoising step; encode and decode cost nothing."""
FPS = 30.0


@dataclass
class Source:
    """A client that sends on schedule whatever the server does."""

    spec: SessionSpec
    num_frames: int
    fps: float = FPS
    start_s: float = 0.0
    budget_s: float = float("inf")
    """From a frame's arrival to its deadline."""
    max_in_flight: int | None = None
    """Set: frames beyond it wait at the edge, in one place, where a newer one drives them out."""

    def arrival_s(self, index: int) -> float:
        return self.start_s + index / self.fps


@dataclass(frozen=True)
class Answer:
    """One frame's outcome."""

    session_id: str
    index: int
    arrived_s: float
    finished_s: float
    """When it was answered, with a picture or not."""
    has_picture: bool

    @property
    def latency_s(self) -> float:
        return self.finished_s - self.arrived_s


class _Edge:
    """One source's way into the engine: the ingress's own pacer, and the ordinals it gives."""

    def __init__(self, source: Source, engine: Engine) -> None:
        self.source, self._engine = source, engine
        limit = source.max_in_flight
        policy = DropPolicy.LOSSLESS if limit is None else DropPolicy.LATEST
        self._pacer: Pacer[int] = Pacer(policy, limit or source.num_frames, source.num_frames)
        self._indices: list[int] = []
        """Index of each ordinal."""

    def arrive(self, index: int, now: float) -> Iterator[Answer]:
        for dropped, _ in self._pacer.offer(index, now):
            yield self._answer(dropped, now, has_picture=False)
        self._start(now)

    def leave(self, emission: Frame[Tensor], now: float) -> Answer:
        self._pacer.finished()
        self._start(now)
        return self._answer(self._indices[emission.ordinal], now, has_picture=not emission.is_lost)

    def _start(self, now: float) -> None:
        while (index := self._pacer.take(now)[0]) is not None:
            session_id, ordinal = self.source.spec.session_id, len(self._indices)
            self._indices.append(index)
            deadline_s = self.source.arrival_s(index) + self.source.budget_s
            payload = toy_payload(session_id, ordinal)
            self._engine.admit(entering(session_id, ordinal, payload, deadline_s=deadline_s), now)

    def _answer(self, index: int, now: float, *, has_picture: bool) -> Answer:
        return Answer(
            self.source.spec.session_id, index, self.source.arrival_s(index), now, has_picture=has_picture
        )


def simulate(
    engine: Engine, clock: Clock, sources: Sequence[Source], until_s: float = float("inf")
) -> list[Answer]:
    """Play `sources` into `engine`, as the stages do: frames enter between forwards. Returns the answers
    in the order in which they were given; at `until_s` what is not answered stays so.
    """
    edges = {source.spec.session_id: _Edge(source, engine) for source in sources}
    for source in sources:
        engine.open(source.spec)
    arrivals = sorted(
        ((source.arrival_s(index), source.spec.session_id, index))
        for source in sources
        for index in range(source.num_frames)
    )
    answers: list[Answer] = []
    sent, begun_s = 0, clock.now_s

    def feed() -> None:
        nonlocal sent, begun_s
        begun_s = clock.now_s
        while sent < len(arrivals) and arrivals[sent][0] <= clock.now_s:
            arrived_s, session_id, index = arrivals[sent]
            answers.extend(edges[session_id].arrive(index, arrived_s))
            sent += 1
            if index + 1 == edges[session_id].source.num_frames:
                engine.flush(session_id)

    def more() -> bool:
        if sent < len(arrivals):
            clock.now_s = max(clock.now_s, arrivals[sent][0])
        return sent < len(arrivals)

    for left in Player(engine, clock=clock).left(feed, more):
        if begun_s >= until_s:
            break
        answers.append(edges[left.session_id].leave(left, clock.now_s))
    return answers
