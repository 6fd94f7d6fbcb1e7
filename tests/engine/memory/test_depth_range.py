"""The running range of depth: what it does to pictures, and that it is a session's own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.memories import CacheSettings
from rearview.contract.settings import Settings
from rearview.engine.memory.depth.pool import NARROWING_PER_FRAME, DepthRange, next_range
from rearview.engine.memory.depth.view import DepthUpdate
from rearview.engine.memory.protocol import Updates
from rearview.engine.networks.depth import depth_picture, range_of
from rearview.engine.rows import Row
from rearview.errors import Refused
from support.frames import in_flight
from support.memories import composed
from support.tiny import session

pytestmark = pytest.mark.unit

ENCODE = Operator(OperatorKind.ENCODE)
WARM_UP_FRAMES = 8


def row(
    session_id: str = "a",
    ordinal: int = 0,
    *,
    scene: int = 0,
    cached: bool = True,
    operator: Operator = ENCODE,
) -> Row:
    settings = Settings(prompt="a", scene=scene)
    spec = replace(session(session_id, settings), cache=CacheSettings() if cached else None)
    frame = in_flight(spec, ordinal, operator)
    return Row((frame,), operator, "group", 0.0)


def opened(*session_ids: str, num_slots: int = 4) -> DepthRange:
    memory = DepthRange(num_slots)
    for session_id in session_ids:
        memory.allocate(row(session_id).frame.spec)
    return memory


def see(memory: DepthRange, *rows: Row, low: float, high: float) -> list[list[float]]:
    """Commit frames whose depth is from `low` to `high`; the ranges that they are scaled by."""
    view = memory.gather(rows)
    assert view is not None
    ranges = next_range(view.range_B2, torch.tensor([[low, high]] * len(rows)))
    memory.scatter(rows, DepthUpdate(ranges))
    memory.check_integrity()
    return ranges.tolist()


def test_a_range_widens_at_once_and_narrows_slowly() -> None:
    memory = opened("a")
    assert see(memory, row(), low=2.0, high=4.0) == [[2.0, 4.0]]
    assert see(memory, row(ordinal=1), low=1.0, high=9.0) == [[1.0, 9.0]]
    ((low, high),) = see(memory, row(ordinal=2), low=2.0, high=4.0)
    assert low == pytest.approx(1.0 + NARROWING_PER_FRAME)
    assert high == pytest.approx(9.0 - 5.0 * NARROWING_PER_FRAME)
    for n in range(3, 400):
        ((low, high),) = see(memory, row(ordinal=n), low=2.0, high=4.0)
    assert (low, high) == (pytest.approx(2.0, abs=0.01), pytest.approx(4.0, abs=0.01))


def test_no_map_ever_leaves_the_range() -> None:
    generator = torch.Generator().manual_seed(0)
    ranges = torch.tensor([[float("inf"), float("-inf")]] * 64)
    for _ in range(50):
        depth = torch.randn(64, 4, 4, generator=generator) * 1e3 * torch.rand(64, 1, 1, generator=generator)
        ranges = next_range(ranges, range_of(depth))
        assert (ranges[:, 0, None] <= depth.flatten(1)).all()
        assert (depth.flatten(1) <= ranges[:, 1, None]).all()
        picture = depth_picture(depth, ranges, 4, 4)
        assert picture.isfinite().all()
        assert picture.abs().max() <= 1.0


def pictures(maps: Sequence[torch.Tensor], ranges: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [depth_picture(m[None], r[None], *m.shape)[0, 0] for m, r in zip(maps, ranges, strict=True)]


def test_l25_a_running_range_does_not_jump_where_joint_and_per_frame_ranges_do() -> None:
    """An outlier in the warm-up; frames 7 and 8 are the same. Upstream scales the warm-up by one range and
    the frames after it by their own, so that the same map becomes another picture."""
    quiet = torch.linspace(10.0, 20.0, 16).reshape(4, 4)
    maps = [quiet.clone() for _ in range(16)]
    maps[3][0, 0] = 60.0
    joint = range_of(torch.stack(maps[:WARM_UP_FRAMES]).flatten()[None])[0]
    upstream = [joint if n < WARM_UP_FRAMES else range_of(m[None])[0] for n, m in enumerate(maps)]
    memory, running = opened("a"), []
    for n, m in enumerate(maps):
        low, high = range_of(m[None])[0].tolist()
        running.append(torch.tensor(see(memory, row(ordinal=n), low=low, high=high)[0]))

    def jump(ranges: Sequence[torch.Tensor]) -> float:
        shown = pictures(maps, ranges)
        return float((shown[WARM_UP_FRAMES] - shown[WARM_UP_FRAMES - 1]).abs().max())

    assert jump(upstream) > 1.0
    assert jump(running) < 0.05


def test_l25_a_constant_map_gives_a_finite_picture() -> None:
    for value in (0.0, 1e-9, 3.0, 1e4):
        depth = torch.full((2, 8, 8), value)
        ranges = next_range(torch.tensor([[float("inf"), float("-inf")]] * 2), range_of(depth))
        assert torch.equal(depth_picture(depth, ranges, 16, 24), torch.full((2, 3, 16, 24), -1.0))


def test_reading_changes_nothing_so_a_failed_row_can_run_again() -> None:
    memory = opened("a")
    see(memory, row(), low=0.0, high=1.0)
    (before,) = memory.export("a")
    first, second = memory.gather([row(ordinal=1)]), memory.gather([row(ordinal=1)])
    assert first is not None
    assert second is not None
    assert torch.equal(first.range_B2, second.range_B2)
    first.range_B2.fill_(7.0)  # What a forward does with its view is its own affair.
    (after,) = memory.export("a")
    assert torch.equal(before.tensors[0], after.tensors[0])
    memory.check_integrity()


def test_sessions_do_not_mix_and_a_used_slot_is_like_a_new_one() -> None:
    memory = opened("a", "b", num_slots=2)
    see(memory, row("a"), low=0.0, high=100.0)
    assert see(memory, row("b"), low=4.0, high=5.0) == [[4.0, 5.0]]
    assert see(memory, row("b", 1), row("a", 1), low=4.0, high=5.0)[0] == [4.0, 5.0]
    with pytest.raises(Refused):
        memory.allocate(row("c").frame.spec)
    memory.free("a")
    memory.free("a")
    memory.check_integrity()
    memory.allocate(row("c").frame.spec)
    assert see(memory, row("c"), low=1.0, high=2.0) == [[1.0, 2.0]]
    memory.reset("c")
    assert see(memory, row("c"), low=6.0, high=7.0) == [[6.0, 7.0]]
    assert memory.free_slots == 0


def test_a_new_scene_has_a_range_of_its_own() -> None:
    memory = opened("a")
    see(memory, row(), low=0.0, high=100.0)
    assert see(memory, row(ordinal=1, scene=1), low=4.0, high=5.0) == [[4.0, 5.0]]


def test_only_frames_of_sessions_with_a_cache_have_depth_and_they_keep_order() -> None:
    memory = composed(opened("a", num_slots=1))
    denoise = Operator(OperatorKind.DENOISE)
    for other in (row(cached=False), row(operator=denoise), row(operator=Operator(OperatorKind.DECODE))):
        assert memory.gather([other]) == {}
        assert not memory.keeps_order(other.frame.spec, other.operator)
        memory.scatter([other], Updates())
    assert memory.num_writes(row()) == 0, "every row with depth writes: it is part of what each costs"
    assert memory.keeps_order(row().frame.spec, ENCODE)
    assert memory.warm_up_frames(row().frame.spec) == 0
    assert memory.bytes_per_session(row().frame.spec) == 8


def test_an_exported_range_goes_on_bit_for_bit_elsewhere() -> None:
    ends = random.Random(0)
    here, there = opened("x", "a"), opened("a")
    frames = [(ends.uniform(0, 10), ends.uniform(11, 30)) for _ in range(20)]
    for n, (low, high) in enumerate(frames[:10]):
        see(here, row(ordinal=n), low=low, high=high)
    there.import_("a", here.export("a"))
    for n, (low, high) in enumerate(frames[10:], 10):
        assert see(here, row(ordinal=n), low=low, high=high) == see(there, row(ordinal=n), low=low, high=high)
    there.import_("a", opened("a").export("a"))
    assert see(there, row(ordinal=20), low=1.0, high=2.0) == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"values": {"format": 99}},
        {"values": {"scene": "first"}},
        {"values": {"scene": True}},
        {"step": 0},
        {"tensors": ()},
        {"tensors": (torch.zeros(3),)},
        {"tensors": (torch.zeros(2, dtype=torch.float64),)},
        {"tensors": (torch.tensor([2.0, 1.0]),)},
        {"tensors": (torch.tensor([0.0, float("nan")]),)},
    ],
)
def test_what_is_no_export_of_a_range_is_refused(wrong: dict[str, Any]) -> None:
    memory = opened("a", "b")
    see(memory, row("a"), low=0.0, high=1.0)
    (chunk,) = memory.export("a")
    wrong = {**wrong, "values": {**chunk.values, **wrong.get("values", {})}}
    with pytest.raises(ValueError, match=r"range|format|scene"):
        memory.import_("b", [replace(chunk, **wrong)])
    with pytest.raises(ValueError, match="0 ranges"):
        memory.import_("b", [])
    memory.check_integrity()
    assert see(memory, row("b"), low=1.0, high=2.0) == [[1.0, 2.0]]
