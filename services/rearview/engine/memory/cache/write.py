"""What a commit writes to a temporal cache: computed first, and only then copied.

Single frames of one step go into a layer's pool together, each into its own place of its own slot: the host's
work grows with layers and steps, and not with rows. Where kernels write by index, those of all steps go
together, keys and values in one launch. A window fills the sinks of its slot, row by row.
Shape legend: R rows, F frames of a window, N pixels, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rearview.engine.devices import upload
from rearview.engine.memory.cache.view import CacheUpdate, LayerPool, Place, Pools
from rearview.engine.networks.attention.temporal_ops import store_frames

__all__ = ["CacheWrite", "Streamed", "frame_writes", "indexed_writes", "window_writes"]


class CacheWrite(Protocol):
    """New content of a part of one layer's pool."""

    def copy(self) -> None:
        """Put it into the pool."""


class Streamed(NamedTuple):
    """A single frame that is written."""

    sample: int
    """Index in the forward."""
    place: Place
    at: int
    """Its place among the frames of the slot."""


@dataclass(frozen=True, slots=True)
class FrameWrite:
    """Frames of one step."""

    pool: Tensor
    """(slots, N, H, L, D)"""
    slots_R: Tensor
    at_R: Tensor
    content_RNHD: Tensor

    def copy(self) -> None:
        _bytes(self.pool)[self.slots_R, :, :, self.at_R] = _bytes(self.content_RNHD)


@dataclass(frozen=True, slots=True)
class IndexedWrite:
    """Frames of all steps."""

    pool: LayerPool
    """Of all steps."""
    index_R: Tensor
    at_R: Tensor
    keys_RNC: Tensor
    """As the network made them, as the values."""
    values_RNC: Tensor

    def copy(self) -> None:
        store_frames(self.keys_RNC, self.values_RNC, *self.pool.tensors, self.index_R, self.at_R)


@dataclass(frozen=True, slots=True)
class WindowWrite:
    """The frames of a window; what was behind them is gone."""

    slot: Tensor
    """(N, H, L, D)"""
    content_NHFD: Tensor

    def copy(self) -> None:
        frames = self.content_NHFD.shape[2]
        self.slot[:, :, :frames].copy_(self.content_NHFD)
        self.slot[:, :, frames:].zero_()


def frame_writes(frames: Sequence[Streamed], update: CacheUpdate, pools: Pools) -> Iterator[CacheWrite]:
    """Of a forward of single frames, in the order of their samples."""
    steps: dict[int, list[Streamed]] = {}
    for frame in frames:
        steps.setdefault(frame.place.step, []).append(frame)
    for step, members in steps.items():
        device = pools[step][0].keys.device

        def tensor(numbers: list[int], device: torch.device = device) -> Tensor:
            return upload(torch.tensor(numbers), device)

        slots_R, at_R = tensor([each.place.slot for each in members]), tensor([each.at for each in members])
        samples_R = None if len(members) == len(frames) else tensor([each.sample for each in members])
        for pool, whole_SNC in _pairs(pools[step], update):
            chosen_RNC = whole_SNC if samples_R is None else whole_SNC.index_select(0, samples_R)
            heads_RNHD = _stored(chosen_RNC, pool).unflatten(-1, (pool.shape[2], pool.shape[4]))
            yield FrameWrite(pool[:, : heads_RNHD.shape[1]], slots_R, at_R, heads_RNHD)


def indexed_writes(
    indices: Sequence[int], at: Sequence[int], update: CacheUpdate, pools: Sequence[LayerPool]
) -> Iterator[CacheWrite]:
    """Of a forward of single frames, one for each sample: its index in the pools of all steps, and its place
    among the frames there.
    """
    index_R, at_R = (upload(torch.tensor(each), pools[0].keys.device) for each in (indices, at))
    for pool, (keys_SNC, values_SNC) in zip(pools, update.layers, strict=True):
        yield IndexedWrite(pool, index_R, at_R, keys_SNC, values_SNC)


def window_writes(places: Sequence[Place], update: CacheUpdate, pools: Pools) -> Iterator[CacheWrite]:
    """Of a forward of windows, all of one number of frames. `places`: of each window."""
    for number, place in enumerate(places):
        for pool, whole_SNC in _pairs(pools[place.step], update):
            frames = len(whole_SNC) // len(places)
            content_FNC = _stored(whole_SNC[number * frames : (number + 1) * frames], pool)
            heads_NHFD = content_FNC.unflatten(-1, (pool.shape[2], pool.shape[4])).permute(1, 2, 0, 3)
            yield WindowWrite(pool[place.slot, : heads_NHFD.shape[0]], heads_NHFD)


def _pairs(pools: Sequence[LayerPool], update: CacheUpdate) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors of a step's pools, each with what the forward left for it."""
    for pool, new in zip(pools, update.layers, strict=True):
        yield from zip(pool.tensors, new, strict=True)


def _stored(tensor: Tensor, pool: Tensor) -> Tensor:
    """As it is stored: what exceeds the type's range is cut off, since it would be infinite there, or NaN in
    float8, and spoil every picture that sees it.
    """
    limit = torch.finfo(pool.dtype).max
    if limit >= torch.finfo(tensor.dtype).max:
        return tensor.to(pool.dtype)
    return tensor.clamp(-limit, limit).to(pool.dtype)


def _bytes(tensor: Tensor) -> Tensor:
    """Types of one byte as bytes: not every device has an indexed copy for them."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
