"""Constants of a forward's rows, read from a table: the same bits as those of each row by itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from rearview.contract.sampler import Sampler
from rearview.contract.settings import NoiseRule, Settings
from rearview.engine.networks.sampling import Schedule, StepColumns, noise
from support.stand_in_graphs import NoHostSync
from support.tiny import SCHEDULER
from torch import Tensor

pytestmark = pytest.mark.unit

SHAPE = (4, 8, 8)
TYPES = [torch.float32, torch.float64]
RULES = [
    Settings(strength=0.1 * (i + 2), steps=3, seed=i, noise_rule=rule) for i, rule in enumerate(NoiseRule)
]
ROWS = list(product(RULES, (0, 1, 2)))
"""Each rule, going on from each step."""


def columns_of(schedule: Schedule, timesteps: Sequence[int], dtype: torch.dtype) -> StepColumns:
    (columns,) = schedule.columns(torch.tensor(timesteps), dtype, [len(timesteps)])
    return columns


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sampler", Sampler)
def test_the_table_has_the_constants_of_every_timestep(sampler: Sampler, dtype: torch.dtype) -> None:
    schedule = Schedule(SCHEDULER, sampler)
    found = columns_of(schedule, timesteps := [*range(1000), 7, 7, 0], dtype)
    steps = [schedule.coefficients(timestep) for timestep in timesteps]
    assert found.timestep_B.tolist() == [step.timestep for step in steps]
    assert found.timestep_B.dtype is torch.int64
    for name in ("alpha", "beta", "c_skip", "c_out"):
        wanted = torch.tensor([getattr(step, name) for step in steps], dtype=dtype)
        assert torch.equal(getattr(found, f"{name}_B111"), wanted.view(-1, 1, 1, 1))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_predictions_by_the_table_are_those_of_each_row(prediction: str, dtype: torch.dtype) -> None:
    schedule = Schedule({**SCHEDULER, "prediction_type": prediction})
    timesteps = [999, 749, 19, 399]
    x, output = _random(2, len(timesteps), dtype)
    at = columns_of(schedule, timesteps, dtype)
    together = schedule.bound(schedule.clean(x, output, at), x, at)
    for row, timestep in enumerate(timesteps):
        step = schedule.coefficients(timestep)
        alone = schedule.predict(x[row : row + 1], output[row : row + 1], [step])
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sampler", Sampler)
def test_rows_of_every_rule_go_on_together_as_each_alone(sampler: Sampler, dtype: torch.dtype) -> None:
    schedule = Schedule(SCHEDULER, sampler)
    rows = [(settings, step) for settings, step in ROWS if step]
    clean, before = _random(2, len(rows), dtype)
    at = columns_of(schedule, [schedule.timesteps(settings)[step - 1] for settings, step in rows], dtype)
    to = columns_of(schedule, [schedule.timesteps(settings)[step] for settings, step in rows], dtype)
    drawn = torch.stack(
        [
            noise(settings, 5, step, SHAPE).to(dtype)
            if schedule.draws(settings, step)
            else torch.zeros(SHAPE, dtype=dtype)
            for settings, step in rows
        ]
    )
    together = schedule.noisy_rows(clean, before, at, to, drawn)
    for row, (settings, step) in enumerate(rows):
        alone = schedule.noisy(clean[row], before[row], settings, 5, step)
        assert torch.equal(together[row], alone), f"{settings.noise_rule} at step {step}"


def test_columns_come_in_parts() -> None:
    schedule = Schedule(SCHEDULER)
    timesteps = [899, 999, 19, 759, 759]
    parts = schedule.columns(torch.tensor(timesteps), torch.float32, [3, 2])
    wanted = [columns_of(schedule, part, torch.float32) for part in (timesteps[:3], timesteps[3:])]
    wanted[0] = columns_of(schedule, timesteps, torch.float32).first(3)
    for part, each in zip(parts, wanted, strict=True):
        assert torch.equal(part.timestep_B, each.timestep_B)
        assert torch.equal(part.c_out_B111, each.c_out_B111)
        assert torch.equal(part.alpha_B111, each.alpha_B111)


def test_where_nothing_is_drawn_no_noise_is_needed() -> None:
    first = RULES[list(NoiseRule).index(NoiseRule.FIRST)]
    schedule = Schedule(SCHEDULER)
    assert [schedule.draws(first, step) for step in range(3)] == [True, False, False]
    assert [Schedule(SCHEDULER, Sampler.EULER).draws(RULES[0], step) for step in (0, 1)] == [True, False]
    clean, before = _random(2, 1, torch.float32)
    at, to = (columns_of(schedule, [schedule.timesteps(first)[step]], torch.float32) for step in (0, 1))
    found = schedule.noisy_rows(clean, before, at, to, None)
    assert torch.equal(found[0], schedule.noisy(clean[0], before[0], first, 5, 1))


def test_reading_constants_waits_for_no_device() -> None:
    schedule, timesteps = Schedule(SCHEDULER), torch.tensor([3, 4])
    schedule.columns(timesteps, torch.float32, [2])  # The first one makes the table.
    with NoHostSync():
        schedule.columns(timesteps, torch.float32, [1, 1])


def _random(count: int, rows: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((count, rows, *SHAPE), generator=generator, dtype=dtype)
