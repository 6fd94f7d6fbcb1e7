"""A motion module: attention of each pixel over time, and the tables that give frames their positions.

Weights are named as in diffusers' `MotionAdapter`, but the forward is its own: frames are normalised one
by one, so that none depends on a later one, and what a frame attends to is decided by the caller. Keys
and values leave the module without positions, since a cached token's position changes with every frame.
AnimateDiff and Live2Diff: methods 3.2 and 3.3.
Shape legend: S samples (frames), N pixels, C channels, P positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

__all__ = ["MotionModule", "PositionTables", "TemporalAttend", "TemporalAttention", "sinusoidal_table"]

GROUP_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class PositionTables:
    """What positions add to a layer's projections: W(x + pe) = Wx + W pe."""

    heads: int
    query: Tensor
    """(P, C), as the other two."""
    key: Tensor
    value: Tensor


class TemporalAttend(Protocol):
    """Attention over time, pixel by pixel, in temporal layer number `layer`.

    The three projections are (S, N, C), without positions. Returns (S, N, C).
    """

    def __call__(
        self, layer: int, query_SNC: Tensor, key_SNC: Tensor, value_SNC: Tensor, tables: PositionTables, /
    ) -> Tensor: ...


def sinusoidal_table(positions: int, channels: int) -> Tensor:
    """(P, C) float32: even channels sine, odd ones cosine, frequencies 10000^(-2i/C)."""
    rates = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    angles = torch.arange(positions)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class TemporalAttention(nn.Module):
    """Projections of one temporal layer: q, k, v without bias, the output with one."""

    def __init__(self, channels: int, heads: int, max_frames: int, layer: int) -> None:
        super().__init__()
        self.channels, self.heads, self.max_frames, self.layer = channels, heads, max_frames, layer
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Dropout(0.0)])
        self._tables: tuple[Any, PositionTables] | None = None

    def forward(self, x_SNC: Tensor, attend: TemporalAttend) -> Tensor:
        """Attention along time. `x_SNC`: S pixels of N frames; returns the same shape.

        `attend` is what knows of other frames: it gets the present queries, keys and values and the tables of
        positions, and decides which frames each sample sees. Nothing is remembered here.
        """
        query, key, value = self.to_q(x_SNC), self.to_k(x_SNC), self.to_v(x_SNC)
        output: Tensor = self.to_out[0](attend(self.layer, query, key, value, self.tables()))
        return output

    def tables(self) -> PositionTables:
        """Made once for the weights as they are; anew in every forward that is trained."""
        is_trained = torch.is_grad_enabled() and self.to_q.weight.requires_grad
        if is_trained or torch.compiler.is_compiling():  # A compiler folds them into constants itself.
            return self._new_tables()
        weights = (self.to_q.weight, self.to_k.weight, self.to_v.weight)
        state = tuple((w.data_ptr(), w.dtype, None if w.is_inference() else w._version) for w in weights)
        if self._tables is None or self._tables[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._tables = state, self._new_tables()
        return self._tables[1]

    def _new_tables(self) -> PositionTables:
        weight = self.to_q.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        table_PC = sinusoidal_table(self.max_frames, self.channels).to(weight.device, exact)
        query, key, value = (
            (table_PC @ projection.weight.to(exact).T).to(weight.dtype)
            for projection in (self.to_q, self.to_k, self.to_v)
        )
        return PositionTables(self.heads, query, key, value)


class _Block(nn.Module):
    """Two temporal attentions and a feed-forward net, each behind a norm and beside a residual."""

    def __init__(self, channels: int, heads: int, max_frames: int, first_layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = TemporalAttention(channels, heads, max_frames, first_layer)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = TemporalAttention(channels, heads, max_frames, first_layer + 1)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, activation_fn="geglu")

    def forward(self, x_SNC: Tensor, attend: TemporalAttend) -> Tensor:
        x_SNC = x_SNC + self.attn1(self.norm1(x_SNC), attend)
        x_SNC = x_SNC + self.attn2(self.norm2(x_SNC), attend)
        output: Tensor = x_SNC + self.ff(self.norm3(x_SNC))
        return output


class MotionModule(nn.Module):
    """One motion module; its output projection starts at zero, and the module at doing nothing."""

    def __init__(
        self, channels: int, *, heads: int, norm_groups: int, max_frames: int, first_layer: int = 0
    ) -> None:
        """`max_frames`: P, positions that there are. `first_layer`: number of its first temporal layer.

        Raises ValueError if heads or groups do not divide the channels.
        """
        super().__init__()
        if channels % heads or channels % norm_groups:
            raise ValueError(f"{channels} channels, {heads} heads and {norm_groups} groups do not fit")
        self.channels, self.heads = channels, heads
        self.norm = nn.GroupNorm(norm_groups, channels, eps=GROUP_NORM_EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([_Block(channels, heads, max_frames, first_layer)])
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x_SCHW: Tensor, attend: TemporalAttend) -> Tensor:
        """`x_SCHW` plus what time says, (S, C, H, W)."""
        samples, channels, height, width = x_SCHW.shape
        tokens = self.norm(x_SCHW).permute(0, 2, 3, 1).reshape(samples, height * width, channels)
        tokens = self.proj_out(self.transformer_blocks[0](self.proj_in(tokens), attend))
        change: Tensor = tokens.view(samples, height, width, channels).permute(0, 3, 1, 2)
        return x_SCHW + change
