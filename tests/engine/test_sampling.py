"""Timesteps, constants and noise: laws A of docs/methods.md, 4."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.settings import NoiseRule, Settings
from rearview.contract.timesteps import LCM_GRID, timestep_indices
from rearview.engine.networks.sampling import Schedule, noise
from rearview.errors import ConfigError
from support.tiny import SCHEDULER

pytestmark = pytest.mark.unit

SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return Schedule(SCHEDULER)


def test_a1_the_grid_goes_down_from_999_in_twenties(schedule: Schedule) -> None:
    assert [schedule.timestep(k) for k in range(LCM_GRID)] == [999 - 20 * k for k in range(LCM_GRID)]


@pytest.mark.parametrize("num_train", [1000, 990, 100, 50])
def test_the_grid_is_that_of_diffusers_for_any_number_of_train_steps(num_train: int) -> None:
    config = {**SCHEDULER, "num_train_timesteps": num_train}
    theirs = LCMScheduler.from_config(config)
    theirs.set_timesteps(LCM_GRID)
    schedule = Schedule(config)
    assert [schedule.timestep(k) for k in range(LCM_GRID)] == theirs.timesteps.tolist()


@pytest.mark.parametrize(
    ("strength", "steps", "indices"),
    [
        (0.2, 1, (40,)),
        (0.2, 2, (40, 45)),
        (0.2, 4, (40, 42, 44, 46)),
        (0.4, 1, (30,)),
        (0.4, 2, (30, 40)),
        (0.4, 4, (30, 35, 40, 45)),
        (0.6, 1, (20,)),
        (0.6, 2, (20, 35)),
        (0.6, 4, (20, 27, 34, 41)),
        (0.8, 1, (9,)),
        (0.8, 2, (9, 29)),
        (0.8, 4, (9, 19, 29, 39)),
        (0.9, 1, (4,)),
        (1.0, 1, (0,)),
        (1.0, 4, (0, 12, 24, 36)),
        (0.02, 1, (49,)),
        (0.02, 4, (49, 49, 49, 49)),
        (0.001, 2, (49, 49)),
        (0.04, 4, (48, 48, 48, 48)),
    ],
)
def test_a2_strength_picks_these_grid_entries(strength: float, steps: int, indices: tuple[int, ...]) -> None:
    assert timestep_indices(strength, steps) == indices


@given(st.floats(0.0, 1.0, exclude_min=True), st.integers(1, 8))
@settings(deadline=None, derandomize=True)
def test_grid_entries_never_fall_nor_leave_the_grid(strength: float, steps: int) -> None:
    indices = timestep_indices(strength, steps)
    assert len(indices) == steps
    assert list(indices) == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < LCM_GRID


@pytest.mark.parametrize(
    ("strength", "steps"), [(0.0, 1), (-0.5, 1), (1.01, 1), (math.nan, 1), (math.inf, 1), (0.5, 0), (0.5, -1)]
)
def test_values_without_a_meaning_are_refused(strength: float, steps: int) -> None:
    with pytest.raises(ValueError, match="strength"):
        timestep_indices(strength, steps)


@pytest.mark.parametrize(
    ("index", "timestep", "alpha", "beta"),
    [
        (0, 999, 0.068265, 0.997667),
        (16, 679, 0.309813, 0.950798),
        (20, 599, 0.402185, 0.915559),
        (30, 399, 0.652753, 0.757571),
        (32, 359, 0.701071, 0.713092),
        (35, 299, 0.769534, 0.638605),
        (40, 199, 0.869045, 0.494734),
        (45, 99, 0.946289, 0.323322),
        (49, 19, 0.991082, 0.133252),
    ],
)
def test_a3_alpha_and_beta_of_stable_diffusion(
    schedule: Schedule, index: int, timestep: int, alpha: float, beta: float
) -> None:
    step = schedule.coefficients(schedule.timestep(index))
    assert step.timestep == timestep
    assert step.alpha == pytest.approx(alpha, abs=1e-6)
    assert step.beta == pytest.approx(beta, abs=1e-6)
    assert step.alpha**2 + step.beta**2 == pytest.approx(1.0, abs=1e-12)


def test_a4_boundary_scalings(schedule: Schedule) -> None:
    at_zero = schedule.coefficients(0)
    assert (at_zero.c_skip, at_zero.c_out) == (1.0, 0.0)
    assert schedule.coefficients(99).c_skip == pytest.approx(2.551e-7, rel=1e-3)
    for timestep in range(1000):
        step = schedule.coefficients(timestep)
        assert step.c_skip + step.c_out**2 == pytest.approx(1.0, abs=1e-12)


def test_rows_at_mixed_steps_are_predicted_as_each_alone(schedule: Schedule) -> None:
    x, output = torch.randn(2, 4, *SHAPE, generator=torch.Generator().manual_seed(0))
    steps = [schedule.coefficients(t) for t in (999, 399, 199, 19)]
    together = schedule.predict(x, output, steps)
    for row, step in enumerate(steps):
        clean = (x[row] - step.beta * output[row]) / step.alpha
        expected = step.c_out * clean + step.c_skip * x[row]
        assert torch.allclose(together[row], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta_schedule", "squaredcos_cap_v2"),
        ("prediction_type", "flow"),
        ("trained_betas", [0.1, 0.2]),
        ("rescale_betas_zero_snr", True),
        ("clip_sample", True),
        ("thresholding", True),
        ("num_train_timesteps", 49),
    ],
)
def test_a_schedule_that_would_be_computed_wrong_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        Schedule({**SCHEDULER, name: value})


def test_fixed_noise_is_keyed_by_seed_and_step_alone() -> None:
    settings = Settings(seed=3)
    first = noise(settings, 0, 1, SHAPE)
    assert torch.equal(first, noise(replace(settings, prompt="b", strength=0.9, steps=4), 17, 1, SHAPE))
    assert not torch.equal(first, noise(settings, 0, 2, SHAPE))
    assert not torch.equal(first, noise(replace(settings, seed=4), 0, 1, SHAPE))


def test_fresh_noise_is_keyed_by_seed_ordinal_and_step() -> None:
    settings = Settings(seed=3, noise_rule=NoiseRule.FRESH)
    drawn = {
        (seed, ordinal, step): noise(replace(settings, seed=seed), ordinal, step, SHAPE)
        for seed in (3, 4)
        for ordinal in (0, 1)
        for step in (0, 1)
    }
    for key, found in drawn.items():
        assert [other for other in drawn if torch.equal(found, drawn[other])] == [key]
    assert not torch.equal(drawn[3, 0, 0], noise(replace(settings, noise_rule=NoiseRule.FIXED), 0, 0, SHAPE))


@pytest.mark.parametrize("rule", NoiseRule)
def test_noise_is_the_same_whatever_was_drawn_before(rule: NoiseRule) -> None:
    settings = Settings(seed=2**64 - 1, noise_rule=rule)
    first = noise(settings, 5, 1, SHAPE).clone()
    torch.manual_seed(99)
    torch.randn(7)
    for seed in range(600):  # More than any cache keeps.
        noise(replace(settings, seed=seed), 5, 1, SHAPE)
    assert torch.equal(noise(settings, 5, 1, SHAPE), first)


def test_noise_is_normal_and_of_one_value_for_ever() -> None:
    """These numbers are part of what a seed means: users keep seeds that they like."""
    drawn = noise(Settings(seed=0), 0, 0, (4, 64, 64))
    assert abs(float(drawn.mean())) < 0.03
    assert abs(float(drawn.std()) - 1.0) < 0.03
    assert drawn.flatten()[:3].tolist() == pytest.approx([-0.0708799, -0.9846781, -0.0238577], abs=1e-6)
