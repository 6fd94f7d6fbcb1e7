"""What a commit puts into the temporal cache: as row by row, in so many copies as there are layers."""

from __future__ import annotations

import pytest
import torch
from rearview.engine.memory.cache.view import CacheUpdate, LayerPool, Place
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.cache.write import Streamed, frame_writes, window_writes
from torch import Tensor

pytestmark = pytest.mark.unit

SLOTS, PIXELS, HEADS, DIM, LAYERS = 5, 6, 2, 4, 3
WINDOW = CacheWindow(2, 3)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


def pools_of(dtype: torch.dtype) -> dict[int, list[LayerPool]]:
    """Full of what must not change."""
    shape = (SLOTS, PIXELS + 1, HEADS, WINDOW.frames, DIM)
    generator = torch.Generator().manual_seed(1)

    def pool() -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {step: [LayerPool(pool(), pool()) for _ in range(LAYERS)] for step in (0, 1)}


def update_of(samples: int, scale: float = 1.0) -> CacheUpdate:
    def content() -> Tensor:
        return scale * torch.randn(samples, PIXELS, HEADS * DIM)

    torch.manual_seed(2)
    return CacheUpdate(tuple((content(), content()) for _ in range(LAYERS)))


def same(left: dict[int, list[LayerPool]], right: dict[int, list[LayerPool]]) -> bool:
    """Bit by bit."""
    return all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for step in left
        for ours, theirs in zip(left[step], right[step], strict=True)
        for a, b in zip(ours.tensors, theirs.tensors, strict=True)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frames_of_several_sessions_and_steps_go_where_each_alone_would(dtype: torch.dtype) -> None:
    places = [Place(0, 3), Place(1, 3), Place(0, 1), Place(0, 4), Place(1, 0)]
    frames = [Streamed(sample, place, 2 + sample % 3) for sample, place in enumerate(places)]
    update, found, expected = update_of(len(frames), scale=300.0), pools_of(dtype), pools_of(dtype)
    limit = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    for write in frame_writes(frames, update, found):
        write.copy()
    for sample, (step, slot), at in frames:
        for pool, new in zip(expected[step], update.layers, strict=True):
            for tensor, content in zip(pool.tensors, new, strict=True):
                heads = content[sample].unflatten(-1, (HEADS, DIM)).clamp(-limit, limit)
                tensor[slot, :PIXELS, :, at] = heads.to(dtype)
    assert same(found, expected)
    assert not same(found, pools_of(dtype))


def test_copies_grow_with_layers_and_steps_and_not_with_rows() -> None:
    pools = pools_of(torch.float32)
    for rows in (1, 2, SLOTS):
        frames = [Streamed(slot, Place(0, slot), 2) for slot in range(rows)]
        assert len(list(frame_writes(frames, update_of(rows), pools))) == 2 * LAYERS
    both = [Streamed(step, Place(step, 0), 2) for step in (0, 1)]
    assert len(list(frame_writes(both, update_of(2), pools))) == 2 * 2 * LAYERS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_window_fills_the_sinks_and_empties_the_ring_of_its_slot_alone(dtype: torch.dtype) -> None:
    places, sinks = [Place(0, 2), Place(1, 2)], WINDOW.sink_frames
    update, found, expected = update_of(sinks * len(places)), pools_of(dtype), pools_of(dtype)
    for write in window_writes(places, update, found):
        write.copy()
    for number, (step, slot) in enumerate(places):
        for pool, new in zip(expected[step], update.layers, strict=True):
            for tensor, content in zip(pool.tensors, new, strict=True):
                tensor[slot, :PIXELS] = torch.zeros((), dtype=dtype)
                for at in range(sinks):
                    heads = content[number * sinks + at].unflatten(-1, (HEADS, DIM))
                    tensor[slot, :PIXELS, :, at] = heads.to(dtype)
    assert same(found, expected)


@pytest.mark.parametrize("window", [WINDOW, CacheWindow(1, 1), CacheWindow(8, 8), CacheWindow(3, 5)])
def test_what_a_frame_sees_is_worked_out_from_its_number_alone(window: CacheWindow) -> None:
    """Beside a ring that is kept as a list of frames, through several rounds."""
    ring: list[int | None] = [None] * window.ring_frames
    for n in range(5 * window.ring_frames):
        own = n % window.ring_frames
        assert window.slot(n) == window.sink_frames + own
        seen = [frame is not None and place != own for place, frame in enumerate(ring)]
        assert window.visible(n) == (*[True] * window.sink_frames, *seen)
        after = [n if place == own else frame for place, frame in enumerate(ring)]
        ages = sorted(frame for frame in after if frame is not None)
        positions = [
            window.sink_frames + (place if frame is None else ages.index(frame))
            for place, frame in enumerate(after)
        ]
        assert list(window.positions(n)) == [*range(window.sink_frames), *positions]
        ring = after
