"""Few-step sampling: timestep subsets, the steps of LCM and Euler's two, and counter-keyed noise.

Sources: StreamDiffusion's img2img loop, LCM (Luo et al. 2023), Euler's method (Karras et al. 2022). With
alpha_t = sqrt(abar_t) and beta_t = sqrt(1 - abar_t): x_0 = alpha_0 z + beta_0 eps_0, and each step predicts
x0_hat = c_out (x - beta e)/alpha + c_skip x, then goes to the next timestep of the subset with noise: LCM
draws it, Euler takes that which is left in x, Euler ancestral some of both. Betas and the sampler come from
the checkpoint's scheduler config, never from the method. What surprises: sigmas are nowhere, since x / alpha
is Euler's sample.
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

__all__ = ["NoiseKey", "Schedule", "StepCoefficients", "StepColumns", "noise"]

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


@dataclass(frozen=True, slots=True, eq=False)
class StepColumns:
    """The constants of one denoising step for each sample of a forward, on its device."""

    timestep_B: Tensor
    """int64."""
    alpha_B111: Tensor
    beta_B111: Tensor
    c_skip_B111: Tensor
    c_out_B111: Tensor

    @classmethod
    def of(cls, steps: Sequence[StepCoefficients], like_BCHW: Tensor) -> StepColumns:
        """Of steps that are known on the host."""
        values = torch.tensor([_constants(step) for step in steps], dtype=like_BCHW.dtype).T
        timesteps = torch.tensor([step.timestep for step in steps])
        return cls._of(timesteps.to(like_BCHW.device), values.to(like_BCHW.device))

    @classmethod
    def _of(cls, timestep_B: Tensor, constants_4B: Tensor) -> StepColumns:
        return cls(timestep_B, *constants_4B.view(4, -1, 1, 1, 1).unbind(0))

    def first(self, samples: int) -> StepColumns:
        """Those of so many samples at the beginning."""
        columns = (self.timestep_B, self.alpha_B111, self.beta_B111, self.c_skip_B111, self.c_out_B111)
        return StepColumns(*(column[:samples] for column in columns))


class Schedule:
    """The noise schedule of a checkpoint."""

    def __init__(self, scheduler_config: Mapping[str, Any], sampler: Sampler | None = None) -> None:
        """`sampler`: instead of the one that the config names. Raises ConfigError."""
        self.sampler = sampler or sampler_of(scheduler_config)
        _refuse_unsupported(scheduler_config, self.sampler)
        num_train = int(scheduler_config.get("num_train_timesteps", 1000))
        betas = _betas(scheduler_config, num_train)
        self._alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        self._num_train, self._stride = num_train, num_train // LCM_GRID
        lead = _lead(scheduler_config, self.sampler, self._stride)
        self._last = LCM_GRID * self._stride - 1 - lead
        self._is_spaced = (
            self.sampler is not Sampler.LCM and scheduler_config.get("timestep_spacing") != "leading"
        )
        """Whether strength and steps give timesteps of their own, beside the grid."""
        self.prediction_type: str = scheduler_config.get("prediction_type", "epsilon")
        self._tables: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        """Constants of every timestep, (4, T)."""

    def timestep(self, index: int) -> int:
        """Timestep of a grid entry: t(k) = 999 - 20 k for 1000 train steps; with `leading` spacing, and if
        LCM does not sample, 980 - 20 k + steps_offset.
        """
        return self._last - self._stride * index

    def coefficients(self, timestep: int) -> StepCoefficients:
        """The constants of a step at `timestep`, in float64."""
        abar = float(self._alphas_cumprod[timestep])
        c_skip, c_out = _boundary(timestep) if self.sampler is Sampler.LCM else (0.0, 1.0)
        return StepCoefficients(timestep, math.sqrt(abar), math.sqrt(1.0 - abar), c_skip, c_out)

    def timesteps(self, settings: Settings) -> tuple[int, ...]:
        """The timesteps that a frame visits, noisiest first: entries of the grid, if `settings` name them, if
        LCM samples, and with `leading` spacing; else those of diffusers' `trailing` spacing.
        """
        if self._is_spaced and not settings.timestep_indices:
            return self._spaced(settings.strength, settings.steps)
        return self._listed(settings.visited)

    def steps(self, settings: Settings) -> tuple[StepCoefficients, ...]:
        """The denoising steps that `settings` ask for, noisiest first."""
        return self._steps(self.timesteps(settings))

    @lru_cache(maxsize=256)  # noqa: B019 - one schedule lives as long as its process
    def _listed(self, indices: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(map(self.timestep, indices))

    @lru_cache(maxsize=256)  # noqa: B019 - one schedule lives as long as its process
    def _spaced(self, strength: float, steps: int) -> tuple[int, ...]:
        """The last so many timesteps of a schedule in steps / strength of them."""
        share = self._num_train * strength
        return tuple(max(0, round(share * (steps - at) / steps) - 1) for at in range(steps))

    @lru_cache(maxsize=256)  # noqa: B019 - one schedule lives as long as its process
    def _steps(self, timesteps: tuple[int, ...]) -> tuple[StepCoefficients, ...]:
        return tuple(map(self.coefficients, timesteps))

    def columns(self, timestep_N: Tensor, dtype: torch.dtype, sizes: Sequence[int]) -> list[StepColumns]:
        """The constants of steps at these timesteps (int64), read from a table on their device: so many
        samples each.
        """
        key = dtype, timestep_N.device
        if key not in self._tables:
            every = [self.coefficients(timestep) for timestep in range(self._num_train)]
            whole = StepColumns.of(every, torch.empty(0, dtype=dtype, device=timestep_N.device))
            constants = (whole.alpha_B111, whole.beta_B111, whole.c_skip_B111, whole.c_out_B111)
            self._tables[key] = torch.stack(constants).flatten(1)
        constants_4N = self._tables[key].index_select(1, timestep_N)
        parts = zip(timestep_N.split(sizes), constants_4N.split(sizes, dim=1), strict=True)
        return [StepColumns._of(*part) for part in parts]

    def draws(self, settings: Settings, step: int) -> bool:
        """Whether noise is drawn that enters `step`: else there is none, or it is what is left in x."""
        draws_later = self.sampler is not Sampler.EULER and settings.noise_rule is not NoiseRule.FIRST
        return step == 0 or draws_later

    def noisy(
        self, clean_CHW: Tensor, before_CHW: Tensor, settings: Settings, ordinal: int, step: int
    ) -> Tensor:
        """What enters `step`: x = alpha x0_hat + beta eps. `clean_CHW`: the encoded frame, or what the step
        before led to; `before_CHW`: what entered that one (of no meaning for step 0).
        """
        to = self.steps(settings)[step]
        drawn = None
        if self.draws(settings, step):
            drawn = noise(settings, ordinal, step, tuple(clean_CHW.shape)).to(clean_CHW)
        if step == 0 or self.sampler is Sampler.LCM:
            epsilon = drawn
        else:
            at = self.steps(settings)[step - 1]
            epsilon = left = (before_CHW - at.alpha * clean_CHW) / at.beta
            if self.sampler is Sampler.EULER_ANCESTRAL:
                scales = [clean_CHW.new_tensor(value) for value in (at.alpha, at.beta, to.alpha, to.beta)]
                share, others = _ancestral(*scales)
                epsilon = share * left if drawn is None else share * left + others * drawn
        return to.alpha * clean_CHW if epsilon is None else to.alpha * clean_CHW + to.beta * epsilon

    def noisy_rows(
        self, clean_BCHW: Tensor, before_BCHW: Tensor, at: StepColumns, to: StepColumns, drawn: Tensor | None
    ) -> Tensor:
        """`noisy` of samples that go on from the steps `at` to the steps `to`. `drawn`: the noise
        (B, C, h, w) of those for which it is drawn, and zeros; None: it is drawn for none.
        """
        epsilon = drawn
        if self.sampler is not Sampler.LCM:
            epsilon = left = (before_BCHW - at.alpha_B111 * clean_BCHW) / at.beta_B111
            if self.sampler is Sampler.EULER_ANCESTRAL:
                share, others = _ancestral(at.alpha_B111, at.beta_B111, to.alpha_B111, to.beta_B111)
                epsilon = share * left if drawn is None else share * left + others * drawn
        scaled = to.alpha_B111 * clean_BCHW
        return scaled if epsilon is None else scaled + to.beta_B111 * epsilon

    def predict(self, x_BCHW: Tensor, output_BCHW: Tensor, steps: Sequence[StepCoefficients]) -> Tensor:
        """The clean latent x0_hat (B, C, h, w) from a UNet output, one step's constants per row."""
        at = StepColumns.of(steps, x_BCHW)
        return self.bound(self.clean(x_BCHW, output_BCHW, at), x_BCHW, at)

    def clean(self, x_BCHW: Tensor, output_BCHW: Tensor, at: StepColumns) -> Tensor:
        """The clean latent that a UNet output stands for, whatever kind of prediction it is."""
        if self.prediction_type == "sample":
            return output_BCHW
        if self.prediction_type == "v_prediction":
            return at.alpha_B111 * x_BCHW - at.beta_B111 * output_BCHW
        return (x_BCHW - at.beta_B111 * output_BCHW) / at.alpha_B111

    def bound(self, clean_BCHW: Tensor, x_BCHW: Tensor, at: StepColumns) -> Tensor:
        """x0_hat from a clean latent: LCM's boundary condition, c_out clean + c_skip x."""
        return at.c_out_B111 * clean_BCHW + at.c_skip_B111 * x_BCHW


