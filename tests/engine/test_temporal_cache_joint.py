"""A feature bank and a temporal cache in one session: both at once, and each as it is by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.memories import BankSettings
from rearview.contract.session import SessionSpec
from rearview.engine.memory.bank.merge import bank_tokens
from rearview.engine.memory.bank.pool import FeatureBank
from rearview.engine.memory.bank.records import bank_samples
from rearview.engine.memory.bank.view import BANK
from rearview.engine.memory.build import CacheOptions, Layouts, MemoryOptions, build_memories
from rearview.engine.memory.cache.layers import read_cache_layout
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.depth.view import DepthUpdate
from rearview.engine.memory.export import Chunk
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.reference.bank import PlainBank
from rearview.engine.reference.cache import PlainCache
from rearview.engine.rows import Row
from rearview.errors import InvalidRequest, Refused
from support.memories import exported
from support.tiny_motion import (
    SIZE,
    WINDOW,
    advance,
    banked_unet,
    cached,
    clip,
    gap,
    play,
    predict,
    run,
    stream_row,
    window_row,
)
from torch import Tensor

pytestmark = pytest.mark.unit

EXACT = 1e-12
SINKS = WINDOW.sink_frames
BANKED = BankSettings(interval=3, phase=1, fusion_threshold=0.5)


def joint(num_slots: int = 3, steps: tuple[int, ...] = (0, 1), *, without: str = "") -> Memories:
    """Bank, cache and range of depth, or all but one of them."""
    unet, layout = banked_unet()
    operators = [Operator(OperatorKind.ENCODE), *(Operator(OperatorKind.DENOISE, step) for step in steps)]
    options = MemoryOptions(
        num_slots=num_slots,
        height=SIZE,
        width=SIZE,
        dtype=torch.float64,
        bank=None if without == "bank" else BankSettings(),
        cache=None if without == "cache" else CacheOptions(WINDOW),
    )
    layouts = Layouts(layout, read_cache_layout(unet), depth=without != "depth")
    return build_memories(Span("span", tuple(operators)), layouts, options)


def records(memory: Memories) -> list[Any]:
    """Of the bank, by row."""
    bank: Any = memory._kinds["bank"]
    assert isinstance(bank, FeatureBank)
    return bank._records


def by_plain(spec: SessionSpec, latents: Tensor) -> Tensor:
    """The window against an empty bank, of which its last frame is written; then frame by frame."""
    unet, layout = banked_unet()
    assert spec.bank is not None
    bank, cache = PlainBank(spec.bank, layout), PlainCache(SINKS, WINDOW.ring_frames)
    rows: list[Row] = [window_row(spec, latents[:SINKS])]
    rows += [stream_row(spec, latents[n], n) for n in range(SINKS, len(latents))]
    outputs = []
    for row in rows:
        past: Any = bank.view(spec.settings, row.ordinal, 0)
        present = cache.window(0) if row.window else cache.frame(0)
        spatial = {"memory": _LastOf(past) if row.window else past}
        outputs.append(run({"cross_attention_kwargs": spatial, "attend": present.attend}, [row], unet))
        past.commit()
        present.commit()
    return torch.cat(outputs)


class _LastOf:
    """A plain view that reads nothing for several frames, and takes the last one's."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, None]:
        return key[:, :0], value[:, :0], None

    def fuse(self, layer: int, output: Tensor) -> Tensor:
        return output

    def record(self, layer: int, key: Tensor, value: Tensor, output: Tensor) -> None:
        self._view.record(layer, key[-1:], value[-1:], output[-1:])


def test_both_at_once_equal_the_plain_path() -> None:
    memory, spec, latents = joint(), cached("a", bank=BANKED), clip(14)
    memory.allocate(spec)
    found = play(memory, spec, latents, unet=banked_unet()[0])
    memory.check_integrity()
    assert gap(found, by_plain(spec, latents)) <= EXACT
    without = joint()
    without.allocate(replace(spec, bank=None))
    assert gap(play(without, replace(spec, bank=None), latents, unet=banked_unet()[0])[5:], found[5:]) > 1e-6


