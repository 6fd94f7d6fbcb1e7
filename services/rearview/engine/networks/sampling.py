"""Few-step sampling: timestep subsets, the steps of LCM and Euler, and counter-keyed noise.

Sources: StreamDiffusion's img2img loop, LCM (Luo et al. 2023), Euler's method (Karras et al. 2022). With
alpha_t = sqrt(abar_t) and beta_t = sqrt(1 - abar_t): x_0 = alpha_0 z + beta_0 eps_0, and each step predicts
x0_hat = c_out (x - beta e)/alpha + c_skip x, then goes to the next timestep of the subset with noise: LCM
draws it, Euler takes that which is left in x. Betas and the sampler come from the checkpoint's scheduler
config, never from the method. What surprises: Euler's sigmas are nowhere, since x / alpha is its sample.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rearview.contract.sampler import Sampler, sampler_of
from rearview.contract.settings import NoiseRule, Settings
from rearview.contract.timesteps import LCM_GRID
from rearview.errors import ConfigError

__all__ = ["Schedule", "StepCoefficients", "noise"]

BETA_SCHEDULES = ("scaled_linear", "linear")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
UNSUPPORTED = ("trained_betas", "rescale_betas_zero_snr", "thresholding", "clip_sample")
UNSUPPORTED_BY_EULER = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
EULER_ALONE = {"timestep_type": "discrete", "final_sigmas_type": "zero"}
LCM_SIGMA_DATA = 0.5
LCM_TIMESTEP_SCALING = 10.0


@dataclass(frozen=True, slots=True)
class StepCoefficients:
    """The constants of one denoising step."""

    timestep: int
    alpha: float
    beta: float
    c_skip: float
    c_out: float


class Schedule:
    """The noise schedule of a checkpoint."""

    def __init__(self, scheduler_config: Mapping[str, Any], sampler: Sampler | None = None) -> None:
        """`sampler`: instead of the one that the config names. Raises ConfigError."""
        self.sampler = sampler or sampler_of(scheduler_config)
        _refuse_unsupported(scheduler_config, self.sampler)
        num_train = int(scheduler_config.get("num_train_timesteps", 1000))
        betas = _betas(scheduler_config, num_train)
        self._alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        self._stride = num_train // LCM_GRID
        self._last = LCM_GRID * self._stride - 1
        self.prediction_type: str = scheduler_config.get("prediction_type", "epsilon")

    def timestep(self, index: int) -> int:
        """Timestep of a grid entry: t(k) = 999 - 20 k for 1000 train steps."""
        return self._last - self._stride * index

    def coefficients(self, timestep: int) -> StepCoefficients:
        """The constants of a step at `timestep`, in float64."""
        abar = float(self._alphas_cumprod[timestep])
        c_skip, c_out = (0.0, 1.0) if self.sampler is Sampler.EULER else _boundary(timestep)
        return StepCoefficients(timestep, math.sqrt(abar), math.sqrt(1.0 - abar), c_skip, c_out)

    def steps(self, settings: Settings) -> tuple[StepCoefficients, ...]:
        """The denoising steps that `settings` ask for, noisiest first."""
        return self._steps(settings.visited)

    @lru_cache(maxsize=256)  # noqa: B019 - one schedule lives as long as its process
    def _steps(self, indices: tuple[int, ...]) -> tuple[StepCoefficients, ...]:
        return tuple(self.coefficients(self.timestep(index)) for index in indices)

    def noisy(
        self, clean_CHW: Tensor, before_CHW: Tensor, settings: Settings, ordinal: int, step: int
    ) -> Tensor:
        """What enters `step`: x = alpha x0_hat + beta eps. `clean_CHW`: the encoded frame, or what the step
        before led to; `before_CHW`: what entered that one (of no meaning for step 0).
        """
        to = self.steps(settings)[step]
        if step and self.sampler is Sampler.EULER:
            at = self.steps(settings)[step - 1]
            epsilon = (before_CHW - at.alpha * clean_CHW) / at.beta
        elif step and settings.noise_rule is NoiseRule.FIRST:
            return to.alpha * clean_CHW
        else:
            epsilon = noise(settings, ordinal, step, tuple(clean_CHW.shape)).to(clean_CHW)
        return to.alpha * clean_CHW + to.beta * epsilon

    def predict(self, x_BCHW: Tensor, output_BCHW: Tensor, steps: list[StepCoefficients]) -> Tensor:
        """The clean latent x0_hat (B, C, h, w) from a UNet output, one step's constants per row."""
        return self.bound(self.clean(x_BCHW, output_BCHW, steps), x_BCHW, steps)

    def clean(self, x_BCHW: Tensor, output_BCHW: Tensor, steps: Sequence[StepCoefficients]) -> Tensor:
        """The clean latent that a UNet output stands for, whatever kind of prediction it is."""
        if self.prediction_type == "sample":
            return output_BCHW
        alpha, beta = (_column(x_BCHW, steps, name) for name in ("alpha", "beta"))
        if self.prediction_type == "v_prediction":
            return alpha * x_BCHW - beta * output_BCHW
        return (x_BCHW - beta * output_BCHW) / alpha

    def bound(self, clean_BCHW: Tensor, x_BCHW: Tensor, steps: Sequence[StepCoefficients]) -> Tensor:
        """x0_hat from a clean latent: LCM's boundary condition, c_out clean + c_skip x."""
        c_skip, c_out = (_column(x_BCHW, steps, name) for name in ("c_skip", "c_out"))
        return c_out * clean_BCHW + c_skip * x_BCHW


