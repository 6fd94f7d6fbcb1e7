"""The feature bank of StreamV2V for many sessions: what each (session, step, layer) saw before.

Owns preallocated tensors per layer, (slots x steps) rows of fixed shape, and per row a small record.
Forwards read through `gather` and never change anything; `scatter` is the one mutation. What surprises:
a bank can count as empty though it holds tokens, when the frame's timestep or (by policy) prompt is not
the one that they were written under. The next write then replaces them.
Shape legend: M remembered tokens, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from rearview.engine.chain import OperatorKind
from rearview.engine.memory.bank_view import BankUpdate, BankView, LayerStorage, RowPlan
from rearview.engine.memory.layers import BankLayer, BankLayout, KeptOutputs, capacity_tokens
from rearview.engine.memory.merge import bank_tokens, max_bank_tokens
from rearview.engine.memory.slot_pool import SlotPool
from rearview.engine.rows import Row
from rearview.engine.sampling import timestep_indices
from rearview.engine.session import BankSettings, MergeMetric, PromptChange, SessionSpec
from rearview.errors import InvalidRequest, Reason

__all__ = ["BankShape", "FeatureBank", "bank_group"]

EXPORT_FORMAT = 1


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


@dataclass(frozen=True, slots=True)
class _Record:
    """The state of one pool row."""

    writes: int = 0
    timestep_index: int = -1
    """That of the frame that wrote last."""
    prompt: str = ""
    """Digest of the prompt of the last frame; empty: there was none."""
    changed_at: int | None = None
    """Ordinal of the first frame under that prompt; None: it has always been this one."""


class FeatureBank:
    """A `TemporalMemory` of keys, values and outputs."""

    def __init__(
        self,
        layout: BankLayout,
        shape: BankShape,
        *,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        self._layout, self._shape, self._dtype = layout, shape, dtype
        self._device = device or torch.device("cpu")
        self._slots = SlotPool(shape.num_slots)
        self._specs: dict[str, SessionSpec] = {}
        rows = shape.num_slots * len(shape.steps)
        self._storage = [self._new_storage(layer, rows) for layer in layout.layers]
        self._records = [_Record()] * rows

    def allocate(self, spec: SessionSpec) -> None:
        """Take a slot. Raises InvalidRequest if the session's bank or size does not fit this pool."""
        self._check_fits(spec)
        self._slots.allocate(spec.session_id)
        self._specs[spec.session_id] = spec

    def free(self, session_id: str) -> None:
        if session_id in self._specs:
            self.reset(session_id)
            self._slots.free(session_id)
            del self._specs[session_id]

    def reset(self, session_id: str) -> None:
        rows = self._rows_of(session_id)
        for storage in self._storage:
            for pool in storage.tensors:
                pool[rows.start : rows.stop].zero_()
        for row in rows:
            self._records[row] = _Record()

    def write_due(self, row: Row) -> bool:
        """Written iff it is empty, or (n - phase) mod interval = 0."""
        settings = row.frame.spec.bank
        if settings is None or row.operator.kind is not OperatorKind.DENOISE:
            return False
        is_empty = self._seen_by(row).writes == 0
        return is_empty or (row.ordinal - settings.phase) % settings.interval == 0

    def gather(self, rows: Sequence[Row]) -> BankView | None:
        """The rows' view, or None if none of them has a bank: their forward is then the plain one."""
        if rows[0].operator.kind is not OperatorKind.DENOISE or all(r.frame.spec.bank is None for r in rows):
            return None
        return BankView(self._layout.layers, self._storage, [self._plan(row) for row in rows], self._device)

    @torch.inference_mode()
    def scatter(self, rows: Sequence[Row], update: BankUpdate | None) -> None:
        if update is None:
            return
        # Read all records first: what a row does was decided before any of them was committed.
        records = {self._pool_row(row): self._record_after(row) for row in rows if row.frame.spec.bank}
        for storage, writes in zip(self._storage, update.layers, strict=True):
            for write in writes:
                for pool, content in zip(storage.tensors, write.tensors, strict=True):
                    place = pool.narrow(1, write.offset, content.shape[1])
                    place.index_copy_(0, write.pool_rows, content.to(pool.dtype))
        for pool_row, record in records.items():
            self._records[pool_row] = record

    def export(self, session_id: str) -> Mapping[str, Any]:
        """A copy on the CPU, keyed (step, layer name), with what is needed to refuse a wrong one."""
        spec = self._specs[session_id]
        steps = dict(zip(self._shape.steps, self._rows_of(session_id), strict=True))
        return {
            "format": EXPORT_FORMAT,
            "dtype": str(self._dtype),
            "size": (spec.height, spec.width),
            "kept_outputs": self._shape.kept_outputs.value,
            "settings": _plain(spec.bank),
            "records": {step: asdict(self._records[row]) for step, row in steps.items()},
            "banks": {
                (step, layer.name): self._export_layer(spec, layer, storage, row)
                for step, row in steps.items()
                for layer, storage in zip(self._layout.layers, self._storage, strict=True)
            },
        }

    def import_(self, session_id: str, state: Mapping[str, Any]) -> None:
        """Take over those steps of an export that this pool has; others are left alone, so that the
        exports of several spans can be put together, and one of all steps taken apart.
        """
        spec = self._specs[session_id]
        self._check_header(spec, state)
        steps = {
            step: row
            for step, row in zip(self._shape.steps, self._rows_of(session_id), strict=True)
            if step in state["records"]
        }
        if not steps:
            raise ValueError(f"the export has steps {sorted(state['records'])}, not {self._shape.steps}")
        records = {row: _Record(**state["records"][step]) for step, row in steps.items()}
        incoming = [
            (row, storage, self._checked(spec, layer, storage, records[row], state, step))
            for step, row in steps.items()
            for layer, storage in zip(self._layout.layers, self._storage, strict=True)
        ]
        for row, storage, contents in incoming:
            for pool, content in zip(storage.tensors, contents, strict=True):
                pool[row].zero_()
                pool[row, : content.shape[0]].copy_(content)
        for row, record in records.items():
            self._records[row] = record

    def bytes_per_session(self, spec: SessionSpec) -> int:
        """The same for every session of a pool: places are of one size."""
        height, width = self._latent_size(self._shape.height, self._shape.width)
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
            assert spec is not None or record == _Record(), f"row {row} is free and has {record}"
            for layer, storage in zip(self._layout.layers, self._storage, strict=True):
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

    def _check_fits(self, spec: SessionSpec) -> None:
        settings = spec.bank
        if settings is None:
            return
        if settings.metric is MergeMetric.OUTPUTS and self._shape.kept_outputs is not KeptOutputs.ALL:
            raise _refused("metric", "merging by outputs needs a pool with kept_outputs: all")
        if settings.fusion_strength > 0 and self._shape.kept_outputs is KeptOutputs.NONE:
            raise _refused("fusion_strength", "this pool keeps no outputs: set bank.fusion_strength to 0")
        for layer in self._layout.layers:
            room = capacity_tokens(self._layer_tokens(layer, self._shape), self._shape.size_frames)
            if max_bank_tokens(settings, self._layer_tokens(layer, spec)) > room:
                asked = f"{settings.size_frames:g} frames of {spec.width}x{spec.height}"
                has = f"{self._shape.size_frames:g} of {self._shape.width}x{self._shape.height}"
                raise _refused("max_frames", f"a bank of {asked} exceeds this pool's {has}")

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        return height // self._shape.latent_scale, width // self._shape.latent_scale

    def _layer_tokens(self, layer: BankLayer, size: BankShape | SessionSpec) -> int:
        return layer.tokens(*self._latent_size(size.height, size.width))

    def _held(self, spec: SessionSpec, layer: BankLayer, record: _Record) -> int:
        """Tokens of a layer that a record stands for."""
        if spec.bank is None:
            return 0
        return bank_tokens(spec.bank, self._layer_tokens(layer, spec), record.writes)

    def _rows_of(self, session_id: str) -> range:
        steps = len(self._shape.steps)
        first = self._slots.slot(session_id) * steps
        return range(first, first + steps)

    def _pool_row(self, row: Row) -> int:
        return self._rows_of(row.session_id)[self._shape.steps.index(row.operator.step)]

    def _seen_by(self, row: Row) -> _Record:
        """The record as this frame finds it: its bank may count as empty, its prompt as new."""
        settings, record = row.frame.spec.bank, self._records[self._pool_row(row)]
        assert settings is not None
        prompt = _digest(row.settings.prompt)
        timestep_index = timestep_indices(row.settings.strength, row.settings.steps)[row.operator.step]
        is_changed = record.prompt not in ("", prompt)
        clears = is_changed and settings.prompt_change is PromptChange.CLEAR
        moved = timestep_index != record.timestep_index and not settings.keep_on_timestep_change
        return _Record(
            writes=0 if clears or moved else record.writes,
            timestep_index=timestep_index,
            prompt=prompt,
            changed_at=row.ordinal if is_changed else record.changed_at,
        )

    def _record_after(self, row: Row) -> _Record:
        seen = self._seen_by(row)
        if row.write_due:
            return replace(seen, writes=seen.writes + 1)
        record = self._records[self._pool_row(row)]
        assert seen.writes == record.writes, "a bank that counts as empty was not written"
        return replace(record, prompt=seen.prompt, changed_at=seen.changed_at)

    def _plan(self, row: Row) -> RowPlan:
        settings = row.frame.spec.bank
        if settings is None:
            return RowPlan(self._pool_row(row), None)
        seen = self._seen_by(row)
        return RowPlan(
            pool_row=self._pool_row(row),
            settings=settings,
            writes=seen.writes,
            strength=settings.fusion_strength * _fade(settings, seen.changed_at, row.ordinal),
            write_due=row.write_due,
            seed=row.settings.seed,
            step=row.operator.step,
            ordinal=row.ordinal,
        )

    def _export_layer(
        self, spec: SessionSpec, layer: BankLayer, storage: LayerStorage, row: int
    ) -> tuple[Tensor, ...]:
        held = self._held(spec, layer, self._records[row])
        return tuple(pool[row, :held].cpu().clone() for pool in storage.tensors)

    def _check_header(self, spec: SessionSpec, state: Mapping[str, Any]) -> None:
        expected = {
            "format": EXPORT_FORMAT,
            "dtype": str(self._dtype),
            "size": (spec.height, spec.width),
            "kept_outputs": self._shape.kept_outputs.value,
            "settings": _plain(spec.bank),
        }
        for name, value in expected.items():
            if state.get(name) != value:
                raise ValueError(f"the export's {name} is {state.get(name)}, here it is {value}")
        names = {layer.name for layer in self._layout.layers}
        if {name for _, name in state["banks"]} != names:
            raise ValueError("the export is of a UNet with other attention layers")

    def _checked(
        self,
        spec: SessionSpec,
        layer: BankLayer,
        storage: LayerStorage,
        record: _Record,
        state: Mapping[str, Any],
        step: int,
    ) -> tuple[Tensor, ...]:
        contents: tuple[Tensor, ...] = tuple(state["banks"][step, layer.name])
        held = self._held(spec, layer, record)
        expected = [(held, pool.shape[2]) for pool in storage.tensors]
        found = [tuple(content.shape) for content in contents]
        if found != expected or any(content.dtype is not self._dtype for content in contents):
            raise ValueError(f"step {step} of {layer.name} has shapes {found}, here they are {expected}")
        return contents


def _fade(settings: BankSettings, changed_at: int | None, ordinal: int) -> float:
    """Which part of the fusion strength a frame gets, after a prompt change at `changed_at`."""
    if settings.prompt_change is not PromptChange.FADE or changed_at is None:
        return 1.0
    return min(1.0, (ordinal - changed_at) / settings.fade_frames)


def _digest(prompt: str) -> str:
    """Stands for a prompt: records and exports hold no tenant's words."""
    return hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest()


def _plain(settings: BankSettings | None) -> dict[str, Any] | None:
    if settings is None:
        return None
    items = asdict(settings).items()
    return {name: value.value if isinstance(value, Enum) else value for name, value in items}


def _refused(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(Reason.SETTING_OUT_OF_RANGE, message, metadata={"field": f"bank.{name}"})