def test_sessions_with_and_without_a_bank_share_a_forward() -> None:
    memory = joint()
    specs = [cached("a", bank=BANKED), cached("b"), cached("c", bank=replace(BANKED, interval=1))]
    for i, spec in enumerate(specs):
        memory.allocate(spec)
        play(memory, spec, clip(5 + i, i), unet=banked_unet()[0])
    for further in range(4):
        rows = [stream_row(s, clip(1, 50 + further)[0], 5 + i + further) for i, s in enumerate(specs)]
        together = advance(memory, rows, banked_unet()[0])
    memory.check_integrity()
    for i, spec in enumerate(specs):
        alone = joint(1)
        alone.allocate(spec)
        latents = torch.cat([clip(5 + i, i), *(clip(1, 50 + further) for further in range(4))])
        assert gap(play(alone, spec, latents, unet=banked_unet()[0])[-1], together[i]) <= EXACT


def test_of_a_window_the_last_frame_whose_write_is_due_is_banked() -> None:
    memory, spec = joint(), cached("a", bank=replace(BANKED, interval=2, phase=0))
    memory.allocate(spec)
    latents = clip(SINKS)
    advance(memory, [window_row(spec, latents)], banked_unet()[0])
    record = records(memory)[0]
    assert record.writes == 1
    # Ordinals 10 to 13: 12 is the last that is due.
    again = window_row(spec, latents, first=10)
    samples = bank_samples(record, spec.bank, again)
    assert [sample.writes for sample in samples] == [False, False, True, False]
    assert memory.num_writes(again) == 1
    view = memory.gather([again]).of(BANK)
    assert view is not None
    held = bank_tokens(spec.bank, view.layers[0].tokens(SIZE // 8, SIZE // 8), 1)
    assert view.visible_RB[0].tolist() == [held] * 4
    advance(memory, [again], banked_unet()[0])
    assert records(memory)[0].writes == 2


def test_a_shadow_window_reads_the_bank_and_writes_only_the_cache() -> None:
    memory, spec = joint(), cached("a", bank=BANKED)
    memory.allocate(spec)
    play(memory, spec, clip(7), unet=banked_unet()[0])
    before, streamed = exported(memory, "a", "bank"), exported(memory, "a", "cache").steps[0]
    row = window_row(spec, clip(SINKS, 2), first=7, shadow=True)
    assert memory.num_writes(row) == 0
    advance(memory, [row], banked_unet()[0])
    after = exported(memory, "a", "bank")
    assert after.steps == before.steps
    for key, tensors in before.layers.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, after.layers[key], strict=True))
    assert streamed == {"streamed": 3, "height": 64, "width": 64}
    assert exported(memory, "a", "cache").steps[0] == {"streamed": 0, "height": 64, "width": 64}


def test_a_window_whose_prompt_changes_keeps_the_record_of_the_change() -> None:
    memory, spec = joint(), cached("a", bank=BANKED)
    memory.allocate(spec)
    play(memory, spec, clip(6), unet=banked_unet()[0])
    row = window_row(spec, clip(SINKS, 2), first=6)
    for frame in row.frames[2:]:
        frame.settings = replace(frame.settings, prompt="b")
    advance(memory, [row], banked_unet()[0])
    memory.check_integrity()
    assert records(memory)[0].changed_at == 8


def test_negative_samples_have_no_bank_and_their_twins_cache() -> None:
    memory, spec = joint(), cached("a", bank=BANKED)
    memory.allocate(spec)
    latents = clip(8)
    play(memory, spec, latents[:7], unet=banked_unet()[0])
    rows = [stream_row(spec, latents[7], 7)]
    both = predict(memory.gather(rows), rows, banked_unet()[0], beside=[0])
    only_cache = Views({"cache": memory.gather(rows)["cache"]})
    expected = predict(only_cache, rows, banked_unet()[0], beside=[0])
    assert gap(both[1], expected[1]) <= EXACT
    assert gap(both[:1], predict(memory.gather(rows), rows, banked_unet()[0])) <= EXACT


