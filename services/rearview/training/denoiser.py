"""Training of the denoiser and the text encoder, later jointly with the decoder.

Each step runs the loop the product runs: a first prediction from the noisy natural latent, then, from the
model's own output, a second prediction at a smaller timestep (for some batches with a third one between
them). Both must equal the styled latent. From ``JOINT_FROM`` of the budget on, the second prediction is
also decoded and compared as a picture, with gradient into denoiser and decoder; the encoder never moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rearview.training.budget import Average, Budget, load_if_present, relative_rate, save_atomically
from rearview.training.dataset import Dataset
from rearview.training.export import Pocket
from rearview.training.losses import picture_loss
from rearview.training.model import LATENT_STD, build_text_encoder, build_unet, noise_levels
from rearview.training.muon import Muon
from rearview.training.prompts import sample_prompt
from rearview.training.sampling import FIRST_TIMESTEP, GRID, STRIDE, encode_prompts
from rearview.training.styles import SLOW_STYLES, STYLES
from rearview.training.threads import ThreadChoice
from rearview.training.vocabulary import build_tokenizer

PEAK_RATE = 2e-3
DECODER_PEAK_RATE = 6e-4
AVERAGE_DECAY = 0.995
JOINT_FROM = 0.3  # share of the budget after which pixel loss sets in
PIXEL_WEIGHT = 1.5
_FIRST_K = (10, 46)  # range of grid indices of the first prediction: t = 799..99
_USUAL_K = (20, 41)  # half of the rows: t = 599..199
_SHARE_MIDPOINT, _SHARE_TEACHER, _SHARE_THREE = 0.6, 0.2, 0.35
_SLOW_WEIGHT = 1.6
_ROWS_PER_SCENE = 2
_REBUILT_ROWS = 3  # decoder-only rows that keep plain reconstruction honest


@dataclass
class Batch:
    """Latents at diffusion scale and styled pictures of one step; rows of one scene are neighbours."""

    natural: Tensor  # (row, channel, height, width)
    styled: Tensor
    picture: Tensor  # (row, 3, height, width), the styled pictures
    prompts: list[str]


class Students(nn.Module):
    """What is trained: denoiser, text encoder and decoder, in one module so that one average covers them."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self.unet = build_unet()
        self.text_encoder = build_text_encoder(len(self.tokenizer), start=start, end=end)
        self.vae = vae
        # Predictions are several times larger than unit noise (see LATENT_STD); start near that size.
        self.unet.conv_out.weight.data.mul_(4)
        self.unet.conv_norm_out.weight.data.fill_(2)

    def context(self, prompts: list[str]) -> Tensor:
        return encode_prompts(self.tokenizer, self.text_encoder, prompts)

    def pocket(self) -> Pocket:
        return Pocket(self.vae, self.unet, self.text_encoder, self.tokenizer)


def train_denoiser(
    data: Dataset,
    vae: AutoencoderTiny,
    path: Path,
    *,
    minutes: float,
    device: torch.device,
    seed: int,
    num_scenes: int = 6,
    on_save: Callable[[Pocket, int, float], None] = lambda pocket, step, fraction: None,
) -> Pocket:
    """Train for the minutes given, resuming from ``path``; ``on_save`` gets the averaged model."""
    torch.manual_seed(seed + 1)
    students = Students(vae).to(device)
    students.vae.encoder.requires_grad_(False)
    students.vae.decoder.requires_grad_(True)
    optimiser = Muon([students.unet], [students.text_encoder])
    decoder_optimiser = Muon([students.vae.decoder], adam_lr=3e-4)
    saved = load_if_present(path, device)
    step, spent_s = 0, 0.0
    if saved is not None:
        students.load_state_dict(saved["live"])
        optimiser.load_state_dict(saved["optimiser"])
        decoder_optimiser.load_state_dict(saved["decoder_optimiser"])
        step, spent_s = saved["step"], saved["spent_s"]
    average = Average(students, AVERAGE_DECAY)
    if saved is not None:
        average.module.load_state_dict(saved["average"])
    budget = Budget(minutes, spent_s=spent_s)
    finished_before = budget.over
    rng = np.random.default_rng([seed, 2, step])
    levels = noise_levels(device)
    averaged: Any = average.module
    recent: list[dict[str, float]] = []

    def save() -> None:
        state = {"live": students.state_dict(), "average": average.module.state_dict(), "step": step}
        state |= {"optimiser": optimiser.state_dict(), "decoder_optimiser": decoder_optimiser.state_dict()}
        save_atomically(state | {"spent_s": budget.spent_s}, path)
        on_save(averaged.pocket(), step, budget.fraction)

    threads = ThreadChoice(torch.get_num_threads())
    while not budget.over:
        threads.tick()
        joint = budget.fraction > JOINT_FROM
        batch = _batch(data, students.vae, rng, num_scenes, device)
        loss, parts = _loss(students, batch, levels, rng, joint=joint)
        loss.backward()
        rate = relative_rate(step, budget.fraction)
        optimiser.step(PEAK_RATE, relative=rate)
        if joint:
            decoder_optimiser.step(DECODER_PEAK_RATE, relative=rate)
        average.update(students, step)
        step += 1
        recent.append(parts)
        if step % 25 == 0:
            names = recent[-1].keys()
            means = {name: np.mean([row[name] for row in recent if name in row]) for name in names}
            figures = " ".join(f"{name} {mean:.3f}" for name, mean in means.items())
            print(
                f"unet: step {step}, {budget.fraction:.0%}, {figures}, threads {torch.get_num_threads()}",
                flush=True,
            )
            recent.clear()
        if budget.save_due():
            save()
    if not finished_before:
        save()
    pocket: Pocket = averaged.pocket()
    return pocket


