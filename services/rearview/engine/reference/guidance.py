"""Guidance of one frame in its plainest form: in terms of noise, as the method's authors define it.

The engine's is in terms of clean latents.
"""

from __future__ import annotations

from torch import Tensor

from rearview.contract.settings import Guidance, Settings
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.sampling import StepCoefficients

__all__ = ["clean_of", "guided", "predicts_negative"]


def predicts_negative(settings: Settings, index: int) -> bool:
    """Whether the UNet also predicts under the negative prompt in this step."""
    kind = settings.acting_guidance
    return kind is Guidance.FULL or (kind is Guidance.INITIALIZE and index == 0)


def guided(
    denoiser: Denoiser, settings: Settings, step: StepCoefficients, x: Tensor, output: Tensor, away: Tensor
) -> Tensor:
    """The clean latent that a UNet output leads to; if guidance acts, away from the clean latent `away`."""
    if settings.acting_guidance is Guidance.NONE:
        return denoiser.schedule.predict(x, output, [step])
    u = (x - step.alpha * away) / step.beta
    if settings.acting_guidance is not Guidance.FULL:
        u = settings.delta * u
    e = u + settings.guidance_scale * (_as_noise(denoiser, x, output, step) - u)
    clean: Tensor = step.c_out * (x - step.beta * e) / step.alpha + step.c_skip * x
    return clean


def clean_of(denoiser: Denoiser, x: Tensor, output: Tensor, step: StepCoefficients) -> Tensor:
    """The clean latent that a UNet output says is in x."""
    return (x - step.beta * _as_noise(denoiser, x, output, step)) / step.alpha


def _as_noise(denoiser: Denoiser, x: Tensor, output: Tensor, step: StepCoefficients) -> Tensor:
    if denoiser.schedule.prediction_type == "epsilon":
        return output
    if denoiser.schedule.prediction_type == "v_prediction":
        return step.alpha * output + step.beta * x
    return (x - step.alpha * output) / step.beta
