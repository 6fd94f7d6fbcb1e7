"""How frames enter, leave and are asked for again, and in which order their rows run.

Without a bank; the toy model is exact: equal means bit-equal.
"""

from __future__ import annotations

import random

import pytest
import torch
from rearview.contract.chain import Operator, Span, chain
from rearview.contract.frame import Frame
from rearview.contract.retained import RETAINED_BYTES
from rearview.engine.engine import Engine, Order
from rearview.engine.retained import FRAME_BYTES, Retained
from support.frames import content, entering
from support.tiny import whole_chain
from support.toy import (
    TOY_STEPS,
    Faults,
    ToyModel,
    admit,
    drain,
    expect,
    toy_engine,
    toy_payload,
    toy_picture,
    toy_spec,
)

pytestmark = pytest.mark.unit


def test_frames_may_arrive_in_any_order() -> None:
    for seed in range(5):
        engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), max_batch=4)
        engine.open(toy_spec("a"))
        ordinals = list(range(8))
        random.Random(seed).shuffle(ordinals)
        left: list[Frame[torch.Tensor]] = []
        for ordinal in ordinals:
            admit(engine, "a", ordinal)
            left.extend(engine.step(0.0).emissions)
        expect([*left, *drain(engine)], toy_spec("a"), range(8))


def test_a_frame_that_came_too_early_does_not_run() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 1, 2)
    assert not engine.has_work
    assert engine.step(0.0).batch is None
    admit(engine, "a", 0)
    expect(drain(engine), toy_spec("a"), [0, 1, 2])


def test_a_frame_in_flight_that_comes_again_is_answered_once() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 0)
    engine.step(0.0)
    admit(engine, "a", 0)
    expect(drain(engine), toy_spec("a"), [0])
    assert len(model.batches) == 4


def test_a_frame_that_has_left_and_comes_again_is_sent_again_and_not_run() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 0, 1)
    first = drain(engine)
    runs = len(model.batches)
    admit(engine, "a", 0)
    assert engine.has_work
    (again,) = drain(engine)
    assert again == next(left for left in first if left.ordinal == 0)
    assert len(model.batches) == runs


def asked_again(engine: Engine, *ordinals: int) -> list[int]:
    """Which of these frames are sent again."""
    admit(engine, "a", *ordinals)
    return sorted(left.ordinal for left in drain(engine))


def test_outputs_are_retained_as_far_as_their_bytes_allow_and_the_oldest_go_first() -> None:
    each = FRAME_BYTES + toy_payload("a", 0).nbytes
    model = ToyModel()
    engine = toy_engine(model, whole_chain(TOY_STEPS), retained_bytes=8 * each)
    engine.open(toy_spec("a"))
    admit(engine, "a", *range(11))
    drain(engine)
    runs = len(model.batches)
    assert asked_again(engine, *range(11)) == list(range(3, 11))
    assert len(model.batches) == runs, "what is not retained any more is not run again either"
    assert engine._sessions["a"].flight.retained.num_bytes == 8 * each


def test_acknowledged_outputs_are_forgotten_and_no_others() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", *range(6))
    drain(engine)
    engine.retained.acknowledge("a", 3)
    engine.retained.acknowledge("gone", 3)
    assert asked_again(engine, *range(6)) == [4, 5]
    engine.retained.acknowledge("a", 9)
    assert asked_again(engine, *range(6)) == []
    assert engine._sessions["a"].flight.retained.num_bytes == 0


def test_the_newest_two_outputs_are_retained_however_large() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), retained_bytes=10)
    engine.open(toy_spec("a"))
    admit(engine, "a", 0, 1, 2)
    assert len(drain(engine)) == 3
    assert asked_again(engine, 0, 1, 2) == [1, 2]


def test_the_default_holds_ten_pictures_of_stable_diffusion() -> None:
    retained = Retained(RETAINED_BYTES)
    for ordinal in range(20):
        retained.keep(entering("a", ordinal, torch.zeros(512, 512, 3, dtype=torch.uint8)))
    assert sum(retained.get(ordinal) is not None for ordinal in range(20)) == 10


def test_a_tombstone_passes_at_once_and_holds_nobody_back() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 0)
    engine.admit(entering("a", 1, None), 0.0)
    admit(engine, "a", 2)
    (tombstone,) = engine.step(0.0).emissions
    assert (tombstone.ordinal, content(tombstone)) == (1, None)
    expect(drain(engine), toy_spec("a"), [0, 2])
    assert all(ordinal != 1 for batch in model.batches for _, ordinal, _ in batch)


