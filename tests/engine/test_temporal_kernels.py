"""Kernels of the temporal cache compute what torch does, in Triton's interpreter.

Its conversions to types of fewer bits round in its own way; on a GPU `test_live2diff_gpu.py` sees them equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from rearview.engine.memory.cache.pool import TemporalKVCache
from rearview.engine.memory.cache.view import CACHE
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.networks.attention.temporal_ops import attend_indexed, trial
from support.kernel_cases import CASES
from support.memories import gather
from support.tiny_motion import advance, cached, clip, gap, predict, stream_row, tiny_cache, window_row
from torch import Tensor

pytest.importorskip("triton")
pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
EXACT, CLOSE = 1e-12, 1e-5
SMALL = CASES["of odd sizes"]
STORAGES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
ULP = {torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 2.0**-7, torch.float8_e4m3fn: 0.25}
"""How far the interpreter rounds from where a GPU does, beside a number's size."""


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled here: see test_live2diff_gpu.py")
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("name", CASES)
def test_attention_by_index_equals_that_over_a_copy(name: str) -> None:
    case = replace(CASES[name], dtype=torch.float64, storage=torch.float64)
    found, expected = case.attended(case.pool())
    assert gap(found, expected) <= EXACT
    found, expected = CASES[name].attended(CASES[name].pool())
    assert gap(found, expected) <= CLOSE


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_the_past_is_read_in_any_type(storage: torch.dtype, dtype: torch.dtype) -> None:
    case = replace(SMALL, dtype=dtype, storage=storage)
    found, expected = case.attended(case.pool(), exact=torch.float64)
    assert found.dtype is dtype
    assert gap(found.double(), expected) <= {torch.float16: 2e-3, torch.float32: 1e-5}.get(dtype, EXACT)


def test_what_a_sample_does_not_see_is_not_read() -> None:
    pool = SMALL.pool()
    expected, _ = SMALL.attended(pool)
    hidden = ~SMALL.seen()[2]
    for sample, slot in enumerate(SMALL.indices().tolist()):
        for tensor in pool.tensors:
            tensor[slot, :, :, hidden[sample]] = float("nan")
            tensor[slot, SMALL.pixels :] = float("nan")
    assert torch.equal(SMALL.attended(pool)[0], expected)


def test_projections_may_lie_in_any_order() -> None:
    pool, tables, seen = SMALL.pool(), SMALL.tables(), SMALL.seen()
    given = SMALL.projections()
    expected = attend_indexed(*given, *pool.tensors, tables, SMALL.indices(), *seen)
    parts = torch.cat([each.transpose(0, 1) for each in given], dim=-1).chunk(3, dim=-1)
    strided = [each.transpose(0, 1) for each in parts]
    assert torch.equal(attend_indexed(*strided, *pool.tensors, tables, SMALL.indices(), *seen), expected)
    scattered = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in given]
    assert torch.equal(attend_indexed(*scattered, *pool.tensors, tables, SMALL.indices(), *seen), expected)


@pytest.mark.parametrize("name", [name for name in CASES if name != "with twins"])
def test_frames_are_written_to_their_places_alone(name: str) -> None:
    case = CASES[name]
    at = torch.tensor([(3 * row + 1) % case.frames for row in range(case.samples)])
    found, expected = case.stored(at)
    assert all(map(torch.equal, found.tensors, expected.tensors))
    assert not torch.equal(found.keys, case.pool().keys)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_exceeds_the_range_of_a_type_is_cut_off(storage: torch.dtype, dtype: torch.dtype) -> None:
    case = replace(SMALL, dtype=dtype, storage=storage)
    found, expected = case.stored(torch.tensor([0, 2, 6]), scale=1e39 if dtype is torch.float64 else 1e5)
    for ours, theirs in zip(found.tensors, expected.tensors, strict=True):
        ours, theirs = ours.double(), theirs.double()
        assert ours.isfinite().all()
        assert ((ours - theirs).abs() <= ULP[storage] * theirs.abs()).all()
        assert theirs.abs().max() == torch.finfo(storage).max or storage.itemsize > 1


