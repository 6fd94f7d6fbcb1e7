"""The feature bank of StreamV2V for many sessions: what each (session, step, layer) saw before.

Owns preallocated tensors per layer, (slots x steps) rows of fixed shape, and per row a small record.
Forwards read through `gather` and never change anything; what a commit writes is computed in full by
`prepare` before any of it is copied. Whether a row writes follows from its ordinal and the record, here and
nowhere else. What surprises: a place is of one size for every session, so rows without a bank, with a partly
filled one and with a full one share a forward; what is not filled is zero in the pool and never seen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.memories import BankSettings, MergeMetric
from rearview.contract.session import SessionSpec
from rearview.contract.size import Size
from rearview.engine.ahead import Ahead
from rearview.engine.memory.bank.export import check_layers, export_header
from rearview.engine.memory.bank.layers import BankLayer, BankLayout, KeptOutputs, capacity_tokens
from rearview.engine.memory.bank.merge import bank_tokens, max_bank_tokens
from rearview.engine.memory.bank.records import (
    BankRecord,
    BankSample,
    bank_samples,
    fusion_strength,
    read_record,
    record_after,
    record_seen,
)
from rearview.engine.memory.bank.view import (
    BANK,
    BankUpdate,
    BankView,
    LayerStorage,
    SamplePlan,
    plan_view,
)
from rearview.engine.memory.bank.write import LayerWrite, SampleWrite, compute_writes
from rearview.engine.memory.export import Chunk, Incoming, check_tensors
from rearview.engine.memory.protocol import Memory, Write
from rearview.engine.memory.slots import SlotPool
from rearview.engine.rows import Row
from rearview.errors import InvalidRequest, Reason

__all__ = ["BankShape", "FeatureBank", "bank_group"]


def bank_group(settings: BankSettings | None) -> Hashable:
    """Rows with equal groups read equally many tokens in the same way. None joins the common kind."""
    return (1.0, True) if settings is None else (settings.size_frames, settings.keeps_size)


@dataclass(frozen=True, slots=True)
class BankShape:
    """How large a pool is. Everything is allocated at once, and never again."""

    num_slots: int
    """Sessions."""
    steps: tuple[int, ...]
    """Denoising step indices that this pool remembers: those of the engine's span."""
    height: int
    """Pixels of the largest frame."""
    width: int
    size_frames: float = 1.0
    """Frames' worth of tokens that a bank may hold: `max_frames` of a queue, 1 for a merged bank."""
    kept_outputs: KeptOutputs = KeptOutputs.FUSED
    latent_scale: int = 8
    """Pixels per latent cell."""


