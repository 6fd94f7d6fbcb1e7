"""Which layers of a UNet a feature bank remembers, read from the UNet's own structure.

Keys and values are kept in every self-attention layer of a transformer block; attention outputs only
where feature fusion reads them: in the middle block and in the first up block that has attention, and of a
transformer with several blocks (ten in Stable Diffusion XL, one in 1.5) in the last of them.
Shape legend: N tokens of one frame in a layer, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

__all__ = ["BankLayer", "BankLayout", "KeptOutputs", "capacity_tokens", "read_layout"]


class KeptOutputs(Enum):
    """In which layers attention outputs are kept beside keys and values."""

    NONE = "none"
    """Nowhere: no session fuses features."""
    FUSED = "fused"
    """Where feature fusion reads them."""
    ALL = "all"
    """Everywhere, for merging by outputs."""


@dataclass(frozen=True, slots=True)
class BankLayer:
    """One self-attention layer."""

    name: str
    """Path of its module in the UNet: the key of exports."""
    level: int
    """How often the latent was halved before it."""
    key_channels: int
    """Of keys and values."""
    output_channels: int
    fuses: bool
    """Whether feature fusion reads its outputs."""

    def tokens(self, height: int, width: int) -> int:
        """Tokens of a latent of this size. A stride-2 convolution rounds odd sizes up."""
        for _ in range(self.level):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height * width

    def is_below(self, paths: Sequence[str]) -> bool:
        """Whether the layer is one of `paths` or below one; with no paths every layer is."""
        return not paths or any(f"{self.name}.".startswith(f"{path}.") for path in paths)

    def keeps_outputs(self, kept: KeptOutputs) -> bool:
        """Whether a bank keeps this layer's outputs."""
        return kept is KeptOutputs.ALL or (kept is KeptOutputs.FUSED and self.fuses)

    def elements(self, tokens: int, kept: KeptOutputs) -> int:
        """Numbers kept for so many tokens."""
        return tokens * (2 * self.key_channels + self.output_channels * self.keeps_outputs(kept))


@dataclass(frozen=True, slots=True)
class BankLayout:
    """All layers that are remembered, in the order of the forward."""

    layers: tuple[BankLayer, ...]

    def bytes_per_row(
        self,
        height: int,
        width: int,
        dtype: torch.dtype,
        *,
        size_frames: float = 1.0,
        kept_outputs: KeptOutputs = KeptOutputs.FUSED,
    ) -> int:
        """Bytes of one (session, step) for latents up to height x width; allocates nothing."""
        elements = 0
        for layer in self.layers:
            tokens = capacity_tokens(layer.tokens(height, width), size_frames)
            elements += layer.elements(tokens, kept_outputs)
        return elements * dtype.itemsize


def capacity_tokens(tokens: int, size_frames: float) -> int:
    """Tokens to set aside for `size_frames` frames of `tokens` each, rounded up."""
    return math.ceil(tokens * size_frames)


def read_layout(unet: Any) -> BankLayout:
    """The layers of a `UNet2DConditionModel`, of any depth and width."""
    found = list(_self_attention(unet))
    fusing_up = next((block for block, *_ in found if block.startswith("up_blocks.")), None)
    last = {_transformer(name): name for _, name, *_ in found}

    def fuses(block: str, name: str) -> bool:
        return block in ("mid_block", fusing_up) and last[_transformer(name)] == name

    return BankLayout(
        tuple(
            BankLayer(name, level, attn.inner_kv_dim, attn.out_dim, fuses(block, name))
            for block, name, level, attn in found
        )
    )


def _transformer(name: str) -> str:
    """Path of the transformer that a layer is in."""
    return name.rpartition(".transformer_blocks.")[0]


def _self_attention(unet: Any) -> Iterator[tuple[str, str, int, Any]]:
    """(block, path, level, module) of each self-attention layer, in the order of the forward."""
    from diffusers.models.attention import BasicTransformerBlock

    for block_name, block, level in _blocks(unet):
        for name, module in block.named_modules():
            # With only_cross_attention the first attention of a block reads the prompt: no past in it.
            if isinstance(module, BasicTransformerBlock) and not module.attn1.is_cross_attention:
                yield block_name, f"{block_name}.{name}.attn1", level, module.attn1


def _blocks(unet: Any) -> Iterator[tuple[str, Any, int]]:
    level = 0
    for index, block in enumerate(unet.down_blocks):
        yield f"down_blocks.{index}", block, level
        level += getattr(block, "downsamplers", None) is not None
    if unet.mid_block is not None:
        yield "mid_block", unet.mid_block, level
    for index, block in enumerate(unet.up_blocks):
        yield f"up_blocks.{index}", block, level
        level -= getattr(block, "upsamplers", None) is not None
