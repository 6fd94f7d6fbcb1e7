"""The index of ready rows against a walk over all frames: the same rows, the same forwards, the same ages."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import pytest
from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.controls import WeightedControl
from rearview.contract.frame import UNSEEN
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, Settings
from rearview.engine.engine import Engine, Order
from rearview.engine.queues import RowQueues
from rearview.engine.ready_rows import ReadyRows
from rearview.engine.rows import Row, StepResult, window_group
from rearview.engine.scheduler import CostTable
from support.frames import entering
from support.plain_rows import PlainRule, PlainScheduler
from support.tiny import whole_chain
from support.toy import TOY_STEPS, Clock, ToyModel, toy_engine, toy_payload, toy_spec
from support.toy_cache import SINK, ToyCache
from support.toy_clips import POLICIES

pytestmark = pytest.mark.unit

MAX_SESSIONS, MAX_BATCH, MAX_WAIT = 9, 4, 3


def costs(rng: random.Random) -> CostTable:
    """Some groups are not known, and some batches pay."""
    kinds: list[Hashable] = [kind for kind in OperatorKind if rng.random() < 0.8]
    groups = [*kinds, *(window_group(kind) for kind in kinds if rng.random() < 0.5)]
    return CostTable(
        {group: {1: 0.006, 2: rng.choice([0.0065, 0.007, 0.012]), 4: 0.013} for group in groups}, 5e-4, 2e-3
    )


class PricedCache(ToyCache):
    """Some frames cost a write, and some sessions encode in order."""

    def num_writes(self, row: Row) -> int:
        return row.ordinal % 2 if row.operator.kind is OperatorKind.DENOISE else 0

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        return spec.tenant == "v" and operator.kind is OperatorKind.ENCODE


@dataclass
class Drive:
    """An engine to which anything may happen, and the plain way beside it."""

    seed: int
    rng: random.Random = field(init=False)
    clock: Clock = field(default_factory=Clock)
    opened: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    versions: dict[str, list[Settings]] = field(default_factory=dict)
    changed_at: dict[str, list[int]] = field(default_factory=dict)
    """First ordinals under each version after the first."""
    held: dict[str, list[int]] = field(default_factory=dict)
    """Ordinals that come late."""

    def __post_init__(self) -> None:
        self.rng = rng = random.Random(self.seed)
        order, memory = rng.choice(list(Order)), PricedCache()
        self.model = ToyModel(self.clock, costs(rng), fails=lambda rows: rng.random() < 0.05)
        self.engine = toy_engine(
            self.model,
            whole_chain(TOY_STEPS),
            max_batch=MAX_BATCH,
            max_wait_forwards=MAX_WAIT,
            order=order,
            memory=memory,
        )
        self.rule = PlainRule(self.model, self.engine._memory, self.model.costs, order)
        self.scheduler = PlainScheduler(self.model.costs, MAX_BATCH, MAX_WAIT)

    def run(self, events: int) -> int:
        """Forwards that were compared."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.open, 2),
            (self.send, 30),
            (self.let_come, 6),
            (self.change, 3),
            (self.flush, 1),
            (self.freeze, 1),
            (self.thaw, 5),
            (self.move, 2),
            (self.close, 1),
            (self.step, 40),
        ]
        for happens in self.rng.choices(*map(list, zip(*kinds, strict=True)), k=events):
            happens()
            self.compare()
        while self.engine.has_work:
            self.step()
        assert self.rows() == []
        return len(self.model.batches)

    def compare(self) -> None:
        """What is ready."""
        expected = self.rows()
        found = self.engine._ready.queues
        assert sorted(map(described, found)) == sorted(map(described, expected))
        assert found.oldest_s == min((row.frame.ready_s for row in expected), default=None)
        assert self.engine.has_work == bool(expected or self.engine._emissions)

    def step(self) -> None:
        """What of it runs, in which order, and how old the rest is."""
        now, ready, before = self.clock.now_s, self.rows(), len(self.model.batches)
        chosen = self.scheduler.choose(ready, now)
        waiting = [row.frame.ready_s for row in ready if row not in chosen]
        expected = [(row.session_id, row.ordinal, row.operator.name) for row in chosen]
        result: StepResult = self.engine.step(now)
        assert self.model.batches[before:] == ([expected] if expected else [])
        assert result.queue_age_s == now - min(waiting, default=now)
        assert (self.engine._scheduler._served, self.engine._scheduler._waited) == (
            self.scheduler._served,
            self.scheduler._waited,
        )
        self.engine.check_integrity()
        self.clock.now_s += self.rng.choice([0.0, 0.001])

    def rows(self) -> list[Row]:
        return list(self.rule.rows(self.engine._sessions.values()))

    def open(self) -> None:
        if len(self.sent) == MAX_SESSIONS:
            return
        name, rng = f"s{self.opened}", self.rng
        spec = toy_spec(name, rng.randint(1, TOY_STEPS), rng.choice("tuv"))
        settings = replace(spec.settings, guidance=rng.choice(list(Guidance)), guidance_scale=2.0)
        settings = replace(settings, controls=rng.choice([(), (), (WeightedControl("edges"),)]))
        cache, weight = rng.choice([None, *POLICIES]), rng.choice([1.0, 3.0])
        self.engine.open(replace(spec, settings=settings, cache=cache, weight=weight))
        self.sent[name], self.held[name] = 0, []
        self.versions[name], self.changed_at[name] = [settings], []
        self.opened += 1

    def send(self) -> None:
        """A frame or several; one may be lost, unseen, or held back for a while."""
        if not self.sent:
            return
        name = self.rng.choice(list(self.sent))
        for _ in range(self.rng.choice([1, 1, 2, SINK])):
            ordinal, self.sent[name] = self.sent[name], self.sent[name] + 1
            if self.rng.random() < 0.1:
                self.held[name].append(ordinal)
            else:
                self.admit(name, ordinal)

    def let_come(self) -> None:
        for name, held in self.held.items():
            while held:
                self.admit(name, held.pop())

    def admit(self, name: str, ordinal: int) -> None:
        kind, now = self.rng.random(), self.clock.now_s
        payload = None if kind < 0.08 else toy_payload(name, ordinal)
        due_s = self.rng.choice([float("inf"), now + 0.02, now + 0.2, now])
        frame = entering(name, ordinal, payload, self.version_at(name, ordinal), due_s)
        if 0.08 <= kind < 0.15:
            frame.place = UNSEEN
        assert self.engine.admit(frame, now)

    def version_at(self, name: str, ordinal: int) -> int:
        """Versions never fall from one ordinal to the next, however late frames come."""
        return sum(first <= ordinal for first in self.changed_at[name])

    def change(self) -> None:
        if not self.sent:
            return
        name, rng = self.rng.choice(list(self.sent)), self.rng
        before = self.versions[name][-1]
        after = rng.choice(
            [
                replace(before, prompt=before.prompt + "x"),
                replace(before, steps=rng.randint(1, TOY_STEPS)),
                replace(before, scene=before.scene + 1),
                replace(before, guidance=rng.choice(list(Guidance))),
            ]
        )
        self.versions[name].append(after)
        self.changed_at[name].append(max(1, self.sent[name]))
        self.engine.update(name, len(self.versions[name]) - 1, after)

    def flush(self) -> None:
        if self.sent:
            self.engine.flush(self.rng.choice(list(self.sent)))

    def freeze(self) -> None:
        if self.sent:
            name = self.rng.choice(list(self.sent))
            self.engine.freeze(name, self.sent[name] + self.rng.randint(-2, 2))

    def thaw(self) -> None:
        if self.sent:
            self.engine.thaw(self.rng.choice(list(self.sent)))

    def move(self) -> None:
        """A session that is quiet leaves and comes back."""
        for name in list(self.sent):
            if self.engine.frozen_at(name) is not None and self.engine.is_quiet(name):
                early = dict(self.engine._sessions[name].flight.early)
                state = self.engine.export(name)
                self.engine.close(name)
                self.compare()
                self.engine.import_(state)
                for frame in early.values():
                    self.engine.admit(frame, self.clock.now_s)

    def close(self) -> None:
        if self.sent:
            name = self.rng.choice(list(self.sent))
            self.engine.close(name)
            del self.sent[name], self.held[name], self.versions[name], self.changed_at[name]