class FeatureBank(Memory[BankView, BankUpdate]):
    """Keys, values and outputs of past frames."""

    kind = BANK
    operators = frozenset({OperatorKind.DENOISE})

    def __init__(
        self,
        layout: BankLayout,
        shape: BankShape,
        *,
        dtype: torch.dtype,
        device: torch.device | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        """`ahead`: draws the permutations of merges before they are needed; None: nobody does."""
        self._layout, self._shape, self._dtype = layout, shape, dtype
        self._device = device or torch.device("cpu")
        self._slots = SlotPool(shape.num_slots)
        self._specs: dict[str, SessionSpec] = {}
        self._places = {step: place for place, step in enumerate(shape.steps)}
        rows = shape.num_slots * len(shape.steps)
        self._storage = [self._new_storage(layer, rows) for layer in layout.layers]
        self._layers = list(zip(layout.layers, self._storage, strict=True))
        self._records = [BankRecord()] * rows
        self._ahead = ahead or Ahead()

    def allocate(self, spec: SessionSpec) -> None:
        """Take a slot. Raises InvalidRequest if the session's bank or size does not fit this pool, and
        Refused(NO_CAPACITY).
        """
        self.check_fits(spec, Size(spec.width, spec.height))
        self._slots.allocate(spec.session_id)
        self._specs[spec.session_id] = spec

    def free(self, session_id: str) -> None:
        if session_id in self._specs:
            self.reset(session_id)
            self._slots.free(session_id)
            del self._specs[session_id]

    def reset(self, session_id: str) -> None:
        rows = self._rows_of(session_id)
        for row in rows:
            self._clear(row)
            self._records[row] = BankRecord()

    def group(self, spec: SessionSpec, operator: Operator) -> Hashable:
        """Rows with equal groups read equally many tokens in the same way."""
        return bank_group(spec.bank)

    def num_writes(self, row: Row) -> int:
        """1 if one of the row's frames is written, else 0."""
        return sum(sample.writes for sample in self._samples(row))

    def changes_past(self, row: Row) -> bool:
        settings, record = row.frame.spec.bank, self._records[self._pool_row(row)]
        return settings is not None and record_after(record, settings, self._samples(row)) != record

    def gather(self, rows: Sequence[Row]) -> BankView | None:
        """The samples' view, or None if none of them has a bank: their forward is then the plain one."""
        if all(row.frame.spec.bank is None for row in rows):
            return None
        samples = [sample for row in rows for sample in self._samples(row)]
        return plan_view(
            self._layout.layers,
            self._storage,
            [self._plan(row) for row, _ in samples],
            self._latent_size(rows[0].size),
            leaves=any(sample.writes for sample in samples),
        )

    @torch.inference_mode()
    def prepare(self, rows: Sequence[Row], update: BankUpdate) -> Write:
        """Merge what is due. `update`: of the forward of these rows, in their order."""
        records, due, first = {}, [], 0
        for row in rows:
            settings, pool_row, samples = row.frame.spec.bank, self._pool_row(row), self._samples(row)
            if settings is not None and not row.shadow:
                records[pool_row] = record_after(self._records[pool_row], settings, samples)
                due += [
                    self._due(first + index, settings, sample.row)
                    for index, sample in enumerate(samples)
                    if sample.writes
                ]
            first += len(samples)
        writes = compute_writes(self._layout.layers, self._storage, due, update, self._ahead)
        return partial(self._commit, records, writes)

    def export(self, session_id: str) -> Iterator[Chunk]:
        """See `bank.export` for what the chunks hold."""
        spec, steps = self._specs[session_id], self._rows_by_step(session_id)
        records = {step: self._records[row] for step, row in steps.items()}
        yield Chunk(BANK.name, values=export_header(spec, self._dtype, self._shape.kept_outputs))
        for step, record in records.items():
            yield Chunk(BANK.name, step, values=asdict(record))
            for layer, storage in self._layers:
                assert self._records[steps[step]] == record, "the session ran while it was exported"
                held = self._held(spec, layer, record)
                content = tuple(pool[steps[step], :held].cpu().clone() for pool in storage.tensors)
                yield Chunk(BANK.name, step, layer.name, tensors=content)

    def prepare_import(self, session_id: str, chunks: Iterable[Chunk]) -> Write:
        """Raises ValueError for an export of another size, type, bank or UNet."""
        spec, rows = self._specs[session_id], self._rows_by_step(session_id)
        incoming = Incoming.sort(chunks)
        incoming.check_headers(export_header(spec, self._dtype, self._shape.kept_outputs))
        check_layers(incoming, self._layout)
        steps = incoming.of_steps(self._shape.steps)
        opened = Size(spec.width, spec.height)
        records = {rows[step]: read_record(values, opened) for step, values in steps.items()}
        contents = []
        for step in steps:
            self.check_fits(spec, records[rows[step]].size)
            for layer, storage in self._layers:
                held = self._held(spec, layer, records[rows[step]])
                shapes = [(held, pool.shape[2]) for pool in storage.tensors]
                tensors = incoming.layers.get((step, layer.name), ())
                checked = check_tensors(tensors, step, layer.name, shapes, self._dtype)
                contents.append((rows[step], storage, checked))
        return partial(self._replace, records, contents)

    def bytes_per_session(self, spec: SessionSpec) -> int:
        """The same for every session of a pool: places are of one size."""
        height, width = self._latent_size(self._shape)
        per_row = self._layout.bytes_per_row(
            height,
            width,
            self._dtype,
            size_frames=self._shape.size_frames,
            kept_outputs=self._shape.kept_outputs,
        )
        return len(self._shape.steps) * per_row

    @property
    def free_slots(self) -> int:
        return self._slots.free_slots

    @property
    def storage_bytes(self) -> int:
        """Bytes of the pool's tensors."""
        return sum(pool.untyped_storage().nbytes() for storage in self._storage for pool in storage.tensors)

    def check_integrity(self) -> None:
        """Also asserts that nothing is held beyond what a record says: free rows are all zero."""
        self._slots.check_integrity()
        owned = {row: spec for name, spec in self._specs.items() for row in self._rows_of(name)}
        for row, record in enumerate(self._records):
            spec = owned.get(row)
            assert spec is not None or record == BankRecord(), f"row {row} is free and has {record}"
            for layer, storage in self._layers:
                held = self._held(spec, layer, record) if spec is not None else 0
                for pool in storage.tensors:
                    assert not pool[row, held:].any(), f"row {row} of {layer.name} holds more than {held}"

    def _new_storage(self, layer: BankLayer, rows: int) -> LayerStorage:
        tokens = capacity_tokens(self._layer_tokens(layer, self._shape), self._shape.size_frames)

        def pool(channels: int) -> Tensor:
            return torch.zeros(rows, tokens, channels, dtype=self._dtype, device=self._device)

        keeps_outputs = layer.keeps_outputs(self._shape.kept_outputs)
        outputs = pool(layer.output_channels) if keeps_outputs else None
        return LayerStorage(pool(layer.key_channels), pool(layer.key_channels), outputs)

    def check_fits(self, spec: SessionSpec, size: Size) -> None:
        settings = spec.bank
        if settings is None:
            return
        if settings.metric is MergeMetric.OUTPUTS and self._shape.kept_outputs is not KeptOutputs.ALL:
            raise _refused("metric", "merging by outputs needs a pool with kept_outputs: all")
        if settings.fusion_strength > 0 and self._shape.kept_outputs is KeptOutputs.NONE:
            raise _refused("fusion_strength", "this pool keeps no outputs: set bank.fusion_strength to 0")
        for path in settings.layers:
            if not any(layer.is_below([path]) for layer in self._layout.layers):
                raise _refused("layers", "a path in bank.layers leads to no self-attention of this UNet")
        for layer in self._layout.layers:
            room = capacity_tokens(self._layer_tokens(layer, self._shape), self._shape.size_frames)
            if max_bank_tokens(settings, self._layer_tokens(layer, size)) > room:
                asked = f"{settings.size_frames:g} frames of {size.width}x{size.height}"
                has = f"{self._shape.size_frames:g} of {self._shape.width}x{self._shape.height}"
                raise _refused("max_frames", f"a bank of {asked} exceeds this pool's {has}")

    def _latent_size(self, size: BankShape | BankRecord | Size) -> tuple[int, int]:
        return size.height // self._shape.latent_scale, size.width // self._shape.latent_scale

    def _layer_tokens(self, layer: BankLayer, size: BankShape | BankRecord | Size) -> int:
        return layer.tokens(*self._latent_size(size))

    def _held(self, spec: SessionSpec, layer: BankLayer, record: BankRecord) -> int:
        """Tokens of a layer that a record stands for."""
        if spec.bank is None or not layer.is_below(spec.bank.layers):
            return 0
        return bank_tokens(spec.bank, self._layer_tokens(layer, record), record.writes)

    def _rows_of(self, session_id: str) -> range:
        steps = len(self._shape.steps)
        first = self._slots.slot(session_id) * steps
        return range(first, first + steps)

    def _rows_by_step(self, session_id: str) -> dict[int, int]:
        return dict(zip(self._shape.steps, self._rows_of(session_id), strict=True))

    def _pool_row(self, row: Row) -> int:
        return self._slots.slot(row.session_id) * len(self._places) + self._places[row.operator.step]

    def _samples(self, row: Row) -> tuple[BankSample, ...]:
        return bank_samples(self._records[self._pool_row(row)], row.frame.spec.bank, row)

    def _plan(self, row: Row) -> SamplePlan:
        settings, pool_row = row.frame.spec.bank, self._pool_row(row)
        if settings is None:
            return SamplePlan(pool_row, None)
        seen = record_seen(self._records[pool_row], settings, row)
        return SamplePlan(pool_row, settings, seen.writes, fusion_strength(seen, settings, row.ordinal))

    def _due(self, sample: int, settings: BankSettings, row: Row) -> SampleWrite:
        pool_row = self._pool_row(row)
        seen = record_seen(self._records[pool_row], settings, row)
        keys = (row.session_id, row.settings.seed, row.operator.step, row.ordinal)
        return SampleWrite(sample, pool_row, settings, seen.writes, *keys)

    @torch.inference_mode()
    def _commit(self, records: dict[int, BankRecord], writes: Sequence[LayerWrite]) -> None:
        for pool_row, record in records.items():
            if (
                record.size != self._records[pool_row].size
            ):  # Larger frames leave more than smaller ones fill.
                self._clear(pool_row)
            self._records[pool_row] = record
        for write in writes:
            write.copy()

    def _clear(self, row: int) -> None:
        for storage in self._storage:
            for pool in storage.tensors:
                pool[row].zero_()

    @torch.inference_mode()
    def _replace(
        self,
        records: dict[int, BankRecord],
        contents: Sequence[tuple[int, LayerStorage, tuple[Tensor, ...]]],
    ) -> None:
        for row, storage, tensors in contents:
            for pool, content in zip(storage.tensors, tensors, strict=True):
                pool[row].zero_()
                pool[row, : content.shape[0]].copy_(content)
        for row, record in records.items():
            self._records[row] = record


def _refused(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(Reason.SETTING_OUT_OF_RANGE, message, metadata={"field": f"bank.{name}"})
