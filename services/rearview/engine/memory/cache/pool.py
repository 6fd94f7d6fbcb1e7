"""The temporal KV cache of Live2Diff for many sessions: what each (session, step, layer) keeps of its frames.

Owns preallocated tensors, per step and layer one pair over all slots, and per (session, step) one number,
from which everything else follows (`CacheWindow`). Forwards read through `gather` and never change
anything; `scatter` is the one mutation: a window fills the sinks and empties the ring, a single frame
takes one place in the ring. What surprises: keys and values are kept without positions, since those of a
frame change as it ages, and in any type (`float8_e4m3fn` too), since they are converted as they are read.
Source: Live2Diff, reference note sections 2.2, 2.3, 3 and 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.engine.memory.bank.export import check_tensors
from rearview.engine.memory.cache.export import check_cache, export_header, streamed_frames
from rearview.engine.memory.cache.view import CacheUpdate, CacheView, LayerPool, SamplePlan
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.slots import SlotPool
from rearview.engine.rows import Row
from rearview.errors import InvalidRequest, Reason

__all__ = ["CacheLayer", "CacheLayout", "CacheShape", "TemporalKVCache", "read_cache_layout"]


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """One temporal attention layer."""

    name: str
    """Path of its module in the UNet: the key of exports."""
    level: int
    """How often the latent was halved before it."""
    channels: int
    heads: int

    def pixels(self, height: int, width: int) -> int:
        """N for a latent of this size."""
        return (height >> self.level) * (width >> self.level)

    def shape(self, pixels: int, frames: int) -> tuple[int, int, int, int]:
        """(N, H, L, D)."""
        return pixels, self.heads, frames, self.channels // self.heads


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """All temporal layers of a UNet, by number."""

    layers: tuple[CacheLayer, ...]
    size_multiple: int
    """Latent cells of which both sides of a frame are a multiple."""
    max_frames: int
    """Positions that the motion modules know."""

    def bytes_per_step(self, height: int, width: int, frames: int, dtype: torch.dtype) -> int:
        """Bytes of one (session, step) for latents of this size: 2 N L C per layer (section 3.2)."""
        elements = sum(2 * layer.pixels(height, width) * frames * layer.channels for layer in self.layers)
        return elements * dtype.itemsize


def read_cache_layout(unet: Any) -> CacheLayout:
    """The temporal layers of a `StreamingUNet`."""
    layers = tuple(
        CacheLayer(name, level, layer.channels, layer.heads) for name, level, layer in unet.temporal_layers()
    )
    return CacheLayout(layers, unet.size_multiple, unet.max_frames)


@dataclass(frozen=True, slots=True)
class CacheShape:
    """How large a pool is. Everything is allocated at once, and never again."""

    num_slots: int
    """Sessions."""
    steps: tuple[int, ...]
    """Denoising step indices that this pool remembers: those of the engine's span."""
    height: int
    """Pixels of the largest frame."""
    width: int
    window: CacheWindow = field(default_factory=CacheWindow)
    latent_scale: int = 8
    """Pixels per latent cell."""


