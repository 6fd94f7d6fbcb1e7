"""What one forward's samples read from a temporal cache, and what they would write to it.

A view reads the pool in place and is valid until the next scatter. Samples whose slots follow each other
at one step are read together, through a slice; nothing of the past is copied unless its type differs. A
forward is either of windows, whose frames see each other and no past, or of single frames.
Shape legend: S samples, W frames of a warm-up, N pixels, C channels, H heads, D channels of a head,
L stored frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.networks.attention.temporal import attend_frames, attend_stored
from rearview.engine.networks.motion_module import PositionTables

__all__ = ["CacheUpdate", "CacheView", "LayerPool", "SamplePlan"]


@dataclass(frozen=True, slots=True)
class LayerPool:
    """The pool of one layer at one step: (slots, N, H, L, D) each."""

    keys: Tensor
    values: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values

    def read(self, slots: range, pixels: int) -> tuple[Tensor, Tensor]:
        """Keys and values of consecutive slots; views."""
        keys, values = (pool[slots.start : slots.stop, :pixels] for pool in self.tensors)
        return keys, values


Pools = Mapping[int, Sequence[LayerPool]]
"""Step to its pools by layer."""


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """What one sample of the forward does."""

    slot: int
    step: int
    streamed: int | None = None
    """n, its number among the streamed frames. None: it is in a window."""


@dataclass(frozen=True, slots=True)
class CacheUpdate:
    """What a forward would write: per layer keys and values (S, N, C), in the order of the samples."""

    layers: Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class _Run:
    """Samples that are read through one slice."""

    step: int
    slots: range
    places: slice
    """In the order in which samples are read."""


class CacheView:
    """The temporal attention of a batch of samples, and the recorder of what they leave."""

    def __init__(
        self,
        window: CacheWindow,
        pools: Pools,
        plans: Sequence[SamplePlan],
        device: torch.device,
        twins: Sequence[int] = (),
    ) -> None:
        """`twins`: indices of plans that have a second sample behind all of them, which sees their past
        (and, in a window, the other frames' present) beside itself, and leaves nothing.
        """
        self._window, self._pools, self._plans, self._device = window, pools, plans, device
        self._twins = list(twins)
        self._recorded: list[tuple[Tensor, Tensor]] = []
        streamed = [plan.streamed is not None for plan in plans]
        assert all(streamed) or not any(streamed), "windows and single frames in one forward"
        self._prefills = not streamed[0]
        if not self._prefills:
            self._plan_reading()

    def attend(
        self, layer: int, query_SNC: Tensor, key_SNC: Tensor, value_SNC: Tensor, tables: PositionTables
    ) -> Tensor:
        """See `TemporalAttend`. Layers come in their order."""
        assert layer == len(self._recorded), f"layer {layer} after {len(self._recorded)} others"
        own = len(self._plans)
        assert query_SNC.shape[0] == own + len(self._twins), "samples and plans differ"
        self._recorded.append((key_SNC[:own], value_SNC[:own]))
        attend = self._attend_window if self._prefills else self._attend_past
        return attend(layer, query_SNC, key_SNC, value_SNC, tables)

    def collect(self) -> CacheUpdate:
        """The update of the whole forward."""
        layers = len(self._pools[self._plans[0].step])
        assert len(self._recorded) == layers, f"{len(self._recorded)} of {layers} layers were recorded"
        return CacheUpdate(self._recorded)

    def beside(self, indices: Sequence[int]) -> CacheView:
        """A view of these samples followed by copies of some, for predictions under another prompt."""
        return CacheView(self._window, self._pools, self._plans, self._device, indices)

    def _plan_reading(self) -> None:
        plans = [*self._plans, *(self._plans[index] for index in self._twins)]
        is_twin = [False] * len(self._plans) + [True] * len(self._twins)
        order = sorted(range(len(plans)), key=lambda i: (is_twin[i], plans[i].step, plans[i].slot))
        self._in_order = order == list(range(len(plans)))
        self._order = torch.tensor(order).to(self._device)
        self._back = self._order.argsort()
        plans = [plans[index] for index in order]
        numbers = [plan.streamed for plan in plans if plan.streamed is not None]
        window = self._window
        self._position_S = self._tensor([window.position(n) for n in numbers])
        self._positions_SL = self._tensor([window.positions(n) for n in numbers])
        self._visible_SL = self._tensor([window.visible(n) for n in numbers])
        self._runs = list(_runs(plans))

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values).to(self._device, non_blocking=True)

    def _attend_past(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, tables: PositionTables
    ) -> Tensor:
        if not self._in_order:
            query, key, value = (each.index_select(0, self._order) for each in (query, key, value))
        outputs = [
            self._attend_run(layer, run, query, key, value, tables)
            for whole in self._runs
            for run in _cut(whole, self._pools[whole.step][layer].keys.shape[1] == query.shape[1])
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output if self._in_order else output.index_select(0, self._back)

    def _attend_run(
        self, layer: int, run: _Run, query: Tensor, key: Tensor, value: Tensor, tables: PositionTables
    ) -> Tensor:
        at = run.places
        keys, values = self._pools[run.step][layer].read(run.slots, query.shape[1])
        return attend_stored(
            query[at],
            key[at],
            value[at],
            keys,
            values,
            tables,
            self._position_S[at],
            self._positions_SL[at],
            self._visible_SL[at],
        )

    def _attend_window(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, tables: PositionTables
    ) -> Tensor:
        frames, own = self._window.sink_frames, len(self._plans)
        places = torch.arange(frames, device=query.device)
        shape = (-1, frames, *query.shape[1:])
        queries, keys, values = (each[:own].reshape(shape) for each in (query, key, value))
        output = attend_frames(queries, keys, values, tables, places, places).flatten(0, 1)
        if not self._twins:
            return output
        twins = torch.tensor(self._twins, device=query.device)
        row, place, each = twins // frames, twins % frames, torch.arange(len(twins), device=query.device)
        keys, values = keys[row], values[row]
        keys[each, place], values[each, place] = key[own:], value[own:]
        beside = attend_frames(
            query[own:, None], keys, values, tables, place[:, None], places.expand(len(twins), -1)
        )
        return torch.cat([output, beside.squeeze(1)])


def _runs(plans: Sequence[SamplePlan]) -> Iterator[_Run]:
    """Maximal stretches of one step with consecutive slots."""
    start = 0
    for index in range(1, len(plans) + 1):
        before = plans[index - 1]
        if index == len(plans) or (plans[index].step, plans[index].slot) != (before.step, before.slot + 1):
            yield _Run(before.step, range(plans[start].slot, before.slot + 1), slice(start, index))
            start = index


def _cut(run: _Run, is_whole: bool) -> Iterator[_Run]:
    """A frame that is smaller than the pool's leaves a gap behind each slot: then each is read alone."""
    if is_whole or len(run.slots) == 1:
        yield run
        return
    for offset, slot in enumerate(run.slots):
        at = run.places.start + offset
        yield _Run(run.step, range(slot, slot + 1), slice(at, at + 1))