def style_weights() -> NDArray[np.float64]:
    """How often each style is drawn: those learned last come more often."""
    weights = np.array([_SLOW_WEIGHT if style in SLOW_STYLES else 1.0 for style in STYLES])
    return np.asarray(weights / weights.sum(), dtype=np.float64)


@torch.no_grad()
def _batch(
    data: Dataset, vae: AutoencoderTiny, rng: np.random.Generator, num_scenes: int, device: torch.device
) -> Batch:
    scenes = rng.integers(len(data), size=num_scenes)
    weights = style_weights()
    drawn = [rng.choice(len(STYLES), _ROWS_PER_SCENE, replace=False, p=weights) for _ in scenes]
    styles = np.concatenate(drawn)
    source = data.pictures(scenes, np.zeros_like(scenes), device)
    picture = data.pictures(np.repeat(scenes, _ROWS_PER_SCENE), styles, device)
    pictures = torch.cat([source, picture]).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        latent = vae.encode(pictures).latents
    latent = latent.float().contiguous() * LATENT_STD
    natural = latent[:num_scenes].repeat_interleave(_ROWS_PER_SCENE, dim=0)
    prompts = [sample_prompt(rng, STYLES[style]) for style in styles]
    return Batch(natural, latent[num_scenes:], picture, prompts)


def draw_steps(rng: np.random.Generator, num_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Grid indices of both predictions of each row; most pairs are those of a two-step session."""
    usual = rng.random(num_rows) < 0.5
    first = np.where(usual, rng.integers(*_USUAL_K, num_rows), rng.integers(*_FIRST_K, num_rows))
    middle = (first + GRID) // 2
    free = first + 1 + np.floor(rng.random(num_rows) * (GRID - 2 - first)).astype(np.int64)
    second = np.where(rng.random(num_rows) < _SHARE_MIDPOINT, middle, free)
    return first, np.minimum(second, GRID - 2)


def _loss(
    students: Students, batch: Batch, levels: tuple[Tensor, Tensor], rng: np.random.Generator, *, joint: bool
) -> tuple[Tensor, dict[str, float]]:
    context = students.context(batch.prompts)
    num_rows = len(batch.prompts)
    first_k, second_k = draw_steps(rng, num_rows)
    first = _predict(students.unet, batch.natural, first_k, context, levels)
    teacher = torch.from_numpy(rng.random(num_rows) < _SHARE_TEACHER).to(first.device)
    given = torch.where(teacher[:, None, None, None], batch.styled, first.detach())
    if rng.random() < _SHARE_THREE:
        with torch.no_grad():
            given = _predict(students.unet, given, (first_k + second_k) // 2, context, levels)
    second = _predict(students.unet, given, second_k, context, levels)
    first_loss, second_loss = (
        F.smooth_l1_loss(guess / LATENT_STD, batch.styled / LATENT_STD, beta=0.2) for guess in (first, second)
    )
    loss = first_loss + second_loss
    parts = {"first": first_loss, "second": second_loss}
    if joint:
        pixel = _pixel_loss(students.vae, second, batch)
        loss = loss + PIXEL_WEIGHT * pixel
        parts["pixel"] = pixel
    return loss, {name: float(value.detach()) for name, value in parts.items()}


def _predict(
    unet: nn.Module, clean: Tensor, k: NDArray[np.int64], context: Tensor, levels: tuple[Tensor, Tensor]
) -> Tensor:
    """Noise a latent to the timestep of each row and predict it clean again."""
    t = torch.from_numpy(FIRST_TIMESTEP - STRIDE * k).to(clean.device)
    alpha, beta = (level[t][:, None, None, None] for level in levels)
    latent = alpha * clean + beta * torch.randn_like(clean)
    predicted: Tensor = unet(latent, t, context).sample
    return (latent - beta * predicted) / alpha


def _pixel_loss(vae: AutoencoderTiny, second: Tensor, batch: Batch) -> Tensor:
    """Decode the prediction, and a few slightly noisy styled latents; compare with the styled pictures."""
    styled = batch.styled[:_REBUILT_ROWS]
    styled = styled + 0.15 * LATENT_STD * torch.rand(()) * torch.randn_like(styled)
    latent = torch.cat([second, styled]).contiguous(memory_format=torch.channels_last) / LATENT_STD
    with torch.autocast(latent.device.type, dtype=torch.bfloat16):
        output = vae.decode(latent).sample
    target = torch.cat([batch.picture, batch.picture[:_REBUILT_ROWS]])
    return picture_loss(output.float(), target.contiguous(memory_format=torch.channels_last))
