"""A temporal cache in its plainest form, for `frame.py`: one session, lists of frames, no slots.

No pool, numbers, masks, folding or batches, and none of their code: the frames that are seen are put in
order, oldest first, and positions are counted off. What it shares with `TemporalKVCache` is only the
tables of positions.
Shape legend: S frames of a window, or the one that streams; F frames that are seen; N pixels, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rearview.engine.networks.motion_module import PositionTables

__all__ = ["PlainCache", "PlainCacheView", "PlainTwinView"]

KeyValue = tuple[Tensor, Tensor]
"""Of one frame, (N, C) each."""


@dataclass(slots=True)
class PlainCache:
    """The past of one session."""

    sink_frames: int = 8
    ring_frames: int = 8
    sinks: dict[tuple[int, int], list[KeyValue]] = field(default_factory=dict)
    """(step, layer) to the frames of the last warm-up."""
    ring: dict[tuple[int, int], list[KeyValue]] = field(default_factory=dict)
    """(step, layer) to the newest frames since then, oldest first."""

    def window(self, step: int) -> PlainCacheView:
        """Begin one forward of the frames of a warm-up."""
        return PlainCacheView(self, step, is_window=True)

    def frame(self, step: int) -> PlainCacheView:
        """Begin one forward of one frame."""
        return PlainCacheView(self, step, is_window=False)


class PlainCacheView:
    """The temporal attention of one forward at one step."""

    def __init__(self, cache: PlainCache, step: int, *, is_window: bool) -> None:
        self._cache, self._step, self._is_window = cache, step, is_window
        self._fresh: dict[int, list[KeyValue]] = {}

    def attend(
        self, layer: int, query_SNC: Tensor, key_SNC: Tensor, value_SNC: Tensor, tables: PositionTables
    ) -> Tensor:
        """See `TemporalAttend`."""
        present = self._fresh[layer] = list(zip(key_SNC, value_SNC, strict=True))
        seen = self._seen(layer, present)
        return _attend(query_SNC, seen, len(seen) - len(present), tables)

    def beside(self, place: int) -> PlainTwinView:
        """Begin one forward, after this one, of its frame at `place` alone, under another prompt: it sees
        what that frame saw, but itself as it is now, and leaves nothing.
        """
        return PlainTwinView(self, place)

    def commit(self) -> None:
        """Keep what the forward has left."""
        for layer, fresh in self._fresh.items():
            key = self._step, layer
            if self._is_window:
                self._cache.sinks[key], self._cache.ring[key] = fresh, []
            else:
                self._cache.ring[key] = self._newest(layer, fresh)

    def _seen(self, layer: int, present: list[KeyValue]) -> list[KeyValue]:
        """Oldest first."""
        if self._is_window:
            return present
        return [*self._cache.sinks[self._step, layer], *self._newest(layer, present)]

    def _newest(self, layer: int, present: list[KeyValue]) -> list[KeyValue]:
        return [*self._cache.ring[self._step, layer], *present][-self._cache.ring_frames :]


class PlainTwinView:
    """The temporal attention of a frame once more: see `PlainCacheView.beside`."""

    def __init__(self, view: PlainCacheView, place: int) -> None:
        self._view, self._place = view, place

    def attend(
        self, layer: int, query_1NC: Tensor, key_1NC: Tensor, value_1NC: Tensor, tables: PositionTables
    ) -> Tensor:
        """See `TemporalAttend`."""
        present = [*self._view._fresh[layer]]
        present[self._place] = (key_1NC[0], value_1NC[0])
        seen = self._view._seen(layer, present)
        return _attend(query_1NC, seen, len(seen) - len(present) + self._place, tables)


def _attend(query_SNC: Tensor, seen: list[KeyValue], first: int, tables: PositionTables) -> Tensor:
    """Queries at positions from `first` on, over frames at positions from 0 on."""
    keys = torch.stack([key + tables.key[at] for at, (key, _) in enumerate(seen)])
    values = torch.stack([value + tables.value[at] for at, (_, value) in enumerate(seen)])
    outputs = [
        _attend_heads(query + tables.query[first + index], keys, values, tables.heads)
        for index, query in enumerate(query_SNC)
    ]
    return torch.stack(outputs)


def _attend_heads(query_NC: Tensor, keys_FNC: Tensor, values_FNC: Tensor, heads: int) -> Tensor:
    outputs = []
    for query, keys, values in zip(
        query_NC.chunk(heads, -1), keys_FNC.chunk(heads, -1), values_FNC.chunk(heads, -1), strict=True
    ):
        shares_FN = ((query * keys).sum(-1) / math.sqrt(query.shape[-1])).softmax(0)
        outputs.append((shares_FN.unsqueeze(-1) * values).sum(0))
    return torch.cat(outputs, dim=-1)
