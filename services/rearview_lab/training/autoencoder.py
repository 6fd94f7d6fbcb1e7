"""Training of the autoencoder.

Every batch holds pairs of crops of one picture, shifted by a few pixels: both are reconstructed, and the
two outputs must agree where they overlap, which keeps the output steady under camera motion. Some rows
decode the partner's latent, resampled by the sub-latent shift, instead of their own. The decoder mostly
sees noisy latents, because the denoiser will hand it imperfect ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rearview_lab.data.dataset import Dataset
from rearview_lab.data.photos import HELD_OUT, held_out_square
from rearview_lab.data.scenes import SCENE_SIZE
from rearview_lab.data.styles import FILTERS, STYLES
from rearview_lab.training.budget import (
    Average,
    Budget,
    Journal,
    load_if_present,
    relative_rate,
    save_atomically,
)
from rearview_lab.training.losses import colour_loss, picture_loss, psnr
from rearview_lab.training.model import LATENT_CHANNELS, REDUCTION, build_vae
from rearview_lab.training.muon import Muon
from rearview_lab.training.precision import mixed_precision
from rearview_lab.training.threads import ThreadChoice

CROP = 112  # pixels; both crops of a pair lie inside one scene
NUM_PAIRS = 5  # of a step, times `batch`
PEAK_RATE = 2e-3
AVERAGE_DECAY = 0.997
MAX_LATENT_NOISE = 0.4  # of the latent's deviation
FOLD_AT = 0.6  # share of the budget after which channel statistics are folded for the first time
_SHARE_NATURAL, _SHARE_NOISY, _SHARE_RESAMPLED = 0.5, 0.5, 0.15
_PIXEL_ART = STYLES.index("pixel-art")


@dataclass(frozen=True)
class Goal:
    """What a run over the autoencoder is after."""

    squared_weight: float = 6.0
    """Of the mean squared error, which is what PSNR counts."""
    steady_weight: float = 0.4
    """Of the difference of two outputs where they overlap: the floor of all flicker."""
    peak_rate: float = PEAK_RATE
    calm: bool = False
    """Whether latents are disturbed as little all the time as else at the end of a schedule."""


FIRST_GOAL = Goal()
POLISH = Goal(squared_weight=100.0, steady_weight=4.0, peak_rate=8e-4, calm=True)
"""A second schedule over a trained autoencoder, for fidelity and steadiness."""


def train_autoencoder(
    data: Dataset,
    path: Path,
    *,
    minutes: float,
    device: torch.device,
    seed: int,
    batch: int = 1,
    goal: Goal = FIRST_GOAL,
    start: AutoencoderTiny | None = None,
) -> AutoencoderTiny:
    """Train for the minutes given, resuming from ``path``; return the averaged model, statistics folded.

    `start`: weights to begin with instead of fresh ones. `batch`: so many times NUM_PAIRS a step.
    """
    torch.manual_seed(seed)
    vae = build_vae().to(device).to(memory_format=torch.channels_last)
    if start is not None:
        vae.load_state_dict(start.state_dict())
    optimiser = Muon([vae])
    saved = load_if_present(path, device)
    step, folded, spent_s = 0, False, 0.0
    if saved is not None:
        vae.load_state_dict(saved["live"])
        optimiser.load_state_dict(saved["optimiser"])
        step, folded, spent_s = saved["step"], saved["folded"], saved["spent_s"]
    average = Average(vae, AVERAGE_DECAY, saved)
    budget = Budget(minutes, spent_s=spent_s)
    journal = Journal("vae", every=100)
    finished_before = budget.over
    rng = np.random.default_rng([seed, 1, step])

    def save() -> None:
        live, mean = vae.state_dict(), average.module.state_dict()
        state = {"live": live, "average": mean, "optimiser": optimiser.state_dict(), "step": step}
        save_atomically(state | {"folded": folded, "spent_s": budget.spent_s}, path)

    threads = ThreadChoice(torch.get_num_threads())
    while not budget.over:
        threads.tick()
        noise = noise_share(step, 1.0 if goal.calm else budget.fraction)
        pairs = _pairs(data, rng, NUM_PAIRS * batch, device)
        loss, parts = _loss(vae, *pairs, noise=noise, goal=goal)
        loss.backward()
        optimiser.step(goal.peak_rate, relative=relative_rate(step, budget.fraction))
        average.update(vae, step)
        step += 1
        journal.add(step, budget.fraction, parts)
        if not folded and budget.fraction > FOLD_AT:
            fold_statistics(data, average.module, (vae,), device)
            folded = True
        if budget.save_due():
            save()
            print(f"vae: step {step}, psnr {held_out_psnr(average.module, device)}", flush=True)
    if not finished_before:
        fold_statistics(data, average.module, (vae,), device)
        save()
    return average.module


def noise_share(step: int, fraction: float) -> float:
    """How strongly latents are disturbed: a ramp at the start, and less towards the end, for sharpness."""
    return min(1.0, step / 500) * (1 - 0.8 * max(0.0, fraction - FOLD_AT) / (1 - FOLD_AT))


def _pairs(
    data: Dataset, rng: np.random.Generator, num_pairs: int, device: torch.device
) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Two crops of the same pictures and the shift of the second in pixels, ``(pair, 2)`` as (x, y)."""
    scenes = rng.integers(len(data), size=num_pairs)
    styles = np.where(rng.random(num_pairs) < _SHARE_NATURAL, 0, rng.integers(1, len(STYLES), num_pairs))
    pictures = data.pictures(scenes, styles, device)
    room = SCENE_SIZE - CROP
    corner = rng.integers(0, room + 1, (num_pairs, 2))
    shift = np.clip(corner + rng.integers(-7, 8, (num_pairs, 2)), 0, room) - corner
    tiled = styles == _PIXEL_ART  # its tiles lie on the latent grid
    corner[tiled] = corner[tiled] // REDUCTION * REDUCTION
    shift[tiled] = 0
    first = [pictures[i, :, y : y + CROP, x : x + CROP] for i, (x, y) in enumerate(corner)]
    second = [pictures[i, :, y : y + CROP, x : x + CROP] for i, (x, y) in enumerate(corner + shift)]
    return torch.stack(first), torch.stack(second), shift


