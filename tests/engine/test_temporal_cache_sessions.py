"""Sessions in one temporal cache: batched as alone, moved as never moved, refused where they do not fit."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from rearview.engine.memory.cache.layers import CacheLayer, CacheLayout, read_cache_layout
from rearview.engine.memory.cache.pool import CacheShape, TemporalKVCache
from rearview.engine.memory.cache.view import CACHE, CacheReader, CacheUpdate
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.export import Chunk, Incoming
from rearview.engine.networks.attention.readers import Readers
from rearview.engine.networks.unet import StreamingUNet
from rearview.engine.rows import Row
from rearview.errors import InvalidRequest, Reason, Refused
from support.frames import content
from support.memories import exported, gather
from support.tiny_motion import (
    SIZE,
    WINDOW,
    advance,
    cached,
    clip,
    gap,
    opened,
    play,
    predict,
    recorded,
    stream_row,
    tiny_cache,
    tiny_unet,
    window_row,
)
from torch import Tensor

pytestmark = pytest.mark.unit

EXACT = 1e-12
SINKS = WINDOW.sink_frames


def alone(name: str, latents: Tensor, step: int = 0, size: int = SIZE) -> Tensor:
    memory, spec = tiny_cache(num_slots=1, size=size), cached(name, size=size)
    memory.allocate(spec)
    return play(memory, spec, latents, step)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_l19_sessions_at_any_frame_and_step_in_one_forward_are_as_alone(seed: int) -> None:
    """Every mixed batch, in any order, of sessions that drift apart, each at two steps."""
    chance = random.Random(seed)
    names = [f"s{i}" for i in range(4)]
    memory = tiny_cache(num_slots=4)
    for name in chance.sample(names, 4):
        memory.allocate(cached(name))
    clips = {(name, step): clip(14, 2 * i + step) for i, name in enumerate(names) for step in (0, 1)}
    outputs: dict[Any, list[Tensor]] = {key: [] for key in clips}
    while any(len(found) < 14 for found in outputs.values()):
        waiting = [key for key, found in outputs.items() if len(found) < 14]
        chosen = chance.sample(waiting, chance.randint(1, len(waiting)))
        is_cold = not outputs[chosen[0]]
        chosen = [key for key in chosen if (not outputs[key]) == is_cold]
        rows = [next_row(key, clips[key], len(outputs[key])) for key in chosen]
        found = advance(memory, rows).split([len(row.frames) for row in rows])
        for key, pictures in zip(chosen, found, strict=True):
            outputs[key] += pictures
        memory.check_integrity()
    for (name, step), found in outputs.items():
        assert gap(torch.stack(found), alone(name, clips[name, step], step)) <= EXACT


def next_row(key: tuple[str, int], latents: Tensor, done: int) -> Row:
    name, step = key
    if done == 0:
        return window_row(cached(name), latents[:SINKS], step)
    return stream_row(cached(name), latents[done], done, step)


def test_neighbours_are_read_through_one_slice_without_a_copy() -> None:
    memory = tiny_cache(num_slots=3)
    specs = [cached(f"s{i}") for i in range(3)]
    for spec in specs:
        memory.allocate(spec)
        advance(memory, [window_row(spec, clip(SINKS))])
    view = memory.gather([stream_row(spec, clip(1)[0], 4) for spec in reversed(specs)])
    assert view is not None
    assert [run.slots for run in CacheReader(view)._reading.runs] == [range(3)]
    pool = memory._pools[0][0]
    assert pool.read(range(3), pool.keys.shape[1])[0].data_ptr() == pool.keys.data_ptr()


def test_smaller_frames_share_the_pool() -> None:
    memory = tiny_cache(num_slots=3)
    small, other, large = cached("small", size=32), cached("other", size=32), cached("large")
    for spec in (small, other, large):
        memory.allocate(spec)
    found = play(memory, small, clip(10, 1, size=32))
    play(memory, other, clip(10, 2, size=32))
    play(memory, large, clip(10, 3))
    rows = [stream_row(small, clip(1, 7, size=32)[0], 10), stream_row(other, clip(1, 8, size=32)[0], 10)]
    both = advance(memory, rows)
    memory.check_integrity()
    assert gap(found, alone("small", clip(10, 1, size=32), size=32)) <= EXACT
    for picture, seed, further in ((both[0], 1, 7), (both[1], 2, 8)):
        latents = torch.cat([clip(10, seed, size=32), clip(1, further, size=32)])
        assert gap(picture, alone("x", latents, size=32)[-1]) <= EXACT


def test_a_new_window_replaces_the_cache() -> None:
    """A reset and a shadow commit alike: what comes after is as in a new session."""
    memory, spec = opened()
    play(memory, spec, clip(11, 1))
    latents = clip(9, 2)
    advance(memory, [window_row(spec, latents[:SINKS], first=11, shadow=True)])
    memory.check_integrity()
    found = torch.cat([advance(memory, [stream_row(spec, x, 20)]) for x in latents[SINKS:]])
    assert gap(found, alone("b", latents)[SINKS:]) <= EXACT


def test_l21_a_frame_that_is_not_committed_leaves_no_trace() -> None:
    """Running it again gives the same, and so does never running it."""
    memory, spec = opened()
    latents = clip(9)
    play(memory, spec, latents[:8])
    rows = [stream_row(spec, latents[8], 8)]
    before = exported(memory, "a")
    first, again = (predict(gather(memory, rows), rows) for _ in range(2))
    assert torch.equal(first, again)
    assert same(exported(memory, "a"), before)


def test_negative_samples_see_their_twins_past_and_leave_nothing() -> None:
    memory, specs = tiny_cache(), [cached("a"), cached("b")]
    for spec in specs:
        memory.allocate(spec)
        play(memory, spec, clip(6))
    rows = [stream_row(spec, clip(1, 5)[0], 6) for spec in specs]
    together = predict(gather(memory, rows), rows, beside=[1])
    assert gap(together[:2], predict(gather(memory, rows), rows)) <= EXACT
    assert gap(together[2], together[1]) > 1e-6
    by_itself = predict(gather(memory, rows[1:]), rows[1:], beside=[0])
    assert gap(together[2], by_itself[1]) <= EXACT


def test_negative_samples_of_a_window_see_the_other_frames() -> None:
    """Under one and the same prompt a negative sample is its twin."""
    memory, spec = opened()
    rows = [window_row(spec, clip(SINKS))]
    latents = torch.stack([content(frame) for frame in rows[0].frames])  # type: ignore[misc]
    readers = Readers(gather(memory, rows).beside([1, 3]))
    prompts = torch.ones(SINKS + 2, 3, 8, dtype=torch.float64)
    wide = torch.cat([latents, latents[[1, 3]]])
    with torch.inference_mode():
        found = tiny_unet()(wide, 499, prompts, **readers.arguments)[0]
    assert gap(found[SINKS:], found[[1, 3]]) <= EXACT
    assert gap(found[:SINKS], predict(gather(memory, rows), rows)) <= EXACT
    left = readers.collect()
    assert {len(kind) for kind in left["cache"].tensors} == {SINKS + 2}
    assert {len(kind) for kind in left.first(SINKS)["cache"].tensors} == {SINKS}


def test_l15_bytes_are_those_of_the_note() -> None:
    """1,520,435,200 bytes per timestep at 512x512 in fp16."""
    with torch.device("meta"):
        unet = StreamingUNet(UNet2DConditionModel(cross_attention_dim=768))
        layout = read_cache_layout(unet)
        memory = TemporalKVCache(
            layout, CacheShape(1, (0,), 512, 512), dtype=torch.float16, device=torch.device("meta")
        )
    spec = cached("a", size=512)
    assert len(layout.layers) == 40
    assert layout.size_multiple == 8
    assert memory.bytes_per_session(spec) == memory.storage_bytes == 1_520_435_200
    assert layout.bytes_per_step(32, 32, 16, torch.float16) == 1_520_435_200 // 4
    names = [layer.name for layer in layout.layers]
    assert names[0] == "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1"
    assert [(layer.level, layer.channels) for layer in layout.layers[16:22:5]] == [(3, 1280), (3, 1280)]


def test_bytes_of_a_session_are_those_of_its_slot() -> None:
    memory = tiny_cache(CacheWindow(3, 5), num_slots=3)
    assert 3 * memory.bytes_per_session(cached("a")) == memory.storage_bytes


def same(left: Incoming, right: Incoming) -> bool:
    """Two exports."""
    tensors = left.layers.keys() == right.layers.keys() and all(
        torch.equal(a, b)
        for key in left.layers
        for a, b in zip(left.layers[key], right.layers[key], strict=True)
    )
    return tensors and (left.headers, left.steps) == (right.headers, right.steps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("frames", [4, 6, 13])
def test_l20_a_cache_that_moved_goes_on_as_if_it_had_not(frames: int, dtype: torch.dtype) -> None:
    """To another slot, and with its steps put together from two spans."""
    whole, spec = opened(dtype=dtype)
    latents = clip(frames + 3)
    for step in (0, 1):
        play(whole, spec, latents[:frames], step)
    state = list(whole.export("a"))
    spans = [tiny_cache(steps=[step], dtype=dtype) for step in (0, 1)]
    for step, span in enumerate(spans):
        span.allocate(cached("other"))
        span.allocate(spec)
        span.import_("a", state)
        span.check_integrity()
        for i, latent in enumerate(latents[frames:]):
            row = stream_row(spec, latent, frames + i, step)
            assert torch.equal(advance(span, [row]), advance(whole, [row]))


def test_an_export_that_does_not_fit_is_refused() -> None:
    memory, spec = opened()
    play(memory, spec, clip(6))
    chunks, before = list(memory.export("a")), exported(memory, "a")
    others = {
        "sink_frames": opened(CacheWindow(3, 5)),
        "dtype": opened(dtype=torch.float32),
        "steps": opened(steps=[7]),
    }
    for field, (other, _) in others.items():
        with pytest.raises(ValueError, match=field):
            other.import_("a", chunks)
    smaller = tiny_cache()
    smaller.allocate(cached("a", size=32))
    with pytest.raises(ValueError, match="size"):
        smaller.import_("a", chunks)
    wrong = {
        "format": [replace(chunks[0], values={**chunks[0].values, "format": 0}), *chunks[1:]],
        "header": chunks[1:],
        "shapes": [replace(each, tensors=tuple(t[:1] for t in each.tensors)) for each in chunks],
        "layers": [*chunks, Chunk("cache", 0, "x")],
        "streamed is no number": [
            replace(each, values={"streamed": -1}) if each.step == 0 else each for each in chunks
        ],
        "twice": [*chunks, chunks[-1]],
    }
    for field, spoilt in wrong.items():
        with pytest.raises(ValueError, match=field):
            memory.import_("a", spoilt)
    assert same(exported(memory, "a"), before)


def test_l23_a_freed_slot_is_empty() -> None:
    memory, spec = opened(num_slots=1)
    play(memory, spec, clip(9))
    with pytest.raises(Refused):
        memory.allocate(cached("b"))
    memory.free("a")
    memory.free("a")
    memory.check_integrity()
    assert not any(tensor.any() for tensor in memory._pools[0][0].tensors)
    memory.allocate(cached("b"))
    assert gap(play(memory, cached("b"), clip(9, 2)), alone("b", clip(9, 2))) <= EXACT


@pytest.mark.parametrize(("width", "height"), [(72, 64), (64, 40), (128, 64)])
def test_l26_a_size_that_does_not_fit_is_refused(width: int, height: int) -> None:
    """16 pixels are a cell of the tiny UNet's deepest level."""
    memory = tiny_cache()
    with pytest.raises(InvalidRequest) as refusal:
        memory.allocate(cached("a", size=width, height=height))
    assert refusal.value.reason is Reason.RESOLUTION_UNSUPPORTED
    assert memory.free_slots == 3
    memory.allocate(replace(cached("a", size=width, height=height), cache=None))


