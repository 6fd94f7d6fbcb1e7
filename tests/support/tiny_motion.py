"""A tiny UNet with random motion modules, temporal caches over it, and frames through both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.memory.bank.layers import BankLayout
from rearview.engine.memory.cache.layers import read_cache_layout
from rearview.engine.memory.cache.pool import CacheShape, TemporalKVCache
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.attention.processors import install_processors
from rearview.engine.networks.attention.readers import Readers
from rearview.engine.networks.attention.temporal import ClipAttention
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.unet import StreamingUNet
from rearview.engine.reference.cache import PlainCache
from rearview.engine.reference.clip import Carried, denoise_clip, step_function
from rearview.engine.rows import Row
from torch import Tensor

from support.frames import content, in_flight
from support.memories import gather, scatter

CHANNELS = 4
"""Of a latent."""
SIZE = 64
"""Pixels of the pool's largest frame."""
NORM_GROUPS = 4
HEADS = 2
TIMESTEPS = (499, 259)
"""By step."""
WINDOW = CacheWindow(4, 4)
WINDOWS = (CacheWindow(8, 8), CacheWindow(4, 4), CacheWindow(3, 5))


def plain_unet(seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """As Stable Diffusion 1.5 is built, with fewer of everything."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "sample_size": SIZE // 8,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": NORM_GROUPS,
    }
    return UNet2DConditionModel(**{**values, **config}).eval().requires_grad_(False)


def with_motion(unet: Any, *, depth: bool = False, max_frames: int = 24, gain: float = 1.0) -> StreamingUNet:
    """Motion modules with random weights, those that start at zero among them: nothing may hide."""
    streaming = StreamingUNet(
        unet, heads=HEADS, norm_groups=NORM_GROUPS, max_frames=max_frames, depth=depth
    ).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, weight in streaming.named_parameters():
        if ".motion_modules." in name or name.startswith("flow_conv_in."):
            scale = 3.0 if ".to_q." in name or ".to_k." in name else 1.0
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            fan_in = weight[0].numel() if weight.ndim > 1 else 16
            drawn = noise * (gain * scale / fan_in**0.5)
            is_norm = ".norm" in name and name.endswith(".weight")
            weight.copy_(drawn + 1.0 if is_norm else drawn)
    return streaming


@lru_cache
def tiny_unet(dtype: torch.dtype = torch.float64) -> StreamingUNet:
    torch.set_num_threads(1)
    return with_motion(plain_unet().to(dtype))


@lru_cache
def banked_unet() -> tuple[StreamingUNet, BankLayout]:
    unet = plain_unet(seed=3).to(torch.float64)
    layout = install_processors(unet)
    return with_motion(unet), layout


def tiny_cache(
    window: CacheWindow = WINDOW,
    *,
    num_slots: int = 3,
    steps: Sequence[int] = (0, 1),
    size: int = SIZE,
    dtype: torch.dtype = torch.float64,
    unet: StreamingUNet | None = None,
    by_index: bool | None = None,
) -> TemporalKVCache:
    """On the device of its UNet."""
    unet = unet or tiny_unet()
    shape = CacheShape(num_slots, tuple(steps), size, size, window)
    layout = read_cache_layout(unet)
    return TemporalKVCache(layout, shape, dtype=dtype, device=unet.device, by_index=by_index)


def cached(
    session_id: str, *, size: int = SIZE, height: int | None = None, bank: BankSettings | None = None
) -> SessionSpec:
    settings = Settings("a", strength=0.6, steps=2)
    return SessionSpec(session_id, size, height or size, 2, settings, bank=bank, cache=CacheSettings())


def clip(frames: int, seed: int = 0, *, size: int = SIZE, dtype: torch.dtype = torch.float64) -> Tensor:
    """Latents (F, C, h, w) of a slowly changing scene."""
    generator = torch.Generator().manual_seed(seed)
    shape = (frames + 1, CHANNELS, size // 8, size // 8)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (drawn[:1] + 0.7 * drawn[1:]).to(dtype)


def window_row(
    spec: SessionSpec, latents: Tensor, step: int = 0, first: int = 0, *, shadow: bool = False
) -> Row:
    rows = [stream_row(spec, latent, first + i, step) for i, latent in enumerate(latents)]
    frames = tuple(row.frame for row in rows)
    return Row(frames, rows[0].operator, "group", 0.0, warms_up=True, shadow=shadow)


def stream_row(spec: SessionSpec, latent: Tensor, ordinal: int = 0, step: int = 0) -> Row:
    operator = Operator(OperatorKind.DENOISE, step)
    frame = in_flight(spec, ordinal, operator, latent)
    return Row((frame,), operator, "group", 0.0)


def predict(
    views: Views, rows: Sequence[Row], unet: StreamingUNet | None = None, beside: Sequence[int] = ()
) -> Tensor:
    """One prediction per sample, (S, C, h, w); those of `beside` follow under another prompt."""
    return run(Readers(views.beside(beside) if beside else views).arguments, rows, unet, beside)


def run(
    memory: Mapping[str, Any],
    rows: Sequence[Row],
    unet: StreamingUNet | None = None,
    beside: Sequence[int] = (),
) -> Tensor:
    """The same with what the UNet is called with in place of views."""
    unet = unet or tiny_unet()
    samples = [sample for row in rows for sample in row.samples()]
    latents = torch.stack([content(sample) for sample in samples])
    steps = [TIMESTEPS[sample.operator.step] for sample in samples]
    prompts = torch.ones(len(samples), 3, 8, dtype=unet.dtype, device=unet.device)
    if beside:
        latents, prompts = (
            torch.cat([latents, latents[list(beside)]]),
            torch.cat([prompts, -prompts[list(beside)]]),
        )
        steps += [steps[i] for i in beside]
    with torch.inference_mode():
        found = unet(latents.to(unet.device, unet.dtype), torch.tensor(steps), prompts, **memory)
        output: Tensor = found[0]
        return output


def recorded(views: Views, rows: Sequence[Row], unet: StreamingUNet | None = None) -> tuple[Tensor, Updates]:
    """One prediction per sample, and what the forward leaves."""
    readers = Readers(views)
    return run(readers.arguments, rows, unet), readers.collect()


def advance(
    memory: TemporalKVCache | Memories, rows: Sequence[Row], unet: StreamingUNet | None = None
) -> Tensor:
    """One forward of rows; commits."""
    outputs, updates = recorded(gather(memory, rows), rows, unet)
    scatter(memory, rows, updates)
    return outputs


def play(
    memory: TemporalKVCache | Memories,
    spec: SessionSpec,
    latents: Tensor,
    step: int = 0,
    unet: StreamingUNet | None = None,
    sinks: int = WINDOW.sink_frames,
) -> Tensor:
    """A session's frames at one step: the first ones together, then one by one. (F, C, h, w)."""
    outputs = [advance(memory, [window_row(spec, latents[:sinks], step)], unet)]
    outputs += [
        advance(memory, [stream_row(spec, latents[ordinal], ordinal, step)], unet)
        for ordinal in range(sinks, len(latents))
    ]
    return torch.cat(outputs)


@torch.inference_mode()
def plain_clip(
    denoiser: Denoiser,
    window: CacheWindow,
    spec: SessionSpec,
    payloads: Sequence[Tensor],
    settings: Sequence[Settings],
) -> list[Tensor | None]:
    """A clip by `reference/clip.py`, in float64. `payloads`: (C, h, w), or (2, C, h, w) with depth."""
    assert spec.cache is not None
    run = step_function(denoiser, torch.float64, PlainCache(window.sink_frames, window.ring_frames))
    entering = []
    for payload in payloads:
        latent, depth = payload.chunk(2) if payload.ndim == 4 else (payload[None], None)
        entering.append(Carried(latent, latent, depth))
    left = denoise_clip(run, entering, settings, spec.cache, window.sink_frames)
    return [None if each is None else each.clean[0] for each in left]


def opened(window: CacheWindow = WINDOW, **arguments: Any) -> tuple[TemporalKVCache, SessionSpec]:
    memory, spec = tiny_cache(window, **arguments), cached("a")
    memory.allocate(spec)
    return memory, spec


def whole_clip(latents: Tensor, sinks: int, unet: StreamingUNet | None = None) -> Tensor:
    """All frames in one forward under the mask of training."""
    row = window_row(cached("clip"), latents)
    return run({"attend": ClipAttention(len(latents), sinks).attend}, [row], unet)


def gap(left: Tensor, right: Tensor) -> float:
    """Largest difference."""
    assert left.shape == right.shape, f"{left.shape} and {right.shape}"
    return float((left - right).abs().max())
