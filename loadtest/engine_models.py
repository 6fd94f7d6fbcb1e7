"""Models for the engine's benchmark: real topologies with random weights, made in memory, and their work.

Speed does not depend on the weights' values, so nothing is downloaded. Prompts become embeddings through
a table of bytes: the text encoder runs once per prompt and is no part of a frame's work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from rearview.contract.chain import Span, chain
from rearview.engine.memory.bank.layers import BankLayout
from rearview.engine.memory.cache.layers import CacheLayout
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.networks.attention.processors import install_processors
from rearview.engine.networks.conditioning import Conditioning
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.networks.sampling import Schedule
from rearview.engine.networks.unet import StreamingUNet
from rearview.engine.weights.checkpoint import load_model
from torch.utils.flop_counter import FlopCounterMode

from loadtest.adapters import random_stacks

__all__ = [
    "ADAPTERS",
    "MAX_STEPS",
    "SIZES",
    "Size",
    "Work",
    "bank_flops",
    "build",
    "byte_conditioning",
    "cache_flops",
    "count_work",
    "heighten",
    "sd15_unet_config",
    "sharpen",
]

MAX_STEPS = 4
ADAPTERS = ("a", "b", "c", "d")
"""Names of adapter sets."""
ADAPTER_RANK = 16
TOKENS = 77
ATTENTION_GAIN = 8.0
"""Of a sharpened model's queries and outputs in spatial attention."""
CONTRAST = 0.16
"""RMS deviation of a picture's values in [0, 1]: 40 levels of 255, as where something is to be seen."""


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
    cache: float = 0.0
    """More for a full temporal cache, with its motion modules."""

    def of_frame(self, steps: int, banked: bool, cached: bool = False) -> float:
        """Of a whole frame."""
        return self.encode + self.decode + steps * (self.unet + self.bank * banked + self.cache * cached)


def build(
    size: Size,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    *,
    motion: bool = False,
    adapters: bool = False,
    drawn_on: torch.device | None = None,
) -> DiffusionModel:
    """The model of the whole chain; with `motion` one that has motion modules, which the bundled checkpoint
    brings along or lacks; with `adapters` one that has sets `ADAPTERS`. `drawn_on`: where random weights are
    drawn, for equal ones on two devices.
    """
    model = _bare(size, device, dtype, seed, motion=motion, drawn_on=drawn_on)
    if adapters:
        for denoiser in model.denoisers.values():
            denoiser.conditioning.stacks = random_stacks(denoiser.unet, ADAPTERS, ADAPTER_RANK)
        # Stacks are counted by their names.
        model = DiffusionModel(model.vae, model.denoisers[""], device=device, dtype=dtype)
    return model


def _bare(
    size: Size,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    *,
    motion: bool,
    drawn_on: torch.device | None,
) -> DiffusionModel:
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
    """Counted in one run of each network; the shares of bank and cache by formula."""
    denoiser: Any = model._denoiser
    vae: Any = model.vae
    cells, channels = size.pixels // 8, denoiser.unet.config.in_channels
    latent = torch.zeros(1, channels, cells, cells, device=device, dtype=dtype)
    image = torch.zeros(1, 3, size.pixels, size.pixels, device=device, dtype=dtype)
    embeds = denoiser.conditioning.embed("work")
    timestep = torch.tensor([1], device=device)
    temporal = model.layouts.cache
    return Work(
        unet=_count(lambda: denoiser.unet(latent, timestep, encoder_hidden_states=embeds)),
        bank=bank_flops(denoiser.bank_layout, cells),
        encode=_count(lambda: vae.encode(image)),
        decode=_count(lambda: vae.decode(latent)),
        cache=0.0 if temporal is None else cache_flops(temporal, cells),
    )


def bank_flops(layout: BankLayout, cells: int) -> float:
    """What attending to one more frame's tokens takes: 2 N² C for the scores and as much for the values."""
    return sum(4.0 * layer.tokens(cells, cells) ** 2 * layer.key_channels for layer in layout.layers)


def cache_flops(layout: CacheLayout, cells: int) -> float:
    """What the motion modules take of a frame that sees a full window. Of each temporal layer with N pixels
    and C channels: four projections (8 N C²), half of its module's two projections (2 N C²) and of its net
    behind them (12 N C²), and scores and values of F frames (4 N F C).
    """
    frames = CacheWindow().frames
    return sum(
        layer.pixels(cells, cells) * (22.0 * layer.channels**2 + 4.0 * frames * layer.channels)
        for layer in layout.layers
    )


@torch.inference_mode()
def heighten(model: DiffusionModel, size: Size) -> None:
    """Let random weights make pictures that depend on all that they should depend on. As they are drawn a
    frame hardly shows in its picture, nor does what the UNet predicts, and attention is a mean.
    """
    (denoiser,), vae = model.denoisers.values(), model.vae
    weight, cells, generator = next(vae.parameters()), size.pixels // 8, torch.Generator().manual_seed(0)

    def drawn(channels: int, side: int, spread: float = 1.0) -> torch.Tensor:
        values = spread * torch.randn(1, channels, side, side, generator=generator)
        return values.to(weight.device, weight.dtype)

    for each in vae.modules():
        if isinstance(each, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(each.weight)
            torch.nn.init.zeros_(each.bias) if each.bias is not None else None
    latent = drawn(vae.config.latent_channels, cells)
    _adjust(_last(vae.encoder), 0.0, 1.0, lambda: vae.encode(drawn(3, size.pixels, 0.5)))
    _adjust(_last(vae.decoder), 0.5, CONTRAST, lambda: vae.decode(latent))
    sharpen(model)
    unet, embeds = denoiser.unet, denoiser.conditioning.embed("work")
    step = torch.tensor([500], device=weight.device)
    _adjust(unet.conv_out, 0.0, 1.0, lambda: unet(latent, step, encoder_hidden_states=embeds))


def sharpen(model: DiffusionModel) -> None:
    """Let spatial attention choose: with random weights it is a mean, on which the past has no say."""
    for denoiser in model.denoisers.values():
        for name, weight in denoiser.unet.named_parameters():
            if name.endswith(("attn1.to_q.weight", "attn1.to_out.0.weight")):
                weight.mul_(ATTENTION_GAIN)


def _last(network: torch.nn.Module) -> torch.nn.Conv2d:
    return [each for each in network.modules() if isinstance(each, torch.nn.Conv2d)][-1]


def _adjust(layer: torch.nn.Conv2d, mean: float, spread: float, run: Callable[[], object]) -> None:
    """Let what a network's last layer gives have this mean in every channel, and vary by so much."""
    left: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, given, output: left.append(output.float()))
    run()
    hook.remove()
    means_C = left[0].mean((0, 2, 3))
    factor = spread / float((left[0] - means_C.view(1, -1, 1, 1)).std())
    assert layer.bias is not None, "the last layer has no bias"
    layer.bias.copy_((layer.bias - means_C) * factor + mean)
    layer.weight.mul_(factor)


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
