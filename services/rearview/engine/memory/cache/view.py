"""What one forward's samples read from a temporal cache, and what they leave for it.

A view is a few small tensors (positions, which slots may be seen, an order) beside a key that says where the
samples' pasts lie; a `CacheReader` reads the pool in place. Samples whose slots follow each other at one step
are read together, through a slice, so that nothing of the past is copied unless its type differs. Which
slices those are is static: it is in the key, and a forward that is captured is captured for one set of slots.
(Slots in a tensor, and torch alone, would copy every past in every layer: more bytes than all the weights.
Where a kernel can read in place by index, `cache.indexed` takes the place of this view.) A forward is either
of windows, whose frames see each other and no past, or of single frames.
Shape legend: S samples, T twins, W frames of a warm-up, N pixels, C channels, H heads, D channels of a head,
L stored frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rearview.engine.devices import upload
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.protocol import Kind, View
from rearview.engine.networks.attention.temporal import attend_frames, attend_stored
from rearview.engine.networks.motion_module import PositionTables

__all__ = [
    "CACHE",
    "AnyCacheView",
    "CacheKey",
    "CacheReader",
    "CacheUpdate",
    "CacheView",
    "LayerPool",
    "LeftByLayers",
    "Place",
    "Reads",
    "attend_windows",
    "plan_stream",
    "plan_windows",
]


@dataclass(frozen=True, slots=True)
class LayerPool:
    """The pool of one layer, at one step or at all of them in turn: (slots, N, H, L, D) each."""

    keys: Tensor
    values: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Keys, values."""
        return self.keys, self.values

    def read(self, slots: range, pixels: int) -> tuple[Tensor, Tensor]:
        """Keys and values of consecutive slots; views."""
        keys, values = (pool[slots.start : slots.stop, :pixels] for pool in self.tensors)
        return keys, values

    def part(self, slots: range) -> LayerPool:
        """Consecutive slots; views."""
        return LayerPool(*(pool[slots.start : slots.stop] for pool in self.tensors))


Pools = Mapping[int, Sequence[LayerPool]]
"""Step to its pools by layer."""