def _boundary(timestep: int) -> tuple[float, float]:
    """c_skip and c_out of LCM."""
    scaled, variance = LCM_TIMESTEP_SCALING * timestep, LCM_SIGMA_DATA**2
    return variance / (scaled**2 + variance), scaled / math.sqrt(scaled**2 + variance)


def _column(like_BCHW: Tensor, steps: Sequence[StepCoefficients], name: str) -> Tensor:
    """One constant per row, (B, 1, 1, 1)."""
    values = [getattr(step, name) for step in steps]
    return torch.tensor(values, dtype=like_BCHW.dtype, device=like_BCHW.device).view(-1, 1, 1, 1)


def _refuse_unsupported(config: Mapping[str, Any], sampler: Sampler) -> None:
    """Raise ConfigError rather than compute other pictures than the checkpoint's authors did."""
    file = "scheduler/scheduler_config.json"
    if config.get("beta_schedule", "scaled_linear") not in BETA_SCHEDULES:
        raise ConfigError(f"{file}: beta_schedule must be one of {', '.join(BETA_SCHEDULES)}")
    if config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise ConfigError(f"{file}: prediction_type must be one of {', '.join(PREDICTION_TYPES)}")
    if int(config.get("num_train_timesteps", 1000)) < LCM_GRID:
        raise ConfigError(f"{file}: num_train_timesteps must be at least {LCM_GRID}")
    for name in (*UNSUPPORTED, *(UNSUPPORTED_BY_EULER if sampler is Sampler.EULER else ())):
        if config.get(name):
            raise ConfigError(f"{file}: {name} is not supported")
    if sampler is Sampler.EULER:
        for name, only in EULER_ALONE.items():
            if config.get(name, only) != only:
                raise ConfigError(f"{file}: {name} must be {only}")


def _betas(config: Mapping[str, Any], num_train: int) -> Tensor:
    start, end = float(config.get("beta_start", 0.00085)), float(config.get("beta_end", 0.012))
    kind = config.get("beta_schedule", "scaled_linear")
    # float32, as diffusers computes them: the oracle of the tests is exact only then.
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, num_train, dtype=torch.float32) ** 2
    return torch.linspace(start, end, num_train, dtype=torch.float32)


def noise(settings: Settings, ordinal: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """The noise that enters denoising step `step`: (C, h, w) float32 on the CPU.

    Drawn by a generator keyed by (seed, step) or (seed, ordinal, step), so that it depends on nothing
    else: not on batching, placement, device or retry.
    """
    key_ordinal = ordinal if settings.noise_rule is NoiseRule.FRESH else None
    if key_ordinal is None:
        return _fixed_noise(settings.seed, step, shape)
    return _draw(settings.seed, key_ordinal, step, shape)


@lru_cache(maxsize=512)
def _fixed_noise(seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
    return _draw(seed, None, step, shape)


def _draw(seed: int, ordinal: int | None, step: int, shape: tuple[int, ...]) -> Tensor:
    digest = hashlib.blake2b(f"noise/{seed}/{ordinal}/{step}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(shape, generator=generator, dtype=torch.float32)