def test_l26_stable_diffusion_needs_multiples_of_64() -> None:
    layout = CacheLayout((CacheLayer("x", 0, 8, 2),), size_multiple=8, max_frames=24)
    memory = TemporalKVCache(layout, CacheShape(1, (0,), 128, 128), dtype=torch.float32)
    with pytest.raises(InvalidRequest, match="multiples of 64"):
        memory.allocate(cached("a", size=96))
    memory.allocate(cached("a", size=64, height=128))


def test_a_window_longer_than_the_tables_is_refused() -> None:
    with pytest.raises(ValueError, match="24"):
        tiny_cache(CacheWindow(16, 9))
    for sinks, ring in ((0, 8), (8, 0)):
        with pytest.raises(ValueError, match="window"):
            CacheWindow(sinks, ring)


def test_l24_a_frame_before_its_warm_up_and_a_mixed_forward_are_faults() -> None:
    memory, spec = opened()
    with pytest.raises(AssertionError, match="warm-up"):
        memory.gather([stream_row(spec, clip(1)[0])])
    play(memory, spec, clip(4))
    with pytest.raises(AssertionError, match="windows"):
        memory.gather([stream_row(spec, clip(1)[0]), window_row(spec, clip(4))])


def test_a_session_without_a_cache_reads_and_writes_nothing() -> None:
    memory, spec = tiny_cache(), replace(cached("a"), cache=None)
    memory.allocate(spec)
    row = stream_row(spec, clip(1)[0])
    assert memory.warm_up_frames(spec) == 0
    assert memory.warm_up_frames(cached("b")) == SINKS
    assert memory.gather([row]) is None


