"""An engine in virtual time: a clock that only forwards move, arrivals on schedule, answers with their times.

`ToyModel` computes exact integers per row, so that pictures are bit-equal in whatever order and company
rows run; its forwards take the time that a cost table says, and fail where a test wants them to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import torch
from rearview.engine.chain import Operator, OperatorKind, Span
from rearview.engine.engine import Emission, Engine, Order
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.memory.protocol import MemoryView
from rearview.engine.model import Forward
from rearview.engine.rows import FrameInput, Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.session import SessionSpec, Settings
from rearview.ingress.pacing import DropPolicy, Pacer
from torch import Tensor

ISSUE_COSTS = CostTable({OperatorKind.DENOISE: {1: 0.006, 2: 0.007}})
"""t(rows) = 5 + rows ms for a denoising step; encode and decode cost nothing."""
FPS = 30.0
MODULUS = 2**31 - 1


@dataclass
class Clock:
    """Seconds; moves when it is told to."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def toy_output(operator: Operator, payload: Tensor, settings: Settings, ordinal: int) -> Tensor:
    """What the toy model makes of one row: depends on everything that a picture may depend on."""
    key = hash((operator.step, settings.seed, settings.steps, ordinal)) % MODULUS
    prompt = sum(settings.prompt.encode()) if operator.kind is OperatorKind.DENOISE else 0
    return (payload * 48_271 + key + prompt) % MODULUS


def toy_picture(payload: Tensor, settings: Settings, ordinal: int) -> Tensor:
    """What the whole chain makes of a frame."""
    steps = [Operator(OperatorKind.DENOISE, step) for step in range(settings.steps)]
    for operator in (Operator(OperatorKind.ENCODE), *steps, Operator(OperatorKind.DECODE)):
        payload = toy_output(operator, payload, settings, ordinal)
    return payload


@dataclass
class ToyModel:
    """A row-wise model in exact arithmetic."""

    clock: Clock = field(default_factory=Clock)
    costs: CostTable = field(default_factory=CostTable)
    fails: Callable[[Sequence[Row]], bool] = lambda rows: False
    groups: Callable[[SessionSpec], Hashable] = lambda spec: None
    """What keeps sessions apart beside the kind of operator."""
    batches: list[list[tuple[str, int, str]]] = field(default_factory=list)
    """(session, ordinal, operator) of every row of every forward, failed ones included."""

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        apart = self.groups(spec)
        return operator.kind if apart is None else (operator.kind, apart)

    def prepare(self, settings: Settings) -> None:
        pass

    def forward(self, rows: Sequence[Row], view: MemoryView) -> Forward:
        self.batches.append([(row.session_id, row.ordinal, row.operator.name) for row in rows])
        self.clock.now_s += self.costs.seconds(rows[0].group, len(rows))
        if self.fails(rows):
            raise RuntimeError("the test lets this forward fail")
        return Forward([toy_output(row.operator, row.payload, row.settings, row.ordinal) for row in rows])


def toy_engine(
    model: ToyModel,
    span: Span,
    *,
    slots: int = 64,
    max_batch: int = 16,
    max_wait_forwards: int = 8,
    order: Order = Order.BACK_TO_BACK,
) -> Engine:
    scheduler = Scheduler(model.costs, max_batch, max_wait_forwards)
    return Engine(span, model, Memoryless(slots), scheduler, order=order, clock=model.clock)


def toy_payload(session_id: str, ordinal: int) -> Tensor:
    """A frame that no other session and no other ordinal has."""
    return torch.tensor([ordinal + 1, crc32(session_id.encode()) % MODULUS])


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

    def leave(self, emission: Emission, now: float) -> Answer:
        self._pacer.finished()
        self._start(now)
        return self._answer(self._indices[emission.ordinal], now, has_picture=emission.payload is not None)

    def _start(self, now: float) -> None:
        while (index := self._pacer.take(now)[0]) is not None:
            session_id, ordinal = self.source.spec.session_id, len(self._indices)
            self._indices.append(index)
            deadline_s = self.source.arrival_s(index) + self.source.budget_s
            payload = toy_payload(session_id, ordinal)
            self._engine.admit(FrameInput(session_id, ordinal, payload, deadline_s=deadline_s), now)

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
    sent = 0
    while clock.now_s < until_s and (sent < len(arrivals) or engine.has_work):
        if not engine.has_work:
            clock.now_s = max(clock.now_s, arrivals[sent][0])
        while sent < len(arrivals) and arrivals[sent][0] <= clock.now_s:
            arrived_s, session_id, index = arrivals[sent]
            answers.extend(edges[session_id].arrive(index, arrived_s))
            sent += 1
            if index + 1 == edges[session_id].source.num_frames:
                engine.flush(session_id)
        emissions = engine.step(clock()).emissions
        answers.extend(edges[left.session_id].leave(left, clock.now_s) for left in emissions)
    return answers
