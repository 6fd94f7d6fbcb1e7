"""Sessions that share an engine, with the bank on: laws G of docs/methods.md, 4.

All in float64, where a batch of many differs from a batch of one by less than any decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from rearview.contract.memories import BankSettings
from rearview.engine.calibration import measure_costs
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.bank.view import BankReader
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.model import DiffusionModel, Forward, row_group
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from support.frames import planes_of
from support.memories import composed, exported, gather
from support.tiny_bank import (
    Stream,
    advance,
    alone,
    banked,
    by_reference,
    denoise_span,
    forward,
    gap,
    make_row,
    mixed_streams,
    play,
    tiny_bank,
    tiny_denoiser,
    tiny_engine,
    tiny_model,
    video,
)

pytestmark = pytest.mark.unit

EXACT = 1e-9
VISIBLE = 1e-4
"""Less than any change that a bank makes to the tiny model's latents, far more than rounding."""
MERGED = BankSettings(interval=2, fusion_threshold=0.9)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("seed", [0, 1])
def test_g1_each_of_16_mixed_sessions_is_as_if_alone(order: Order, seed: int) -> None:
    streams = mixed_streams(16, frames=4)
    engine = tiny_engine(tiny_bank(16, size_frames=2.0), order=order)
    together = play(engine, streams, seed)
    assert {
        s.spec.session_id for s in streams if gap(together[s.spec.session_id], by_reference(s)) > EXACT
    } == set()


@pytest.mark.parametrize("max_batch", [2, 5])
def test_g1_sessions_that_join_leave_and_pause_in_few_slots_are_as_if_alone(max_batch: int) -> None:
    streams = mixed_streams(8, frames=5)
    engine = tiny_engine(tiny_bank(3, size_frames=2.0), max_batch=max_batch)
    together = play(engine, streams, seed=max_batch, each_step=engine.check_integrity)
    for stream in streams:
        expected = alone(stream, size_frames=2.0)
        assert gap(together[stream.spec.session_id], expected) <= EXACT, stream.spec


def test_the_bank_changes_the_pictures_from_the_second_frame_on() -> None:
    for stream in mixed_streams(6):
        if stream.spec.bank is None:
            continue
        plain = by_reference(Stream(replace(stream.spec, bank=None), stream.latents))
        with_bank = by_reference(stream)
        assert gap(with_bank[:1], plain[:1]) <= EXACT
        assert gap(with_bank[1:], plain[1:]) > VISIBLE


def test_fusion_changes_some_tokens_and_not_all() -> None:
    stream = mixed_streams(1)[0]
    settings = stream.spec.bank
    assert settings is not None
    outcomes = [
        by_reference(
            Stream(replace(stream.spec, bank=replace(settings, fusion_threshold=threshold)), stream.latents)
        )
        for threshold in (-1.0, settings.fusion_threshold, 2.0)
    ]
    assert gap(outcomes[0], outcomes[1]) > VISIBLE
    assert gap(outcomes[1], outcomes[2]) > VISIBLE


def test_g2_a_session_in_a_used_slot_equals_a_fresh_one() -> None:
    memory = tiny_bank(1)
    first, second = banked("first", MERGED, seed=1), banked("second", MERGED, seed=2)
    memory.allocate(first)
    advance(memory, first, video(5, seed=1))
    memory.free("first")
    memory.allocate(second)
    fresh = tiny_bank(1)
    fresh.allocate(second)
    assert gap(advance(memory, second, video(5)), advance(fresh, second, video(5))) == 0.0


