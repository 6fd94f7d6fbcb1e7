"""What one forward's rows read from a feature bank, and what they would write to it.

A view reads the pool in place, layer by layer, and is valid until the next scatter. It changes nothing:
merged banks are computed here, during the forward, so that a fault there leaves every past as it was and
`FeatureBank.scatter` only copies.
Shape legend: B rows of the forward, W rows of one write, N present tokens, M remembered tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rearview.contract.memories import BankPolicy, BankSettings, MergeMetric
from rearview.engine.memory.bank.layers import BankLayer
from rearview.engine.memory.bank.merge import (
    bank_tokens,
    max_bank_tokens,
    merge_tokens,
    num_sources,
    permutation,
)
from rearview.engine.networks.attention.fusion import fuse

__all__ = ["BankUpdate", "BankView", "LayerStorage", "LayerWrite", "RowPlan"]


@dataclass(frozen=True, slots=True)
class LayerStorage:
    """The pool of one layer: (rows, tokens, channels) each; row = slot * steps + step."""

    keys: Tensor
    values: Tensor
    outputs: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        kinds = (self.keys, self.values, self.outputs)
        return tuple(tensor for tensor in kinds if tensor is not None)


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What one row of the forward does with its bank."""

    pool_row: int
    settings: BankSettings | None
    """None: the session has no bank; it reads nothing and writes nothing."""
    writes: int = 0
    """Writes that its bank has had; 0: there is nothing to read."""
    strength: float = 0.0
    """Of feature fusion, for this frame."""
    write_due: bool = False
    seed: int = 0
    step: int = 0
    ordinal: int = 0

    def write_kind(self) -> Hashable:
        """Writes of one kind have equal shapes and are computed together."""
        settings = self.settings
        assert settings is not None, "a row without a bank cannot write"
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

    pool_rows: Tensor
    """(W,)"""
    offset: int
    tensors: tuple[Tensor, ...]
    """(W, tokens, C) for each of `LayerStorage.tensors`."""


@dataclass(frozen=True, slots=True)
class BankUpdate:
    """What a forward would write."""

    layers: Sequence[Sequence[LayerWrite]]


@dataclass(frozen=True, slots=True)
class _WriteGroup:
    rows: Sequence[int]
    plans: Sequence[RowPlan]
    batch_rows: Tensor
    pool_rows: Tensor


@dataclass(slots=True)
class _Reach:
    """How far the rows see, for layers of N tokens that the same rows remember."""

    tokens: int
    """M: what is read of every row."""
    mask: Tensor
    """(B, M): True where a remembered token may be seen."""