class TemporalKVCache:
    """A `TemporalMemory` of keys and values. Sessions without `SessionSpec.cache` take a slot too, and
    leave it empty.
    """

    def __init__(
        self,
        layout: CacheLayout,
        shape: CacheShape,
        *,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        """`dtype`: of what is stored: float64, float32, float16, bfloat16 or float8_e4m3fn.

        Raises ValueError if the window has more frames than there are positions.
        """
        if shape.window.frames > layout.max_frames:
            raise ValueError(
                f"a window of {shape.window.frames} frames, but the motion modules know {layout.max_frames}"
            )
        self._layout, self._shape, self._dtype = layout, shape, dtype
        self._window = shape.window
        self._device = device or torch.device("cpu")
        self._slots = SlotPool(shape.num_slots)
        self._specs: dict[str, SessionSpec] = {}
        self._pools = {step: [self._new_pool(layer) for layer in layout.layers] for step in shape.steps}
        self._streamed: dict[int, list[int | None]] = {step: [None] * shape.num_slots for step in shape.steps}

    def allocate(self, spec: SessionSpec) -> None:
        """Take a slot. Raises InvalidRequest if the size of a session with a cache does not fit."""
        if spec.cache is not None:
            self._check_fits(spec)
        self._slots.allocate(spec.session_id)
        self._specs[spec.session_id] = spec

    def free(self, session_id: str) -> None:
        if session_id in self._specs:
            self.reset(session_id)
            self._slots.free(session_id)
            del self._specs[session_id]

    def reset(self, session_id: str) -> None:
        slot = self._slots.slot(session_id)
        if self._specs[session_id].cache is None:  # Nothing was ever written.
            return
        for step, _, pool in self._all_pools():
            self._streamed[step][slot] = None
            for tensor in pool.tensors:
                tensor[slot].zero_()

    def warm_up_frames(self, spec: SessionSpec) -> int:
        return 0 if spec.cache is None else self._window.sink_frames

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        return False

    def write_due(self, row: Row) -> bool:
        """Every row with a cache writes it, so that this is part of what each costs."""
        return False

    def gather(self, rows: Sequence[Row]) -> CacheView | None:
        """The samples' view, or None if the rows have no cache. All of them have one or none has."""
        denoises = rows[0].operator.kind is OperatorKind.DENOISE
        cached = [denoises and row.frame.spec.cache is not None for row in rows]
        if not any(cached):
            return None
        assert all(cached), "rows with and without a temporal cache in one forward"
        plans = [plan for row in rows for plan in self._plans(row)]
        return CacheView(self._window, self._pools, plans, self._device)

    @torch.inference_mode()
    def scatter(self, rows: Sequence[Row], update: CacheUpdate | None) -> None:
        if update is None:
            return
        for index, new in enumerate(update.layers):
            start = 0
            for row in rows:
                samples = slice(start, start + len(row.frames))
                self._write(row, self._pools[row.operator.step][index], [kind[samples] for kind in new])
                start = samples.stop
        for row in rows:
            slot = self._slots.slot(row.session_id)
            streamed = self._streamed[row.operator.step]
            streamed[slot] = 0 if row.window else self._number(row) + 1

    def export(self, session_id: str) -> Mapping[str, Any]:
        """A copy on the CPU, keyed (step, layer name), with what is needed to refuse a wrong one."""
        spec, slot = self._specs[session_id], self._slots.slot(session_id)
        numbers = {step: streamed[slot] for step, streamed in self._streamed.items()}
        return {
            **export_header(spec, self._window, self._dtype),
            "streamed": numbers,
            "tensors": {
                (step, layer.name): tuple(
                    self._held(tensor, spec, layer, slot, numbers[step]).cpu().clone()
                    for tensor in pool.tensors
                )
                for step, layer, pool in self._all_pools()
                if numbers[step] is not None
            },
        }

    def import_(self, session_id: str, state: Mapping[str, Any]) -> None:
        """Take over those steps of an export that this pool has; others are left alone, so that the
        exports of several spans can be put together, and one of all steps taken apart.
        """
        spec, slot = self._specs[session_id], self._slots.slot(session_id)
        names = [layer.name for layer in self._layout.layers]
        check_cache(state, export_header(spec, self._window, self._dtype), names)
        numbers = streamed_frames(state, self._shape.steps)
        if spec.cache is None and any(n is not None for n in numbers.values()):
            raise ValueError("the session has no temporal cache, the export has one")
        incoming = [
            (pool, self._held_by(spec, layer, slot, n, pool), self._checked(state, step, spec, layer, n))
            for step, layer, pool in self._all_pools()
            if (n := numbers.get(step)) is not None
        ]
        for step, n in numbers.items():
            self._streamed[step][slot] = n
            for pool in self._pools[step]:
                for tensor in pool.tensors:
                    tensor[slot].zero_()
        for _, places, contents in incoming:
            for place, content in zip(places, contents, strict=True):
                place.copy_(content)

    def bytes_per_session(self, spec: SessionSpec) -> int:
        """The same for every session of a pool: places are of one size."""
        size = self._latent_size(self._shape.height, self._shape.width)
        per_step = self._layout.bytes_per_step(*size, self._window.frames, self._dtype)
        return len(self._shape.steps) * per_step

    @property
    def free_slots(self) -> int:
        return self._slots.free_slots

    @property
    def storage_bytes(self) -> int:
        """Bytes of the pool's tensors."""
        return sum(tensor.nbytes for _, _, pool in self._all_pools() for tensor in pool.tensors)

    def check_integrity(self) -> None:
        """Also asserts that slots hold nothing but the frames that their numbers stand for."""
        self._slots.check_integrity()
        owned = {self._slots.slot(name): spec for name, spec in self._specs.items()}
        for step, streamed in self._streamed.items():
            for slot, n in enumerate(streamed):
                assert n is None or slot in owned, f"slot {slot} of step {step} is free and has {n}"
        for step, layer, pool in self._all_pools():
            for slot, n in enumerate(self._streamed[step]):
                filled = 0 if n is None else self._window.filled(n)
                pixels = self._pixels(owned[slot], layer) if n is not None else 0
                for tensor in pool.tensors:
                    beyond = tensor[slot, :, :, filled:].float().any() or tensor[slot, pixels:].float().any()
                    assert not beyond, f"slot {slot} of {layer.name} holds more than {filled} frames"

    def _new_pool(self, layer: CacheLayer) -> LayerPool:
        pixels = layer.pixels(*self._latent_size(self._shape.height, self._shape.width))
        shape = (self._shape.num_slots, *layer.shape(pixels, self._window.frames))
        keys, values = (torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(2))
        return LayerPool(keys, values)

    def _check_fits(self, spec: SessionSpec) -> None:
        multiple = self._layout.size_multiple * self._shape.latent_scale
        if spec.height % multiple or spec.width % multiple:
            text = f"with a temporal cache width and height must be multiples of {multiple}"
            raise _refused(spec, text, multiple=str(multiple))
        size = self._latent_size(spec.height, spec.width)
        room = self._latent_size(self._shape.height, self._shape.width)
        if any(layer.pixels(*size) > layer.pixels(*room) for layer in self._layout.layers):
            raise _refused(spec, f"the temporal cache has room for {self._shape.width}x{self._shape.height}")

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        return height // self._shape.latent_scale, width // self._shape.latent_scale

    def _pixels(self, spec: SessionSpec, layer: CacheLayer) -> int:
        return layer.pixels(*self._latent_size(spec.height, spec.width))

    def _all_pools(self) -> Iterator[tuple[int, CacheLayer, LayerPool]]:
        for step, pools in self._pools.items():
            for layer, pool in zip(self._layout.layers, pools, strict=True):
                yield step, layer, pool

    def _number(self, row: Row) -> int:
        n = self._streamed[row.operator.step][self._slots.slot(row.session_id)]
        assert n is not None, f"frame {row.ordinal} came to step {row.operator.step} before its warm-up"
        return n

    def _plans(self, row: Row) -> list[SamplePlan]:
        slot, step = self._slots.slot(row.session_id), row.operator.step
        if not row.window:
            return [SamplePlan(slot, step, self._number(row))]
        frames = len(row.window)
        assert frames == self._window.sink_frames, f"a window of {frames} frames"
        return [SamplePlan(slot, step)] * frames

    def _write(self, row: Row, pool: LayerPool, new: Sequence[Tensor]) -> None:
        slot = self._slots.slot(row.session_id)
        first = 0 if row.window else self._window.slot(self._number(row))
        for tensor, content_FNC in zip(pool.tensors, new, strict=True):
            heads = content_FNC.unflatten(-1, (tensor.shape[2], tensor.shape[4])).permute(1, 2, 0, 3)
            place = tensor[slot, : heads.shape[0]]
            place[:, :, first : first + heads.shape[2]].copy_(_stored(heads, self._dtype))
            if row.window:
                place[:, :, heads.shape[2] :].zero_()

    def _held_by(
        self, spec: SessionSpec, layer: CacheLayer, slot: int, n: int | None, pool: LayerPool
    ) -> list[Tensor]:
        return [self._held(tensor, spec, layer, slot, n) for tensor in pool.tensors]

    def _held(self, tensor: Tensor, spec: SessionSpec, layer: CacheLayer, slot: int, n: int | None) -> Tensor:
        """The part of a slot that holds frames; a view."""
        filled = 0 if n is None else self._window.filled(n)
        return tensor[slot, : self._pixels(spec, layer), :, :filled]

    def _checked(
        self, state: Mapping[str, Any], step: int, spec: SessionSpec, layer: CacheLayer, n: int
    ) -> tuple[Tensor, ...]:
        shape = layer.shape(self._pixels(spec, layer), self._window.filled(n))
        found = tuple(state["tensors"].get((step, layer.name), ()))
        return check_tensors(found, step, layer.name, [shape, shape], self._dtype)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As it is stored: what exceeds the type's range is cut off, since it would be infinite there, or NaN in
    float8, and spoil every picture that sees it.
    """
    limit = torch.finfo(dtype).max
    if limit >= torch.finfo(tensor.dtype).max:
        return tensor
    return tensor.clamp(-limit, limit).to(dtype)


def _refused(spec: SessionSpec, text: str, **metadata: str) -> InvalidRequest:
    size = {"width": str(spec.width), "height": str(spec.height)}
    return InvalidRequest(Reason.RESOLUTION_UNSUPPORTED, text, metadata={**size, **metadata})