def described(row: Row) -> tuple[object, ...]:
    """All that a choice may depend on."""
    frames = tuple((each.ordinal, each.position, each.failures, each.ready_s) for each in row.frames)
    kind = (row.operator.name, repr(row.group), row.warms_up, row.shadow, row.width)
    return (row.session_id, frames, kind, row.due_s, row.writes, repr(row.later))


@pytest.mark.parametrize("seed", range(40))
def test_the_index_is_what_a_walk_over_all_frames_finds(seed: int) -> None:
    assert Drive(seed).run(220) >= 10


def engine_of(count: int, order: Order = Order.BACK_TO_BACK) -> Engine:
    """Three frames of each session wait."""
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), slots=count, order=order)
    for number in range(count):
        engine.open(toy_spec(f"s{number}"))
        for ordinal in range(3):
            engine.admit(entering(f"s{number}", ordinal, toy_payload("s", ordinal)), 0.0)
    return engine


def test_a_step_looks_only_at_sessions_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(40)
    assert engine.has_work
    renewed: list[str] = []
    honest = ReadyRows._renew
    monkeypatch.setattr(
        ReadyRows,
        "_renew",
        lambda self, session: (renewed.append(session.spec.session_id), honest(self, session)),
    )
    engine.step(0.0)
    assert renewed == []
    assert engine.has_work
    assert sorted(renewed) == sorted({name for name, _, _ in engine._model.batches[-1]})  # type: ignore[attr-defined]


def test_a_change_that_nobody_tells_is_found_by_the_audit() -> None:
    engine = engine_of(1, Order.STREAM_BATCH)
    while engine.has_work:
        engine.step(0.0)
    engine.check_integrity()
    engine._sessions["s0"].flushing = True
    with pytest.raises(AssertionError, match="a change was not told"):
        engine.check_integrity()
    engine.flush("s0")
    engine.check_integrity()
    assert engine.has_work


def test_queues_are_empty_when_every_row_has_left() -> None:
    rows = list(engine_of(5)._ready.queues)
    assert len(rows) == 5 * 3
    queues = RowQueues(rows)
    assert list(queues) == rows
    for row in rows:
        queues.remove(row)
    assert (queues.groups, queues.feeders, queues.tenants, queues.oldest_s) == ({}, {}, {}, None)
    assert not queues
