"""How much the output flickers on the sample clip, whose camera motion is known exactly.

The measure is the warp error: mean absolute difference (0..1) between a frame and the frame before, moved
by the known motion. The source has a small warp error of its own, from resampling and video compression.
"""

from __future__ import annotations

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rearview.samples import sample_clip_path, sample_flow
from rearview.training.export import Pocket
from rearview.training.photos import Image
from rearview.training.prompts import canonical_prompt
from rearview.training.sampling import Noise, stylise
from rearview.training.sheets import Setting, to_image, to_tensor

_MARGIN = 16  # pixels left out at the border
_RUNS = ((30, 38), (150, 158))  # frames measured: one run over each photograph
_SEED = 7


def warp_error(before: Image, after: Image, affine: NDArray[np.float64]) -> float:
    """Mean difference of ``after`` to ``before`` moved by the map from after's pixels to before's."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(before, affine, (after.shape[1], after.shape[0]), flags=flags)
    inner = slice(_MARGIN, -_MARGIN)
    return float(np.abs(moved[inner, inner].astype(float) - after[inner, inner]).mean() / 255)


def flicker_figures(pocket: Pocket, styles: tuple[str, ...], setting: Setting) -> dict[str, dict[str, float]]:
    """Warp error by kind of noise and by style, beside that of the source and of the autoencoder alone."""
    frames = _frames()
    source = {index: torch.cat([to_tensor(frame) for frame in run]) for index, run in frames.items()}
    autoencoder = {index: _rebuild(pocket, run) for index, run in source.items()}
    figures = {"": {"source": _mean(frames), "autoencoder": _mean(autoencoder)}}
    for kind in ("fixed noise", "fresh noise"):
        figures[kind] = {}
        for style in styles:
            output = {index: _run(pocket, run, style, setting, kind) for index, run in source.items()}
            figures[kind][style] = _mean(output)
    return figures


def _frames() -> dict[int, list[Image]]:
    with av.open(str(sample_clip_path())) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return {first: every[first:last] for first, last in _RUNS}


def _run(pocket: Pocket, frames: Tensor, style: str, setting: Setting, kind: str) -> list[Image]:
    outputs = []
    for number, frame in enumerate(frames):
        seed = _SEED if kind == "fixed noise" else _SEED + number
        noise = Noise.seeded(frame.shape[-1], setting.num_steps, seed)
        prompts = [canonical_prompt(style)]
        output = stylise(
            pocket, frame[None], prompts, noise=noise, strength=setting.strength, num_steps=setting.num_steps
        )
        outputs.append(to_image(output[0]))
    return outputs


@torch.no_grad()
def _rebuild(pocket: Pocket, frames: Tensor) -> list[Image]:
    return [to_image(pocket.vae.decode(pocket.vae.encode(frame[None]).latents).sample[0]) for frame in frames]


def _mean(runs: dict[int, list[Image]]) -> float:
    """Mean warp error over all neighbouring frames of all runs."""
    flow = sample_flow()
    errors = [
        warp_error(run[i], run[i + 1], flow[first + i])
        for first, run in runs.items()
        for i in range(len(run) - 1)
    ]
    return round(float(np.mean(errors)), 4)