def test_g3_permuted_rows_give_permuted_outputs_and_the_same_banks() -> None:
    specs = [banked(f"s{i}", MERGED if i != 2 else None, seed=i, prompt=f"p{i}") for i in range(4)]
    outcomes = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        memory = tiny_bank(4)
        for index in order:  # Other slots too.
            memory.allocate(specs[index])
        for ordinal in range(3):
            rows = [make_row(specs[i], video(3, seed=i)[ordinal], ordinal) for i in order]
            outputs = forward(memory, rows)
        states = {spec.session_id: exported(memory, spec.session_id).layers for spec in specs}
        outcomes.append((outputs[[order.index(i) for i in range(4)]], states))
    assert gap([outcomes[0][0]], [outcomes[1][0]]) <= EXACT
    for name, banks in outcomes[0][1].items():
        for key, tensors in banks.items():
            assert gap(tensors, outcomes[1][1][name][key]) <= EXACT, (name, key)


def test_g4_banks_of_sessions_steps_and_layers_never_alias() -> None:
    memory = tiny_bank(3)
    specs = [banked(f"s{i}", MERGED) for i in range(3)]
    for spec in specs:
        memory.allocate(spec)
    rows = [make_row(spec, video(1)[0], 0, step) for spec in specs for step in range(2)]
    view = memory.gather(rows)
    assert view is not None
    reader = BankReader(view)
    layout = tiny_denoiser().bank_layout
    assert layout is not None
    for index, layer in enumerate(layout.layers):
        shape = (len(rows), layer.tokens(8, 8))
        tag = 1000.0 * index + torch.arange(1.0, len(rows) + 1, dtype=torch.float64)[:, None, None]
        keys = tag.expand(*shape, layer.key_channels)
        outputs = tag.expand(*shape, layer.output_channels)
        reader.record(index, keys, keys + 0.25, outputs + 0.5)
    memory.scatter(rows, reader.collect())
    for position, row in enumerate(rows):
        banks = exported(memory, row.session_id).layers
        for index, layer in enumerate(layout.layers):
            for kind, tensor in enumerate(banks[row.operator.step, layer.name]):
                assert (tensor == 1000.0 * index + position + 1 + 0.25 * kind).all()
    memory.check_integrity()


def test_g5_a_row_whose_write_is_not_due_never_writes() -> None:
    memory = tiny_bank(2)
    writer, reader = banked("writer", MERGED), banked("reader", MERGED)
    for spec in (writer, reader):
        memory.allocate(spec)
        advance(memory, spec, video(1))
    before = exported(memory, "reader")
    rows = [make_row(writer, video(3)[2], 2), make_row(reader, video(2)[1], 1)]
    assert [memory.num_writes(row) for row in rows] == [1, 0]
    forward(memory, rows)
    after = exported(memory, "reader")
    assert after.steps == before.steps
    assert all(gap(after.layers[key], before.layers[key]) == 0.0 for key in before.layers)


def test_a_forward_that_is_not_committed_changes_nothing() -> None:
    memory = tiny_bank(1)
    spec = banked("s", MERGED)
    memory.allocate(spec)
    advance(memory, spec, video(2))
    before = exported(memory, "s")
    row = make_row(spec, video(3)[2], 2)
    assert memory.num_writes(row) == 1
    tiny_model().forward([row], gather(memory, [row]))
    after = exported(memory, "s")
    assert all(gap(after.layers[key], before.layers[key]) == 0.0 for key in before.layers)
    assert after.steps == before.steps


@pytest.mark.parametrize("bank", [MERGED, *(s.spec.bank for s in mixed_streams(6) if s.spec.bank)])
def test_g6_stream_batch_equals_back_to_back_with_the_bank_on(bank: BankSettings) -> None:
    stream = Stream(banked("s", bank, steps=3, seed=5), video(7))
    results = [
        play(tiny_engine(tiny_bank(1, size_frames=2.0), order=order), [stream], seed)["s"]
        for order in Order
        for seed in (0, 3)
    ]
    reference = by_reference(stream)
    assert [gap(result, reference) <= EXACT for result in results] == [True] * len(results)