def test_a_frame_dropped_in_one_span_passes_the_next_as_a_tombstone() -> None:
    model = ToyModel(fails=Faults(lambda row: row.ordinal == 0))
    first = toy_engine(model, Span("first", chain(TOY_STEPS)[:2]))
    second = toy_engine(ToyModel(), Span("second", chain(TOY_STEPS)[2:]))
    for engine in (first, second):
        engine.open(toy_spec("a"))
    admit(first, "a", 0, 1)
    for left in drain(first):
        second.admit(entering("a", left.ordinal, content(left)), 0.0)
    outcomes = {left.ordinal: content(left) for left in drain(second)}
    assert outcomes[0] is None
    assert torch.equal(outcomes[1], toy_picture(toy_payload("a", 1), toy_spec("a").settings, 1))  # type: ignore[arg-type]


def test_a_frame_without_operators_in_this_span_passes_unchanged() -> None:
    model = ToyModel()
    engine = toy_engine(model, Span("last-step", (Operator.parse("denoise-2"),)))
    engine.open(toy_spec("a", steps=2))
    admit(engine, "a", 0)
    (left,) = drain(engine)
    assert content(left) is not None
    assert torch.equal(content(left), toy_payload("a", 0))
    assert model.batches == []


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("seed", range(4))
def test_each_step_sees_the_ordinals_of_a_session_in_order(order: Order, seed: int) -> None:
    chance = random.Random(seed)
    model = ToyModel(fails=lambda rows: chance.random() < 0.2)
    engine = toy_engine(model, whole_chain(TOY_STEPS), max_batch=3, order=order)
    names = ["a", "b", "c"]
    for steps, name in enumerate(names, start=1):
        engine.open(toy_spec(name, steps=steps))
    left: list[Frame[torch.Tensor]] = []
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
        for step in range(TOY_STEPS):
            ran = [
                o for batch in model.batches for n, o, row in batch if (n, row) == (name, f"denoise-{step}")
            ]
            assert ran == sorted(ran)
    for batch in model.batches:
        assert len({row if row in ("encode", "decode") else "denoise" for _, _, row in batch}) == 1
        assert len({(n, o) for n, o, _ in batch}) == len(batch)


def test_a_frame_that_finds_the_engine_idle_runs_back_to_back() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(TOY_STEPS))
    engine.open(toy_spec("a", steps=3))
    admit(engine, "a", 0)
    expect(drain(engine), toy_spec("a", steps=3), [0])
    assert [row for batch in model.batches for _, _, row in batch] == [
        "encode", "denoise-0", "denoise-1", "denoise-2", "decode",
    ]  # fmt: skip


def test_b2_stream_batch_holds_a_picture_back_by_steps_less_one_and_flush_gives_the_rest() -> None:
    steps = 3
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), order=Order.STREAM_BATCH)
    engine.open(toy_spec("a", steps=steps))
    left: list[list[int]] = []
    for ordinal in range(5):
        admit(engine, "a", ordinal)
        left.append([each.ordinal for each in drain(engine)])
    assert left == [[], [], [0], [1], [2]]
    engine.flush("a")
    expect(drain(engine), toy_spec("a", steps=steps), [3, 4])


def test_b3_in_stream_batch_the_unet_is_called_once_per_frame_with_a_row_of_each_step() -> None:
    model = ToyModel()
    engine = toy_engine(model, whole_chain(TOY_STEPS), order=Order.STREAM_BATCH)
    engine.open(toy_spec("a", steps=3))
    for ordinal in range(6):
        admit(engine, "a", ordinal)
        model.batches.clear()
        drain(engine)
        forwards = [sorted(batch) for batch in model.batches if batch[0][2].startswith("denoise")]
        rows = [("a", ordinal - step, f"denoise-{step}") for step in range(3) if ordinal >= step]
        assert forwards == [sorted(rows)]


def test_b6_one_step_has_no_delay_in_either_order() -> None:
    for order in Order:
        engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), order=order)
        engine.open(toy_spec("a", steps=1))
        for ordinal in range(3):
            admit(engine, "a", ordinal)
            assert [left.ordinal for left in drain(engine)] == [ordinal]
