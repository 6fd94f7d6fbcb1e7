"""Costs measured at start-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.contract.chain import OperatorKind
from rearview.contract.frame import control_plane
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.settings import Settings
from rearview.engine.bench import TimedControls
from rearview.engine.calibration import cost_table, example_payloads, measure, measure_costs, row_seconds
from rearview.engine.memory.bank.write import compute_writes
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel, Forward, NullModel, row_group
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable
from rearview.engine.weights.checkpoint import load_model
from support.frames import planes_of
from support.memories import composed
from support.tiny import random_frames, session, whole_chain
from support.tiny_bank import (
    MAX_STEPS,
    SIZE,
    banked,
    denoise_span,
    tiny_bank,
    tiny_denoiser,
    tiny_model,
    video,
)
from support.tiny_motion import with_motion

pytestmark = pytest.mark.unit


def test_every_kind_of_operator_is_measured_and_nothing_is_left(checkpoint: Path) -> None:
    span, spec = whole_chain(2), session("calibration", Settings("a", 0.4, 2))
    model = load_model(str(checkpoint), span, torch.device("cpu"), torch.float32)
    memory = Memoryless(1)
    costs = measure_costs(model, memory, span, spec, example_payloads(str(checkpoint), span, spec), (1, 3))
    groups = {model.group(spec, spec.settings, operator) for operator in span.operators}
    assert set(costs.forward_s) == groups
    assert len(groups) == 3
    for group in groups:
        assert set(costs.forward_s[group]) == {1, 3}
        assert 0.0 < costs.seconds(group, 1) <= costs.seconds(group, 2) <= costs.seconds(group, 8)
        assert set(costs.ran[group]) == {1, 3}
    assert costs.write_s == 0.0
    assert memory.free_slots == 1


def test_a_span_that_owns_part_of_the_chain_measures_that(checkpoint: Path) -> None:
    span, spec = denoise_span([1]), session("calibration", Settings("a", 0.4, 2))
    model = load_model(str(checkpoint), span, torch.device("cpu"), torch.float32)
    costs = measure_costs(model, Memoryless(1), span, spec, example_payloads(str(checkpoint), span, spec))
    assert len(costs.forward_s) == 1


def test_a_bank_is_empty_again_after_its_writes_were_measured() -> None:
    memory, span = composed(tiny_bank(1)), denoise_span()
    spec = replace(banked("calibration", BankSettings(interval=3)), settings=Settings("a", 0.6, MAX_STEPS))
    payloads = [planes_of(video(1)[0])] * len(span.operators)
    costs = measure_costs(tiny_model(), memory, span, spec, payloads)
    assert costs.write_s >= 0.0
    assert memory.free_slots == 1
    memory.check_integrity()


class Timed:
    """A model with motion modules on a clock of its own: a row takes 1 s, and a write to a bank 0.25 s."""

    def __init__(self, row_s: float = 1.0) -> None:
        self.row_s, self.widths = row_s, list[int]()
        plain = tiny_denoiser()
        unet = with_motion(deepcopy(plain.unet))
        denoiser = Denoiser(unet, plain.schedule, plain.conditioning, torch.float64, plain.bank_layout)
        self.model = DiffusionModel(None, denoiser, device=torch.device("cpu"), dtype=torch.float64)
        self.group, self.prepare, self.layouts = self.model.group, self.model.prepare, self.model.layouts
        self.now_s = 0.0

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        self.now_s += self.row_s * len(rows)
        self.widths.append(sum(row.width for row in rows))
        return self.model.forward(rows, views)

    def memory(self, monkeypatch: pytest.MonkeyPatch) -> Memories:
        """A bank whose writes take their time, and a cache."""

        def timed(*arguments: Any) -> Any:
            writes = compute_writes(*arguments)
            self.now_s += 0.25 * bool(writes)
            return writes

        monkeypatch.setattr("rearview.engine.memory.bank.pool.compute_writes", timed)
        options = MemoryOptions(
            num_slots=1,
            height=SIZE,
            width=SIZE,
            dtype=torch.float64,
            bank=BankSettings(),
            cache=CacheOptions(CacheWindow(2, 2)),
        )
        return build_memories(denoise_span(), self.layouts, options)


@pytest.mark.parametrize(("interval", "write_s"), [(3, 0.25), (1, 0.25), (None, 0.0)])
def test_beside_a_cache_which_every_row_writes_a_write_is_the_banks(
    interval: int | None, write_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Timed()
    monkeypatch.setattr(time, "perf_counter", lambda: timed.now_s)
    memory, span = timed.memory(monkeypatch), denoise_span()
    settings = BankSettings(interval=interval) if interval else None
    spec = replace(
        banked("calibration", settings), settings=Settings("a", 0.6, MAX_STEPS), cache=CacheSettings()
    )
    costs = measure_costs(timed, memory, span, spec, [planes_of(video(1)[0])] * len(span.operators))
    group = row_group(timed, memory, spec, spec.settings, span.operators[0])
    assert costs.write_s == write_s
    assert costs.forward_s[group] == {1: 1.0, 2: 2.0}
    memory.check_integrity()
    assert memory.free_slots == 1


@pytest.mark.parametrize(("row_s", "samples"), [(1.0, 12), (20.0, 4)])
def test_where_a_forward_takes_seconds_it_is_timed_once_and_alone(
    row_s: float, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, told = Timed(row_s), list[tuple[OperatorKind, float]]()
    monkeypatch.setattr(time, "perf_counter", lambda: timed.now_s)
    memory, span = timed.memory(monkeypatch), denoise_span()
    spec = replace(banked("calibration", BankSettings(interval=3)), settings=Settings("a", 0.6, MAX_STEPS))
    spec = replace(spec, cache=CacheSettings())
    payloads = [planes_of(video(1)[0])] * len(span.operators)
    found = measure(timed, memory, span, spec, payloads, (1, 2), lambda *each: told.append(each))
    assert sum(timed.widths) <= samples
    timing = found[OperatorKind.DENOISE]
    assert timing.row_s[1] == row_s
    assert (2 in timing.row_s) is (row_s < 10)
    assert timing.window_s == {2: row_s + 0.25}, "its two frames are one row, and write a bank"
    assert timing.write_s == 0.25
    assert [kind for kind, _ in told] == [OperatorKind.DENOISE] * len(told)
    assert told[-1][1] <= 4 * row_s
    if row_s > 10:
        assert [seconds for _, seconds in told] == [20.0, 20.0, 0.0], "what is left"
    memory.check_integrity()


def test_a_cost_that_was_measured_alone_grows_with_the_rows() -> None:
    table = CostTable({"group": {1: 20.0}})
    assert table.seconds("group", 1) == 20.0
    assert table.seconds("group", 3) == 60.0


class Disturbed:
    """A model on a clock of its own whose forwards take what they are told to, one after another."""

    def __init__(self, seconds: Sequence[float]) -> None:
        plain = tiny_model()
        self.group, self.prepare, self.layouts = plain.group, plain.prepare, plain.layouts
        self.left = list(seconds)
        self.now_s = 0.0

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        self.now_s += self.left.pop(0)
        return Forward([])


def measured_s(model: Disturbed, *arguments: Any) -> float:
    return measure(model, *arguments, (1,))[OperatorKind.DENOISE].row_s[1]


def doubted_s(model: Disturbed, *arguments: Any) -> float:
    return row_seconds(model, *arguments)[OperatorKind.DENOISE]


@pytest.mark.parametrize("time_it", [measured_s, doubted_s])
@pytest.mark.parametrize(
    ("seconds", "row_s", "num_runs"),
    [
        ([0.04, 0.001, 0.05, 0.05, 0.05], 0.001, 5),  # Somebody else had the cores.
        ([0.04, 0.04, 0.04, 0.04, 0.001], 0.001, 5),
        ([0.01] * 9, 0.01, 5),
        ([0.08, 0.07, 0.06, 0.05], 0.06, 3),  # Bounded in all.
        ([0.3, 0.2, 0.1], 0.2, 2),
        ([2.0, 1.0], 2.0, 1),
    ],
)
def test_a_cheap_forward_is_timed_up_to_five_times(
    seconds: list[float],
    row_s: float,
    num_runs: int,
    time_it: Callable[..., float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Disturbed(seconds)
    monkeypatch.setattr(time, "perf_counter", lambda: model.now_s)
    spec = session("calibration", Settings("a", 0.4, 2))
    found = time_it(model, Memoryless(1), denoise_span([1]), spec, [planes_of(video(1)[0])])
    assert found == pytest.approx(row_s)
    assert len(seconds) - len(model.left) == num_runs


DRAWING_S = {"edges": 0.2, "depth": 0.5}


class Priced(NullModel):
    """A sample takes 1 s, 0.3 s more for each of its controls, which is shown something, and where it is
    encoded what drawing takes.
    """

    def __init__(self) -> None:
        self.now_s = 0.0

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        self.now_s += sum(row.width + 0.3 * row.controls for row in rows)
        self.now_s += sum(DRAWING_S.get(name, 0.0) for row in rows for name in row.draws)
        assert all((control_plane("edges") in row.planes) == bool(row.controls) for row in rows)
        return super().forward(rows, views)


@pytest.mark.parametrize(("names", "control_s"), [(("edges", "depth", "pose"), 0.3), ((), 0.0)])
def test_controls_and_what_is_drawn_for_them_are_timed_where_there_are_any(
    names: tuple[str, ...], control_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in a step, which stands for all; of each that is drawn, its picture."""
    drawn = {name: seconds for name, seconds in DRAWING_S.items() if name in names}
    priced, span, spec = Priced(), whole_chain(), session("calibration")
    monkeypatch.setattr(time, "perf_counter", lambda: priced.now_s)
    payloads = [planes_of(random_frames(1)[0])] * len(span.operators)
    memory = composed(Memoryless(1))
    found = measure(priced, memory, span, spec, payloads, (1, 2), controls=TimedControls(names, set(drawn)))
    assert found[OperatorKind.DENOISE].control_s == pytest.approx(control_s)
    assert found[OperatorKind.ENCODE].control_s == found[OperatorKind.DECODE].control_s == 0.0
    assert found[OperatorKind.ENCODE].draw_s == pytest.approx(drawn)
    assert not found[OperatorKind.DENOISE].draw_s
    table = cost_table(found, priced, memory, span, spec)
    assert table.control_s == pytest.approx(control_s)
    assert table.draw_s == pytest.approx(drawn)
    assert table.seconds(OperatorKind.DENOISE, 2, controls=3) == pytest.approx(2 + 3 * control_s)
