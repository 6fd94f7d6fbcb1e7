"""Training of the denoiser and the text encoder on clips, later jointly with the decoder.

Each step runs the loop the product runs: a first prediction from the noisy natural latent, then, from the
model's own output, a last prediction at a smaller timestep, often with others between them. Both must equal
the styled latent. Most clips run with a feature bank per denoising step, and for those the error must also
move with the picture: what flickers costs, blur does not help. What the bank can steady is what attention
finds in it again, which is taught by itself (`correspondence.py`). Some clips have new noise in every frame,
the others the noise of a session with fixed noise. From ``JOINT_FROM`` of the budget on, the last
prediction is also decoded and compared as a picture, with gradient into denoiser and decoder; the encoder
never moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from rearview.engine.networks.attention.processors import install_processors
from torch import Tensor, nn
from torch.nn import functional as F

from rearview_lab.data.clips import Clips, make_clips, unsteadiness
from rearview_lab.data.dataset import Dataset
from rearview_lab.data.prompts import sample_prompt
from rearview_lab.data.styles import SHARES, STYLES
from rearview_lab.training.budget import (
    Average,
    Budget,
    Journal,
    load_if_present,
    relative_rate,
    save_atomically,
)
from rearview_lab.training.clip_memory import MAX_FRAMES, ClipMemory
from rearview_lab.training.correspondence import Correspondence
from rearview_lab.training.export import Pocket
from rearview_lab.training.losses import colour_loss, contrast_loss, mark_loss, picture_loss
from rearview_lab.training.model import LATENT_STD, build_text_encoder, build_unet, noise_levels
from rearview_lab.training.muon import Muon
from rearview_lab.training.precision import mixed_precision
from rearview_lab.training.sampling import FIRST_TIMESTEP, GRID, STRIDE, encode_prompts
from rearview_lab.training.threads import ThreadChoice
from rearview_lab.training.vocabulary import build_tokenizer

PEAK_RATE = 2e-3
DECODER_PEAK_RATE = 6e-4
AVERAGE_DECAY = 0.995
LONG_CLIPS_FROM = 0.15  # share of the budget after which clips have LONG frames instead of SHORT
SHORT, LONG = 2, 5  # frames
NUM_ROWS = 25  # frames of a step, times `batch`
JOINT_FROM = 0.15  # share of the budget after which pixel loss sets in
PIXEL_WEIGHT = 1.5
COLOUR_WEIGHT = 1.0
CONTRAST_WEIGHT = 7.0  # inside the pixel loss
MARK_WEIGHT = 8.0  # inside the pixel loss, where it pulls as hard as the pixels do
REBUILT_WEIGHT = 40.0  # of the mean squared error of plain reconstruction
STEADY_LATENT_WEIGHT, STEADY_PIXEL_WEIGHT = 0.8, 18.0
MATCH_WEIGHT = 0.05  # of a nat
QUERY_GAIN = 2.0
_FIRST_K = (10, 46)  # range of grid indices of the first prediction: t = 799..99
_USUAL_K = (20, 41)  # half of the clips: t = 599..199
_SHARE_MIDPOINT, _SHARE_TEACHER = 0.6, 0.15
_BETWEEN = (0.4, 0.3, 0.3)  # shares of roll-outs with 0, 1 and 2 predictions between first and last
_SHARE_BANK, _SHARE_FRESH = 0.75, 0.6
_REBUILT_ROWS = 6  # decoder-only rows that keep plain reconstruction honest


@dataclass
class Batch:
    """Latents at diffusion scale and pictures of one step; the frames of one clip are neighbouring rows."""

    natural: Tensor  # (row, channel, height, width)
    styled: Tensor
    clips: Clips
    prompts: list[str]  # one per clip


class Students(nn.Module):
    """What is trained: denoiser, text encoder and decoder, in one module so that one average covers them."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self.unet = build_unet()
        install_processors(self.unet)
        self.text_encoder = build_text_encoder(len(self.tokenizer), start=start, end=end)
        self.vae = vae
        # Predictions are several times larger than unit noise (see LATENT_STD); start near that size.
        self.unet.conv_out.weight.data.mul_(4)
        self.unet.conv_norm_out.weight.data.fill_(2)
        match_keys(self.unet)

    def context(self, prompts: list[str]) -> Tensor:
        return encode_prompts(self.tokenizer, self.text_encoder, prompts)

    def pocket(self) -> Pocket:
        return Pocket(self.vae, self.unet, self.text_encoder, self.tokenizer)


