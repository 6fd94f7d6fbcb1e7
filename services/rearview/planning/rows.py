"""One replica, row by row: the real engine and scheduler on a virtual clock, over a device that only takes
time.

Streams send on schedule whatever the engine does, through the ingress's own pacer (`latest`). A frame that
was driven out has no picture. What a viewer sees is the ingress's own `Playout`. Codecs, links and networks
take no time here.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import torch
from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind, Span, chain
from rearview.contract.frame import LATENT, Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.stream import DropPolicy
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.build import Layouts
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.model import Forward
from rearview.engine.player import Player
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.ingress.pacing import Pacer
from rearview.ingress.playout import Playout
from rearview.planning.costs import DeviceCost
from rearview.planning.streams import Streams

__all__ = ["Outcome", "Stint", "cost_table", "play"]

RETAINED_BYTES = 64
"""Outputs need not be kept: nobody asks for one again."""
PLANES: Mapping[str, Tensor] = {LATENT: torch.zeros(1)}


@dataclass(frozen=True, slots=True)
class Stint:
    """A session on one replica, from one moment to another: seconds."""

    session_id: str
    start_s: float
    end_s: float


@dataclass(slots=True)
class Outcome:
    """What became of the frames of one or several replicas."""

    frames: int = 0
    """That came."""
    pictures: int = 0
    in_time: int = 0
    """Pictures within the SLO."""
    played_s: float = 0.0
    stalled_s: float = 0.0
    busy_s: float = 0.0
    """Of the device."""
    rows: int = 0
    ages_s: list[float] = field(default_factory=list)
    """Of every picture, from when its frame came."""

    @property
    def attainment(self) -> float:
        """Share of frames with a picture in time; 1 without frames."""
        return self.in_time / self.frames if self.frames else 1.0

    @property
    def play_ratio(self) -> float:
        """Share of the time in which the next picture was there when it was due."""
        whole_s = self.played_s + self.stalled_s
        return self.played_s / whole_s if whole_s else 1.0

    def age_s(self, part: float) -> float:
        """The age that this part of the pictures does not exceed; 0 without any."""
        ages_s = sorted(self.ages_s)
        return ages_s[min(len(ages_s) - 1, int(part * len(ages_s)))] if ages_s else 0.0

    def add(self, other: Outcome) -> None:
        """Count another replica too."""
        self.frames += other.frames
        self.pictures += other.pictures
        self.in_time += other.in_time
        self.played_s += other.played_s
        self.stalled_s += other.stalled_s
        self.busy_s += other.busy_s
        self.rows += other.rows
        self.ages_s += other.ages_s


def cost_table(device: DeviceCost, streams: Streams) -> CostTable:
    """The scheduler's table for pictures of that size; encoding and decoding take half each."""
    larger = streams.width * streams.height / device.pixels
    step_s = {rows: seconds * larger for rows, seconds in device.step_s.items()}
    half_s = {rows: seconds * larger / 2 for rows, seconds in device.once_s.items()}
    return CostTable({OperatorKind.ENCODE: half_s, OperatorKind.DENOISE: step_s, OperatorKind.DECODE: half_s})


def play(
    stints: Sequence[Stint],
    device: DeviceCost,
    streams: Streams,
    order: Order = Order.BACK_TO_BACK,
    seed: int = 0,
) -> Outcome:
    """Every frame of the sessions of one replica through an engine of its own."""
    return _Replica(stints, device, streams, order, seed).run()


@dataclass
class _Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


class _Device:
    """Stands for a model: its forwards move the clock."""

    def __init__(self, clock: _Clock, costs: CostTable) -> None:
        self._clock, self._costs = clock, costs
        self.busy_s, self.rows = 0.0, 0

    @property
    def layouts(self) -> Layouts:
        return Layouts()

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        return operator.kind

    def prepare(self, settings: Settings) -> None:
        pass  # There is no prompt to encode.

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        seconds = self._costs.seconds(rows[0].group, sum(row.width for row in rows))
        self._clock.now_s += seconds
        self.busy_s += seconds
        self.rows += len(rows)
        return Forward([row.planes for row in rows])


@dataclass
class _Stream:
    """One client: its schedule, the ingress's pacer, and what was answered."""

    spec: SessionSpec
    stint: Stint
    pacer: Pacer[int]
    random: Random
    came_s: list[float] = field(default_factory=list)
    """When each frame came."""
    started: list[int] = field(default_factory=list)
    """Index of each ordinal."""
    answers: dict[int, float | None] = field(default_factory=dict)
    """When each frame had its picture; None: driven out."""
    is_over: bool = False

    def next_s(self, streams: Streams) -> float | None:
        """When the next frame comes; None after the last."""
        due_s = self.stint.start_s + len(self.came_s) / streams.fps
        if due_s >= self.stint.end_s:
            return None
        return due_s + self.random.uniform(0.0, streams.jitter_s)

    @property
    def is_answered(self) -> bool:
        return self.is_over and len(self.answers) == len(self.came_s)