class BankView:
    """The `AttentionMemory` of a batch of rows."""

    def __init__(
        self,
        layers: Sequence[BankLayer],
        storage: Sequence[LayerStorage],
        plans: Sequence[RowPlan],
        device: torch.device,
    ) -> None:
        self._layers, self._storage, self._plans = layers, storage, plans
        self._device = device
        self._rows_B = self._tensor([plan.pool_row for plan in plans])
        self._strength_B = self._tensor([plan.strength for plan in plans])
        settings = [plan.settings for plan in plans if plan.settings is not None]
        thresholds = [plan.settings.fusion_threshold if plan.settings else 2.0 for plan in plans]
        self._threshold_B = self._tensor(thresholds)
        self._all_keep_size = all(setting.keeps_size for setting in settings)
        self._readers = [_readers(layer, plans) for layer in layers]
        self._reach: dict[tuple[int, tuple[int, ...]], _Reach] = {}
        self._groups = self._write_groups()
        self._writes: list[list[LayerWrite]] = [[] for _ in layers]
        self._recorded = 0

    def extend(self, layer: int, key_BNC: Tensor, value_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Remembered keys and values. An empty bank is the row's own present, which changes nothing; one
        that may be partly filled is masked instead. Never zeros: a zero key has weight too. Where no row
        remembers the layer there is nothing to read, for some rows it is as if theirs were empty.
        """
        if not self._readers[layer]:
            return key_BNC[:, :0], value_BNC[:, :0], None
        reach = self._reach_of(layer, key_BNC.shape[1])
        storage = self._storage[layer]
        past_key, past_value = self._read(storage.keys, reach), self._read(storage.values, reach)
        if not self._all_keep_size:
            return past_key, past_value, reach.mask
        filled = reach.mask[:, :1, None]
        return torch.where(filled, past_key, key_BNC), torch.where(filled, past_value, value_BNC), None

    def fuse(self, layer: int, output_BNC: Tensor) -> Tensor:
        storage = self._storage[layer]
        if not self._layers[layer].fuses or storage.outputs is None or not self._readers[layer]:
            return output_BNC
        reach = self._reach_of(layer, output_BNC.shape[1])
        past_BMC = self._read(storage.outputs, reach)
        return fuse(output_BNC, past_BMC, reach.mask, self._strength_B, self._threshold_B)

    def record(self, layer: int, key_BNC: Tensor, value_BNC: Tensor, output_BNC: Tensor) -> None:
        """Compute what the rows whose write is due will hold. Copies nothing of the other rows."""
        kinds = (key_BNC, value_BNC, output_BNC)
        for group in self._groups:
            if group.rows[0] not in self._readers[layer]:
                continue
            new = [kind.index_select(0, group.batch_rows) for kind in kinds]
            self._writes[layer].append(self._write(layer, group, new))
        self._recorded += 1

    def collect(self) -> BankUpdate:
        """The update of the whole forward."""
        assert self._recorded == len(self._layers), (
            f"{self._recorded} of {len(self._layers)} layers were recorded: are the processors installed?"
        )
        return BankUpdate(self._writes)

    def beside(self, indices: Sequence[int]) -> BankView:
        """A view of these rows followed by copies of some that remember nothing and write nothing.

        They see themselves alone, as rows of a session without a bank do.
        """
        strangers = [RowPlan(self._plans[index].pool_row, None) for index in indices]
        return BankView(self._layers, self._storage, [*self._plans, *strangers], self._device)

    @property
    def plans(self) -> Sequence[RowPlan]:
        """What each row does, in the order of the rows."""
        return self._plans

    def _tensor(self, values: Sequence[float]) -> Tensor:
        exact = torch.promote_types(self._storage[0].keys.dtype, torch.float32)
        dtype = exact if isinstance(values[0], float) else None
        return torch.tensor(values, dtype=dtype).to(self._device, non_blocking=True)

    def _reach_of(self, layer: int, tokens: int) -> _Reach:
        key = tokens, self._readers[layer]
        known = self._reach.get(key)
        if known is None:
            known = self._reach[key] = self._make_reach(*key)
        return known

    def _make_reach(self, tokens: int, readers: tuple[int, ...]) -> _Reach:
        sizes, visible = [], [0] * len(self._plans)
        for index in readers:
            plan = self._plans[index]
            assert plan.settings is not None
            sizes.append(max_bank_tokens(plan.settings, tokens))
            visible[index] = bank_tokens(plan.settings, tokens, plan.writes)
        places = torch.arange(max(sizes), device=self._device)
        return _Reach(max(sizes), places[None, :] < self._tensor(visible)[:, None])

    def _read(self, pool: Tensor, reach: _Reach) -> Tensor:
        return pool[:, : reach.tokens].index_select(0, self._rows_B)

    def _write_groups(self) -> list[_WriteGroup]:
        members: dict[Hashable, list[int]] = {}
        for index, plan in enumerate(self._plans):
            if plan.write_due:
                members.setdefault(plan.write_kind(), []).append(index)
        written = [self._plans[index].pool_row for group in members.values() for index in group]
        assert len(set(written)) == len(written), f"rows {written} of the pool are written twice"
        return [
            _WriteGroup(
                group,
                [self._plans[index] for index in group],
                self._tensor(group),
                self._tensor([self._plans[index].pool_row for index in group]),
            )
            for group in members.values()
        ]

    def _write(self, layer: int, group: _WriteGroup, new: list[Tensor]) -> LayerWrite:
        plan = group.plans[0]
        settings, tokens = plan.settings, new[0].shape[1]
        assert settings is not None
        storage = self._storage[layer]
        new = new[: len(storage.tensors)]
        size, offset = max_bank_tokens(settings, tokens), 0
        if plan.writes > 0 and settings.policy is BankPolicy.QUEUE:
            size, offset = tokens, plan.writes % settings.max_frames * tokens
        elif plan.writes > 0:
            new = self._merged(layer, group, new)
        contents = tuple(_padded(tensor, size) for tensor in new)
        return LayerWrite(group.pool_rows, offset, contents)

    def _merged(self, layer: int, group: _WriteGroup, new: list[Tensor]) -> list[Tensor]:
        plan = group.plans[0]
        settings = plan.settings
        assert settings is not None
        held = bank_tokens(settings, new[0].shape[1], plan.writes)
        old = [pool[:, :held].index_select(0, group.pool_rows) for pool in self._storage[layer].tensors]
        union = [torch.cat(pair, dim=1) for pair in zip(old, new, strict=True)]
        size = union[0].shape[1]
        orders = [permutation(p.seed, p.step, layer, p.ordinal, size) for p in group.plans]
        metric = union[_METRIC_INDEX[settings.metric]]
        return merge_tokens(union, metric, torch.stack(orders), num_sources(size, settings.merge_ratio))


_METRIC_INDEX = {MergeMetric.KEYS: 0, MergeMetric.VALUES: 1, MergeMetric.OUTPUTS: 2}


def _readers(layer: BankLayer, plans: Sequence[RowPlan]) -> tuple[int, ...]:
    """Which rows remember the layer."""
    return tuple(
        index
        for index, plan in enumerate(plans)
        if plan.settings is not None and layer.is_below(plan.settings.layers)
    )


def _padded(tokens_WTC: Tensor, size: int) -> Tensor:
    """Zeros behind the last token, so that what an earlier, larger bank held is not left behind."""
    missing = size - tokens_WTC.shape[1]
    return torch.nn.functional.pad(tokens_WTC, (0, 0, 0, missing)) if missing else tokens_WTC
