"""The temporal KV cache of Live2Diff for many sessions: what each (session, step, layer) keeps of its frames.

Owns preallocated tensors, per layer one pair over all steps and slots, and per (session, step) one number,
from which everything else follows (`CacheWindow`). Forwards read through `gather` and never change
anything; a commit writes: a window fills the sinks and empties the ring, a single frame takes one place in
the ring. What surprises: keys and values are kept without positions, since those of a frame change as it
ages, and in any type (`float8_e4m3fn` too), since they are converted as they are read. Where the device runs
our kernels, pasts are read and written by index, else through slices: decided once, in the constructor.
Live2Diff (Xing et al. 2024): methods 3.3 to 3.8.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.contract.size import NO_SIZE, Size
from rearview.engine.memory.cache.export import (
    check_layers,
    export_header,
    held_sizes,
    streamed_frames,
)
from rearview.engine.memory.cache.indexed import plan_indexed, plan_indexed_windows
from rearview.engine.memory.cache.layers import CacheLayer, CacheLayout
from rearview.engine.memory.cache.view import (
    CACHE,
    AnyCacheView,
    CacheUpdate,
    LayerPool,
    Place,
    plan_stream,
    plan_windows,
)
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.cache.write import (
    CacheWrite,
    Streamed,
    frame_writes,
    indexed_writes,
    window_writes,
)
from rearview.engine.memory.export import Chunk, Incoming, check_tensors
from rearview.engine.memory.protocol import Memory, Write
from rearview.engine.memory.slots import SlotPool
from rearview.engine.networks.attention.temporal_ops import kernels_work
from rearview.engine.rows import Row
from rearview.errors import InvalidRequest, Reason

__all__ = ["CacheShape", "TemporalKVCache"]


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

    def pixels(self, layer: CacheLayer, size: Size | None = None) -> int:
        """Of a layer, for frames of that size; None: for the largest."""
        width, height = size or (self.width, self.height)
        return layer.pixels(height // self.latent_scale, width // self.latent_scale)

    def check_fits(self, layout: CacheLayout, size: Size) -> None:
        """Raises InvalidRequest(RESOLUTION_UNSUPPORTED) for frames that fit no slot."""
        multiple = layout.size_multiple * self.latent_scale
        if size.height % multiple or size.width % multiple:
            text = f"with a temporal cache width and height must be multiples of {multiple}"
            raise _refused(size, text, multiple=str(multiple))
        if any(self.pixels(layer, size) > self.pixels(layer) for layer in layout.layers):
            raise _refused(size, f"the temporal cache has room for {self.width}x{self.height}")


class TemporalKVCache(Memory[AnyCacheView, CacheUpdate]):
    """Keys and values of past frames. Sessions without `SessionSpec.cache` take a slot too, and leave it
    empty.
    """

    kind = CACHE
    operators = frozenset({OperatorKind.DENOISE})

    def __init__(
        self,
        layout: CacheLayout,
        shape: CacheShape,
        *,
        dtype: torch.dtype,
        device: torch.device | None = None,
        by_index: bool | None = None,
    ) -> None:
        """`dtype`: of what is stored: float64, float32, float16, bfloat16 or float8_e4m3fn. `by_index`:
        whether kernels read and write the pasts. None: where they work.

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
        self._by_index = kernels_work(self._device, dtype) if by_index is None else by_index
        self.kernels = "by index" if self._by_index else ""
        self._whole = tuple(self._new_pool(layer) for layer in layout.layers)
        self._first = {step: number * shape.num_slots for number, step in enumerate(shape.steps)}
        self._pools = {
            step: [pool.part(range(first, first + shape.num_slots)) for pool in self._whole]
            for step, first in self._first.items()
        }
        self._streamed: dict[int, list[int | None]] = {step: [None] * shape.num_slots for step in shape.steps}
        self._sizes = {step: [NO_SIZE] * shape.num_slots for step in shape.steps}
        """Of the frames that slots hold."""

    def allocate(self, spec: SessionSpec) -> None:
        """Take a slot. Raises InvalidRequest if the size of a session with a cache does not fit, and
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
        slot = self._slots.slot(session_id)
        if self._specs[session_id].cache is None:  # Nothing was ever written.
            return
        for step in self._streamed:
            self._clear(step, slot)

    def group(self, spec: SessionSpec, operator: Operator) -> Hashable:
        """Of the rows of a forward all have a cache or none has."""
        return spec.cache is not None

    def warm_up_frames(self, spec: SessionSpec) -> int:
        """The sinks: W, for sessions with a cache."""
        return 0 if spec.cache is None else self._window.sink_frames

    def changes_past(self, row: Row) -> bool:
        return row.frame.spec.cache is not None

    def gather(self, rows: Sequence[Row]) -> AnyCacheView | None:
        """The samples' view, or None if the rows have no cache. All of them have one or none has; all are
        windows or none is.
        """
        cached = [row.frame.spec.cache is not None for row in rows]
        if not any(cached):
            return None
        assert all(cached), "rows with and without a temporal cache in one forward"
        windows = [bool(row.window) for row in rows]
        if any(windows):
            assert all(windows), "windows and single frames in one forward"
            lengths = {len(row.window) for row in rows}
            assert lengths == {self._window.sink_frames}, f"windows of {lengths} frames"
            if self._by_index:
                return plan_indexed_windows(self._window, self._whole)
            places = [self._place(row) for row in rows for _ in row.window]
            return plan_windows(places, self._window, self._pools, self._device)
        numbers = [self._number(row) for row in rows]
        if self._by_index:
            return plan_indexed([self._index(row) for row in rows], numbers, self._window, self._whole)
        return plan_stream(
            [self._place(row) for row in rows], numbers, self._window, self._pools, self._device
        )

    @torch.inference_mode()
    def prepare(self, rows: Sequence[Row], update: CacheUpdate) -> Write:
        """`update`: of the forward of these rows, in their order."""
        if rows[0].window:
            writes = list(window_writes([self._place(row) for row in rows], update, self._pools))
        elif self._by_index:
            at = [self._window.slot(self._number(row)) for row in rows]
            writes = list(indexed_writes([self._index(row) for row in rows], at, update, self._whole))
        else:
            frames = [
                Streamed(sample, self._place(row), self._window.slot(self._number(row)))
                for sample, row in enumerate(rows)
            ]
            writes = list(frame_writes(frames, update, self._pools))
        numbers = {self._place(row): 0 if row.window else self._number(row) + 1 for row in rows}
        return partial(self._commit, writes, numbers, rows[0].size)

    def export(self, session_id: str) -> Iterator[Chunk]:
        """See `cache.export` for what the chunks hold."""
        spec, slot = self._specs[session_id], self._slots.slot(session_id)
        numbers = {step: streamed[slot] for step, streamed in self._streamed.items()}
        yield Chunk(CACHE.name, values=export_header(spec, self._window, self._dtype))
        for step, n in numbers.items():
            size = self._sizes[step][slot]
            yield Chunk(CACHE.name, step, values={"streamed": n, **size._asdict()})
            for layer, pool in zip(self._layout.layers, self._pools[step], strict=True):
                assert self._streamed[step][slot] == n, "the session ran while it was exported"
                if n is not None:
                    held = _held(pool, self._shape, size, layer, slot, n)
                    content = tuple(each.cpu().clone(memory_format=torch.contiguous_format) for each in held)
                    yield Chunk(CACHE.name, step, layer.name, tensors=content)

    def prepare_import(self, session_id: str, chunks: Iterable[Chunk]) -> Write:
        """Raises ValueError for an export of another size, type, window or UNet."""
        spec, slot = self._specs[session_id], self._slots.slot(session_id)
        incoming = Incoming.sort(chunks)
        incoming.check_headers(export_header(spec, self._window, self._dtype))
        check_layers(incoming, [layer.name for layer in self._layout.layers])
        steps = incoming.of_steps(self._shape.steps)
        numbers, sizes = streamed_frames(steps), held_sizes(steps, Size(spec.width, spec.height))
        if spec.cache is None and any(n is not None for n in numbers.values()):
            raise ValueError("the session has no temporal cache, the export has one")
        contents = []
        for step, layer, pool in self._all_pools():
            n = numbers.get(step)
            if n is not None:
                self.check_fits(spec, sizes[step])
                shape = layer.shape(self._shape.pixels(layer, sizes[step]), self._window.filled(n))
                found = incoming.layers.get((step, layer.name), ())
                tensors = check_tensors(found, step, layer.name, [shape, shape], self._dtype)
                contents.append((_held(pool, self._shape, sizes[step], layer, slot, n), tensors))
        return partial(self._replace, slot, numbers, sizes, contents)

    def bytes_per_session(self, spec: SessionSpec) -> int:
        """The same for every session of a pool: places are of one size."""
        scale = self._shape.latent_scale
        size = self._shape.height // scale, self._shape.width // scale
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
        owned = set(map(self._slots.slot, self._specs))
        for step, streamed in self._streamed.items():
            for slot, n in enumerate(streamed):
                assert n is None or slot in owned, f"slot {slot} of step {step} is free and has {n}"
                size = self._sizes[step][slot]
                assert (n is None) == (size == NO_SIZE), (
                    f"slot {slot} of step {step} has {n} frames of {size}"
                )
        for step, layer, pool in self._all_pools():
            for slot, n in enumerate(self._streamed[step]):
                filled = 0 if n is None else self._window.filled(n)
                pixels = self._shape.pixels(layer, self._sizes[step][slot])
                for tensor in pool.tensors:
                    beyond = tensor[slot, :, :, filled:].float().any() or tensor[slot, pixels:].float().any()
                    assert not beyond, f"slot {slot} of {layer.name} holds more than {filled} frames"

    def _new_pool(self, layer: CacheLayer) -> LayerPool:
        pixels = self._shape.pixels(layer)
        slots = len(self._shape.steps) * self._shape.num_slots
        shape = (slots, *layer.shape(pixels, self._window.frames))
        keys, values = (torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(2))
        return LayerPool(keys, values)

    def check_fits(self, spec: SessionSpec, size: Size) -> None:
        if spec.cache is not None:
            self._shape.check_fits(self._layout, size)

    def _all_pools(self) -> Iterator[tuple[int, CacheLayer, LayerPool]]:
        for step, pools in self._pools.items():
            for layer, pool in zip(self._layout.layers, pools, strict=True):
                yield step, layer, pool

    def _number(self, row: Row) -> int:
        n = self._streamed[row.operator.step][self._slots.slot(row.session_id)]
        assert n is not None, f"frame {row.ordinal} came to step {row.operator.step} before its warm-up"
        return n

    def _place(self, row: Row) -> Place:
        return Place(row.operator.step, self._slots.slot(row.session_id))

    def _index(self, row: Row) -> int:
        """Of the row's past in the pools of all steps."""
        place = self._place(row)
        return self._first[place.step] + place.slot

    @torch.inference_mode()
    def _commit(self, writes: Sequence[CacheWrite], numbers: dict[Place, int], size: Size) -> None:
        for step, slot in numbers:
            if self._sizes[step][slot] != size:  # Larger frames leave more than smaller ones fill.
                self._clear(step, slot)
        for write in writes:
            write.copy()
        for (step, slot), n in numbers.items():
            self._streamed[step][slot], self._sizes[step][slot] = n, size

    def _clear(self, step: int, slot: int) -> None:
        self._streamed[step][slot], self._sizes[step][slot] = None, NO_SIZE
        for pool in self._pools[step]:
            for tensor in pool.tensors:
                tensor[slot].zero_()

    @torch.inference_mode()
    def _replace(
        self,
        slot: int,
        numbers: dict[int, int | None],
        sizes: dict[int, Size],
        contents: Sequence[tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]],
    ) -> None:
        for step, n in numbers.items():
            self._clear(step, slot)
            if n is not None:
                self._streamed[step][slot], self._sizes[step][slot] = n, sizes[step]
        for places, tensors in contents:
            for place, content in zip(places, tensors, strict=True):
                place.copy_(content)


def _held(
    pool: LayerPool, shape: CacheShape, size: Size, layer: CacheLayer, slot: int, n: int
) -> tuple[Tensor, Tensor]:
    """The part of a slot that holds frames; views."""
    pixels, filled = shape.pixels(layer, size), shape.window.filled(n)
    return pool.keys[slot, :pixels, :, :filled], pool.values[slot, :pixels, :, :filled]


def _refused(size: Size, text: str, **metadata: str) -> InvalidRequest:
    asked = {"width": str(size.width), "height": str(size.height)}
    return InvalidRequest(Reason.RESOLUTION_UNSUPPORTED, text, metadata={**asked, **metadata})
