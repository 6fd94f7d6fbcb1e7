"""Models for the engine's benchmark: real topologies with random weights, made in memory, and their work.

Speed does not depend on the weights' values, so nothing is downloaded. Prompts become embeddings through
a table of bytes: the text encoder runs once per prompt and is no part of a frame's work.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from rearview.contract.chain import Span, chain
from rearview.engine.memory.bank.layers import BankLayout
from rearview.engine.networks.attention.processors import install_processors
from rearview.engine.networks.conditioning import Conditioning
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.networks.sampling import Schedule
from rearview.engine.networks.unet import StreamingUNet
from rearview.engine.weights.checkpoint import load_model
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "MAX_STEPS",
    "SIZES",
    "Size",
    "Work",
    "bank_flops",
    "build",
    "byte_conditioning",
    "count_work",
    "sd15_unet_config",
]

MAX_STEPS = 4
TOKENS = 77


@dataclass(frozen=True, slots=True)
class Size:
    """One model to measure."""

    name: str
    pixels: int
    """Of a side of the square frame."""
    bundled: bool = False
    """The bundled checkpoint instead of random weights."""


SIZES = {
    "sd15": Size("sd15", 512),
    "smoke": Size("smoke", 128),
    "pocket": Size("pocket", 256, bundled=True),
}


@dataclass(frozen=True, slots=True)
class Work:
    """Floating point operations; a multiplication with its addition is two."""

    unet: float
    """Of one row without a bank."""
    bank: float
    """More for one frame's worth of bank."""
    encode: float
    decode: float

    def of_frame(self, steps: int, banked: bool) -> float:
        """Of a whole frame."""
        return self.encode + self.decode + steps * (self.unet + self.bank * banked)


def build(
    size: Size,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    *,
    motion: bool = False,
    drawn_on: torch.device | None = None,
) -> DiffusionModel:
    """The model of the whole chain; with `motion` one that has motion modules, which the bundled checkpoint
    brings along or lacks. `drawn_on`: where random weights are drawn, for equal ones on two devices.
    """
    if size.bundled:
        model = load_model(size.name, Span("fused", chain(MAX_STEPS)), device, dtype)
        assert isinstance(model, DiffusionModel)
        return model
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from diffusers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(seed)
    with torch.device(drawn_on or device):
        unet = UNet2DConditionModel(**(sd15_unet_config() if size.name == "sd15" else _smoke_unet_config()))
        vae = AutoencoderTiny(**({} if size.name == "sd15" else _smoke_vae_config()))
        conditioning = byte_conditioning(unet.config.cross_attention_dim, dtype, device)
    layout = install_processors(unet)
    # Drawn in float32 whatever the networks compute in: other types would draw other weights.
    unet, vae = (
        network.eval().requires_grad_(False).to(device, dtype, memory_format=torch.channels_last)
        for network in (_with_motion(unet, size) if motion else unet, vae)
    )
    denoiser = Denoiser(unet, Schedule({}), conditioning, dtype, layout)
    return DiffusionModel(vae, denoiser, device=device, dtype=dtype)


def byte_conditioning(width: int, dtype: torch.dtype, device: torch.device) -> Conditioning:
    """Prompts of any words, at hardly any cost: 77 tokens of random embeddings."""
    return Conditioning(_ByteTokenizer(), _ByteEncoder(width).to(device), dtype)


def _with_motion(unet: Any, size: Size) -> StreamingUNet:
    """Random motion modules, those weights too that start at zero: what is kept must matter."""
    sizes = {} if size.name == "sd15" else {"heads": 4, "norm_groups": 8}
    with unet.device:
        streaming = StreamingUNet(unet, **sizes).requires_grad_(False)
    for name, weight in streaming.named_parameters():
        if ".motion_modules." in name and ".proj_out.weight" in name:
            weight.normal_(std=0.5 / weight.shape[1] ** 0.5)
    return streaming


def count_work(model: DiffusionModel, size: Size, device: torch.device, dtype: torch.dtype) -> Work:
    """Counted in one run of each network; the bank's share by formula."""
    denoiser: Any = model._denoiser
    vae: Any = model.vae
    cells, channels = size.pixels // 8, denoiser.unet.config.in_channels
    latent = torch.zeros(1, channels, cells, cells, device=device, dtype=dtype)
    image = torch.zeros(1, 3, size.pixels, size.pixels, device=device, dtype=dtype)
    embeds = denoiser.conditioning.embed("work")
    timestep = torch.tensor([1], device=device)
    return Work(
        unet=_count(lambda: denoiser.unet(latent, timestep, encoder_hidden_states=embeds)),
        bank=bank_flops(denoiser.bank_layout, cells),
        encode=_count(lambda: vae.encode(image)),
        decode=_count(lambda: vae.decode(latent)),
    )


def bank_flops(layout: BankLayout, cells: int) -> float:
    """What attending to one more frame's tokens takes: 2 N² C for the scores and as much for the values."""
    return sum(4.0 * layer.tokens(cells, cells) ** 2 * layer.key_channels for layer in layout.layers)


def sd15_unet_config() -> dict[str, Any]:
    """Stable Diffusion 1.5's, as far as it differs from diffusers' defaults."""
    return {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


def _smoke_unet_config() -> dict[str, Any]:
    return {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }


def _smoke_vae_config() -> dict[str, Any]:
    sides = ("encoder", "decoder")
    return {
        **{f"{side}_block_out_channels": (16, 16, 16, 16) for side in sides},
        **{f"num_{side}_blocks": (1, 1, 1, 1) for side in sides},
    }


@torch.inference_mode()
def _count(run: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


class _ByteTokenizer:
    model_max_length = TOKENS

    def __call__(self, prompt: str, **_: Any) -> Any:
        content = prompt.encode()[:TOKENS].ljust(TOKENS, b"\0")
        return SimpleNamespace(input_ids=torch.tensor([list(content)]))


class _ByteEncoder(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(256, width)

    @property
    def device(self) -> torch.device:
        return self.table.weight.device

    def forward(self, ids: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (self.table(ids),)
