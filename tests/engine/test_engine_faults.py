"""What a failing forward costs: a second try, then one frame, never another session.

Without a bank; the toy model is exact: equal means bit-equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from rearview.contract.settings import Settings
from rearview.engine.engine import Order
from rearview.engine.rows import Row
from support.frames import content
from support.tiny import whole_chain
from support.toy import (
    TOY_STEPS,
    Faults,
    ToyModel,
    admit,
    drain,
    expect,
    toy_engine,
    toy_spec,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("operator", ["encode", "denoise-0", "denoise-1", "decode"])
def test_a_row_that_fails_once_runs_again_and_gives_the_same_picture(operator: str) -> None:
    model = ToyModel(fails=Faults(lambda row: row.ordinal == 1 and row.operator.name == operator, times=1))
    engine = toy_engine(model, whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 0, 1, 2)
    expect(drain(engine), toy_spec("a"), [0, 1, 2])
    assert sum(("a", 1, operator) in batch for batch in model.batches) == 2


def test_a_frame_may_fail_once_at_each_of_its_operators() -> None:
    failed = set()

    def once_each(rows: Sequence[Row]) -> bool:
        fails = rows[0].operator not in failed
        failed.add(rows[0].operator)
        return fails

    engine = toy_engine(ToyModel(fails=once_each), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 0)
    expect(drain(engine), toy_spec("a"), [0])
    assert len(failed) == 4


@pytest.mark.parametrize("operator", ["encode", "denoise-0", "denoise-1", "decode"])
@pytest.mark.parametrize("order", Order)
def test_a_frame_that_fails_alone_a_second_time_is_dropped_and_later_ones_are_not(
    operator: str, order: Order
) -> None:
    model = ToyModel(fails=Faults(lambda row: row.ordinal == 1 and row.operator.name == operator))
    engine = toy_engine(model, whole_chain(TOY_STEPS), order=order)
    engine.open(toy_spec("a"))
    admit(engine, "a", 0, 1, 2, 3)
    engine.flush("a")
    left = {emission.ordinal: emission for emission in drain(engine)}
    assert left.pop(1).is_lost
    expect(list(left.values()), toy_spec("a"), [0, 2, 3])
    tries = [batch for batch in model.batches if ("a", 1, operator) in batch]
    assert len(tries[-1]) == 1, "it was given up without having been tried alone"
    assert len(tries) == 2


def test_those_who_share_a_batch_with_a_failing_row_lose_nothing() -> None:
    model = ToyModel(fails=Faults(lambda row: row.session_id == "bad" and row.operator.name == "denoise-1"))
    engine = toy_engine(model, whole_chain(TOY_STEPS))
    names = ["a", "b", "bad", "c"]
    for name in names:
        engine.open(toy_spec(name))
        admit(engine, name, 0, 1)
    emissions = drain(engine)
    for name in names:
        own = [left for left in emissions if left.session_id == name]
        if name == "bad":
            assert [(left.ordinal, content(left)) for left in own] == [(0, None), (1, None)]
        else:
            expect(own, toy_spec(name), [0, 1])


def test_a_failing_row_runs_next_though_others_keep_coming_without_deadlines() -> None:
    model = ToyModel(fails=Faults(lambda row: row.session_id == "bad" and row.operator.name == "encode"))
    engine = toy_engine(model, whole_chain(TOY_STEPS), max_batch=2)
    engine.open(toy_spec("bad"))
    admit(engine, "bad", 0)
    engine.open(toy_spec("busy"))
    dropped_after = None
    for ordinal in range(20):
        admit(engine, "busy", ordinal)
        if any(left.session_id == "bad" for left in engine.step(0.0).emissions):
            dropped_after = ordinal
            break
    assert dropped_after is not None
    assert dropped_after <= 3
    expect(
        [left for left in drain(engine) if left.session_id == "busy"], toy_spec("busy"), range(ordinal + 1)
    )


def broken_device() -> Exception:
    return torch.AcceleratorError("CUDA error: device-side assert triggered")


def test_an_error_that_the_device_will_give_from_now_on_ends_the_step_and_blames_nobody() -> None:
    engine = toy_engine(ToyModel(fails=lambda rows: True, error=broken_device), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 0)
    with pytest.raises(torch.AcceleratorError):
        engine.step(0.0)
    assert engine.running is None
    (frame,) = engine._sessions["a"].frames.values()
    assert (frame.failures, frame.done) == (0, False)


def test_such_an_error_is_not_passed_over_while_prompts_are_encoded_ahead() -> None:
    class BrokenPrompts(ToyModel):
        def prepare(self, settings: Settings) -> None:
            raise broken_device()

    engine = toy_engine(BrokenPrompts(), whole_chain(TOY_STEPS))
    with pytest.raises(torch.AcceleratorError):
        engine.open(toy_spec("a"))


def test_a_forward_changes_no_payload_before_it_commits() -> None:
    """What a failed forward read is what the next one reads."""
    seen: list[torch.Tensor] = []

    def watch(rows: Sequence[Row]) -> bool:
        seen.append(content(rows[0]).clone())
        return len(seen) == 1

    engine = toy_engine(ToyModel(fails=watch), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 0)
    drain(engine)
    assert torch.equal(seen[0], seen[1])


def test_a_frame_that_asks_for_more_steps_than_its_session_has_is_dropped_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its last steps have no slots and perhaps no span: it would be decoded with its noise."""
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    engine.update("a", 1, replace(toy_spec("a").settings, steps=TOY_STEPS + 1))
    engine.update("a", 2, toy_spec("a").settings)
    for version in (0, 1, 2):
        admit(engine, "a", version, version=version)
    left = drain(engine)
    assert [(each.ordinal, each.settings_version) for each in left if content(each) is None] == [(1, 1)]
    expect([each for each in left if content(each) is not None], toy_spec("a"), [0, 2])
    assert f"{TOY_STEPS + 1} steps, but the session has {TOY_STEPS}" in caplog.text
