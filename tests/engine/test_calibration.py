"""Costs measured at start-up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rearview.engine.calibration import example_payloads, measure_costs
from rearview.engine.checkpoint import load_model
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.session import BankSettings, Settings
from support.tiny import session, whole_chain
from support.tiny_bank import MAX_STEPS, banked, denoise_span, tiny_bank, tiny_model, video

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
    assert costs.write_s == 0.0
    assert memory.free_slots == 1


def test_a_span_that_owns_part_of_the_chain_measures_that(checkpoint: Path) -> None:
    span, spec = denoise_span([1]), session("calibration", Settings("a", 0.4, 2))
    model = load_model(str(checkpoint), span, torch.device("cpu"), torch.float32)
    costs = measure_costs(model, Memoryless(1), span, spec, example_payloads(str(checkpoint), span, spec))
    assert len(costs.forward_s) == 1


def test_a_bank_is_empty_again_after_its_writes_were_measured() -> None:
    memory, span = tiny_bank(1), denoise_span()
    spec = replace(banked("calibration", BankSettings(interval=3)), settings=Settings("a", 0.6, MAX_STEPS))
    payloads = [video(1)[0]] * len(span.operators)
    costs = measure_costs(tiny_model(), memory, span, spec, payloads)
    assert costs.write_s >= 0.0
    assert memory.free_slots == 1
    memory.check_integrity()