def test_moved_together_they_go_on_as_if_they_had_not() -> None:
    memory, spec = joint(), cached("a", bank=BANKED)
    memory.allocate(spec)
    latents = clip(12)
    play(memory, spec, latents[:9], unet=banked_unet()[0])
    other = joint(steps=(0,))
    other.allocate(cached("first"))
    other.allocate(spec)
    other.import_("a", memory.export("a"))
    other.check_integrity()
    for n in range(9, 12):
        row = [stream_row(spec, latents[n], n)]
        assert torch.equal(advance(other, row, banked_unet()[0]), advance(memory, row, banked_unet()[0]))


def test_what_does_not_fit_is_refused_whole() -> None:
    memory = joint(1)
    with pytest.raises(InvalidRequest):
        memory.allocate(cached("a", size=24))
    assert memory.free_slots == 1
    memory.allocate(cached("a", bank=BANKED))
    with pytest.raises(Refused):
        memory.allocate(cached("b"))
    chunks = list(memory.export("a"))
    with pytest.raises(ValueError, match="export"):
        memory.import_("a", [Chunk("elsewhere")])
    with pytest.raises(ValueError, match="export"):
        memory.import_("a", [])
    spoilt = [
        replace(each, values={**each.values, "format": 0}) if "sink_frames" in each.values else each
        for each in chunks
    ]
    with pytest.raises(ValueError, match="format"):
        memory.import_("a", spoilt)
    memory.free("a")
    memory.check_integrity()
    assert memory.free_slots == 1
    with pytest.raises(InvalidRequest, match="feature bank"):
        joint(without="bank").allocate(cached("a", bank=BANKED))
    with pytest.raises(InvalidRequest, match="temporal cache"):
        joint(without="cache").allocate(cached("a"))


def test_a_bank_by_itself_refuses_a_session_that_asks_for_a_cache() -> None:
    memory = joint(1, without="cache")
    assert memory.names == {"bank"}, "depth is for sessions with a cache"
    with pytest.raises(InvalidRequest, match="this service keeps no temporal cache") as refused:
        memory.allocate(cached("a", bank=BANKED))
    assert refused.value.metadata == {"field": "cache"}
    assert memory.free_slots == 1


def test_a_span_without_the_operators_of_a_kind_is_not_asked_for_it() -> None:
    decode = Span("decode", (Operator(OperatorKind.DECODE),))
    options = MemoryOptions(num_slots=1, height=SIZE, width=SIZE, dtype=torch.float64)
    memory = build_memories(decode, Layouts(), options)
    spec = cached("a", bank=BANKED)
    memory.allocate(spec)
    assert memory.names == set()
    assert memory.warm_up_frames(spec) == 0
    memory.free("a")
    memory.check_integrity()


def test_without_a_cache_there_is_the_banks_view_alone() -> None:
    memory, spec = joint(), replace(cached("a", bank=BANKED), cache=None)
    memory.allocate(spec)
    row = stream_row(spec, clip(1)[0])
    assert memory.warm_up_frames(spec) == 0
    assert memory.gather([row]).keys() == {"bank"}
    assert memory.gather([stream_row(replace(spec, bank=None), clip(1)[0])]) == {}


def test_encode_rows_have_the_range_alone() -> None:
    memory, spec = joint(), cached("a")
    memory.allocate(spec)
    encode = Operator(OperatorKind.ENCODE)
    row = replace(stream_row(spec, clip(1)[0]), operator=encode)
    assert memory.keeps_order(spec, encode)
    assert not joint(without="depth").keeps_order(spec, encode)
    views = memory.gather([row])
    assert views.keys() == {"depth"}
    assert [tensor.shape for tensor in views["depth"].tensors] == [(1, 2)]
    memory.scatter([row], Updates({"depth": DepthUpdate(torch.tensor([[1.0, 2.0]]))}))
    (chunk,) = (chunk for chunk in memory.export("a") if chunk.kind == "depth")
    assert chunk.tensors[0].tolist() == [1.0, 2.0]
    assert chunk.tensors[0].dtype is torch.float64, "as the networks compute"
    memory.check_integrity()
