"""How frames enter, fail, leave and are asked for again. The toy model is exact: equal means bit-equal."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from rearview.engine.chain import Operator, Span, chain
from rearview.engine.engine import RETAINED_OUTPUTS, Emission, Engine, Order
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.rows import FrameInput, Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.session import SessionSpec, Settings
from rearview.errors import Reason, Refused
from support.tiny import whole_chain
from support.virtual import Clock, ToyModel, toy_engine, toy_output, toy_payload, toy_picture

pytestmark = pytest.mark.unit

MAX_STEPS = 3


def spec(session_id: str, steps: int = 2, tenant: str = "t") -> SessionSpec:
    return SessionSpec(session_id, 64, 64, MAX_STEPS, Settings(f"p{session_id}", 0.6, steps, 7), tenant)


def admit(engine: Engine, session_id: str, *ordinals: int, version: int = 0) -> None:
    for ordinal in ordinals:
        frame = FrameInput(session_id, ordinal, toy_payload(session_id, ordinal), version)
        assert engine.admit(frame, 0.0)


def drain(engine: Engine) -> list[Emission]:
    """Step until there is nothing to do."""
    emissions: list[Emission] = []
    while engine.has_work:
        emissions.extend(engine.step(0.0).emissions)
        engine.check_integrity()
    return emissions


def expect(emissions: Sequence[Emission], session: SessionSpec, ordinals: Sequence[int]) -> None:
    """These ordinals, once each, with the right pictures."""
    assert sorted(left.ordinal for left in emissions) == sorted(ordinals)
    for left in emissions:
        picture = toy_picture(toy_payload(session.session_id, left.ordinal), session.settings, left.ordinal)
        assert left.payload is not None
        assert torch.equal(left.payload, picture)


@dataclass
class Faults:
    """Lets the forwards fail that hold certain rows, a number of times."""

    of: Callable[[Row], bool]
    times: int = 10**9

    def __call__(self, rows: Sequence[Row]) -> bool:
        fails = self.times > 0 and any(self.of(row) for row in rows)
        self.times -= fails
        return fails


@pytest.mark.parametrize("operator", ["encode", "denoise-0", "denoise-1", "decode"])
def test_a_row_that_fails_once_runs_again_and_gives_the_same_picture(operator: str) -> None:
    model = ToyModel(fails=Faults(lambda row: row.ordinal == 1 and row.operator.name == operator, times=1))
    engine = toy_engine(model, whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    admit(engine, "a", 0, 1, 2)
    expect(drain(engine), spec("a"), [0, 1, 2])
    assert sum(("a", 1, operator) in batch for batch in model.batches) == 2


def test_a_frame_may_fail_once_at_each_of_its_operators() -> None:
    failed = set()

    def once_each(rows: Sequence[Row]) -> bool:
        fails = rows[0].operator not in failed
        failed.add(rows[0].operator)
        return fails

    engine = toy_engine(ToyModel(fails=once_each), whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    admit(engine, "a", 0)
    expect(drain(engine), spec("a"), [0])
    assert len(failed) == 4


@pytest.mark.parametrize("operator", ["encode", "denoise-0", "denoise-1", "decode"])
@pytest.mark.parametrize("order", Order)
def test_a_frame_that_fails_alone_a_second_time_is_dropped_and_later_ones_are_not(
    operator: str, order: Order
) -> None:
    model = ToyModel(fails=Faults(lambda row: row.ordinal == 1 and row.operator.name == operator))
    engine = toy_engine(model, whole_chain(MAX_STEPS), order=order)
    engine.open(spec("a"))
    admit(engine, "a", 0, 1, 2, 3)
    engine.flush("a")
    left = {emission.ordinal: emission for emission in drain(engine)}
    assert left.pop(1).payload is None
    expect(list(left.values()), spec("a"), [0, 2, 3])
    tries = [batch for batch in model.batches if ("a", 1, operator) in batch]
    assert len(tries[-1]) == 1, "it was given up without having been tried alone"
    assert len(tries) == 2


def test_those_who_share_a_batch_with_a_failing_row_lose_nothing() -> None:
    model = ToyModel(fails=Faults(lambda row: row.session_id == "bad" and row.operator.name == "denoise-1"))
    engine = toy_engine(model, whole_chain(MAX_STEPS))
    names = ["a", "b", "bad", "c"]
    for name in names:
        engine.open(spec(name))
        admit(engine, name, 0, 1)
    emissions = drain(engine)
    for name in names:
        own = [left for left in emissions if left.session_id == name]
        if name == "bad":
            assert [(left.ordinal, left.payload) for left in own] == [(0, None), (1, None)]
        else:
            expect(own, spec(name), [0, 1])


def test_a_failing_row_runs_next_though_others_keep_coming_without_deadlines() -> None:
    model = ToyModel(fails=Faults(lambda row: row.session_id == "bad" and row.operator.name == "encode"))
    engine = toy_engine(model, whole_chain(MAX_STEPS), max_batch=2)
    engine.open(spec("bad"))
    admit(engine, "bad", 0)
    engine.open(spec("busy"))
    dropped_after = None
    for ordinal in range(20):
        admit(engine, "busy", ordinal)
        if any(left.session_id == "bad" for left in engine.step(0.0).emissions):
            dropped_after = ordinal
            break
    assert dropped_after is not None
    assert dropped_after <= 3
    expect([left for left in drain(engine) if left.session_id == "busy"], spec("busy"), range(ordinal + 1))


def test_a_forward_changes_no_payload_before_it_commits() -> None:
    """What a failed forward read is what the next one reads."""
    seen: list[torch.Tensor] = []

    def watch(rows: Sequence[Row]) -> bool:
        seen.append(rows[0].payload.clone())
        return len(seen) == 1

    engine = toy_engine(ToyModel(fails=watch), whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    admit(engine, "a", 0)
    drain(engine)
    assert torch.equal(seen[0], seen[1])


def test_frames_may_arrive_in_any_order() -> None:
    for seed in range(5):
        engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS), max_batch=4)
        engine.open(spec("a"))
        ordinals = list(range(8))
        random.Random(seed).shuffle(ordinals)
        left: list[Emission] = []
        for ordinal in ordinals:
            admit(engine, "a", ordinal)
            left.extend(engine.step(0.0).emissions)
        expect([*left, *drain(engine)], spec("a"), range(8))


def test_a_frame_that_came_too_early_does_not_run() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    admit(engine, "a", 1, 2)
    assert not engine.has_work
    assert engine.step(0.0).batch is None
    admit(engine, "a", 0)
    expect(drain(engine), spec("a"), [0, 1, 2])


def test_a_frame_in_flight_that_comes_again_is_answered_once() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    admit(engine, "a", 0)
    engine.step(0.0)
    admit(engine, "a", 0)
    expect(drain(engine), spec("a"), [0])
    assert len(model.batches) == 4


def test_a_frame_that_has_left_and_comes_again_is_sent_again_and_not_run() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    admit(engine, "a", 0, 1)
    first = drain(engine)
    runs = len(model.batches)
    admit(engine, "a", 0)
    assert engine.has_work
    (again,) = drain(engine)
    assert again == next(left for left in first if left.ordinal == 0)
    assert len(model.batches) == runs


def test_as_many_outputs_are_retained_as_are_promised() -> None:
    engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    admit(engine, "a", *range(RETAINED_OUTPUTS + 3))
    drain(engine)
    admit(engine, "a", *range(RETAINED_OUTPUTS + 3))
    assert sorted(left.ordinal for left in drain(engine)) == list(range(3, RETAINED_OUTPUTS + 3))


def test_a_tombstone_passes_at_once_and_holds_nobody_back() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    admit(engine, "a", 0)
    engine.admit(FrameInput("a", 1, None), 0.0)
    admit(engine, "a", 2)
    (tombstone,) = engine.step(0.0).emissions
    assert (tombstone.ordinal, tombstone.payload) == (1, None)
    expect(drain(engine), spec("a"), [0, 2])
    assert all(ordinal != 1 for batch in model.batches for _, ordinal, _ in batch)


def test_a_frame_dropped_in_one_span_passes_the_next_as_a_tombstone() -> None:
    model = ToyModel(fails=Faults(lambda row: row.ordinal == 0))
    first = toy_engine(model, Span("first", chain(MAX_STEPS)[:2]))
    second = toy_engine(ToyModel(), Span("second", chain(MAX_STEPS)[2:]))
    for engine in (first, second):
        engine.open(spec("a"))
    admit(first, "a", 0, 1)
    for left in drain(first):
        second.admit(FrameInput("a", left.ordinal, left.payload), 0.0)
    outcomes = {left.ordinal: left.payload for left in drain(second)}
    assert outcomes[0] is None
    assert torch.equal(outcomes[1], toy_picture(toy_payload("a", 1), spec("a").settings, 1))  # type: ignore[arg-type]


def test_a_frame_without_operators_in_this_span_passes_unchanged() -> None:
    model = ToyModel()
    engine = toy_engine(model, Span("last-step", (Operator.parse("denoise-2"),)))
    engine.open(spec("a", steps=2))
    admit(engine, "a", 0)
    (left,) = drain(engine)
    assert left.payload is not None
    assert torch.equal(left.payload, toy_payload("a", 0))
    assert model.batches == []


# Order of the rows.


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("seed", range(4))
def test_each_step_sees_the_ordinals_of_a_session_in_order(order: Order, seed: int) -> None:
    chance = random.Random(seed)
    model = ToyModel(fails=lambda rows: chance.random() < 0.2)
    engine = toy_engine(model, whole_chain(MAX_STEPS), max_batch=3, order=order)
    names = ["a", "b", "c"]
    for steps, name in enumerate(names, start=1):
        engine.open(spec(name, steps=steps))
    left: list[Emission] = []
    for ordinal in range(12):
        for name in names:
            admit(engine, name, ordinal)
        for _ in range(chance.randrange(6)):
            left.extend(engine.step(0.0).emissions)
    for name in names:
        engine.flush(name)
    left.extend(drain(engine))
    assert sorted((each.session_id, each.ordinal) for each in left) == [
        (n, o) for n in names for o in range(12)
    ]
    for name in names:
        for step in range(MAX_STEPS):
            ran = [
                o for batch in model.batches for n, o, row in batch if (n, row) == (name, f"denoise-{step}")
            ]
            assert ran == sorted(ran)
    for batch in model.batches:
        assert len({row if row in ("encode", "decode") else "denoise" for _, _, row in batch}) == 1
        assert len({(n, o) for n, o, _ in batch}) == len(batch)


def test_a_frame_that_finds_the_engine_idle_runs_back_to_back() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(MAX_STEPS))
    engine.open(spec("a", steps=3))
    admit(engine, "a", 0)
    expect(drain(engine), spec("a", steps=3), [0])
    assert [row for batch in model.batches for _, _, row in batch] == [
        "encode", "denoise-0", "denoise-1", "denoise-2", "decode",
    ]  # fmt: skip


def test_b2_stream_batch_holds_a_picture_back_by_steps_less_one_and_flush_gives_the_rest() -> None:
    steps = 3
    engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS), order=Order.STREAM_BATCH)
    engine.open(spec("a", steps=steps))
    left: list[list[int]] = []
    for ordinal in range(5):
        admit(engine, "a", ordinal)
        left.append([each.ordinal for each in drain(engine)])
    assert left == [[], [], [0], [1], [2]]
    engine.flush("a")
    expect(drain(engine), spec("a", steps=steps), [3, 4])


def test_b3_in_stream_batch_the_unet_is_called_once_per_frame_with_a_row_of_each_step() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(MAX_STEPS), order=Order.STREAM_BATCH)
    engine.open(spec("a", steps=3))
    for ordinal in range(6):
        admit(engine, "a", ordinal)
        model.batches.clear()
        drain(engine)
        forwards = [sorted(batch) for batch in model.batches if batch[0][2].startswith("denoise")]
        rows = [("a", ordinal - step, f"denoise-{step}") for step in range(3) if ordinal >= step]
        assert forwards == [sorted(rows)]


def test_b6_one_step_has_no_delay_in_either_order() -> None:
    for order in Order:
        engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS), order=order)
        engine.open(spec("a", steps=1))
        for ordinal in range(3):
            admit(engine, "a", ordinal)
            assert [left.ordinal for left in drain(engine)] == [ordinal]


# Settings.


def test_each_frame_is_translated_under_the_settings_it_was_admitted_with() -> None:
    for order in Order:
        engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS), order=order)
        engine.open(spec("a"))
        first = spec("a").settings
        versions = [
            first,
            replace(first, steps=3),
            replace(first, steps=1, seed=9),
            replace(first, prompt="q"),
        ]
        for version, settings in enumerate(versions):
            if version:
                engine.update("a", version, settings)
            admit(engine, "a", 2 * version, 2 * version + 1, version=version)
        engine.flush("a")
        left = {each.ordinal: each for each in drain(engine)}
        assert sorted(left) == list(range(8))
        for ordinal, each in left.items():
            picture = toy_picture(toy_payload("a", ordinal), versions[ordinal // 2], ordinal)
            assert each.payload is not None
            assert torch.equal(each.payload, picture)
            assert each.settings_version == ordinal // 2


def test_versions_may_skip_and_be_replaced_before_a_frame_uses_them() -> None:
    engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    for version in range(1, 6):
        engine.update("a", version, Settings("x", 0.5, 1 + version % 2, seed=version))
    admit(engine, "a", 0, version=5)
    admit(engine, "a", 1, version=5)
    settings = Settings("x", 0.5, 2, seed=5)
    for left in drain(engine):
        assert left.payload is not None
        assert torch.equal(left.payload, toy_picture(toy_payload("a", left.ordinal), settings, left.ordinal))


def test_early_frames_keep_their_version_until_they_are_let_in() -> None:
    engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    changed = replace(spec("a").settings, seed=99)
    engine.update("a", 1, changed)
    admit(engine, "a", 1, version=1)
    admit(engine, "a", 0, version=0)
    pictures = {left.ordinal: left.payload for left in drain(engine)}
    for ordinal, settings in enumerate((spec("a").settings, changed)):
        expected = toy_picture(toy_payload("a", ordinal), settings, ordinal)
        assert torch.equal(pictures[ordinal], expected)  # type: ignore[arg-type]


def test_a_frame_whose_settings_never_came_is_dropped_and_not_lost_in_silence() -> None:
    engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    admit(engine, "a", 0)
    admit(engine, "a", 1, version=40)
    admit(engine, "a", 2)
    left = {each.ordinal: each for each in drain(engine)}
    assert left.pop(1).payload is None
    expect(list(left.values()), spec("a"), [0, 2])


def test_settings_that_no_frame_can_ask_for_any_more_are_forgotten() -> None:
    engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    for version in range(1, 100):
        engine.update("a", version, Settings("x", 0.5, 1, seed=version))
        admit(engine, "a", version - 1, version=version)
        drain(engine)
    assert len(engine._sessions["a"].settings) == 1


# Sessions.


def test_a_full_engine_refuses_and_changes_nothing() -> None:
    engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS), slots=1)
    engine.open(spec("a"))
    with pytest.raises(Refused) as refused:
        engine.open(spec("b"))
    assert refused.value.reason is Reason.NO_CAPACITY
    assert engine.sessions == ("a",)
    engine.check_integrity()


def test_settings_that_cannot_be_prepared_cost_frames_and_not_the_session() -> None:
    class Unprepared(ToyModel):
        def prepare(self, settings: Settings) -> None:
            raise RuntimeError("out of memory")

    engine = Engine(whole_chain(MAX_STEPS), Unprepared(), Memoryless(1), Scheduler(CostTable(), 4))
    engine.open(spec("a"))
    engine.update("a", 1, spec("a").settings)
    admit(engine, "a", 0, version=1)
    expect(drain(engine), spec("a"), [0])
    engine.close("a")
    assert engine.free_slots == 1


def test_closing_a_session_forgets_its_frames_in_flight_and_no_others() -> None:
    for steps_before in range(6):
        engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS), slots=2, max_batch=2)
        for name in ("a", "b"):
            engine.open(spec(name))
            admit(engine, name, 0, 1)
        left = [each for _ in range(steps_before) for each in engine.step(0.0).emissions]
        engine.close("a")
        assert engine.free_slots == 1
        after = drain(engine)
        assert all(each.session_id == "b" for each in after)
        expect([each for each in [*left, *after] if each.session_id == "b"], spec("b"), [0, 1])
        assert not engine.admit(FrameInput("a", 2, toy_payload("a", 2)), 0.0)


def test_a_session_opened_again_under_its_id_answers_nothing_of_the_former() -> None:
    """Also not what was waiting to leave: a tombstone, or an output that was asked for again."""
    engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS))
    engine.open(spec("a"))
    admit(engine, "a", 0)
    drain(engine)
    admit(engine, "a", 0)
    engine.admit(FrameInput("a", 1, None), 0.0)
    engine.close("a")
    assert not engine.has_work
    engine.open(replace(spec("a"), settings=replace(spec("a").settings, seed=1)))
    admit(engine, "a", 0)
    expect(drain(engine), replace(spec("a"), settings=replace(spec("a").settings, seed=1)), [0])


def test_unknown_sessions_are_no_fault() -> None:
    engine = toy_engine(ToyModel(), whole_chain(MAX_STEPS))
    engine.close("gone")
    engine.update("gone", 1, Settings())
    engine.flush("gone")
    assert not engine.admit(FrameInput("gone", 0, toy_payload("gone", 0)), 0.0)
    assert not engine.has_work


def test_a_frame_tells_how_long_it_waited_and_ran() -> None:
    clock = Clock(10.0)
    denoise = Operator.parse("denoise-0").kind
    model = ToyModel(clock, CostTable({denoise: {1: 0.5, 2: 1.0}}))
    engine = toy_engine(model, whole_chain(MAX_STEPS), max_batch=1)
    for name in ("a", "b"):
        engine.open(spec(name, steps=1))
        admit_at = FrameInput(name, 0, toy_payload(name, 0))
        engine.admit(admit_at, clock())
    left = []
    while engine.has_work:
        left.extend(engine.step(clock()).emissions)
    timings = {each.session_id: each.timing for each in left}
    assert (timings["a"].queue_s, timings["a"].compute_s) == (0.0, 0.5)
    assert (timings["b"].queue_s, timings["b"].compute_s) == (0.5, 0.5)


def test_toy_outputs_tell_every_row_apart() -> None:
    """The tests above can only fail if each of these changes the picture."""
    payload, settings = toy_payload("a", 0), Settings("a", 0.6, 2, 7)
    step = Operator.parse("denoise-0")
    first = toy_output(step, payload, settings, 0)
    others = [
        toy_output(Operator.parse("denoise-1"), payload, settings, 0),
        toy_output(step, payload + 1, settings, 0),
        toy_output(step, payload, replace(settings, seed=8), 0),
        toy_output(step, payload, replace(settings, prompt="b"), 0),
        toy_output(step, payload, replace(settings, steps=3), 0),
        toy_output(step, payload, settings, 1),
    ]
    assert not any(torch.equal(first, other) for other in others)