def _loss(
    vae: AutoencoderTiny,
    first: Tensor,
    second: Tensor,
    shift: NDArray[np.int64],
    *,
    noise: float,
    goal: Goal,
) -> tuple[Tensor, dict[str, float]]:
    num_pairs = first.shape[0]
    picture = torch.cat([first, second]).contiguous(memory_format=torch.channels_last)
    with mixed_precision(picture.device):
        latent = vae.encode(picture).latents.float()
        moved = _resample(latent[:num_pairs], torch.from_numpy(shift).to(latent) / REDUCTION)
        own = torch.rand(num_pairs, 1, 1, 1, device=latent.device) > _SHARE_RESAMPLED * noise
        given = torch.cat([latent[:num_pairs], torch.where(own, latent[num_pairs:], moved)])
        deviation = latent.detach().std(dim=(0, 2, 3), keepdim=True)
        rows = given.shape[0]
        amount = torch.rand(rows, 1, 1, 1, device=latent.device) * MAX_LATENT_NOISE * noise
        amount = amount * (torch.rand(rows, 1, 1, 1, device=latent.device) < _SHARE_NOISY)
        output = vae.decode(given + amount * deviation * torch.randn_like(given)).sample
    output = output.float()
    mean, spread = latent.mean(dim=(0, 2, 3)), latent.std(dim=(0, 2, 3))
    prior = mean.square().mean() + 2 * (spread + 1e-5).log().square().mean()
    rebuilt, colour = picture_loss(output, picture), colour_loss(output, picture)
    steady = _overlap_difference(output[:num_pairs], output[num_pairs:], shift)
    squared = (output - picture).square().mean()
    loss = rebuilt + goal.squared_weight * squared + colour + 0.02 * prior + goal.steady_weight * steady
    parts = {"picture": rebuilt, "squared": squared, "colour": colour, "prior": prior, "steady": steady}
    return loss, {name: float(value.detach()) for name, value in parts.items()}


