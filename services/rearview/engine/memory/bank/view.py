"""What one forward's rows read from a feature bank, and what they leave for it.

A view is a few small tensors that say which pool rows are read and how much of each may be seen; the pool is
read in place, layer by layer, through a `BankReader`. It changes nothing. What the rows leave is their
present keys, values and outputs, as the network made them: which of them are written, and merged, is the
commit's affair (`write.py`).
Shape legend: B samples of the forward, R reaches, N present tokens, M remembered tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rearview.contract.memories import BankSettings
from rearview.engine.devices import upload
from rearview.engine.memory.bank.layers import BankLayer
from rearview.engine.memory.bank.merge import bank_tokens, max_bank_tokens
from rearview.engine.memory.protocol import Kind
from rearview.engine.networks.attention.fusion import fuse

__all__ = ["BANK", "BankKey", "BankReader", "BankUpdate", "BankView", "LayerStorage", "SamplePlan"]


@dataclass(frozen=True, slots=True)
class LayerStorage:
    """The pool of one layer: (rows, tokens, channels) each; row = slot * steps + step."""

    keys: Tensor
    values: Tensor
    outputs: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Keys, values, and outputs where they are kept."""
        kinds = (self.keys, self.values, self.outputs)
        return tuple(tensor for tensor in kinds if tensor is not None)


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """What one sample of the forward reads."""

    pool_row: int
    settings: BankSettings | None
    """None: the session has no bank; it reads nothing."""
    writes: int = 0
    """Writes that its bank has had; 0: there is nothing to read."""
    strength: float = 0.0
    """Of feature fusion, for this frame."""


@dataclass(frozen=True, slots=True)
class BankKey:
    """What is static in a forward with a bank.

    A *reach* is what some layers have in common: how many remembered tokens are read, and which samples
    remember them at all.
    """

    reaches: tuple[int, ...]
    """M of each reach."""
    layers: tuple[int | None, ...]
    """Per layer the number of its reach. None: no sample remembers the layer."""
    keeps_size: bool
    """Whether every bank is either empty or holds exactly one frame: then nothing is masked."""
    leaves: bool
    """Whether there is an update with anything in it: some sample's write is due."""


