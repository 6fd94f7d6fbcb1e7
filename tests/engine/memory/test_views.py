"""Views and updates are tensors of fixed shape beside a static key: what a captured forward relies on."""

from __future__ import annotations

import random

import pytest
import torch
from rearview.contract.memories import BankSettings
from rearview.contract.session import SessionSpec
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.protocol import Update, View
from rearview.engine.networks.model import row_group
from rearview.engine.rows import Row
from support.memories import composed, gather, scatter
from support.tiny_bank import advance, banked, make_row, mixed_streams, tiny_bank, tiny_model, video
from support.tiny_motion import advance as advance_cache
from support.tiny_motion import cached, clip, play, recorded, stream_row, tiny_cache, window_row

pytestmark = pytest.mark.unit

Shapes = list[tuple[torch.Size, torch.dtype]]


def shapes(of: View | Update) -> Shapes:
    return [(tensor.shape, tensor.dtype) for tensor in of.tensors]


def test_equal_groups_numbers_and_keys_mean_equal_shapes_of_a_bank() -> None:
    """Banks of six kinds, more or less full, in every company that groups allow."""
    chance, model = random.Random(0), tiny_model()
    memory = composed(tiny_bank(12, size_frames=2.0))
    streams = mixed_streams(12, frames=1)
    done = dict.fromkeys((stream.spec.session_id for stream in streams), 0)
    for stream in streams:
        memory.allocate(stream.spec)
    found: dict[object, tuple[Shapes, Shapes]] = {}
    counted = 0
    for _ in range(150):
        head, *others = chance.sample(streams, len(streams))
        rows = [row_of(head.spec, done), *(row_of(each.spec, done) for each in others)]
        groups = [group_of(memory, row) for row in rows]
        rows = [row for row, group in zip(rows, groups, strict=True) if group == groups[0]]
        rows = rows[: chance.randint(1, 4)]
        views = memory.gather(rows)
        forward = model.forward(rows, views)
        memory.scatter(rows, forward.updates)
        for row in rows:
            done[row.session_id] += 1
        if "bank" in views:
            view, update = views["bank"], forward.updates["bank"]
            static = groups[0], len(rows), view.key, update.key
            assert hash(static) is not None
            assert found.setdefault(static, (shapes(view), shapes(update))) == (shapes(view), shapes(update))
            counted += 1
    assert counted > 2 * len(found), "keys come again and again"


def row_of(spec: SessionSpec, done: dict[str, int]) -> Row:
    return make_row(spec, video(1)[0], done[spec.session_id])


def group_of(memory: Memories, row: Row) -> object:
    return row_group(tiny_model(), memory, row.frame.spec, row.settings, row.operator)


def test_a_forward_whose_writes_are_not_due_leaves_nothing_of_its_activations() -> None:
    spec = banked("s", BankSettings(interval=4))
    memory = tiny_bank(1)
    memory.allocate(spec)
    advance(memory, spec, video(1))
    leaves = []
    for n in range(1, 6):
        rows = [make_row(spec, video(1)[0], n)]
        updates = tiny_model().forward(rows, gather(memory, rows)).updates
        scatter(memory, rows, updates)
        leaves.append(len(updates["bank"].tensors))
    assert leaves[:3] == leaves[4:] * 3 == [0] * 3
    assert leaves[3] > 0


def test_what_a_bank_is_left_is_the_present_of_all_rows_without_a_copy() -> None:
    specs = [
        banked("writer", BankSettings(interval=1)),
        banked("reader", BankSettings(interval=9)),
        banked("none", None),
    ]
    memory = tiny_bank(3)
    for spec in specs:
        memory.allocate(spec)
        advance(memory, spec, video(1))
    rows = [make_row(spec, video(1)[0], 1) for spec in specs]
    model = tiny_model()
    update = model.forward(rows, gather(memory, rows)).updates["bank"]
    layout = model.layouts.bank
    assert layout is not None
    kept = sum(2 + layer.keeps_outputs(memory._shape.kept_outputs) for layer in layout.layers)
    assert len(update.tensors) == kept
    assert all(len(tensor) == len(rows) for tensor in update.tensors)


def test_equal_numbers_and_keys_mean_equal_shapes_of_a_cache() -> None:
    memory, specs = tiny_cache(num_slots=4), [cached(f"s{i}") for i in range(4)]
    for i, spec in enumerate(specs):
        memory.allocate(spec)
        play(memory, spec, clip(5 + i, i))
    found: dict[object, tuple[Shapes, Shapes]] = {}
    chance = random.Random(0)
    for n in range(30):
        chosen = chance.sample(specs, chance.randint(1, 3))
        rows = [stream_row(spec, clip(1)[0], 10 + n) for spec in chosen]
        if n % 5 == 0:
            rows = [window_row(spec, clip(4), first=10 + n) for spec in chosen]
        view, (_, updates) = memory.gather(rows), recorded(gather(memory, rows), rows)
        assert view is not None
        shown = shapes(view), shapes(updates["cache"])
        assert found.setdefault((view.key, updates["cache"].key), shown) == shown
        advance_cache(memory, rows)


def test_what_differs_from_frame_to_frame_is_in_tensors_and_not_in_the_key() -> None:
    memory, spec = tiny_cache(), cached("a")
    memory.allocate(spec)
    play(memory, spec, clip(4))
    keys, seen = set(), set()
    for n in range(4, 24):
        rows = [stream_row(spec, clip(1)[0], n)]
        view = memory.gather(rows)
        assert view is not None
        keys.add(view.key)
        seen.add(tuple(view.positions_SL[0].tolist()))
        advance_cache(memory, rows)
    assert len(keys) == 1
    assert len(seen) > 2


def test_slots_are_in_a_caches_key_and_samples_beside_others_in_no_banks() -> None:
    cache, spec = tiny_cache(), cached("a")
    for name in ("first", "a"):
        cache.allocate(cached(name))
        play(cache, cached(name), clip(4))
    one, other = (cache.gather([stream_row(cached(name), clip(1)[0], 4)]) for name in ("first", "a"))
    assert one is not None
    assert other is not None
    assert one.key != other.key
    assert one.beside([0]).key != one.key
    bank, banked_spec = tiny_bank(1), banked("s", BankSettings())
    bank.allocate(banked_spec)
    view = bank.gather([make_row(banked_spec, video(1)[0])])
    assert view is not None
    beside = view.beside([0, 0])
    assert beside.key == view.key
    assert [tensor.shape[-1] for tensor in beside.tensors] == [3] * 4
    assert spec.cache is not None