@pytest.mark.parametrize("order", Order)
def test_g7_frames_before_a_change_of_prompt_are_unaffected(order: Order) -> None:
    spec = banked("s", MERGED, steps=3)
    changed = replace(spec.settings, prompt="another")
    stream, unchanged = Stream(spec, video(7), {4: changed}), Stream(spec, video(7))
    result = play(tiny_engine(tiny_bank(1), order=order), [stream], seed=2)["s"]
    assert gap(result, by_reference(stream)) <= EXACT
    assert gap(result[:4], by_reference(unchanged)[:4]) <= EXACT
    assert gap(result[4:], by_reference(unchanged)[4:]) > VISIBLE


@pytest.mark.parametrize("order", Order)
def test_g9_lost_frames_shift_no_write_and_no_picture(order: Order) -> None:
    stream = Stream(banked("s", MERGED, steps=2), video(9), lost=frozenset({1, 4, 5}))
    other = Stream(banked("t", MERGED, steps=3, seed=7), video(9, seed=1))
    engine = tiny_engine(tiny_bank(2), order=order)
    result = play(engine, [stream, other], seed=1, each_step=engine.check_integrity)
    assert gap(result["s"], by_reference(stream)) <= EXACT
    assert gap(result["t"], by_reference(other)) <= EXACT
    assert [n for n, picture in enumerate(result["s"]) if picture is None] == [1, 4, 5]


def test_live_change_of_steps_and_strength_equals_the_reference() -> None:
    spec = banked("s", MERGED, steps=2)
    changes = {
        2: replace(spec.settings, steps=3),
        4: replace(spec.settings, steps=3, strength=0.9),
        6: replace(spec.settings, steps=1, strength=0.9),
    }
    stream = Stream(spec, video(9), changes)
    result = play(tiny_engine(tiny_bank(1)), [stream], seed=4)["s"]
    assert gap(result, by_reference(stream)) <= EXACT


def test_g10_memory_returns_to_the_baseline_after_1000_sessions() -> None:
    memory = tiny_bank(8)
    baseline = memory.storage_bytes, memory.free_slots
    spec = banked("s", MERGED)
    for number in range(1000):
        session = replace(spec, session_id=str(number))
        memory.allocate(session)
        if number % 100 == 0:
            advance(memory, session, video(1))
        if number >= 7:
            memory.free(str(number - 7))
    for number in range(993, 1000):
        memory.free(str(number))
    memory.check_integrity()
    assert (memory.storage_bytes, memory.free_slots) == baseline


class FailingModel(DiffusionModel):
    """Fails every third forward, after all of it was computed."""

    calls = 0

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        result = super().forward(rows, views)
        self.calls += 1
        if self.calls % 3 == 0 and not any(row.frame.failures for row in rows):
            raise RuntimeError("device lost")
        return result


def test_a_forward_that_failed_runs_again_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    streams = mixed_streams(6, frames=4)
    memory = tiny_bank(6, size_frames=2.0)
    model = FailingModel(None, tiny_denoiser(), device=torch.device("cpu"), dtype=torch.float64)
    engine = Engine(denoise_span(), model, composed(memory), Scheduler(CostTable(), 4))
    results = play(engine, streams, seed=1, each_step=engine.check_integrity)
    assert "failed" in caplog.text
    for stream in streams:
        assert gap(results[stream.spec.session_id], by_reference(stream)) <= EXACT


def test_measuring_costs_knows_groups_and_writes_and_leaves_nothing() -> None:
    memory, model, span = composed(tiny_bank(1)), tiny_model(), denoise_span((0,))
    spec = banked("s", MERGED)
    costs = measure_costs(model, memory, span, spec, [planes_of(video(1)[0])], batch_sizes=(1,))
    group = row_group(model, memory, spec, spec.settings, span.operators[0])
    assert costs.seconds(group, 1) > 0.0
    assert group != row_group(model, memory, replace(spec, width=128), spec.settings, span.operators[0])
    assert costs.write_s >= 0.0
    assert memory.free_slots == 1
    memory.check_integrity()