class _Replica:
    def __init__(
        self, stints: Sequence[Stint], device: DeviceCost, streams: Streams, order: Order, seed: int
    ) -> None:
        assert streams.jitter_s < 1 / streams.fps, "frames of a stream come in order"
        self._kind, costs = streams, cost_table(device, streams)
        self._clock = _Clock()
        self._device = _Device(self._clock, costs)
        span, scheduler = Span("fused", chain(streams.steps)), Scheduler(costs, streams.max_batch)
        self._engine = Engine(
            span,
            self._device,
            Memoryless(max(1, len(stints))),
            scheduler,
            order=order,
            clock=self._clock,
            retained_bytes=RETAINED_BYTES,
        )
        self._streams: dict[str, _Stream] = {}
        self._outcome = Outcome()
        self._due: list[tuple[float, int, str]] = []
        """When something comes, by stream."""
        for number, stint in enumerate(sorted(stints, key=lambda each: each.start_s)):
            # A session may come back to a replica that it has left.
            self._enter(replace(stint, session_id=f"{stint.session_id}/{number}"), number, seed)

    def run(self) -> Outcome:
        """Until every frame is answered."""
        for left in Player(self._engine, clock=self._clock).left(self._feed, self._more):
            self._answer(self._streams[left.session_id], left)
        self._outcome.busy_s, self._outcome.rows = self._device.busy_s, self._device.rows
        return self._outcome

    def _enter(self, stint: Stint, number: int, seed: int) -> None:
        kind, name = self._kind, stint.session_id
        spec = SessionSpec(name, kind.width, kind.height, kind.steps, kind.settings)
        pacer: Pacer[int] = Pacer(DropPolicy.LATEST, kind.max_in_flight, 1)
        stream = _Stream(spec, stint, pacer, Random(f"{seed}/{name}"))
        if (first_s := stream.next_s(kind)) is not None:
            self._streams[name] = stream
            heapq.heappush(self._due, (first_s, number, name))

    def _feed(self) -> None:
        """Let in what has come."""
        while self._due and self._due[0][0] <= self._clock.now_s:
            at_s, number, name = heapq.heappop(self._due)
            stream = self._streams[name]
            if not stream.came_s:
                self._engine.open(stream.spec)
            index = len(stream.came_s)
            stream.came_s.append(at_s)
            for driven_out, _ in stream.pacer.offer(index, at_s):
                stream.answers[driven_out] = None
            self._start(stream, at_s)
            next_s = stream.next_s(self._kind)
            if next_s is not None:
                heapq.heappush(self._due, (next_s, number, name))
            else:
                stream.is_over = True
                self._end_if_answered(stream)

    def _more(self) -> bool:
        if self._due:
            self._clock.now_s = max(self._clock.now_s, self._due[0][0])
        return bool(self._due)

    def _start(self, stream: _Stream, now: float) -> None:
        while (index := stream.pacer.take(now)[0]) is not None:
            deadline_s = stream.came_s[index] + self._kind.slo_s
            frame = Frame(stream.spec.session_id, len(stream.started), PLANES, deadline_s=deadline_s)
            stream.started.append(index)
            self._engine.admit(frame, now)

    def _answer(self, stream: _Stream, left: Frame[Tensor]) -> None:
        stream.answers[stream.started[left.ordinal]] = self._clock.now_s
        stream.pacer.finished()
        self._start(stream, self._clock.now_s)
        self._end_if_answered(stream)

    def _end_if_answered(self, stream: _Stream) -> None:
        if stream.is_over and not stream.pacer.waiting():
            self._engine.flush(stream.spec.session_id)
        if stream.is_answered:
            self._engine.close(stream.spec.session_id)
            self._count(stream)
            del self._streams[stream.spec.session_id]

    def _count(self, stream: _Stream) -> None:
        """As the ingress answers: in order."""
        outcome, playout, sent_s = self._outcome, Playout(), 0.0
        for index, came_s in enumerate(stream.came_s):
            picture_s = stream.answers[index]
            sent_s = max(sent_s, came_s if picture_s is None else picture_s)
            outcome.frames += 1
            outcome.pictures += picture_s is not None
            if picture_s is not None:
                outcome.ages_s.append(sent_s - came_s)
                outcome.in_time += sent_s - came_s <= self._kind.slo_s
            played_s, stalled_s = playout.answered(came_s, sent_s, shows=picture_s is not None)
            outcome.played_s += played_s
            outcome.stalled_s += stalled_s