def _resample(latent_BCHW: Tensor, shift_B2: Tensor) -> Tensor:
    """Latents seen from a crop that lies ``shift`` latents further right and down."""
    rows, _, height, width = latent_BCHW.shape
    theta = torch.zeros(rows, 2, 3, device=latent_BCHW.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, 0, 2], theta[:, 1, 2] = shift_B2[:, 0] * 2 / width, shift_B2[:, 1] * 2 / height
    with torch.autocast(latent_BCHW.device.type, enabled=False):
        grid = F.affine_grid(theta, list(latent_BCHW.shape), align_corners=False)
        return F.grid_sample(latent_BCHW, grid, padding_mode="border", align_corners=False)


def _overlap_difference(first: Tensor, second: Tensor, shift: NDArray[np.int64], margin: int = 8) -> Tensor:
    """Mean difference of two outputs where the pictures they show overlap."""
    total = first.new_zeros(())
    for i, (x, y) in enumerate(shift.tolist()):
        width, height = CROP - abs(x), CROP - abs(y)
        a = first[i, :, max(y, 0) : max(y, 0) + height, max(x, 0) : max(x, 0) + width]
        b = second[i, :, max(-y, 0) : max(-y, 0) + height, max(-x, 0) : max(-x, 0) + width]
        total = total + (a - b)[:, margin:-margin, margin:-margin].abs().mean()
    return total / len(shift)


@torch.no_grad()
def fold_statistics(
    data: Dataset, model: AutoencoderTiny, others: tuple[AutoencoderTiny, ...], device: torch.device
) -> None:
    """Give every latent channel zero mean and unit deviation by rescaling the layers around it.

    Statistics come from ``model``; ``others`` are rescaled alike. The decoder's input squashing sits
    between the two layers, so the fold is exact only up to that; a first fold before the end of training
    lets the weights settle.
    """
    rng = np.random.default_rng(0)
    total, square, count = torch.zeros(LATENT_CHANNELS), torch.zeros(LATENT_CHANNELS), 0
    for _ in range(24):
        styles = np.where(rng.random(16) < _SHARE_NATURAL, 0, rng.integers(1, len(STYLES), 16))
        latent = (
            model.encode(data.pictures(rng.integers(len(data), size=16), styles, device))
            .latents.float()
            .cpu()
        )
        total += latent.mean(dim=(0, 2, 3))
        square += latent.square().mean(dim=(0, 2, 3))
        count += 1
    mean = (total / count).to(device)
    spread = ((square / count).to(device) - mean.square()).sqrt()
    for target in (model, *others):
        last: Any = target.encoder.layers[-1]
        entry: Any = target.decoder.layers[0]
        last.weight.div_(spread[:, None, None, None])
        last.bias.copy_((last.bias - mean) / spread)
        entry.bias.add_((entry.weight * mean[None, :, None, None]).sum(dim=(1, 2, 3)))
        entry.weight.mul_(spread[None, :, None, None])
    low, high = float(spread.min()), float(spread.max())
    print(
        f"vae: folded channel means up to {float(mean.abs().max()):.2f}, deviations {low:.2f} to {high:.2f}",
        flush=True,
    )


@torch.no_grad()
def held_out_psnr(vae: AutoencoderTiny, device: torch.device) -> dict[str, float]:
    """Reconstruction of the held-out photographs and a few of their styled versions, in dB."""
    figures = {}
    for photo in HELD_OUT:
        for style in ("natural", "pencil", "neon", "cartoon"):
            picture = FILTERS[style](held_out_square(photo.name))
            target = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
            rebuilt = vae.decode(vae.encode(target).latents).sample
            figures[f"{photo.name} {style}"] = round(psnr(rebuilt, target), 2)
    return figures
