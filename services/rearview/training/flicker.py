"""How much the output flickers on the sample clip, whose camera motion is known exactly.

The measure is the warp error: mean absolute difference (0..1) between a frame and the frame before, moved
by the known motion. The source has a small warp error of its own, from resampling and video compression,
and the autoencoder adds its own. Beside it stand the difference from the source and the mean gradient, so
that blur cannot pass for steadiness. A bank is run as in training: a whole run of frames in one forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rearview.engine.attention.processors import install_processors
from rearview.samples import sample_clip_path, sample_flow
from rearview.training.clip_memory import ClipMemory
from rearview.training.export import Pocket
from rearview.training.photos import Image
from rearview.training.prompts import canonical_prompt
from rearview.training.sampling import Noise, stylise
from rearview.training.sheets import Setting, to_image, to_tensor

FIXED, FRESH, BANK = "fixed noise", "fresh noise", ", bank"
_MARGIN = 16  # pixels left out at the border
_RUNS = ((30, 38), (150, 158))  # frames measured: one run over each photograph
_SEED = 7

Runs = dict[int, list[Image]]  # number of the first frame, frames


@dataclass(frozen=True)
class Flicker:
    """One way of translating, in one style; mean over the runs."""

    warp: float
    """Warp error."""
    difference: float
    """From the source, mean absolute, 0..1."""
    gradient: float
    """Mean absolute difference of neighbouring pixels."""


def warp_error(before: Image, after: Image, affine: NDArray[np.float64]) -> float:
    """Mean difference of ``after`` to ``before`` moved by the map from after's pixels to before's."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(before, affine, (after.shape[1], after.shape[0]), flags=flags)
    inner = slice(_MARGIN, -_MARGIN)
    return float(np.abs(moved[inner, inner].astype(float) - after[inner, inner]).mean() / 255)


def flicker_figures(
    pocket: Pocket, styles: tuple[str, ...], setting: Setting
) -> dict[str, dict[str, Flicker]]:
    """By way of translating and style; under the empty name the source and the autoencoder alone."""
    install_processors(pocket.unet)
    frames = _frames()
    rebuilt = {first: _rebuild(pocket, run) for first, run in frames.items()}
    figures = {"": {"source": _flicker(frames, frames), "autoencoder": _flicker(rebuilt, frames)}}
    for kind in (FIXED, FIXED + BANK, FRESH, FRESH + BANK):
        figures[kind] = {}
        for style in styles:
            output = {first: _run(pocket, run, style, setting, kind) for first, run in frames.items()}
            figures[kind][style] = _flicker(output, frames)
    return figures


def _frames() -> Runs:
    with av.open(str(sample_clip_path())) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return {first: every[first:last] for first, last in _RUNS}


def _run(pocket: Pocket, run: list[Image], style: str, setting: Setting, kind: str) -> list[Image]:
    size, steps, rows = run[0].shape[0], setting.num_steps, len(run)
    fresh = kind.startswith(FRESH)
    noise = Noise.fresh(size, steps, _SEED, rows) if fresh else Noise.seeded(size, steps, _SEED)
    memory = ClipMemory(torch.ones(1, dtype=torch.bool), rows) if kind.endswith(BANK) else None
    output = stylise(
        pocket,
        _tensor(run),
        [canonical_prompt(style)] * rows,
        noise=noise,
        strength=setting.strength,
        num_steps=steps,
        memory=memory,
    )
    return [to_image(row) for row in output]


@torch.no_grad()
def _rebuild(pocket: Pocket, run: list[Image]) -> list[Image]:
    return [to_image(row) for row in pocket.vae.decode(pocket.vae.encode(_tensor(run)).latents).sample]


def _tensor(run: list[Image]) -> Tensor:
    return torch.cat([to_tensor(frame) for frame in run])


def _flicker(runs: Runs, source: Runs) -> Flicker:
    flow = sample_flow()
    warps = [
        warp_error(run[i], run[i + 1], flow[first + i])
        for first, run in runs.items()
        for i in range(len(run) - 1)
    ]
    outputs = np.stack([frame for run in runs.values() for frame in run]).astype(np.float64) / 255
    inputs = np.stack([frame for run in source.values() for frame in run]).astype(np.float64) / 255
    gradient = np.abs(np.diff(outputs, axis=1)).mean() + np.abs(np.diff(outputs, axis=2)).mean()
    return Flicker(float(np.mean(warps)), float(np.abs(outputs - inputs).mean()), float(gradient))