def test_storage_of_fewer_bits_errs_by_their_number() -> None:
    """Over 24 frames, against float32; every storage stays finite and close."""
    errors = storage_errors()
    float16, bfloat16, float8 = (errors[name] for name in ("float16", "bfloat16", "float8_e4m3fn"))
    assert 0 < float16 < bfloat16 < float8 < 0.2


def storage_errors(frames: int = 24) -> dict[str, float]:
    """Root mean square error of predictions relative to their own, by type of storage."""
    latents = clip(frames, dtype=torch.float32)
    unet = tiny_unet(torch.float32)

    def found(dtype: torch.dtype) -> Tensor:
        memory, spec = opened(dtype=dtype)
        return play(memory, spec, latents, unet=unet)[SINKS:]

    exact = found(torch.float32)
    kinds = (torch.float16, torch.bfloat16, torch.float8_e4m3fn)
    return {
        str(kind).removeprefix("torch."): float((found(kind) - exact).norm() / exact.norm()) for kind in kinds
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_storage_cuts_off_what_exceeds_its_range(dtype: torch.dtype) -> None:
    memory, spec = opened(dtype=dtype)
    rows = [window_row(spec, clip(SINKS))]
    update = recorded(gather(memory, rows), rows)[1].of(CACHE)
    assert update is not None
    huge = CacheUpdate(tuple((key * 1e6, value * 1e6) for key, value in update.layers))
    memory.scatter(rows, huge)
    assert all(tensor.float().isfinite().all() for tensor in memory._pools[0][0].tensors)