def test_both_are_compiled_with_what_is_around_them() -> None:
    """In one piece, which a break of the graph would refuse."""
    case, pool = SMALL, SMALL.pool()
    query, key, value = case.projections()
    tables, index, (position, positions, visible) = case.tables(), case.indices(), case.seen()

    def layer(query: Tensor, key: Tensor, keys: Tensor, values: Tensor, index: Tensor) -> Tensor:
        return 2 * attend_indexed(
            query, key + 1, value, keys, values, tables, index, position, positions, visible
        )

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend="aot_eager")
    for numbers in (index, index.flip(0)):
        expected = layer(query, key, *pool.tensors, numbers)
        assert torch.equal(compiled(query, key, *pool.tensors, numbers), expected)
    torch._dynamo.reset()


def test_a_trial_finds_the_kernels_right() -> None:
    assert trial(CPU, torch.float32) <= CLOSE
    assert trial(CPU, torch.float16) <= CLOSE


def twice(**arguments: Any) -> tuple[TemporalKVCache, TemporalKVCache]:
    """By slices and by index."""
    by_slices, by_index = (tiny_cache(by_index=each, **{"size": 16, **arguments}) for each in (False, True))
    return by_slices, by_index


def test_sessions_at_several_steps_go_on_as_through_slices() -> None:
    """Warm-up, more than one turn of the ring, and who shares a forward changes."""
    window = CacheWindow(2, 2)
    memories = twice(num_slots=3, window=window)
    for memory in memories:
        for name in "abc":
            memory.allocate(cached(name, size=16))
    streams = [(cached(name, size=16), step) for name, step in (("c", 1), ("a", 0), ("a", 1))]
    for number, (spec, step) in enumerate(streams):
        rows = [window_row(spec, clip(window.sink_frames, number, size=16), step)]
        ours, theirs = (advance(memory, rows) for memory in memories)
        assert torch.equal(ours, theirs)
    for n in range(4):
        chosen = streams[n % 2 :]
        rows = [stream_row(spec, clip(1, 9 * n + step, size=16)[0], 2 + n, step) for spec, step in chosen]
        ours, theirs = (advance(memory, rows) for memory in memories)
        assert gap(ours, theirs) <= EXACT
    for memory in memories:
        memory.check_integrity()
    for ours, theirs in zip(*(memory._whole for memory in memories), strict=True):
        assert max(map(gap, ours.tensors, theirs.tensors)) <= EXACT


def test_smaller_frames_and_twins_are_read_by_index_too() -> None:
    memories, small = twice(size=32), cached("small", size=16)
    for memory in memories:
        memory.allocate(cached("other", size=32))
        memory.allocate(small)
        advance(memory, [window_row(small, clip(4, 1, size=16))])
        advance(memory, [stream_row(small, clip(1, 2, size=16)[0], 4)])
        memory.check_integrity()
    rows = [stream_row(small, clip(1, 3, size=16)[0], 5)]
    ours, theirs = (predict(gather(memory, rows), rows, beside=[0]) for memory in memories)
    assert gap(ours, theirs) <= EXACT
    assert gap(ours[:1], ours[1:]) > 1e-6
    window = [window_row(small, clip(4, 4, size=16), first=6)]
    ours, theirs = (predict(gather(memory, window), window, beside=[1, 3]) for memory in memories)
    assert torch.equal(ours, theirs)


def test_a_view_over_other_tensors_reads_those() -> None:
    """As a captured forward has them."""
    memory, spec = tiny_cache(by_index=True, size=16), cached("a", size=16)
    memory.allocate(spec)
    advance(memory, [window_row(spec, clip(4, size=16))])
    rows = [stream_row(spec, clip(1, 3, size=16)[0], 4)]
    views = gather(memory, rows)
    view = views.of(CACHE)
    assert view is not None
    expected = predict(views, rows)
    views[CACHE.name] = view.over([each.clone() for each in view.tensors], view.pooled)
    assert torch.equal(predict(views, rows), expected)
