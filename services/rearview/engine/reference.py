"""The plain path: one session, one frame, one step at a time. The oracle of the tests.

No rows, no batching, no pool, no spans. `engine.py` must give the same pictures; this file is checked
against diffusers' own img2img pipeline with `LCMScheduler` and the same noise. Guidance is written out
here as the method's authors define it, in terms of noise; the engine's is in terms of clean latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from rearview.engine.memory.plain_bank import PlainBank
from rearview.engine.operators.decode import decode
from rearview.engine.operators.denoise import Denoiser
from rearview.engine.operators.encode import encode
from rearview.engine.sampling import StepCoefficients, noise
from rearview.engine.session import CacheSettings, Guidance, Rewarm, Settings
from rearview.engine.timesteps import timestep_indices

__all__ = ["Sample", "StepFunction", "denoise_clip", "denoise_latent", "step_function", "translate_frame"]

T = TypeVar("T")


class Sample(NamedTuple, Generic[T]):
    """One frame as it enters a step."""

    ordinal: int
    settings: Settings
    payload: T


StepFunction = Callable[[int, Sequence[Sample[T]], bool], Sequence[T]]
"""(step, samples, whether they warm up together) -> what they leave the step with."""


@torch.inference_mode()
def translate_frame(
    vae: Any,
    denoiser: Denoiser,
    image_HWC: Tensor,
    settings: Settings,
    ordinal: int,
    dtype: torch.dtype,
    bank: PlainBank | None = None,
) -> Tensor:
    """Translate one uint8 frame (H, W, 3); returns the same shape and type. Writes to `bank`."""
    z_1CHW = encode(vae, image_HWC[None], dtype)
    return decode(vae, denoise_latent(denoiser, z_1CHW, settings, ordinal, dtype, bank), dtype)[0]


def denoise_latent(
    denoiser: Denoiser,
    z_1CHW: Tensor,
    settings: Settings,
    ordinal: int,
    dtype: torch.dtype,
    bank: PlainBank | None = None,
) -> Tensor:
    """All denoising steps of one encoded frame (1, C, h, w); returns the clean latent."""
    embeds_1LD = denoiser.conditioning.embed_frame(settings, ordinal)
    clean = negative = z_1CHW
    for index, step in enumerate(denoiser.schedule.steps(settings)):
        epsilon = noise(settings, ordinal, index, tuple(clean.shape[1:])).to(clean)
        x = step.alpha * clean + step.beta * epsilon
        memory = None if bank is None else bank.view(settings, ordinal, index)
        output = _run_unet(denoiser, x, step, embeds_1LD, dtype, memory)
        if memory is not None:
            memory.commit()
        if settings.acting_guidance is Guidance.NONE:
            clean = denoiser.schedule.predict(x, output, [step])
            continue
        if settings.acting_guidance is Guidance.FULL or (
            settings.acting_guidance is Guidance.INITIALIZE and index == 0
        ):
            embeds = denoiser.conditioning.embed(settings.negative_prompt)
            away = _as_noise(denoiser, x, _run_unet(denoiser, x, step, embeds, dtype), step)
            negative = (x - step.beta * away) / step.alpha
        residual = (x - step.alpha * negative) / step.beta
        u = residual if settings.acting_guidance is Guidance.FULL else settings.delta * residual
        e = u + settings.guidance_scale * (_as_noise(denoiser, x, output, step) - u)
        clean = step.c_out * (x - step.beta * e) / step.alpha + step.c_skip * x
    return clean


def denoise_clip(
    run: StepFunction[T],
    entering: Sequence[T],
    settings: Sequence[Settings],
    cache: CacheSettings,
    frames: int,
) -> list[T | None]:
    """A clip with a temporal cache that `run` reads and writes; `frames` warm it up (Live2Diff).

    Step after step, each for the whole clip: the steps' caches know nothing of each other. `settings`: per
    frame. Returns what leaves the last step; None where the clip ends before it is warm.
    """
    results: list[T | None] = list(entering)
    resets = [n for n in range(1, len(settings)) if _visited(settings[n]) != _visited(settings[n - 1])]
    turns = [n for n in range(1, len(settings)) if _is_turn(settings[n - 1], settings[n], cache)]
    resets = sorted({*resets, *(n for n in turns if Rewarm.RESET in _rules(settings, n, cache))})
    shadows = [n for n in turns if n not in resets]
    for first, end in pairwise([0, *resets, len(settings)]):
        within = [n for n in shadows if first < n < end]
        for step in range(settings[first].steps):
            _denoise_scene(run, step, results, settings, range(first, end), within, frames)
    return results


def step_function(
    denoiser: Denoiser, dtype: torch.dtype, gather: Callable[[int, bool], tuple[Any, Callable[[], None]]]
) -> StepFunction[Tensor]:
    """What `denoise_clip` runs: clean latents (1, C, h, w) to clean latents, without guidance and depth.

    `gather(step, together)`: the memory that the UNet is given, and what writes after it has run.
    """

    def run(step: int, samples: Sequence[Sample[Tensor]], together: bool) -> list[Tensor]:
        constants = [denoiser.schedule.steps(sample.settings)[step] for sample in samples]
        x_BCHW = torch.cat(
            [
                at.alpha * clean + at.beta * noise(settings, ordinal, step, tuple(clean.shape[1:])).to(clean)
                for at, (ordinal, settings, clean) in zip(constants, samples, strict=True)
            ]
        )
        embeds = [denoiser.conditioning.embed_frame(sample.settings, sample.ordinal) for sample in samples]
        memory, commit = gather(step, together)
        output_BCHW = denoiser.unet(
            x_BCHW.to(dtype),
            torch.tensor([at.timestep for at in constants], device=x_BCHW.device),
            encoder_hidden_states=torch.cat(embeds),
            return_dict=False,
            cross_attention_kwargs={"memory": memory},
        )[0].to(x_BCHW.dtype)
        commit()
        return list(denoiser.schedule.predict(x_BCHW, output_BCHW, constants).split(1))

    return run


def _denoise_scene(
    run: StepFunction[T],
    step: int,
    results: list[T | None],
    settings: Sequence[Settings],
    ordinals: range,
    shadows: Sequence[int],
    frames: int,
) -> None:
    """One step of the frames from one reset to the next."""
    entered = {n: result for n in ordinals if (result := results[n]) is not None}
    warm = _together(settings, ordinals[:frames])
    is_cut_short = ordinals.stop < len(results) or len(warm) < len(ordinals)
    if len(warm) < frames and not is_cut_short:
        results[ordinals.start : ordinals.stop] = [None] * len(ordinals)
        return

    def sample(n: int) -> Sample[T]:
        return Sample(n, settings[n], entered[n])

    left = run(step, [sample(n) for n in _places(warm, ordinals.start, frames)], True)
    results[ordinals.start : ordinals.start + len(warm)] = left[: len(warm)]
    for n in ordinals[len(warm) :]:
        begun = n - frames
        if begun in shadows and not any(begun < other < n for other in shadows):
            present = _together(settings, range(n - 1, begun - 1, -1))
            run(step, [sample(at) for at in _places(present, begun, frames)], True)
        results[n] = run(step, [sample(n)], False)[0]


def _together(settings: Sequence[Settings], ordinals: range) -> list[int]:
    """Those that have the weights of the first one, up to the first that has not; ascending."""
    same = takewhile(lambda n: settings[n].adapters == settings[ordinals[0]].adapters, ordinals)
    return sorted(same)


def _places(present: Sequence[int], start: int, frames: int) -> list[int]:
    """Whose frame takes each place of a window: the nearest earlier one's, else the next one's."""
    return [max((n for n in present if n <= at), default=present[0]) for at in range(start, start + frames)]


def _visited(settings: Settings) -> tuple[int, ...]:
    return timestep_indices(settings.strength, settings.steps)


def _is_turn(before: Settings, after: Settings, cache: CacheSettings) -> bool:
    return bool({Rewarm.RESET, Rewarm.SHADOW} & _rules([before, after], 1, cache))


def _rules(settings: Sequence[Settings], ordinal: int, cache: CacheSettings) -> set[Rewarm]:
    """What the changes before a frame call for."""
    before, after = settings[ordinal - 1], settings[ordinal]
    changed = {cache.prompt_change} if before.style != after.style else set()
    return changed | ({cache.scene_cut} if before.scene != after.scene else set())


def _run_unet(
    denoiser: Denoiser,
    x_1CHW: Tensor,
    step: StepCoefficients,
    embeds_1LD: Tensor,
    dtype: torch.dtype,
    memory: Any = None,
) -> Tensor:
    output: Tensor = denoiser.unet(
        x_1CHW.to(dtype),
        torch.tensor([step.timestep], device=x_1CHW.device),
        encoder_hidden_states=embeds_1LD,
        return_dict=False,
        **({} if memory is None else {"cross_attention_kwargs": {"memory": memory}}),
    )[0]
    return output.to(x_1CHW.dtype)


def _as_noise(denoiser: Denoiser, x: Tensor, output: Tensor, step: StepCoefficients) -> Tensor:
    """The noise that a UNet output says is in x."""
    kind = denoiser.schedule.prediction_type
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return step.alpha * output + step.beta * x
    return (x - step.alpha * output) / step.beta
