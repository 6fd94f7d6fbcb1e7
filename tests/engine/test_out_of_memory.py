"""Forwards that do not fit into memory run again in smaller ones, and give the pictures that they would have.

The toy model and the toy cache are exact: equal means bit-equal. Networks are compared in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from rearview.contract.failure import Failure
from rearview.contract.settings import Guidance
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.protocol import Write
from rearview.engine.networks.model import DiffusionModel, Forward
from rearview.engine.rows import Row, StepResult
from rearview.engine.sizes import FIRST_WAIT_S
from support.tiny import whole_chain
from support.tiny_bank import by_reference, gap, mixed_streams, play, tiny_bank, tiny_engine
from support.toy import TOY_STEPS, Holds, ToyModel, admit, drain, expect, toy_engine, toy_spec
from support.toy_cache import SINK, ToyCache
from support.toy_clips import (
    CHANGES,
    assert_same,
    cached_engine,
    cached_spec,
    per_frame,
    pictures,
    plain_pictures,
)
from support.toy_view import ToyUpdate

pytestmark = pytest.mark.unit

EXACT = 1e-9
NAMES = [f"s{number}" for number in range(9)]
ERRORS: Sequence[Callable[[], Exception]] = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    lambda: MemoryError(),
)


def filled(model: ToyModel, frames: int = 3, **options: object) -> Engine:
    """An engine with frames of all sessions."""
    engine = toy_engine(model, whole_chain(TOY_STEPS), **options)  # type: ignore[arg-type]
    for name in NAMES:
        engine.open(toy_spec(name))
        admit(engine, name, *range(frames))
    return engine


@pytest.mark.parametrize("error", ERRORS, ids=["device", "host", "python"])
@pytest.mark.parametrize("holds", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("order", Order)
def test_what_does_not_fit_runs_in_parts_and_gives_the_same_pictures(
    holds: int, order: Order, error: Callable[[], Exception]
) -> None:
    model = ToyModel(fails=Holds(holds), error=error)
    engine = filled(model, order=order)
    for name in NAMES:
        engine.flush(name)
    left = drain(engine)
    for name in NAMES:
        expect([frame for frame in left if frame.session_id == name], toy_spec(name), range(3))


def test_a_batch_is_run_again_in_halves_and_its_size_is_not_formed_again() -> None:
    model = ToyModel(fails=Holds(2), error=ERRORS[0])
    drain(filled(model, frames=1))
    sizes = [len(batch) for batch in model.batches if batch[0][2] == "encode"]
    assert sizes == [9, 4, 2, 2, 2, 2, 1]


def test_no_row_counts_a_failure_of_company() -> None:
    """Else it would run alone from then on, and a later fault would be its second."""
    model = ToyModel(fails=Holds(4), error=ERRORS[0])
    engine = filled(model, frames=1)
    engine.step(0.0)
    frames = [frame for session in engine._sessions.values() for frame in session.frames.values()]
    assert [frame.failures for frame in frames] == [0] * len(NAMES)
    assert len(engine._ready.queues) == len(NAMES)


def test_a_row_that_does_not_fit_alone_is_dropped_and_nothing_else() -> None:
    model = ToyModel(
        fails=lambda rows: any(row.session_id == "s4" and row.ordinal == 1 for row in rows), error=ERRORS[0]
    )
    engine = filled(model)
    left = drain(engine)
    lost = [(frame.session_id, frame.ordinal) for frame in left if frame.is_lost]
    assert lost == [("s4", 1)]
    assert model.batches.count([("s4", 1, "encode")]) == 2
    for name in NAMES:
        pictures_of = [frame for frame in left if frame.session_id == name and not frame.is_lost]
        expect(pictures_of, toy_spec(name), [0, 2] if name == "s4" else range(3))


def test_a_row_of_two_samples_is_tried_alone() -> None:
    """Guidance with a negative prompt makes two samples of one row, which cannot be parted."""
    model = ToyModel(fails=Holds(1), error=ERRORS[0])
    engine = toy_engine(model, whole_chain(TOY_STEPS))
    for name in ("guided", "plain"):
        spec = toy_spec(name)
        guided = replace(spec.settings, guidance=Guidance.FULL, guidance_scale=2.0)
        engine.open(replace(spec, settings=guided) if name == "guided" else spec)
        admit(engine, name, 0, 1)
    left = drain(engine)
    assert {frame.session_id for frame in left if frame.is_lost} == {"guided"}
    expect([frame for frame in left if frame.session_id == "plain"], toy_spec("plain"), [0, 1])


def test_what_was_learned_is_forgotten_once_there_is_room() -> None:
    holds = Holds(4)
    model = ToyModel(fails=holds, error=ERRORS[0])
    engine = filled(model, frames=1)
    drain(engine)
    holds.samples = 99
    found = []
    for ordinal, now in enumerate((0.0, 1.0, 2.0, 3.0), start=1):
        model.batches.clear()
        for name in NAMES:
            admit(engine, name, ordinal)
        while engine.has_work:
            engine.step(now * FIRST_WAIT_S)
        found.append(max(len(batch) for batch in model.batches))
    assert found == [4, 7, 8, 9], "half way to what failed, and at last that"


def test_each_failure_is_told_of_its_forward(caplog: pytest.LogCaptureFixture) -> None:
    model = ToyModel(fails=Holds(8), error=ERRORS[1])
    engine = filled(model, frames=1)
    results: list[StepResult] = []
    while engine.has_work:
        results.append(engine.step(0.0))
    failures = [result.batch.failure for result in results if result.batch is not None]
    assert failures[0] is Failure.NO_MEMORY
    assert set(failures[1:]) == {None}, "what is encoded in parts goes on in parts"
    assert "out of memory in a forward of 9 samples of encode: 4 for now" in caplog.text
    assert "Traceback" not in caplog.text


# Memory.


@pytest.mark.parametrize("holds", [SINK, SINK + 1, 2 * SINK])
@pytest.mark.parametrize("change", ["none", "prompt", "weights", "more steps"])
def test_with_a_cache_pictures_and_what_is_written_are_as_if_all_had_fitted(change: str, holds: int) -> None:
    """Windows of four samples are the widest rows."""
    settings = per_frame(14, CHANGES[change])
    specs = [cached_spec(name, settings=settings[0]) for name in "abc"]
    model, cache = ToyModel(fails=Holds(holds), error=ERRORS[0]), ToyCache()
    found = pictures([cached_engine(model=model, memory=cache)], specs, settings, burst=3)
    for spec in specs:
        assert_same(found[spec.session_id], plain_pictures(spec, settings))
    whole = ToyCache()
    pictures([cached_engine(memory=whole)], specs, settings, burst=3)
    assert cache.pasts == whole.pasts
    assert sorted(cache.written) == sorted(whole.written)


def test_a_window_that_does_not_fit_drops_its_frames_and_leaves_its_neighbours_alone() -> None:
    settings = per_frame(2 * SINK, {})
    model, cache = ToyModel(fails=Holds(SINK - 1), error=ERRORS[0]), ToyCache()
    engine = cached_engine(model=model, memory=cache)
    specs = [cached_spec("cached"), replace(cached_spec("plain"), cache=None)]
    found = pictures([engine], specs, settings, burst=3)
    assert found["cached"] == [None] * len(settings)
    expected = pictures([cached_engine()], specs[1:], settings)["plain"]
    assert_same(found["plain"], expected)
    assert not cache.written
    tried = [batch for batch in model.batches if batch[0][2] == "denoise-0" and batch[0][0] == "cached"]
    assert len(tried) == 4, "each window twice, and alone"


def test_a_shadow_window_that_does_not_fit_keeps_the_old_cache() -> None:
    settings = per_frame(14, CHANGES["prompt"])
    model = ToyModel(fails=lambda rows: any(row.shadow for row in rows), error=ERRORS[0])
    cache = ToyCache()
    found = pictures([cached_engine(model=model, memory=cache)], [cached_spec()], settings)["a"]
    assert all(picture is not None for picture in found)
    assert cache.windows(shadow=True) == []


@dataclass
class SmallCache(ToyCache):
    """What more than two rows leave cannot be computed."""

    def prepare(self, rows: Sequence[Row], update: ToyUpdate) -> Write:
        if len(rows) > 2:
            raise ERRORS[0]()
        return super().prepare(rows, update)


def test_a_write_that_does_not_fit_leaves_memory_as_it_was_and_runs_in_parts() -> None:
    settings = per_frame(12, CHANGES["prompt"])
    specs = [cached_spec(name, settings=settings[0]) for name in "abcde"]
    found = pictures([cached_engine(memory=SmallCache())], specs, settings, burst=4)
    for spec in specs:
        assert_same(found[spec.session_id], plain_pictures(spec, settings))


class SmallModel:
    """The tiny checkpoint where only so many samples fit."""

    def __init__(self, model: DiffusionModel, holds: int) -> None:
        self._model, self._holds, self.failed = model, holds, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def forward(self, rows: Sequence[Row], *views: object) -> Forward:
        if sum(row.width for row in rows) > self._holds:
            self.failed += 1
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return self._model.forward(rows, *views)  # type: ignore[arg-type]


@pytest.mark.parametrize("holds", [1, 2, 3])
def test_with_a_bank_pictures_are_those_of_the_plain_path(holds: int) -> None:
    streams = mixed_streams(6)
    memory = tiny_bank(6, size_frames=3.0)
    engine = tiny_engine(memory)
    engine._forwards._model = model = SmallModel(engine._forwards._model, holds)  # type: ignore[arg-type,assignment]
    found = play(engine, streams, seed=holds, each_step=engine.check_integrity)
    for stream in streams:
        assert gap(found[stream.spec.session_id], by_reference(stream)) <= EXACT
    assert model.failed > 0