def _boundary(timestep: int) -> tuple[float, float]:
    """c_skip and c_out of LCM."""
    scaled, variance = LCM_TIMESTEP_SCALING * timestep, LCM_SIGMA_DATA**2
    return variance / (scaled**2 + variance), scaled / math.sqrt(scaled**2 + variance)


def _ancestral(alpha: Tensor, beta: Tensor, to_alpha: Tensor, to_beta: Tensor) -> tuple[Tensor, Tensor]:
    """How much goes on of the noise that is left in x, and how much is drawn, beside beta' of the next step:
    the share is sigma' / sigma, and the squares of both sum to 1. After a last step, of no meaning.
    """
    share = (to_beta * alpha) / (to_alpha * beta)
    return share, (1.0 - share * share).clamp_min(0.0).sqrt()


def _lead(config: Mapping[str, Any], sampler: Sampler, stride: int) -> int:
    """By how much a grid lies below that of `trailing` spacing. LCM's sampler knows that one alone."""
    if sampler is Sampler.LCM or config.get("timestep_spacing") != "leading":
        return 0
    offset = int(config.get("steps_offset", 0))
    if not 0 <= offset < stride:
        raise ConfigError(
            f"scheduler/scheduler_config.json: steps_offset {offset} is not in 0 to {stride - 1}"
        )
    return stride - 1 - offset


