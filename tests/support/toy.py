"""A row-wise model in exact integers, and what the engine must make of frames with it.

Pictures are bit-equal in whatever order and company rows run. Forwards take the time that a cost table
says, and fail where a test wants them to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import torch
from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.frame import Frame
from rearview.contract.retained import RETAINED_BYTES
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.build import Layouts
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.memory.protocol import AnyMemory, Updates, Views
from rearview.engine.networks.model import Forward
from rearview.engine.player import Player
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from torch import Tensor

from support.frames import content, entering, planes_of
from support.toy_view import MODULUS, TOY

TOY_STEPS = 3


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
    error: Callable[[], Exception] = lambda: RuntimeError("the test lets this forward fail")
    """What those raise that fail."""
    breaks: Callable[[Row], bool] = lambda sample: False
    """Samples that come out not finite."""
    groups: Callable[[SessionSpec], Hashable] = lambda spec: None
    """What keeps sessions apart beside the kind of operator."""
    batches: list[list[tuple[str, int, str]]] = field(default_factory=list)
    """(session, ordinal, operator) of every row of every forward, failed ones included."""

    @property
    def layouts(self) -> Layouts:
        return Layouts()

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        apart = self.groups(spec)
        return operator.kind if apart is None else (operator.kind, apart)

    def prepare(self, settings: Settings) -> None:
        pass

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        self.batches.append([(row.session_id, row.ordinal, row.operator.name) for row in rows])
        self.clock.now_s += self.costs.seconds(rows[0].group, sum(row.width for row in rows))
        if self.fails(rows):
            raise self.error()
        samples = [sample for row in rows for sample in row.samples()]
        past = views.of(TOY)
        seen = [0] * len(samples) if past is None else past.seen_S.tolist()
        outputs = [
            planes_of(toy_output(each.operator, content(each) + number, each.settings, each.ordinal))
            for each, number in zip(samples, seen, strict=True)
        ]
        broken = frozenset(number for number, each in enumerate(samples) if self.breaks(each))
        return Forward(outputs, Updates() if past is None else Updates({TOY.name: past.update}), broken)


def toy_engine(
    model: ToyModel,
    span: Span,
    *,
    slots: int = 64,
    max_batch: int = 16,
    max_wait_forwards: int = 8,
    order: Order = Order.BACK_TO_BACK,
    memory: AnyMemory | None = None,
    retained_bytes: int = RETAINED_BYTES,
) -> Engine:
    scheduler = Scheduler(model.costs, max_batch, max_wait_forwards)
    past = Memoryless(slots) if memory is None else Memories([memory], memory.free_slots)
    return Engine(span, model, past, scheduler, order=order, clock=model.clock, retained_bytes=retained_bytes)


def toy_payload(session_id: str, ordinal: int) -> Tensor:
    """A frame that no other session and no other ordinal has."""
    return torch.tensor([ordinal + 1, crc32(session_id.encode()) % MODULUS])


def toy_spec(session_id: str, steps: int = 2, tenant: str = "t") -> SessionSpec:
    return SessionSpec(session_id, 64, 64, TOY_STEPS, Settings(f"p{session_id}", 0.6, steps, 7), tenant)


def admit(engine: Engine, session_id: str, *ordinals: int, version: int = 0) -> None:
    for ordinal in ordinals:
        frame = entering(session_id, ordinal, toy_payload(session_id, ordinal), version)
        assert engine.admit(frame, 0.0)


def drain(engine: Engine) -> list[Frame[Tensor]]:
    """Step until there is nothing to do; what has left."""
    return list(player(engine).left())


def player(*engines: Engine) -> Player:
    """One that audits the engines at each step. Its time stands still."""
    return Player(*engines, clock=lambda: 0.0, watch=lambda engine, _: engine.check_integrity())


def expect(emissions: Sequence[Frame[Tensor]], session: SessionSpec, ordinals: Sequence[int]) -> None:
    """These ordinals, once each, with the right pictures."""
    assert sorted(left.ordinal for left in emissions) == sorted(ordinals)
    for left in emissions:
        picture = toy_picture(toy_payload(session.session_id, left.ordinal), session.settings, left.ordinal)
        assert content(left) is not None
        assert torch.equal(content(left), picture)


@dataclass
class Holds:
    """Lets the forwards fail that have more samples than memory holds; `samples` may be changed."""

    samples: int

    def __call__(self, rows: Sequence[Row]) -> bool:
        return sum(row.width for row in rows) > self.samples


@dataclass
class Faults:
    """Lets the forwards fail that hold certain rows, a number of times."""

    of: Callable[[Row], bool]
    times: int = 10**9

    def __call__(self, rows: Sequence[Row]) -> bool:
        fails = self.times > 0 and any(self.of(row) for row in rows)
        self.times -= fails
        return fails