@torch.no_grad()
def match_keys(unet: nn.Module, gain: float = QUERY_GAIN) -> None:
    """Start self-attention as attention to what looks alike: keys equal queries, both enlarged.

    With the usual start it stays a soft global mean, to which a second frame adds nothing.
    """
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            attention: Any = module
            attention.to_q.weight.mul_(gain)
            attention.to_k.weight.copy_(attention.to_q.weight)


def new_students(vae: AutoencoderTiny, device: torch.device, start: Pocket | None = None) -> Students:
    """Random or earlier weights beside a trained autoencoder: its decoder learns on, its encoder does not."""
    students = Students(vae)
    students.vae.encoder.requires_grad_(False)
    students.vae.decoder.requires_grad_(True)
    if start is not None:
        students.unet.load_state_dict(start.unet.state_dict())
        students.text_encoder.load_state_dict(start.text_encoder.state_dict())
    return students.to(device)


def train_denoiser(
    data: Dataset,
    vae: AutoencoderTiny,
    path: Path,
    *,
    minutes: float,
    device: torch.device,
    seed: int,
    batch: int = 1,
    start: Pocket | None = None,
    on_save: Callable[[Pocket, int, float], None] = lambda pocket, step, fraction: None,
) -> Pocket:
    """Train for the minutes given, resuming from ``path``; ``on_save`` gets the averaged model.

    `batch`: so many times NUM_ROWS frames a step. `start`: what denoiser and text encoder begin as.
    """
    torch.manual_seed(seed + 1)
    saved = load_if_present(path, device)
    students = new_students(vae, device, start if saved is None else None)
    optimiser = Muon([students.unet], [students.text_encoder])
    decoder_optimiser = Muon([students.vae.decoder], adam_lr=3e-4)
    step, spent_s = 0, 0.0
    if saved is not None:
        students.load_state_dict(saved["live"])
        optimiser.load_state_dict(saved["optimiser"])
        decoder_optimiser.load_state_dict(saved["decoder_optimiser"])
        step, spent_s = saved["step"], saved["spent_s"]
    average = Average(students, AVERAGE_DECAY, saved)
    averaged: Any = average.module
    budget, journal = Budget(minutes, spent_s=spent_s), Journal("unet")
    finished_before = budget.over
    rng, levels = np.random.default_rng([seed, 2, step]), noise_levels(device)
    correspondence = Correspondence(students.unet, max_frames=MAX_FRAMES)

    def save() -> None:
        state = {"live": students.state_dict(), "average": average.module.state_dict(), "step": step}
        state |= {"optimiser": optimiser.state_dict(), "decoder_optimiser": decoder_optimiser.state_dict()}
        save_atomically(state | {"spent_s": budget.spent_s}, path)
        on_save(averaged.pocket(), step, budget.fraction)

    threads = ThreadChoice(torch.get_num_threads())
    while not budget.over:
        threads.tick()
        joint = budget.fraction > JOINT_FROM
        length = LONG if budget.fraction > LONG_CLIPS_FROM else SHORT
        drawn = _batch(data, students.vae, rng, NUM_ROWS * batch // length, length, device)
        loss, parts = _loss(students, correspondence, drawn, levels, rng, joint=joint)
        loss.backward()
        rate = relative_rate(step, budget.fraction)
        optimiser.step(PEAK_RATE, relative=rate)
        if joint:
            decoder_optimiser.step(DECODER_PEAK_RATE, relative=rate)
        average.update(students, step)
        step += 1
        journal.add(step, budget.fraction, parts)
        if budget.save_due():
            save()
    if not finished_before:
        save()
    return cast("Pocket", averaged.pocket())


def style_weights() -> NDArray[np.float64]:
    """How often each style is drawn, as shares of one."""
    weights = np.array([SHARES.get(style, 1.0) for style in STYLES])
    return np.asarray(weights / weights.sum(), dtype=np.float64)


@torch.no_grad()
def _batch(
    data: Dataset,
    vae: AutoencoderTiny,
    rng: np.random.Generator,
    num_clips: int,
    length: int,
    device: torch.device,
) -> Batch:
    clips = make_clips(
        data, rng, num_clips=num_clips, length=length, device=device, style_weights=style_weights()
    )
    natural, styled = encode_clips(vae, clips)
    return Batch(natural, styled, clips, [sample_prompt(rng, STYLES[style]) for style in clips.styles])


@torch.no_grad()
def encode_clips(vae: AutoencoderTiny, clips: Clips) -> tuple[Tensor, Tensor]:
    """Latents at diffusion scale of the natural and of the styled frames."""
    pictures = torch.cat([clips.natural, clips.styled]).contiguous(memory_format=torch.channels_last)
    with mixed_precision(pictures.device):
        latent = vae.encode(pictures).latents
    natural, styled = (latent.float().contiguous() * LATENT_STD).chunk(2)
    return natural, styled


def draw_steps(rng: np.random.Generator, num_clips: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Grid indices of first and last prediction of each clip; most pairs are those of a two-step session."""
    usual = rng.random(num_clips) < 0.5
    first = np.where(usual, rng.integers(*_USUAL_K, num_clips), rng.integers(*_FIRST_K, num_clips))
    middle = (first + GRID) // 2
    free = first + 1 + np.floor(rng.random(num_clips) * (GRID - 2 - first)).astype(np.int64)
    second = np.where(rng.random(num_clips) < _SHARE_MIDPOINT, middle, free)
    return first, np.minimum(second, GRID - 2)


def _loss(
    students: Students,
    correspondence: Correspondence,
    batch: Batch,
    levels: tuple[Tensor, Tensor],
    rng: np.random.Generator,
    *,
    joint: bool,
) -> tuple[Tensor, dict[str, float]]:
    clips, device = batch.clips, batch.natural.device
    num_clips, length = len(batch.prompts), clips.length
    has_bank = torch.from_numpy(rng.random(num_clips) < _SHARE_BANK).to(device)
    roll_out = RollOut(
        students.unet,
        students.context(batch.prompts).repeat_interleave(length, dim=0),
        levels,
        arguments={"cross_attention_kwargs": {"memory": ClipMemory(has_bank, length)}},
        noise=ClipNoise(torch.from_numpy(rng.random(num_clips) < _SHARE_FRESH).to(device), length),
    )
    with correspondence.watched():
        first, last = predictions(roll_out, batch.natural, batch.styled, rng, length)
    losses = {
        name: F.smooth_l1_loss(guess / LATENT_STD, batch.styled / LATENT_STD, beta=0.2)
        for name, guess in (("first", first), ("last", last))
    }
    residual = (last - batch.styled) / LATENT_STD
    losses["steady latent"] = STEADY_LATENT_WEIGHT * unsteadiness(residual, clips.motion, has_bank)
    losses["match"] = MATCH_WEIGHT * correspondence.loss(clips.motion)
    if joint:
        output, target = _decoded(students.vae, last, batch)
        rows = last.shape[0]
        losses["pixel"] = PIXEL_WEIGHT * picture_loss(output, target)
        losses["rebuilt"] = REBUILT_WEIGHT * (output[rows:] - target[rows:]).square().mean()
        losses["colour"] = COLOUR_WEIGHT * colour_loss(output[:rows], target[:rows])
        # Once for all and once more for those with a bank: softness must not pass for steadiness.
        sharp = torch.cat([torch.ones_like(has_bank), has_bank]).repeat_interleave(length)
        twice = (torch.cat([picture[:rows]] * 2)[sharp] for picture in (output, target))
        losses["contrast"] = PIXEL_WEIGHT * CONTRAST_WEIGHT * contrast_loss(*twice)
        losses["marks"] = PIXEL_WEIGHT * MARK_WEIGHT * mark_loss(output[:rows], target[:rows])
        wavering = unsteadiness(output[:rows] - target[:rows], clips.motion, has_bank)
        losses["steady"] = STEADY_PIXEL_WEIGHT * wavering
    return torch.stack(list(losses.values())).sum(), {k: float(v.detach()) for k, v in losses.items()}


class ClipNoise:
    """Noise of a batch of clips: fresh in every frame of some, the same in all frames of the others."""

    def __init__(self, fresh: Tensor, length: int) -> None:
        self._fresh, self._length = fresh, length

    def like(self, latent: Tensor) -> Tensor:
        """Noise of one denoising step, ``(clip * frame, channel, height, width)``."""
        noise = torch.randn_like(latent).unflatten(0, (-1, self._length))
        fresh = self._fresh[:, None, None, None, None]
        return torch.where(fresh, noise, noise[:, :1]).flatten(0, 1)


@dataclass
class RollOut:
    """One prediction at a time, as the service makes them: noise a clean latent, predict it clean again."""

    unet: Callable[..., Any]
    context: Tensor  # (row, token, width)
    levels: tuple[Tensor, Tensor]
    arguments: Mapping[str, Any]
    """What the network's layers remember with."""
    noise: ClipNoise

    def predict(self, clean: Tensor, k: NDArray[np.int64]) -> Tensor:
        """Predict at the grid index of each row."""
        t = torch.from_numpy(FIRST_TIMESTEP - STRIDE * k).to(clean.device)
        alpha, beta = (level[t][:, None, None, None] for level in self.levels)
        latent = alpha * clean + beta * self.noise.like(clean)
        velocity: Tensor = self.unet(latent, t, self.context, return_dict=False, **self.arguments)[0]
        return alpha * latent - beta * velocity


def predictions(
    roll_out: RollOut, natural: Tensor, styled: Tensor, rng: np.random.Generator, length: int
) -> tuple[Tensor, Tensor]:
    """First and last prediction of a roll-out, with gradient; those between have none."""
    num_clips = natural.shape[0] // length
    first_k, last_k = (np.repeat(k, length) for k in draw_steps(rng, num_clips))
    first = roll_out.predict(natural, first_k)
    teacher = torch.from_numpy(np.repeat(rng.random(num_clips) < _SHARE_TEACHER, length)).to(first.device)
    given = torch.where(teacher[:, None, None, None], styled, first.detach())
    between = int(rng.choice(len(_BETWEEN), p=_BETWEEN))
    with torch.no_grad():
        for number in range(1, between + 1):
            given = roll_out.predict(given, first_k + (last_k - first_k) * number // (between + 1))
    return first, roll_out.predict(given, last_k)


def _decoded(vae: AutoencoderTiny, last: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Decode the predictions and a few slightly noisy latents of the data; with what they should show.

    Of the latter, half are styled and half natural, so that plain reconstruction stays honest.
    """
    half = _REBUILT_ROWS // 2
    chosen = torch.randperm(last.shape[0])[:half]
    rebuilt = torch.cat([batch.styled[chosen], batch.natural[chosen]])
    rebuilt = rebuilt + 0.1 * LATENT_STD * torch.rand(()) * torch.randn_like(rebuilt)
    latent = torch.cat([last, rebuilt]).contiguous(memory_format=torch.channels_last) / LATENT_STD
    with mixed_precision(latent.device):
        output = vae.decode(latent).sample
    clips = batch.clips
    target = torch.cat([clips.styled, clips.styled[chosen], clips.natural[chosen]])
    return output.float(), target.contiguous(memory_format=torch.channels_last)
