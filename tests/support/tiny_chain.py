"""The tiny checkpoint's whole chain in float32, and clips through it by engine and by reference."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from rearview.contract.chain import Span, chain
from rearview.contract.settings import NoiseRule, Settings
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.encode import encode
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.reference.frame import denoise_latent, translate_frame
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_denoiser, load_vae
from torch import Tensor

from support.tiny import random_frames, session, write_tiny_checkpoint
from support.tiny_bank import Stream

MAX_STEPS = 4
CPU = torch.device("cpu")
LATENT_SPAN = Span("latent", chain(MAX_STEPS)[:-1])
"""Without decode: what comes out is a latent, not rounded to levels."""
CUTS = {
    "one span": [range(6)],
    "encode apart": [range(1), range(1, 6)],
    "three spans": [range(1), range(1, 5), range(5, 6)],
    "in the middle": [range(3), range(3, 6)],
    "two steps each": [range(1), range(1, 3), range(3, 5), range(5, 6)],
    "an operator each": [range(i, i + 1) for i in range(6)],
}
"""Every shape of a cut of the chain with four steps, as positions in it."""


@lru_cache
def tiny_networks() -> tuple[torch.nn.Module, Denoiser]:
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny_checkpoint(Path(folder))
        return load_vae(path, CPU, torch.float32), load_denoiser(path, CPU, torch.float32)


def tiny_model() -> DiffusionModel:
    vae, denoiser = tiny_networks()
    return DiffusionModel(vae, denoiser, device=CPU, dtype=torch.float32)


def chain_engine(
    span: Span, *, slots: int = 16, max_batch: int = 16, order: Order = Order.BACK_TO_BACK
) -> Engine:
    scheduler = Scheduler(CostTable(), max_batch)
    return Engine(span, tiny_model(), Memoryless(slots), scheduler, order=order, clock=lambda: 0.0)


def spans_of(cut: Sequence[range]) -> list[Span]:
    """The spans of a cut, given as positions in the chain."""
    whole = chain(MAX_STEPS)
    return [Span(f"span-{i}", tuple(whole[at] for at in piece)) for i, piece in enumerate(cut)]


def mixed_clips(count: int, frames: int = 4) -> list[Stream]:
    """Sessions at mixed steps, strengths, prompts, seeds and noise; every third changes on the way."""
    clips = []
    for i in range(count):
        settings = Settings(
            prompt=f"p{i % 3}",
            strength=0.9 - 0.2 * (i % 4),
            steps=1 + i % MAX_STEPS,
            seed=i,
            noise_rule=NoiseRule.FRESH if i % 2 else NoiseRule.FIXED,
        )
        spec = session(f"{i:032x}", settings, max_steps=MAX_STEPS)
        changes = {2: Settings("q", 0.5, MAX_STEPS - i % MAX_STEPS, seed=100 + i)} if i % 3 == 0 else {}
        clips.append(Stream(spec, random_frames(frames, seed=i), changes))
    return clips


def reference_latents(clip: Stream) -> list[Tensor]:
    """The clip on the plain path, up to the clean latent."""
    vae, denoiser = tiny_networks()
    with torch.inference_mode():
        return [
            denoise_latent(
                denoiser, encode(vae, image[None], torch.float32), clip.settings(n), n, torch.float32
            )[0]
            for n, image in enumerate(clip.latents)
        ]


def reference_pictures(clip: Stream) -> list[Tensor]:
    """The clip on the plain path."""
    vae, denoiser = tiny_networks()
    return [
        translate_frame(vae, denoiser, image, clip.settings(n), n, torch.float32)
        for n, image in enumerate(clip.latents)
    ]