class Place(NamedTuple):
    """Where a sample's past lies."""

    step: int
    slot: int


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What is static in a forward with a cache."""

    places: tuple[Place, ...]
    """Of each sample that is no twin, in order."""
    is_window: bool
    """Whether the samples are the frames of windows, W for each row."""
    twins: tuple[int, ...] = ()
    """Indices of samples that have a second one behind all of them, which sees their past (and, in a
    window, the other frames' present) beside itself."""


@dataclass(frozen=True, slots=True, eq=False)
class CacheView:
    """What the samples of a forward read. The tensors of windows are empty but for `twins_T`."""

    key: CacheKey
    window: CacheWindow
    pools: Pools
    """At fixed addresses."""
    order_S: Tensor
    """Samples, twins included, in the order in which they are read."""
    back_S: Tensor
    """The inverse of it."""
    position_S: Tensor
    """Of each sample's own frame, in the order of the samples, as the other two."""
    positions_SL: Tensor
    """Of every slot, as the sample sees it."""
    visible_SL: Tensor
    """Which slots the sample sees."""
    twins_T: Tensor
    """`CacheKey.twins`."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that differs from forward to forward."""
        seen = (self.position_S, self.positions_SL, self.visible_SL)
        return self.order_S, self.back_S, *seen, self.twins_T

    @property
    def pooled(self) -> tuple[Tensor, ...]:
        """By step and layer."""
        return tuple(tensor for layers in self.pools.values() for each in layers for tensor in each.tensors)

    def over(self, tensors: Sequence[Tensor], pooled: Sequence[Tensor]) -> CacheView:
        """See `View.over`."""
        pairs = iter(zip(pooled[::2], pooled[1::2], strict=True))
        pools = {step: [LayerPool(*next(pairs)) for _ in layers] for step, layers in self.pools.items()}
        return CacheView(self.key, self.window, pools, *tensors)

    def beside(self, indices: Sequence[int]) -> CacheView:
        """A view of these samples followed by copies of some, for predictions under another prompt."""
        key = replace(self.key, twins=(*self.key.twins, *indices))
        more = upload(torch.tensor(indices, dtype=torch.int64), self.twins_T.device)
        twins = torch.cat([self.twins_T, more])
        if key.is_window:
            return replace(self, key=key, twins_T=twins)
        position, positions, visible = (
            torch.cat([each, each.index_select(0, more)])
            for each in (self.position_S, self.positions_SL, self.visible_SL)
        )
        return _stream(key, self.window, self.pools, (position, positions, visible), twins)

    def reader(self) -> CacheReader:
        """See `AnyCacheView.reader`."""
        return CacheReader(self)


@dataclass(frozen=True, slots=True, eq=False)
class CacheUpdate:
    """What a forward leaves: per layer keys and values (S, N, C), in the order of the samples, without
    positions, as the network made them.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def key(self) -> None:
        """Every sample writes: there is nothing to tell apart."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """By layer, in the order of the forward."""
        return tuple(tensor for layer in self.layers for tensor in layer)

    def over(self, tensors: Sequence[Tensor]) -> CacheUpdate:
        """See `Update.over`."""
        return CacheUpdate(tuple(zip(tensors[::2], tensors[1::2], strict=True)))


class Reads(Protocol):
    """The temporal attention of one forward, and the recorder of what it leaves."""

    def attend(
        self, layer: int, query_SNC: Tensor, key_SNC: Tensor, value_SNC: Tensor, tables: PositionTables
    ) -> Tensor:
        """See `TemporalAttend`. Layers come in their order."""

    def collect(self) -> CacheUpdate:
        """The update of the whole forward."""


class AnyCacheView(View, Protocol):
    """A view of a temporal cache, however it finds the past."""

    def reader(self) -> Reads:
        """Of one forward."""


CACHE = Kind[AnyCacheView, CacheUpdate]("cache")


class LeftByLayers:
    """What the layers of one forward leave, as they come in their order."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._left: list[tuple[Tensor, Tensor]] = []

    def add(self, layer: int, key_SNC: Tensor, value_SNC: Tensor) -> None:
        """Of all samples."""
        assert layer == len(self._left), f"layer {layer} after {len(self._left)} others"
        self._left.append((key_SNC, value_SNC))

    def collect(self) -> CacheUpdate:
        """The update of the whole forward."""
        found = len(self._left)
        assert found == self._layers, f"{found} of {self._layers} layers were recorded"
        return CacheUpdate(tuple(self._left))


class CacheReader:
    """The temporal attention of one forward, and the recorder of what it leaves."""

    def __init__(self, view: CacheView) -> None:
        self._view, self._key = view, view.key
        self._left = LeftByLayers(len(view.pools[self._key.places[0].step]))
        self._reading = _reading(self._key)
        self._seen = (view.position_S, view.positions_SL, view.visible_SL)
        if not self._reading.in_order:
            self._seen = self._ordered(*self._seen)

    def attend(
        self, layer: int, query_SNC: Tensor, key_SNC: Tensor, value_SNC: Tensor, tables: PositionTables
    ) -> Tensor:
        """See `TemporalAttend`. Layers come in their order."""
        assert len(query_SNC) == len(self._key.places) + len(self._key.twins), "samples and places differ"
        self._left.add(layer, key_SNC, value_SNC)
        attend = self._attend_window if self._key.is_window else self._attend_past
        return attend(layer, query_SNC, key_SNC, value_SNC, tables)

    def collect(self) -> CacheUpdate:
        """The update of the whole forward."""
        return self._left.collect()

    def _ordered(self, first: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        order = self._view.order_S
        return first.index_select(0, order), second.index_select(0, order), third.index_select(0, order)

    def _attend_past(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, tables: PositionTables
    ) -> Tensor:
        if not self._reading.in_order:
            query, key, value = self._ordered(query, key, value)
        pools = self._view.pools
        outputs = [
            self._attend_run(layer, run, query, key, value, tables)
            for whole in self._reading.runs
            for run in _cut(whole, pools[whole.step][layer].keys.shape[1] == query.shape[1])
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output if self._reading.in_order else output.index_select(0, self._view.back_S)

    def _attend_run(
        self, layer: int, run: _Run, query: Tensor, key: Tensor, value: Tensor, tables: PositionTables
    ) -> Tensor:
        at = run.samples
        keys, values = self._view.pools[run.step][layer].read(run.slots, query.shape[1])
        position_S, positions_SL, visible_SL = self._seen
        return attend_stored(
            query[at],
            key[at],
            value[at],
            keys,
            values,
            tables,
            position_S[at],
            positions_SL[at],
            visible_SL[at],
        )

    def _attend_window(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, tables: PositionTables
    ) -> Tensor:
        return attend_windows(query, key, value, tables, self._view.window.sink_frames, self._view.twins_T)


def attend_windows(
    query_SNC: Tensor,
    key_SNC: Tensor,
    value_SNC: Tensor,
    tables: PositionTables,
    frames: int,
    twins_T: Tensor,
) -> Tensor:
    """Frames of windows, `frames` for each row, over those of their own. Twins follow, of which each sees
    itself in the place of the sample whose twin it is. Returns (S, N, C).
    """
    own = len(query_SNC) - len(twins_T)
    places = torch.arange(frames, device=query_SNC.device)
    shape = (-1, frames, *query_SNC.shape[1:])
    queries, keys, values = (each[:own].reshape(shape) for each in (query_SNC, key_SNC, value_SNC))
    output = attend_frames(queries, keys, values, tables, places, places).flatten(0, 1)
    if not len(twins_T):
        return output
    row, place = twins_T // frames, twins_T % frames
    each = torch.arange(len(twins_T), device=query_SNC.device)
    keys, values = keys[row], values[row]
    keys[each, place], values[each, place] = key_SNC[own:], value_SNC[own:]
    beside = attend_frames(
        query_SNC[own:, None], keys, values, tables, place[:, None], places.expand(len(twins_T), -1)
    )
    return torch.cat([output, beside.squeeze(1)])


def plan_stream(
    places: Sequence[Place],
    numbers: Sequence[int],
    window: CacheWindow,
    pools: Pools,
    device: torch.device,
) -> CacheView:
    """The view of single frames. `numbers`: n of each, its number among the streamed frames."""

    def tensor(values: object) -> Tensor:
        return upload(torch.tensor(values), device)

    seen = (
        tensor([window.position(n) for n in numbers]),
        tensor([window.positions(n) for n in numbers]),
        tensor([window.visible(n) for n in numbers]),
    )
    key = CacheKey(tuple(places), is_window=False)
    return _stream(key, window, pools, seen, torch.empty(0, dtype=torch.int64, device=device))


def plan_windows(
    places: Sequence[Place], window: CacheWindow, pools: Pools, device: torch.device
) -> CacheView:
    """The view of windows: W equal places for each row."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    return CacheView(CacheKey(tuple(places), is_window=True), window, pools, *[none] * 6)


def _stream(
    key: CacheKey, window: CacheWindow, pools: Pools, seen: tuple[Tensor, Tensor, Tensor], twins: Tensor
) -> CacheView:
    order = upload(torch.tensor(_reading(key).order), twins.device)
    return CacheView(key, window, pools, order, order.argsort(), *seen, twins)


class _Run(NamedTuple):
    """Samples that are read through one slice."""

    step: int
    slots: range
    samples: slice
    """In the order in which they are read."""


class _Reading(NamedTuple):
    """How the samples of a forward are read: follows from its key."""

    order: tuple[int, ...]
    in_order: bool
    """Whether `order` is that of the samples."""
    runs: tuple[_Run, ...]


@lru_cache(maxsize=1024)
def _reading(key: CacheKey) -> _Reading:
    """By step and slot, twins behind all others."""
    places = [*key.places, *(key.places[index] for index in key.twins)]
    own = len(key.places)
    order = sorted(range(len(places)), key=lambda i: (i >= own, places[i]))
    return _Reading(
        tuple(order), order == list(range(len(places))), tuple(_runs([places[index] for index in order]))
    )


def _runs(places: Sequence[Place]) -> Iterator[_Run]:
    """Maximal stretches of one step with consecutive slots."""
    start = 0
    for index in range(1, len(places) + 1):
        before = places[index - 1]
        if index == len(places) or places[index] != (before.step, before.slot + 1):
            yield _Run(before.step, range(places[start].slot, before.slot + 1), slice(start, index))
            start = index


def _cut(run: _Run, is_whole: bool) -> Iterator[_Run]:
    """A frame that is smaller than the pool's leaves a gap behind each slot: then each is read alone."""
    if is_whole or len(run.slots) == 1:
        yield run
        return
    for offset, slot in enumerate(run.slots):
        at = run.samples.start + offset
        yield _Run(run.step, range(slot, slot + 1), slice(at, at + 1))