def _constants(step: StepCoefficients) -> tuple[float, float, float, float]:
    return step.alpha, step.beta, step.c_skip, step.c_out


def _refuse_unsupported(config: Mapping[str, Any], sampler: Sampler) -> None:
    """Raise ConfigError rather than compute other pictures than the checkpoint's authors did."""
    file = "scheduler/scheduler_config.json"
    if config.get("beta_schedule", "scaled_linear") not in BETA_SCHEDULES:
        raise ConfigError(f"{file}: beta_schedule must be one of {', '.join(BETA_SCHEDULES)}")
    if config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise ConfigError(f"{file}: prediction_type must be one of {', '.join(PREDICTION_TYPES)}")
    if int(config.get("num_train_timesteps", 1000)) < LCM_GRID:
        raise ConfigError(f"{file}: num_train_timesteps must be at least {LCM_GRID}")
    for name in (*UNSUPPORTED, *(UNSUPPORTED_BY_EULER if sampler is not Sampler.LCM else ())):
        if config.get(name):
            raise ConfigError(f"{file}: {name} is not supported")
    if sampler is not Sampler.LCM:
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


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """All that noise depends on: so not on batching, placement, device or retry."""

    seed: int
    ordinal: int | None
    """None: it is the same for every frame."""
    step: int
    """That it enters."""
    shape: tuple[int, ...]
    """(C, h, w)"""

    @classmethod
    def of(cls, settings: Settings, ordinal: int, step: int, shape: tuple[int, ...]) -> NoiseKey:
        """Of a frame."""
        return cls(settings.seed, ordinal if settings.noise_rule is NoiseRule.FRESH else None, step, shape)

    @property
    def nbytes(self) -> int:
        return torch.float32.itemsize * math.prod(self.shape)

    def draw(self, *, pinned: bool = False) -> Tensor:
        """The noise, float32 on the host; see `ahead.Draw`."""
        text = f"noise/{self.seed}/{self.ordinal}/{self.step}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.randn(self.shape, generator=generator, dtype=torch.float32, pin_memory=pinned)


def noise(settings: Settings, ordinal: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """The noise that enters denoising step `step`: (C, h, w) float32 on the CPU.

    Drawn by a generator keyed by (seed, step), or by (seed, ordinal, step) if it is fresh.
    """
    return NoiseKey.of(settings, ordinal, step, shape).draw()
