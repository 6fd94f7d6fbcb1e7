"""When windows run: deadlines, company and patience, in virtual time. Equal times are exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rearview.contract.chain import OperatorKind
from rearview.contract.frame import Frame
from rearview.contract.memories import CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, Settings
from rearview.engine.engine import Engine
from rearview.engine.queues import RowQueues
from rearview.engine.rows import Row, window_group
from rearview.engine.scheduler import CostTable
from support.frames import entering
from support.tiny import whole_chain
from support.toy import ToyModel, drain, toy_engine, toy_payload, toy_spec
from support.toy_cache import SINK, ToyCache
from support.virtual import Source, simulate
from torch import Tensor

pytestmark = pytest.mark.unit

COSTS = CostTable(
    {
        OperatorKind.DENOISE: {1: 0.006, 2: 0.007},
        window_group(OperatorKind.DENOISE): {SINK: 0.016, 2 * SINK: 0.030},
        OperatorKind.DECODE: {1: 0.001, 2: 0.002},
    }
)
STEPS = 2


def cached(name: str, tenant: str = "t") -> SessionSpec:
    return replace(toy_spec(name, STEPS, tenant), cache=CacheSettings())


def engine_of(model: ToyModel, **options: int) -> Engine:
    return toy_engine(model, whole_chain(STEPS), memory=ToyCache(), **options)


def admit(
    engine: Engine, spec: SessionSpec, first: int, count: int, deadline_s: float, version: int = 0
) -> None:
    """Frames with deadlines a tenth of a second apart."""
    for n in range(first, first + count):
        payload = toy_payload(spec.session_id, n)
        frame = entering(spec.session_id, n, payload, version, deadline_s + 0.1 * (n - first))
        assert engine.admit(frame, 0.0)


def ready(engine: Engine) -> list[Row]:
    return list(engine._ready.queues)


def run_encoding(engine: Engine) -> None:
    while any(row.operator.kind is OperatorKind.ENCODE for row in ready(engine)):
        engine.step(0.0)


def test_a_window_is_due_as_its_last_frame_is_and_leaves_time_for_the_steps_after_it() -> None:
    engine = engine_of(ToyModel(costs=COSTS))
    spec = cached("a")
    engine.open(spec)
    admit(engine, spec, 0, SINK, 1.0)
    run_encoding(engine)
    (row,) = ready(engine)
    assert row.ordinal == SINK - 1
    assert row.width == SINK
    last_s = 1.0 + 0.1 * (SINK - 1)
    # After it: the next step's window, and W pictures to decode.
    assert row.due_s == pytest.approx(last_s - 0.016 - COSTS.seconds(OperatorKind.DECODE, SINK))


def test_the_encoding_of_a_warm_up_leaves_time_for_its_windows() -> None:
    engine = engine_of(ToyModel(costs=COSTS))
    engine.open(cached("a"))
    admit(engine, cached("a"), 0, SINK, 1.0)
    rows = {row.ordinal: row for row in ready(engine)}
    assert rows[0].due_s == pytest.approx(1.0 - 2 * 0.016 - 0.001)


def test_guidance_makes_a_window_twice_as_wide() -> None:
    guided = Settings("p", 0.6, STEPS, guidance=Guidance.FULL, guidance_scale=2.0)
    spec = replace(cached("a"), settings=guided)
    engine = engine_of(ToyModel(costs=COSTS), max_batch=4)
    engine.open(spec)
    admit(engine, spec, 0, SINK, 1.0)
    run_encoding(engine)
    assert [row.width for row in ready(engine)] == [2 * SINK]
    assert len(drain(engine)) == SINK, "a row wider than the largest batch runs alone"


def test_a_shadow_window_is_due_before_the_frame_that_waits_for_it() -> None:
    engine = engine_of(ToyModel(costs=COSTS))
    spec = cached("a")
    engine.open(spec)
    engine.update("a", 1, replace(spec.settings, prompt="other"))
    admit(engine, spec, 0, SINK, 1.0)
    drain(engine)
    admit(engine, spec, SINK, SINK, 2.0, version=1)
    while not any(row.shadow for row in ready(engine)):
        engine.step(0.0)
    (row,) = (row for row in ready(engine) if row.shadow)
    assert row.due_s == pytest.approx(2.0 + 0.1 * (SINK - 1)), "nobody waits: as its own last frame"
    admit(engine, spec, 2 * SINK, 1, 3.0, version=1)
    (row,) = (row for row in ready(engine) if row.shadow)
    assert row.due_s == pytest.approx(3.0 - 2 * 0.006 - 0.001)


def test_shadow_windows_share_a_forward_though_their_own_frames_deadlines_are_past() -> None:
    model = ToyModel(costs=COSTS)
    engine = engine_of(model)
    names = ("a", "b")
    for name in names:
        engine.open(cached(name))
        engine.update(name, 1, replace(cached(name).settings, prompt="other"))
        admit(engine, cached(name), 0, SINK, -9.0)
    drain(engine)
    for name in names:
        admit(engine, cached(name), SINK, SINK, -9.0, version=1)
    while rows := [row for row in ready(engine) if not row.shadow]:
        engine._ready.take(rows[:1], 0.0)
        engine._run(rows[:1], 0.0)
    for name in names:
        admit(engine, cached(name), 2 * SINK, 1, 9.0, version=1)
    shadows = [row for row in ready(engine) if row.shadow]
    assert len(shadows) == STEPS * len(names)
    chosen = engine._scheduler.choose(RowQueues(shadows), 0.0)
    assert {row.session_id for row in chosen} == set(names)


def test_windows_of_several_sessions_share_a_forward_and_streamed_frames_do_not_join() -> None:
    model = ToyModel(costs=COSTS)
    engine = engine_of(model)
    for name in ("a", "b", "c"):
        engine.open(cached(name))
    admit(engine, cached("c"), 0, SINK, 1.0)
    drain(engine)
    admit(engine, cached("c"), SINK, 1, 9.0)
    for name in ("a", "b"):
        admit(engine, cached(name), 0, SINK, 9.0)
    model.batches.clear()
    drain(engine)
    denoising = [
        {(name, ordinal) for name, ordinal, _ in batch} for batch in model.batches if "denoise" in batch[0][2]
    ]
    assert denoising.count({("a", SINK - 1), ("b", SINK - 1)}) == STEPS
    assert denoising.count({("c", SINK)}) == STEPS


def test_a_window_waits_for_no_more_forwards_than_any_group() -> None:
    """Urgent streamed frames of another session keep coming: the warm-up still gets its turn."""
    model = ToyModel(costs=COSTS)
    engine = engine_of(model, max_wait_forwards=4)
    for name in ("busy", "new"):
        engine.open(cached(name))
    admit(engine, cached("busy"), 0, SINK, 1.0)
    drain(engine)
    admit(engine, cached("new"), 0, SINK, 1e6)
    run_encoding(engine)
    model.batches.clear()
    for n in range(40):
        admit(engine, cached("busy"), SINK + n, 1, 1.0)
        engine.step(0.0)
        if any(name == "new" for name, *_ in model.batches[-1]):
            break
    assert 0 < len(model.batches) <= 6


def test_the_urgent_of_two_windows_goes_first() -> None:
    model = ToyModel(costs=COSTS)
    engine = engine_of(model, max_batch=SINK)
    for name, deadline_s in (("late", 2.0), ("soon", 1.0)):
        engine.open(cached(name))
        admit(engine, cached(name), 0, SINK, deadline_s)
    drain(engine)
    windows = [batch[0][0] for batch in model.batches if "denoise" in batch[0][2]]
    assert windows == ["soon"] * STEPS + ["late"] * STEPS


def test_a_stream_of_30_fps_meets_every_deadline_after_its_warm_up() -> None:
    model = ToyModel(costs=COSTS)
    source = Source(cached("a"), 30, budget_s=0.060)
    answers = simulate(engine_of(model), model.clock, [source])
    assert len(answers) == 30
    assert all(answer.has_picture for answer in answers)
    # Those of the warm-up wait for its last one, which then takes two windows and four pictures.
    assert [answer.index for answer in answers if answer.latency_s > 0.060] == [0, 1, 2]
    assert max(answer.latency_s for answer in answers[SINK:]) < 0.040


def test_a_shadow_does_not_make_the_frames_that_stream_on_late() -> None:
    model = ToyModel(costs=COSTS)
    engine = engine_of(model)
    changed = replace(cached("a").settings, prompt="other")
    spec = cached("a")
    source = Source(spec, 30, budget_s=0.060)
    original = engine.admit

    def admit_changed(frame: Frame[Tensor], now: float) -> bool:
        if frame.ordinal == 10:
            engine.update("a", 1, changed)
        return original(replace(frame, settings_version=int(frame.ordinal >= 10)), now)

    engine.admit = admit_changed  # type: ignore[method-assign]
    answers = simulate(engine, model.clock, [source])
    assert all(answer.latency_s <= 0.060 for answer in answers[SINK:])
