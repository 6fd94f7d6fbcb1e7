"""The plain path of a clip whose frames see each other: a temporal cache, with windows, resets and shadows.

Step after step, each for the whole clip: the steps' caches know nothing of each other. Between two resets the
first frames go through a step together, the others one by one; after a change that calls for a shadow the
frames of it are read once more. Without lost frames, and planned here by itself: the engine's plan is
`contract/warmup.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.settings import Settings
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.motion_module import TemporalAttend
from rearview.engine.networks.sampling import StepCoefficients
from rearview.engine.reference.cache import PlainCache
from rearview.engine.reference.control import Added, Shown, added, side_by_side
from rearview.engine.reference.guidance import clean_of, guided, predicts_negative

__all__ = ["Carried", "Sample", "StepFunction", "denoise_clip", "step_function"]

T = TypeVar("T")


class Sample(NamedTuple, Generic[T]):
    """One frame as it enters a step."""

    ordinal: int
    settings: Settings
    payload: T


class Carried(NamedTuple):
    """What a frame with a temporal cache takes from step to step; latents (1, C, h, w)."""

    clean: Tensor
    """The encoded frame, or what the step before made of it."""
    negative: Tensor
    """What guidance gets away from: the encoded frame, until a negative prompt has made something of it."""
    depth: Tensor | None = None
    x: Tensor | None = None
    """What entered the step before."""
    shown: Shown | None = None
    """What its controls are shown."""


StepFunction = Callable[[int, Sequence[Sample[T]], bool], Sequence[T]]
"""(step, samples, whether they warm up together) -> what they leave the step with."""


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
    resets = [n for n in range(1, len(settings)) if settings[n].visited != settings[n - 1].visited]
    turns = [n for n in range(1, len(settings)) if _is_turn(settings[n - 1], settings[n], cache)]
    resets = sorted({*resets, *(n for n in turns if Rewarm.RESET in _rules(settings, n, cache))})
    shadows = [n for n in turns if n not in resets]
    for first, end in pairwise([0, *resets, len(settings)]):
        within = [n for n in shadows if first < n < end]
        for step in range(settings[first].steps):
            _denoise_scene(run, step, results, settings, range(first, end), within, frames)
    return results


def step_function(denoiser: Denoiser, dtype: torch.dtype, cache: PlainCache) -> StepFunction[Carried]:
    """What `denoise_clip` runs. Under a negative prompt each frame is predicted by itself, beside the
    others as the prompt made them.
    """

    def run(step: int, samples: Sequence[Sample[Carried]], together: bool) -> list[Carried]:
        view = cache.window(step) if together else cache.frame(step)
        constants = [denoiser.schedule.steps(sample.settings)[step] for sample in samples]
        entering = [_entering(denoiser, sample, step) for sample in samples]
        embeds = [denoiser.conditioning.embed_frame(each.settings, each.ordinal) for each in samples]
        depths = [sample.payload.depth for sample in samples if sample.payload.depth is not None]
        depth = torch.cat(depths) if depths else None
        texts = torch.cat(embeds)

        def control(place: int, text: Tensor) -> Added:
            sample, x = samples[place], entering[place].to(dtype)
            at = torch.tensor([constants[place].timestep], device=x.device)
            return added(denoiser, sample.settings, sample.payload.shown or {}, x, at, text)

        controls = side_by_side([control(place, text) for place, text in enumerate(embeds)])
        settings_S = [each.settings for each in samples]
        seen = denoiser.references.inputs(settings_S, [False] * len(samples), entering[0])
        given = {**_given(denoiser, settings_S, depth, dtype), **controls, **seen}
        outputs = _predict(denoiser, torch.cat(entering), constants, texts, dtype, view.attend, given)
        left = []
        for place, (sample, x, at) in enumerate(zip(samples, entering, constants, strict=True)):
            settings, (_, negative, depth, _, shown) = sample.settings, sample.payload
            if predicts_negative(settings, step):
                text = denoiser.conditioning.embed(settings.negative_prompt, settings.acting_adapters)
                unseen = denoiser.references.inputs([settings], [True], x)
                given = {**_given(denoiser, [settings], depth, dtype), **control(place, text), **unseen}
                away = _predict(denoiser, x, [at], text, dtype, view.beside(place).attend, given)
                negative = clean_of(denoiser, x, away, at)
            clean = guided(denoiser, settings, at, x, outputs[place : place + 1], negative)
            left.append(Carried(clean, negative, depth, x, shown))
        view.commit()
        return left

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
    same = takewhile(lambda n: settings[n].adapter_names == settings[ordinals[0]].adapter_names, ordinals)
    return sorted(same)


def _places(present: Sequence[int], start: int, frames: int) -> list[int]:
    """Whose frame takes each place of a window: the nearest earlier one's, else the next one's."""
    return [max((n for n in present if n <= at), default=present[0]) for at in range(start, start + frames)]


def _is_turn(before: Settings, after: Settings, cache: CacheSettings) -> bool:
    return bool({Rewarm.RESET, Rewarm.SHADOW} & _rules([before, after], 1, cache))


def _rules(settings: Sequence[Settings], ordinal: int, cache: CacheSettings) -> set[Rewarm]:
    """What the changes before a frame call for."""
    before, after = settings[ordinal - 1], settings[ordinal]
    changed = {cache.prompt_change} if before.style != after.style else set()
    return changed | ({cache.scene_cut} if before.scene != after.scene else set())


def _entering(denoiser: Denoiser, sample: Sample[Carried], step: int) -> Tensor:
    clean, before = sample.payload.clean, sample.payload.x
    before = clean if before is None else before
    return denoiser.schedule.noisy(clean[0], before[0], sample.settings, sample.ordinal, step)[None]


def _predict(
    denoiser: Denoiser,
    x_SCHW: Tensor,
    steps: Sequence[StepCoefficients],
    embeds_SLD: Tensor,
    dtype: torch.dtype,
    attend: TemporalAttend,
    more: Mapping[str, Any],
) -> Tensor:
    """One prediction for each of the frames, which see what `attend` shows them."""
    output: Tensor = denoiser.unet(
        x_SCHW.to(dtype),
        torch.tensor([step.timestep for step in steps], device=x_SCHW.device),
        encoder_hidden_states=embeds_SLD,
        return_dict=False,
        attend=attend,
        **more,
    )[0]
    return output.to(x_SCHW.dtype)


def _given(
    denoiser: Denoiser, settings: Sequence[Settings], depth_SCHW: Tensor | None, dtype: torch.dtype
) -> Mapping[str, Tensor]:
    """What the UNet is given beside the frames, their timesteps and their prompts."""
    adapters = denoiser.adapter_rows(settings)
    return adapters if depth_SCHW is None else {**adapters, "depth": depth_SCHW.to(dtype)}