@dataclass(frozen=True, slots=True, eq=False)
class BankView:
    """What the samples of a forward read."""

    key: BankKey
    layers: Sequence[BankLayer]
    storage: Sequence[LayerStorage]
    """The pool, by layer: at fixed addresses."""
    rows_B: Tensor
    """Pool rows, int64."""
    strength_B: Tensor
    """Of feature fusion."""
    threshold_B: Tensor
    """Of feature fusion."""
    visible_RB: Tensor
    """Remembered tokens that may be seen, int64."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that differs from forward to forward."""
        return self.rows_B, self.strength_B, self.threshold_B, self.visible_RB

    @property
    def pooled(self) -> tuple[Tensor, ...]:
        """By layer."""
        return tuple(tensor for layer in self.storage for tensor in layer.tensors)

    def over(self, tensors: Sequence[Tensor], pooled: Sequence[Tensor]) -> BankView:
        """See `View.over`."""
        rows_B, strength_B, threshold_B, visible_RB = tensors
        rest = iter(pooled)
        storage = tuple(
            LayerStorage(next(rest), next(rest), None if layer.outputs is None else next(rest))
            for layer in self.storage
        )
        return BankView(self.key, self.layers, storage, rows_B, strength_B, threshold_B, visible_RB)

    def beside(self, indices: Sequence[int]) -> BankView:
        """A view of these samples followed by copies of some that remember nothing: they see themselves
        alone, as samples of a session without a bank do.
        """
        count = len(indices)
        chosen = upload(torch.tensor(indices, dtype=torch.int64), self.rows_B.device)
        return replace(
            self,
            rows_B=torch.cat([self.rows_B, self.rows_B.index_select(0, chosen)]),
            strength_B=torch.cat([self.strength_B, self.strength_B.new_zeros(count)]),
            threshold_B=torch.cat([self.threshold_B, self.threshold_B.new_full((count,), NEVER)]),
            visible_RB=torch.cat(
                [self.visible_RB, self.visible_RB.new_zeros(len(self.visible_RB), count)], 1
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class BankUpdate:
    """What a forward leaves: per layer the present keys, values and, where the pool keeps them, outputs
    (B, N, C) of all samples, as the network made them. Nothing where no write is due.
    """

    layers: tuple[tuple[Tensor, ...], ...]

    @property
    def key(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.layers)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """By layer, in the order of the forward."""
        return tuple(tensor for layer in self.layers for tensor in layer)

    def over(self, tensors: Sequence[Tensor]) -> BankUpdate:
        """See `Update.over`."""
        rest = iter(tensors)
        return BankUpdate(tuple(tuple(next(rest) for _ in layer) for layer in self.layers))


BANK = Kind[BankView, BankUpdate]("bank")
NEVER = 2.0
"""A threshold that no cosine reaches."""


class BankReader:
    """The `AttentionMemory` of one forward."""

    def __init__(self, view: BankView) -> None:
        self._view, self._key = view, view.key
        self._masks: dict[int, Tensor] = {}
        self._left: list[tuple[Tensor, ...]] = []
        self._recorded = 0

    def extend(self, layer: int, key_BNC: Tensor, value_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Remembered keys and values. An empty bank is the row's own present, which changes nothing; one
        that may be partly filled is masked instead. Never zeros: a zero key has weight too. Where no row
        remembers the layer there is nothing to read, for some rows it is as if theirs were empty.
        """
        reach = self._key.layers[layer]
        if reach is None:
            return key_BNC[:, :0], value_BNC[:, :0], None
        storage, mask_BM = self._view.storage[layer], self._mask(reach)
        past_key, past_value = self._read(storage.keys, reach), self._read(storage.values, reach)
        if not self._key.keeps_size:
            return past_key, past_value, mask_BM
        filled = mask_BM[:, :1, None]
        return torch.where(filled, past_key, key_BNC), torch.where(filled, past_value, value_BNC), None

    def fuse(self, layer: int, output_BNC: Tensor) -> Tensor:
        """The layer's output with past ones fused in, where the layer fuses and remembers outputs."""
        reach, outputs = self._key.layers[layer], self._view.storage[layer].outputs
        if not self._view.layers[layer].fuses or outputs is None or reach is None:
            return output_BNC
        past_BMC, mask_BM = self._read(outputs, reach), self._mask(reach)
        return fuse(output_BNC, past_BMC, mask_BM, self._view.strength_B, self._view.threshold_B)

    def record(self, layer: int, key_BNC: Tensor, value_BNC: Tensor, output_BNC: Tensor) -> None:
        """Keep what the layer leaves, without a copy. Layers come in their order."""
        assert layer == self._recorded, f"layer {layer} after {self._recorded} others"
        self._recorded += 1
        if self._key.leaves:
            kinds = (key_BNC, value_BNC, output_BNC)
            self._left.append(kinds[: len(self._view.storage[layer].tensors)])

    def collect(self) -> BankUpdate:
        """The update of the whole forward."""
        layers = len(self._view.layers)
        assert self._recorded == layers, (
            f"{self._recorded} of {layers} layers were recorded: are the processors installed?"
        )
        return BankUpdate(tuple(self._left))

    def _read(self, pool: Tensor, reach: int) -> Tensor:
        return pool[:, : self._key.reaches[reach]].index_select(0, self._view.rows_B)

    def _mask(self, reach: int) -> Tensor:
        """(B, M): True where a remembered token may be seen."""
        known = self._masks.get(reach)
        if known is None:
            places = torch.arange(self._key.reaches[reach], device=self._view.rows_B.device)
            known = self._masks[reach] = places[None, :] < self._view.visible_RB[reach][:, None]
        return known


def plan_view(
    layers: Sequence[BankLayer],
    storage: Sequence[LayerStorage],
    plans: Sequence[SamplePlan],
    latent_size: tuple[int, int],
    *,
    leaves: bool,
) -> BankView:
    """The view of samples, all of one size. `latent_size`: height and width of their latents."""
    found: dict[tuple[int, tuple[int, ...]], int] = {}
    numbers: list[int | None] = []
    for layer in layers:
        readers = _readers(layer, plans)
        reach = (layer.tokens(*latent_size), readers)
        numbers.append(found.setdefault(reach, len(found)) if readers else None)
    sizes, visible = [], []
    for tokens, readers in found:
        seen = [0] * len(plans)
        size = 0
        for index in readers:
            settings = plans[index].settings
            assert settings is not None, "a sample without a bank remembers nothing"
            size = max(size, max_bank_tokens(settings, tokens))
            seen[index] = bank_tokens(settings, tokens, plans[index].writes)
        sizes.append(size)
        visible.append(seen)
    known = [plan.settings for plan in plans if plan.settings is not None]
    pool = storage[0].keys
    exact = torch.promote_types(pool.dtype, torch.float32)

    def tensor(values: object, dtype: torch.dtype) -> Tensor:
        return upload(torch.tensor(values, dtype=dtype), pool.device)

    thresholds = [NEVER if plan.settings is None else plan.settings.fusion_threshold for plan in plans]
    return BankView(
        BankKey(tuple(sizes), tuple(numbers), all(each.keeps_size for each in known), leaves),
        layers,
        storage,
        rows_B=tensor([plan.pool_row for plan in plans], torch.int64),
        strength_B=tensor([plan.strength for plan in plans], exact),
        threshold_B=tensor(thresholds, exact),
        visible_RB=tensor(visible, torch.int64).view(len(found), len(plans)),
    )


def _readers(layer: BankLayer, plans: Sequence[SamplePlan]) -> tuple[int, ...]:
    """Which samples remember the layer."""
    return tuple(
        index
        for index, plan in enumerate(plans)
        if plan.settings is not None and layer.is_below(plan.settings.layers)
    )
