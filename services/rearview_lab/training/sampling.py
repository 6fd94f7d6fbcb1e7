"""The few-step image-to-image loop the product runs, in its plainest form: used by previews and figures.

Step grid t(k) = 999 - 20k for k = 0..49. A strength and a number of steps pick a start and a stride on it;
noise is given per step, so that frames of one session share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from rearview_lab.training.export import Pocket
from rearview_lab.training.model import LATENT_CHANNELS, REDUCTION, noise_levels

GRID = 50
FIRST_TIMESTEP, STRIDE = 999, 20
_SIGMA_DATA, _TIMESTEP_SCALING = 0.5, 10.0


def timestep(k: int) -> int:
    """The timestep of a grid index."""
    return FIRST_TIMESTEP - STRIDE * k


def timesteps(strength: float, num_steps: int) -> list[int]:
    """The timesteps visited, from noisy to clean."""
    usable = int(GRID * strength)
    return [timestep(GRID - usable + j * (usable // num_steps)) for j in range(num_steps)]


@dataclass(frozen=True)
class Noise:
    """Noise of one session: per denoising step one latent-sized tensor, the same for all rows."""

    steps: Tensor  # (step, channel, height, width)

    @classmethod
    def seeded(cls, size: int, num_steps: int, seed: int) -> Noise:
        generator = torch.Generator().manual_seed(seed)
        side = size // REDUCTION
        return cls(torch.randn(num_steps, LATENT_CHANNELS, side, side, generator=generator))


def encode_prompts(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> Tensor:
    """Prompt embeddings ``(row, token, width)``, with gradient."""
    length = tokenizer.model_max_length
    tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    found: Tensor = text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state
    return found


@torch.no_grad()
def stylise(
    pocket: Pocket,
    picture_BCHW: Tensor,
    prompts: list[str],
    *,
    noise: Noise,
    strength: float = 0.4,
    num_steps: int = 2,
) -> Tensor:
    """Translate pictures in -1..1, one prompt per row."""
    alphas, betas = noise_levels(picture_BCHW.device)
    scale = pocket.vae.config.scaling_factor
    context = encode_prompts(pocket.tokenizer, pocket.text_encoder, prompts)
    visited = timesteps(strength, num_steps)
    clean = pocket.vae.encode(picture_BCHW).latents * scale
    for j, t in enumerate(visited):
        latent = alphas[t] * clean + betas[t] * noise.steps[j].to(clean)
        clean = alphas[t] * latent - betas[t] * pocket.unet(latent, t, context).sample
        kept = _SIGMA_DATA**2 / ((t * _TIMESTEP_SCALING) ** 2 + _SIGMA_DATA**2)
        clean = kept * latent + (1 - kept) ** 0.5 * clean
    decoded: Tensor = pocket.vae.decode(clean / scale).sample
    return decoded.clamp(-1, 1)
