"""What one forward's samples read from a temporal cache by index, where kernels do that in place.

The past of a sample has one number: that of its step times the number of slots, and its slot. These numbers
are a tensor, so nothing about sessions is in the key: a captured forward serves any of them.
Shape legend: S samples, T twins, N pixels, C channels, L stored frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rearview.engine.devices import upload
from rearview.engine.memory.cache.view import CacheUpdate, LayerPool, LeftByLayers, attend_windows
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.networks.attention.temporal_ops import attend_indexed
from rearview.engine.networks.motion_module import PositionTables

__all__ = ["IndexedKey", "IndexedReader", "IndexedView", "plan_indexed", "plan_indexed_windows"]


@dataclass(frozen=True, slots=True)
class IndexedKey:
    """What is static in a forward with a cache that is read by index."""

    is_window: bool
    """See `CacheKey`, as for the other."""
    twins: tuple[int, ...] = ()
    """In a window. Outside of one a twin is a sample like any other."""


@dataclass(frozen=True, slots=True, eq=False)
class IndexedView:
    """What the samples of a forward read. The tensors of windows are empty but for `twins_T`."""

    key: IndexedKey
    window: CacheWindow
    pools: tuple[LayerPool, ...]
    """By layer, each over all steps; at fixed addresses."""
    index_S: Tensor
    """Where the past of each sample lies in them, twins included, as in the other three."""
    position_S: Tensor
    """Of each sample's own frame."""
    positions_SL: Tensor
    """Of every slot, as the sample sees it."""
    visible_SL: Tensor
    """Which slots the sample sees."""
    twins_T: Tensor
    """`IndexedKey.twins`."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that differs from forward to forward."""
        return self.index_S, self.position_S, self.positions_SL, self.visible_SL, self.twins_T

    @property
    def pooled(self) -> tuple[Tensor, ...]:
        """By layer."""
        return tuple(tensor for each in self.pools for tensor in each.tensors)

    def over(self, tensors: Sequence[Tensor], pooled: Sequence[Tensor]) -> IndexedView:
        """See `View.over`."""
        pools = tuple(LayerPool(*pair) for pair in zip(pooled[::2], pooled[1::2], strict=True))
        return IndexedView(self.key, self.window, pools, *tensors)

    def beside(self, indices: Sequence[int]) -> IndexedView:
        """See `View.beside`."""
        more_T = upload(torch.tensor(indices, dtype=torch.int64), self.twins_T.device)
        if self.key.is_window:
            key = replace(self.key, twins=(*self.key.twins, *indices))
            return replace(self, key=key, twins_T=torch.cat([self.twins_T, more_T]))
        index, position, positions, visible = (
            torch.cat([each, each.index_select(0, more_T)])
            for each in (self.index_S, self.position_S, self.positions_SL, self.visible_SL)
        )
        seen = (position, positions, visible)
        return IndexedView(self.key, self.window, self.pools, index, *seen, self.twins_T)

    def reader(self) -> IndexedReader:
        """See `AnyCacheView.reader`."""
        return IndexedReader(self)


class IndexedReader:
    """The temporal attention of one forward, and the recorder of what it leaves."""

    def __init__(self, view: IndexedView) -> None:
        self._view = view
        self._left = LeftByLayers(len(view.pools))

    def attend(
        self, layer: int, query_SNC: Tensor, key_SNC: Tensor, value_SNC: Tensor, tables: PositionTables
    ) -> Tensor:
        """See `TemporalAttend`. Layers come in their order."""
        view = self._view
        self._left.add(layer, key_SNC, value_SNC)
        if view.key.is_window:
            frames = view.window.sink_frames
            return attend_windows(query_SNC, key_SNC, value_SNC, tables, frames, view.twins_T)
        assert len(query_SNC) == len(view.index_S), "samples and pasts differ"
        return attend_indexed(
            query_SNC,
            key_SNC,
            value_SNC,
            *view.pools[layer].tensors,
            tables,
            view.index_S,
            view.position_S,
            view.positions_SL,
            view.visible_SL,
        )

    def collect(self) -> CacheUpdate:
        """The update of the whole forward."""
        return self._left.collect()


def plan_indexed(
    indices: Sequence[int], numbers: Sequence[int], window: CacheWindow, pools: tuple[LayerPool, ...]
) -> IndexedView:
    """The view of single frames. `numbers`: n of each, its number among the streamed frames."""
    device = pools[0].keys.device
    index_S, position_S, positions_SL, visible_SL = (
        upload(torch.tensor(each), device)
        for each in (
            indices,
            [window.position(n) for n in numbers],
            [window.positions(n) for n in numbers],
            [window.visible(n) for n in numbers],
        )
    )
    none = torch.empty(0, dtype=torch.int64, device=device)
    return IndexedView(
        IndexedKey(is_window=False), window, pools, index_S, position_S, positions_SL, visible_SL, none
    )


def plan_indexed_windows(window: CacheWindow, pools: tuple[LayerPool, ...]) -> IndexedView:
    """The view of windows, which read no past."""
    none = torch.empty(0, dtype=torch.int64, device=pools[0].keys.device)
    return IndexedView(IndexedKey(is_window=True), window, pools, *[none] * 5)
