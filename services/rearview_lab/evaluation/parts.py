"""The parts of an evaluation, each a function from a translator to figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from rearview.contract.settings import NoiseRule, Settings
from torch import Tensor

from rearview_lab.data.photos import HELD_OUT, held_out_square
from rearview_lab.data.styles import FILTERS
from rearview_lab.evaluation.clips import Clip
from rearview_lab.evaluation.judges import Judges
from rearview_lab.evaluation.metrics import (
    Drift,
    Meter,
    Scores,
    gradient_magnitude,
    mean,
    mean_difference,
    psnr,
)
from rearview_lab.evaluation.runner import PER_FRAME, Method, Translator, as_picture

__all__ = [
    "Floor",
    "Look",
    "Run",
    "StepFigures",
    "autoencoder_figures",
    "clip_floor",
    "clip_runs",
    "drift",
    "held_out_frames",
    "held_out_outputs",
    "step_figures",
]

DRIFT_WINDOWS = ((100, 200), (900, 1000))
"""Frames that are compared: early ones with late ones."""


@dataclass(frozen=True)
class Look:
    """A style by name, and what asks for it."""

    style: str
    settings: Settings

    def under(self, noise: NoiseRule) -> Settings:
        return replace(self.settings, noise_rule=noise)


@dataclass(frozen=True)
class Floor:
    """What no translation of a clip can be asked to fall below."""

    clip: str
    source: Scores
    autoencoder: Scores
    """Of decode(encode(source))."""


@dataclass(frozen=True)
class Run:
    """One clip, translated in one way."""

    clip: str
    method: str
    noise: str
    style: str
    scores: Scores


@dataclass(frozen=True)
class StepFigures:
    """Held-out photographs in one style with a number of steps."""

    psnr_db: float | None
    """To the style's own filter; None for a style that has none."""
    input_difference: float
    gradient: float


def clip_floor(translator: Translator, clip: Clip) -> Floor:
    """The flicker of the clip itself, and after the autoencoder alone."""
    source, rebuilt = Meter(), Meter()
    for index, frame in enumerate(clip.frames):
        picture, motion = as_picture(frame), clip.motion_to(index)
        source.add(picture, picture, motion)
        rebuilt.add(picture, translator.rebuild(frame), motion)
    return Floor(clip.name, source.scores(), rebuilt.scores())


def clip_runs(
    translator: Translator,
    clip: Clip,
    method: Method,
    noise: NoiseRule,
    looks: Sequence[Look],
    judges: Judges,
) -> list[Run]:
    """A clip in all looks, by one method under one noise rule."""
    meters = [Meter() for _ in looks]
    panels = [judges.panel(look.settings.prompt) for look in looks]
    settings = [look.under(noise) for look in looks]
    for index, pictures in enumerate(translator.translate(method, settings, clip.frames)):
        source, motion = as_picture(clip.frames[index]), clip.motion_to(index)
        for meter, panel, picture in zip(meters, panels, pictures, strict=True):
            meter.add(source, picture, motion, **panel(source, picture))
    return [
        Run(clip.name, method.name, noise.name.lower(), look.style, meter.scores())
        for look, meter in zip(looks, meters, strict=True)
    ]


def drift(
    translator: Translator,
    loop: Clip,
    method: Method,
    looks: Sequence[Look],
    windows: Sequence[tuple[int, int]] = DRIFT_WINDOWS,
) -> dict[str, Drift]:
    """Per style: the last of two windows of a looping clip against the first, under fixed noise.

    The loop's period must divide the windows' bounds, so that both see the same frames.
    """
    assert all(bound % len(loop.frames) == 0 for window in windows for bound in window), "period"
    clip = loop.repeated(windows[-1][1])
    meters = [(Meter(), Meter()) for _ in looks]
    settings = [look.under(NoiseRule.FIXED) for look in looks]
    for index, pictures in enumerate(translator.translate(method, settings, clip.frames)):
        for window, (first, last) in enumerate(windows):
            if first <= index < last:
                source, motion = as_picture(clip.frames[index]), clip.motion_to(index)
                for pair, picture in zip(meters, pictures, strict=True):
                    pair[window].add(source, picture, motion)
    return {
        look.style: Drift(early.scores(), late.scores())
        for look, (early, late) in zip(looks, meters, strict=True)
    }


def autoencoder_figures(translator: Translator, size: int) -> dict[str, float]:
    """PSNR in dB of decode(encode(picture)), by held-out photograph."""
    frames = held_out_frames(size)
    return {name: psnr(translator.rebuild(frame), as_picture(frame)) for name, frame in frames.items()}


def held_out_frames(size: int) -> dict[str, Tensor]:
    """Photographs that no training saw, (size, size, 3) uint8, by name."""
    return {photo.name: torch.from_numpy(held_out_square(photo.name, size)) for photo in HELD_OUT}


def held_out_outputs(
    translator: Translator, frames: Sequence[Tensor], looks: Sequence[Look]
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Each frame with its pictures in all looks; per frame, so that no frame sees another."""
    settings = [look.settings for look in looks]
    return zip(frames, translator.translate(PER_FRAME, settings, frames), strict=True)


def step_figures(
    translator: Translator, size: int, looks: Sequence[Look], numbers: Sequence[int]
) -> dict[str, dict[int, StepFigures]]:
    """Per style and number of steps: more steps may not look worse than fewer."""
    frames = list(held_out_frames(size).values())
    found: dict[str, dict[int, StepFigures]] = {look.style: {} for look in looks}
    for number in numbers:
        stepped = [replace(look, settings=replace(look.settings, steps=number)) for look in looks]
        outputs = list(held_out_outputs(translator, frames, stepped))
        for position, look in enumerate(looks):
            pairs = [(frame, pictures[position]) for frame, pictures in outputs]
            found[look.style][number] = _step_figures(look.style, pairs)
    return found


def _step_figures(style: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> StepFigures:
    to_filter = None
    if style in FILTERS:
        targets = [as_picture(torch.from_numpy(FILTERS[style](frame.numpy()))) for frame, _ in pairs]
        to_filter = mean(psnr(picture, target) for (_, picture), target in zip(pairs, targets, strict=True))
    return StepFigures(
        to_filter,
        mean(mean_difference(picture, as_picture(frame)) for frame, picture in pairs),
        mean(gradient_magnitude(picture) for _, picture in pairs),
    )
