"""A feature bank and a temporal cache in one session: both at once, and each as it is by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.memories import BankSettings
from rearview.contract.session import SessionSpec
from rearview.engine.memory.bank.pool import BankShape, FeatureBank
from rearview.engine.memory.bank.view import BankView
from rearview.engine.memory.compose import JointMemory, JointView
from rearview.engine.memory.depth.pool import DepthRange
from rearview.engine.reference.bank import PlainBank
from rearview.engine.reference.cache import PlainCache
from rearview.engine.rows import Row
from rearview.errors import InvalidRequest, Refused
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
    stream_row,
    tiny_cache,
    window_row,
)
from torch import Tensor

pytestmark = pytest.mark.unit

EXACT = 1e-12
SINKS = WINDOW.sink_frames
BANK = BankSettings(interval=3, phase=1, fusion_threshold=0.5)


def joint(num_slots: int = 3, steps: tuple[int, ...] = (0, 1), *, ranged: bool = False) -> JointMemory:
    unet, layout = banked_unet()
    bank = FeatureBank(layout, BankShape(num_slots, steps, SIZE, SIZE), dtype=torch.float64)
    cache = tiny_cache(num_slots=num_slots, steps=steps, unet=unet)
    return JointMemory(bank, cache, DepthRange(num_slots) if ranged else None)


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
        outputs.append(predict(JointView(_LastOf(past) if row.window else past, present), [row], unet))
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
    memory, spec, latents = joint(), cached("a", bank=BANK), clip(14)
    memory.allocate(spec)
    found = play(memory, spec, latents, unet=banked_unet()[0])
    memory.check_integrity()
    assert gap(found, by_plain(spec, latents)) <= EXACT
    without = joint()
    without.allocate(replace(spec, bank=None))
    assert gap(play(without, replace(spec, bank=None), latents, unet=banked_unet()[0])[5:], found[5:]) > 1e-6


def test_sessions_with_and_without_a_bank_share_a_forward() -> None:
    memory = joint()
    specs = [cached("a", bank=BANK), cached("b"), cached("c", bank=replace(BANK, interval=1))]
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
    memory, spec = joint(), cached("a", bank=replace(BANK, interval=2, phase=0))
    memory.allocate(spec)
    latents = clip(SINKS)
    assert memory._bank is not None
    advance(memory, [window_row(spec, latents)], banked_unet()[0])
    record = memory._bank._records[0]
    assert record.writes == 1
    # Ordinals 10 to 13: 12 is the last that is due.
    again = replace(window_row(spec, latents, first=10), write_due=True)
    view = memory.gather([again])
    assert isinstance(view, JointView)
    assert isinstance(view.bank, BankView)
    assert [plan.write_due for plan in view.bank.plans] == [False, False, True, False]
    assert [plan.writes for plan in view.bank.plans] == [1] * 4
    predict(view, [again], banked_unet()[0])
    memory.scatter([again], view.collect())
    assert memory._bank._records[0].writes == 2


def test_a_shadow_window_reads_the_bank_and_writes_only_the_cache() -> None:
    memory, spec = joint(), cached("a", bank=BANK)
    memory.allocate(spec)
    play(memory, spec, clip(7), unet=banked_unet()[0])
    before = memory.export("a")
    advance(memory, [window_row(spec, clip(SINKS, 2), first=7, shadow=True)], banked_unet()[0])
    after = memory.export("a")
    assert after["bank"]["records"] == before["bank"]["records"]
    for key, tensors in before["bank"]["banks"].items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, after["bank"]["banks"][key], strict=True))
    assert before["cache"]["streamed"][0] == 3
    assert after["cache"]["streamed"][0] == 0


def test_a_window_whose_prompt_changes_keeps_the_record_of_the_change() -> None:
    memory, spec = joint(), cached("a", bank=BANK)
    memory.allocate(spec)
    play(memory, spec, clip(6), unet=banked_unet()[0])
    row = window_row(spec, clip(SINKS, 2), first=6)
    for frame in row.frames[2:]:
        frame.settings = replace(frame.settings, prompt="b")
    advance(memory, [row], banked_unet()[0])
    memory.check_integrity()
    assert memory._bank is not None
    assert memory._bank._records[0].changed_at == 8


def test_negative_samples_have_no_bank_and_their_twins_cache() -> None:
    memory, spec = joint(), cached("a", bank=BANK)
    memory.allocate(spec)
    latents = clip(8)
    play(memory, spec, latents[:7], unet=banked_unet()[0])
    rows = [stream_row(spec, latents[7], 7)]
    both = predict(memory.gather(rows), rows, banked_unet()[0], beside=[0])
    only_cache = JointView(None, memory._cache.gather(rows))  # type: ignore[union-attr]
    expected = predict(only_cache, rows, banked_unet()[0], beside=[0])
    assert gap(both[1], expected[1]) <= EXACT
    assert gap(both[:1], predict(memory.gather(rows), rows, banked_unet()[0])) <= EXACT


def test_moved_together_they_go_on_as_if_they_had_not() -> None:
    memory, spec = joint(), cached("a", bank=BANK)
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
    memory = joint(1, ranged=True)
    with pytest.raises(InvalidRequest):
        memory.allocate(cached("a", size=24))
    assert memory.free_slots == 1
    memory.allocate(cached("a", bank=BANK))
    with pytest.raises(Refused):
        memory.allocate(cached("b"))
    state = memory.export("a")
    with pytest.raises(ValueError, match="export"):
        memory.import_("a", {"elsewhere": {}})
    with pytest.raises(ValueError, match="format"):
        memory.import_("a", {**state, "cache": {**state["cache"], "format": 0}})
    memory.free("a")
    memory.check_integrity()
    assert memory.free_slots == 1
    with pytest.raises(InvalidRequest, match="feature bank"):
        JointMemory(None, tiny_cache()).allocate(cached("a", bank=BANK))
    with pytest.raises(InvalidRequest, match="temporal cache"):
        JointMemory(memory._bank, None).allocate(cached("a"))


def test_a_bank_by_itself_refuses_a_session_that_asks_for_a_cache() -> None:
    _, layout = banked_unet()
    bank = FeatureBank(layout, BankShape(1, (0, 1), SIZE, SIZE), dtype=torch.float64)
    with pytest.raises(InvalidRequest, match="temporal cache"):
        bank.allocate(cached("a", bank=BANK))
    assert bank.free_slots == 1


def test_without_a_cache_the_view_is_the_banks() -> None:
    memory, spec = joint(), replace(cached("a", bank=BANK), cache=None)
    memory.allocate(spec)
    row = stream_row(spec, clip(1)[0])
    assert memory.warm_up_frames(spec) == 0
    assert isinstance(memory.gather([row]), BankView)
    assert memory.gather([stream_row(replace(spec, bank=None), clip(1)[0])]) is None


def test_encode_rows_have_the_range_alone() -> None:
    memory, spec = joint(ranged=True), cached("a")
    memory.allocate(spec)
    encode = Operator(OperatorKind.ENCODE)
    row = replace(stream_row(spec, clip(1)[0]), operator=encode)
    assert memory.keeps_order(spec, encode)
    assert not joint().keeps_order(spec, encode)
    assert memory.gather([row]).shape == (1, 2)
    memory.scatter([row], torch.tensor([[1.0, 2.0]]))
    assert memory.export("a")["depth_range"]["range"].tolist() == [1.0, 2.0]
    memory.check_integrity()
