"""Sessions that open, change their settings and close, with frames in flight.

Without a bank; the toy model is exact: equal means bit-equal.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rearview.contract.chain import Operator
from rearview.contract.frame import Forward
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.player import Player
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.errors import Reason, Refused
from support.frames import content, entering
from support.tiny import whole_chain
from support.toy import (
    TOY_STEPS,
    Clock,
    ToyModel,
    admit,
    drain,
    expect,
    toy_engine,
    toy_output,
    toy_payload,
    toy_picture,
    toy_spec,
)

pytestmark = pytest.mark.unit


def test_each_frame_is_translated_under_the_settings_it_was_admitted_with() -> None:
    for order in Order:
        engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), order=order)
        engine.open(toy_spec("a"))
        first = toy_spec("a").settings
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
            assert content(each) is not None
            assert torch.equal(content(each), picture)
            assert each.settings_version == ordinal // 2


def test_versions_may_skip_and_be_replaced_before_a_frame_uses_them() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    for version in range(1, 6):
        engine.update("a", version, Settings("x", 0.5, 1 + version % 2, seed=version))
    admit(engine, "a", 0, version=5)
    admit(engine, "a", 1, version=5)
    settings = Settings("x", 0.5, 2, seed=5)
    for left in drain(engine):
        assert content(left) is not None
        assert torch.equal(content(left), toy_picture(toy_payload("a", left.ordinal), settings, left.ordinal))


def test_early_frames_keep_their_version_until_they_are_let_in() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    changed = replace(toy_spec("a").settings, seed=99)
    engine.update("a", 1, changed)
    admit(engine, "a", 1, version=1)
    admit(engine, "a", 0, version=0)
    pictures = {left.ordinal: content(left) for left in drain(engine)}
    for ordinal, settings in enumerate((toy_spec("a").settings, changed)):
        expected = toy_picture(toy_payload("a", ordinal), settings, ordinal)
        assert torch.equal(pictures[ordinal], expected)  # type: ignore[arg-type]


def test_a_frame_whose_settings_never_came_is_dropped_and_not_lost_in_silence() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 0)
    admit(engine, "a", 1, version=40)
    admit(engine, "a", 2)
    left = {each.ordinal: each for each in drain(engine)}
    assert left.pop(1).is_lost
    expect(list(left.values()), toy_spec("a"), [0, 2])


def test_settings_that_no_frame_can_ask_for_any_more_are_forgotten() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    for version in range(1, 100):
        engine.update("a", version, Settings("x", 0.5, 1, seed=version))
        admit(engine, "a", version - 1, version=version)
        drain(engine)
    assert len(engine._sessions["a"].settings) == 1


def test_a_full_engine_refuses_and_changes_nothing() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), slots=1)
    engine.open(toy_spec("a"))
    with pytest.raises(Refused) as refused:
        engine.open(toy_spec("b"))
    assert refused.value.reason is Reason.NO_CAPACITY
    assert engine.sessions == ("a",)
    engine.check_integrity()


def test_settings_that_cannot_be_prepared_cost_frames_and_not_the_session() -> None:
    class Unprepared(ToyModel):
        def prepare(self, settings: Settings) -> None:
            raise RuntimeError("out of memory")

    engine = Engine(whole_chain(TOY_STEPS), Unprepared(), Memoryless(1), Scheduler(CostTable(), 4))
    engine.open(toy_spec("a"))
    engine.update("a", 1, toy_spec("a").settings)
    admit(engine, "a", 0, version=1)
    expect(drain(engine), toy_spec("a"), [0])
    engine.close("a")
    assert engine.free_slots == 1


def test_closing_a_session_forgets_its_frames_in_flight_and_no_others() -> None:
    for steps_before in range(6):
        engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), slots=2, max_batch=2)
        for name in ("a", "b"):
            engine.open(toy_spec(name))
            admit(engine, name, 0, 1)
        left = [each for _ in range(steps_before) for each in engine.step(0.0).emissions]
        engine.close("a")
        assert engine.free_slots == 1
        after = drain(engine)
        assert all(each.session_id == "b" for each in after)
        expect([each for each in [*left, *after] if each.session_id == "b"], toy_spec("b"), [0, 1])
        assert not engine.admit(entering("a", 2, toy_payload("a", 2)), 0.0)


def test_a_session_opened_again_under_its_id_answers_nothing_of_the_former() -> None:
    """Also not what was waiting to leave: a tombstone, or an output that was asked for again."""
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 0)
    drain(engine)
    admit(engine, "a", 0)
    engine.admit(entering("a", 1, None), 0.0)
    engine.close("a")
    assert not engine.has_work
    engine.open(replace(toy_spec("a"), settings=replace(toy_spec("a").settings, seed=1)))
    admit(engine, "a", 0)
    expect(drain(engine), replace(toy_spec("a"), settings=replace(toy_spec("a").settings, seed=1)), [0])


def test_unknown_sessions_are_no_fault() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.close("gone")
    engine.update("gone", 1, Settings())
    engine.flush("gone")
    assert not engine.admit(entering("gone", 0, toy_payload("gone", 0)), 0.0)
    assert not engine.has_work


def test_a_frame_tells_how_long_it_waited_and_ran() -> None:
    clock = Clock(10.0)
    denoise = Operator.parse("denoise-0").kind
    model = ToyModel(clock, CostTable({denoise: {1: 0.5, 2: 1.0}}))
    engine = toy_engine(model, whole_chain(TOY_STEPS), max_batch=1)
    for name in ("a", "b"):
        engine.open(toy_spec(name, steps=1))
        admit_at = entering(name, 0, toy_payload(name, 0))
        engine.admit(admit_at, clock())
    left = Player(engine, clock=clock).left()
    timings = {each.session_id: each.timings[-1] for each in left}
    assert (timings["a"].queue_s, timings["a"].compute_s) == (0.0, 0.5)
    assert (timings["b"].queue_s, timings["b"].compute_s) == (0.5, 0.5)
    assert [each.forwards for each in timings.values()] == [(), ()]


def test_a_forwards_time_is_shared_by_those_in_it_and_a_traced_frame_tells_of_each() -> None:
    clock = Clock(10.0)
    denoise = Operator.parse("denoise-0").kind
    model = ToyModel(clock, CostTable({denoise: {1: 0.5, 2: 1.0}}))
    engine = toy_engine(model, whole_chain(TOY_STEPS), max_batch=2)
    for name, trace_id in (("a", b"t" * 16), ("b", b"")):
        engine.open(toy_spec(name, steps=1))
        frame = replace(entering(name, 0, toy_payload(name, 0)), trace_id=trace_id)
        engine.admit(frame, clock() - 0.25)
    left = Player(engine, clock=clock).left()
    timings = {each.session_id: each.timings[-1] for each in left}
    assert {(each.compute_s, each.device_s) for each in timings.values()} == {(1.0, 0.5)}
    assert timings["b"].forwards == ()
    assert timings["a"].arrived_s == 9.75
    assert timings["a"].forwards == (
        Forward("encode", 0.25, 0.0, 2),
        Forward("denoise-0", 0.25, 1.0, 2),
        Forward("decode", 1.25, 0.0, 2),
    )


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
