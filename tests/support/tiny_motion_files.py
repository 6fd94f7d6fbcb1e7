"""Motion modules for the tiny UNet, written in the formats in which they are published.

Names and shapes are spelled out here once more, from methods 3.11, not taken from the
code under test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import MotionAdapter
from safetensors.torch import save_file

from support.tiny import LATENT_CHANNELS

Weights = dict[str, torch.Tensor]
Blocks = Sequence[int]
"""Channels of the UNet's levels."""

TINY: Blocks = (16, 32)
SD15: Blocks = (320, 640, 1280, 1280)
DEPTH_WIDTHS = (16, 16, 32, 32, 96, 96, 256)


def sinusoidal(frames: int, channels: int) -> torch.Tensor:
    """The table (1, frames, C), written entry by entry."""
    table = torch.zeros(1, frames, channels, dtype=torch.float64)
    for position in range(frames):
        for i in range(0, channels, 2):
            angle = torch.tensor(position / 10000.0 ** (i / channels), dtype=torch.float64)
            table[0, position, i], table[0, position, i + 1] = angle.sin(), angle.cos()
    return table.float()


def original_motion(
    blocks: Blocks = TINY,
    layers: int = 1,
    *,
    frames: int = 24,
    mid_block: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Weights:
    """Motion modules under AnimateDiff's names: 28 entries each. On `meta` they have no values."""
    places = [
        (f"down_blocks.{i}.motion_modules.{j}", channels)
        for i, channels in enumerate(blocks)
        for j in range(layers)
    ]
    places += [
        (f"up_blocks.{i}.motion_modules.{j}", channels)
        for i, channels in enumerate(reversed(blocks))
        for j in range(layers + 1)
    ]
    places += [("mid_block.motion_modules.0", blocks[-1])] if mid_block else []
    tables = {
        channels: sinusoidal(frames, channels) if device == "cpu" else torch.empty(1, frames, channels)
        for channels in set(blocks)
    }
    draw = _drawer(seed, device)
    weights: Weights = {}
    for place, channels in places:
        weights.update(_module(f"{place}.temporal_transformer", channels, tables[channels], draw))
    return weights


def depth_branch(
    out_channels: int = TINY[0], in_channels: int = LATENT_CHANNELS, seed: int = 1, device: str = "cpu"
) -> Weights:
    """The 16 entries of `flow_conv_in`."""
    widths = (in_channels, *DEPTH_WIDTHS, out_channels)
    names = ("conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out")
    draw = _drawer(seed, device)
    weights: Weights = {}
    for name, into, out in zip(names, widths[:-1], widths[1:], strict=True):
        weights[f"flow_conv_in.{name}.weight"] = draw(out, into, 3, 3)
        weights[f"flow_conv_in.{name}.bias"] = draw(out)
    return weights


def write_motion_file(path: Path, weights: Mapping[str, Any], *, bare: bool = True, prefix: str = "") -> Path:
    """A .safetensors or .ckpt file; not `bare`: as training wrote it, with its step beside the weights."""
    named = {prefix + key: value for key, value in weights.items()}
    if path.suffix == ".safetensors":
        save_file(named, path)
    else:
        torch.save(named if bare else {"state_dict": named, "global_step": 191_999}, path)
    return path


def write_motion_adapter(
    folder: Path, blocks: Blocks = TINY, *, frames: int = 16, heads: int = 2, seed: int = 0, **config: Any
) -> Path:
    """A folder as diffusers saves it, random weights, `proj_out` not zero."""
    options = {
        "block_out_channels": tuple(blocks),
        "motion_layers_per_block": 1,
        "motion_num_attention_heads": heads,
        "motion_norm_num_groups": 4,
        "motion_max_seq_length": frames,
        "use_motion_mid_block": False,
    }
    torch.manual_seed(seed)
    adapter = MotionAdapter(**{**options, **config})
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if ".proj_out." in name:
                parameter.normal_(std=0.3)
    adapter.save_pretrained(folder)
    return folder


def expected_name(key: str) -> str:
    """diffusers' name of an original entry, from the table of methods 3.11."""
    for old, new in (
        (".temporal_transformer", ""),
        (".attention_blocks.0", ".attn1"),
        (".attention_blocks.1", ".attn2"),
        (".norms.0", ".norm1"),
        (".norms.1", ".norm2"),
        (".ff_norm", ".norm3"),
    ):
        key = key.replace(old, new)
    return key


def _module(prefix: str, channels: int, table: torch.Tensor, draw: Callable[..., torch.Tensor]) -> Weights:
    block = f"{prefix}.transformer_blocks.0"
    c = channels
    weights = {
        f"{prefix}.norm.weight": draw(c),
        f"{prefix}.norm.bias": draw(c),
        f"{prefix}.proj_in.weight": draw(c, c),
        f"{prefix}.proj_in.bias": draw(c),
        f"{prefix}.proj_out.weight": draw(c, c),
        f"{prefix}.proj_out.bias": draw(c),
        f"{block}.ff.net.0.proj.weight": draw(8 * c, c),
        f"{block}.ff.net.0.proj.bias": draw(8 * c),
        f"{block}.ff.net.2.weight": draw(c, 4 * c),
        f"{block}.ff.net.2.bias": draw(c),
        f"{block}.ff_norm.weight": draw(c),
        f"{block}.ff_norm.bias": draw(c),
    }
    for layer in range(2):
        attention = f"{block}.attention_blocks.{layer}"
        weights.update({f"{attention}.{name}.weight": draw(c, c) for name in ("to_q", "to_k", "to_v")})
        weights[f"{attention}.to_out.0.weight"] = draw(c, c)
        weights[f"{attention}.to_out.0.bias"] = draw(c)
        weights[f"{attention}.pos_encoder.pe"] = table.clone()
        weights[f"{block}.norms.{layer}.weight"] = draw(c)
        weights[f"{block}.norms.{layer}.bias"] = draw(c)
    return weights


def _drawer(seed: int, device: str) -> Callable[..., torch.Tensor]:
    if device == "meta":
        return lambda *shape: torch.empty(*shape, device=device)
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: 0.2 * torch.randn(*shape, generator=generator)
