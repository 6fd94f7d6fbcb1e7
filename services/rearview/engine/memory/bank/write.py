"""What a commit writes to a feature bank: planned from records, merged, and only then copied.

Rows whose writes have equal shapes are computed together. Everything is computed before anything is copied,
so that a fault leaves every past as it was.
Shape legend: B samples of the forward, W rows of one write, N present tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rearview.contract.memories import BankPolicy, BankSettings, MergeMetric
from rearview.engine.ahead import Ahead
from rearview.engine.devices import upload
from rearview.engine.memory.bank.layers import BankLayer
from rearview.engine.memory.bank.merge import (
    MergeOrders,
    bank_tokens,
    max_bank_tokens,
    merge_tokens,
    num_sources,
)
from rearview.engine.memory.bank.records import next_write
from rearview.engine.memory.bank.view import BankUpdate, LayerStorage

__all__ = ["LayerWrite", "SampleWrite", "compute_writes"]

_METRIC_INDEX = {MergeMetric.KEYS: 0, MergeMetric.VALUES: 1, MergeMetric.OUTPUTS: 2}


@dataclass(frozen=True, slots=True)
class SampleWrite:
    """A write that is due."""

    sample: int
    """Index in the forward."""
    pool_row: int
    settings: BankSettings
    writes: int
    """Writes that the bank has had before it; 0: it counts as empty."""
    session_id: str
    seed: int
    step: int
    ordinal: int

    @property
    def merges(self) -> bool:
        """Whether what the bank holds is merged with the frame."""
        return self.writes > 0 and self.settings.policy is BankPolicy.MERGE

    @property
    def following(self) -> SampleWrite:
        """The one that is due next under the same settings, as far as it can be known."""
        ordinal = next_write(self.settings, self.ordinal)
        return replace(self, writes=self.writes + 1, ordinal=ordinal)

    def orders(self, tokens: Mapping[int, int]) -> MergeOrders:
        """The permutations of its merges. `tokens`: of a frame, by number of layer that it writes."""
        sizes = ((layer, bank_tokens(self.settings, n, self.writes) + n) for layer, n in tokens.items())
        return MergeOrders(self.seed, self.step, self.ordinal, tuple(sizes))

    def shape_kind(self) -> Hashable:
        """Writes of one kind have equal shapes and are computed together."""
        settings = self.settings
        kind = (
            settings.policy,
            settings.max_frames,
            settings.merge_ratio,
            settings.metric,
            settings.layers,
        )
        if self.writes == 0:
            return *kind, 0
        if settings.policy is BankPolicy.QUEUE:
            return *kind, 1 + self.writes % settings.max_frames
        return *kind, 1 if settings.keeps_size else self.writes


@dataclass(frozen=True, slots=True)
class LayerWrite:
    """New content of some pool rows of one layer, from token `offset` on."""

    storage: LayerStorage
    pool_rows: Tensor
    """(W,)"""
    offset: int
    tensors: tuple[Tensor, ...]
    """(W, tokens, C) for each of `LayerStorage.tensors`."""

    def copy(self) -> None:
        """Put it into the pool."""
        for pool, content in zip(self.storage.tensors, self.tensors, strict=True):
            place = pool.narrow(1, self.offset, content.shape[1])
            place.index_copy_(0, self.pool_rows, content.to(pool.dtype))


@dataclass(frozen=True, slots=True)
class _Group:
    """Writes of one kind."""

    writes: Sequence[SampleWrite]
    samples: Tensor
    pool_rows: Tensor
    orders: Mapping[int, Tensor]
    """Permutations (W, tokens of the union), int64, by number of layer that is merged."""


def compute_writes(
    layers: Sequence[BankLayer],
    storage: Sequence[LayerStorage],
    writes: Sequence[SampleWrite],
    update: BankUpdate,
    ahead: Ahead,
) -> list[LayerWrite]:
    """What the pool rows of `writes` will hold, in every layer that they remember. `ahead`: draws the
    permutations, those of the writes that follow too.
    """
    if not writes:
        return []
    device = storage[0].keys.device
    tokens = [present[0].shape[1] for present in update.layers]
    groups = [
        _Group(
            group,
            upload(torch.tensor([write.sample for write in group]), device),
            upload(torch.tensor([write.pool_row for write in group]), device),
            _orders(group, _remembered(layers, tokens, group[0].settings), ahead, device),
        )
        for group in _alike(writes)
    ]
    for coming in [write.following for write in writes if ahead.is_on]:
        if coming.merges:
            orders = coming.orders(_remembered(layers, tokens, coming.settings))
            ahead.expect(coming.session_id, ("orders", coming.step), orders)
    return [
        _write(index, storage[index], group, present)
        for index, (layer, present) in enumerate(zip(layers, update.layers, strict=True))
        for group in groups
        if layer.is_below(group.writes[0].settings.layers)
    ]


def _alike(writes: Sequence[SampleWrite]) -> Iterable[Sequence[SampleWrite]]:
    """The writes by kind."""
    rows = [write.pool_row for write in writes]
    assert len(set(rows)) == len(rows), f"rows {rows} of the pool are written twice"
    members: dict[Hashable, list[SampleWrite]] = {}
    for write in writes:
        members.setdefault(write.shape_kind(), []).append(write)
    return members.values()


def _remembered(
    layers: Sequence[BankLayer], tokens: Sequence[int], settings: BankSettings
) -> Mapping[int, int]:
    """Tokens of a frame by number of layer, of the layers that such a bank remembers."""
    pairs = enumerate(zip(layers, tokens, strict=True))
    return {number: count for number, (layer, count) in pairs if layer.is_below(settings.layers)}


def _orders(
    group: Sequence[SampleWrite], tokens: Mapping[int, int], ahead: Ahead, device: torch.device
) -> Mapping[int, Tensor]:
    """The permutations of writes of one kind, if they merge. What a write needs is uploaded at once."""
    if not group[0].merges:
        return {}
    asked = [write.orders(tokens) for write in group]
    drawn = [
        upload(ahead.take(write.session_id, ("orders", write.step), orders), device)
        for write, orders in zip(group, asked, strict=True)
    ]
    numbers, sizes = zip(*asked[0].sizes, strict=True)
    parts = torch.stack(drawn).to(torch.int64).split(sizes, dim=1)
    return dict(zip(numbers, parts, strict=True))


def _write(layer: int, storage: LayerStorage, group: _Group, present: tuple[Tensor, ...]) -> LayerWrite:
    write = group.writes[0]
    settings, new = write.settings, [kind.index_select(0, group.samples) for kind in present]
    tokens = new[0].shape[1]
    size, offset = max_bank_tokens(settings, tokens), 0
    if write.writes > 0 and settings.policy is BankPolicy.QUEUE:
        size, offset = tokens, write.writes % settings.max_frames * tokens
    elif write.merges:
        new = _merged(storage, group, new, group.orders[layer])
    return LayerWrite(storage, group.pool_rows, offset, tuple(_padded(tensor, size) for tensor in new))


def _merged(storage: LayerStorage, group: _Group, new: list[Tensor], order_WU: Tensor) -> list[Tensor]:
    settings = group.writes[0].settings
    held = bank_tokens(settings, new[0].shape[1], group.writes[0].writes)
    old = [pool[:, :held].index_select(0, group.pool_rows) for pool in storage.tensors]
    union = [torch.cat(pair, dim=1) for pair in zip(old, new, strict=True)]
    metric = union[_METRIC_INDEX[settings.metric]]
    return merge_tokens(union, metric, order_WU, num_sources(order_WU.shape[1], settings.merge_ratio))


def _padded(tokens_WTC: Tensor, size: int) -> Tensor:
    """Zeros behind the last token, so that what an earlier, larger bank held is not left behind."""
    missing = size - tokens_WTC.shape[1]
    return torch.nn.functional.pad(tokens_WTC, (0, 0, 0, missing)) if missing else tokens_WTC
