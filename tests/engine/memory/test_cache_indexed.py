"""Where a temporal cache is read by index: who decides it, and what is left to a captured forward's key."""

from __future__ import annotations

import logging

import pytest
import torch
from rearview.engine.memory.cache.indexed import IndexedView
from rearview.engine.memory.cache.pool import TemporalKVCache
from rearview.engine.memory.cache.view import CACHE, AnyCacheView, CacheView
from rearview.engine.networks.attention import temporal_ops
from rearview.engine.rows import Row
from support.memories import gather
from support.tiny_motion import advance, cached, clip, stream_row, tiny_cache, window_row

pytestmark = pytest.mark.unit

NAMES = "abc"


def warm(by_index: bool | None) -> TemporalKVCache:
    """Three sessions with a window at each of two steps."""
    memory = tiny_cache(by_index=by_index)
    for i, name in enumerate(NAMES):
        memory.allocate(cached(name))
        for step in (0, 1):
            advance(memory, [window_row(cached(name), clip(4, i), step)])
    return memory


def row(name: str, step: int = 0) -> Row:
    return stream_row(cached(name), clip(1)[0], 4, step)


def view_of(memory: TemporalKVCache, *rows: Row) -> AnyCacheView:
    view = gather(memory, list(rows)).of(CACHE)
    assert view is not None
    return view


def test_without_a_gpu_pasts_are_read_through_slices() -> None:
    assert not temporal_ops.kernels_work(torch.device("cpu"), torch.float32)
    assert isinstance(view_of(warm(None), row("a")), CacheView)
    assert isinstance(view_of(warm(True), row("a")), IndexedView)


def test_the_key_of_a_view_by_index_names_no_session_and_no_step() -> None:
    """One captured forward serves any set of sessions; through slices there is one for each set."""
    for by_index in (True, False):
        memory = warm(by_index)
        sets = ([row("a"), row("b")], [row("c"), row("a")], [row("b", 1), row("b", 0)])
        views = [view_of(memory, *rows) for rows in sets]
        assert len({view.key for view in views}) == (1 if by_index else len(sets))
        shapes = {tuple(each.shape for each in view.tensors) for view in views}
        assert len(shapes) == 1
        twins = {view.beside([1]).key for view in views}
        assert (twins == {view.key for view in views}) == by_index
        windows = [view_of(memory, window_row(cached(name), clip(4), first=5)) for name in NAMES]
        assert len({view.key for view in windows}) == (1 if by_index else len(NAMES))


def test_one_number_says_where_the_past_of_a_row_lies() -> None:
    memory = warm(True)
    view = view_of(memory, row("c", 1), row("a"), row("b", 1))
    assert isinstance(view, IndexedView)
    assert view.index_S.tolist() == [5, 0, 4]
    assert len(view.pooled) == 2 * len(memory._whole)
    for step, slot, index in ((1, 2, 5), (0, 0, 0), (1, 1, 4)):
        for pool, whole in zip(memory._pools[step], memory._whole, strict=True):
            for part, tensor in zip(pool.tensors, whole.tensors, strict=True):
                assert part[slot].data_ptr() == tensor[index].data_ptr()
                assert part[slot].any()


def test_a_device_on_which_kernels_fail_or_err_is_read_through_slices(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As without a compiler, or where the type is missing."""
    device, find = torch.device("cuda:7"), temporal_ops.kernels_work.__wrapped__

    def fails(*_: object) -> float:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(temporal_ops, "trial", lambda *_: 1e-6)
    assert not find(device, torch.float32), "there is no CUDA"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(temporal_ops, "find_spec", lambda name: None)
    assert not find(device, torch.float32), "there is no Triton"
    monkeypatch.setattr(temporal_ops, "find_spec", lambda name: name)
    assert find(device, torch.float32)
    monkeypatch.setattr(temporal_ops, "trial", lambda *_: float("nan"))
    with caplog.at_level(logging.WARNING):
        assert not find(device, torch.float32)
        monkeypatch.setattr(temporal_ops, "trial", fails)
        assert not find(device, torch.float32)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


@pytest.mark.parametrize("by_index", [True, False])
def test_a_view_may_be_given_twins_twice(by_index: bool) -> None:
    """As whoever compiles a guided call does, to learn what would grow."""
    memory = warm(by_index)
    for view in (
        view_of(memory, row("a"), row("b")),
        view_of(memory, window_row(cached("a"), clip(4), first=5)),
    ):
        once = view.beside([1])
        twice = once.beside([0])
        is_in_key = view.key.is_window or not by_index
        assert twice.tensors[-1].tolist() == ([1, 0] if is_in_key else [])
        together = view.beside([1, 0])
        assert twice.key == together.key
        assert all(torch.equal(*pair) for pair in zip(twice.tensors, together.tensors, strict=True))
