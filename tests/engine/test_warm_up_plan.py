"""Which ordinals warm a step up, by the pure plan alone: no engine, no network, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from rearview.contract.chain import Operator
from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.warmup import Changes, Keep, StepWarmUp, WarmUpPlan, places, window_of
from rearview.engine.windows import filled
from support.frames import in_flight

pytestmark = pytest.mark.unit

W = 4
PLAIN = Settings("a", 0.6, 2)
OTHER = replace(PLAIN, prompt="b")
CUT = replace(PLAIN, scene=1)
STEPS = replace(PLAIN, steps=3)
SPEC = SessionSpec("s", 64, 64, 4, PLAIN, cache=CacheSettings())


def frames_of(
    plan: WarmUpPlan, settings: Mapping[int, Settings], count: int, lost: Sequence[int] = ()
) -> dict[int, Changes]:
    """`count` frames enter, each under the last of `settings`: what is behind those that are not `lost`."""
    under, frames = PLAIN, {}
    for ordinal in range(count):
        under = settings.get(ordinal, under)
        frames[ordinal] = plan.enter(ordinal, under)
    return {ordinal: behind for ordinal, behind in frames.items() if ordinal not in lost}


def new(prompt_change: Rewarm = Rewarm.SHADOW, scene_cut: Rewarm = Rewarm.SHADOW) -> WarmUpPlan:
    return WarmUpPlan(W, CacheSettings(prompt_change, scene_cut), PLAIN)


def play(plan: WarmUpPlan, frames: Mapping[int, Changes], count: int) -> list[tuple[str, tuple[int, ...]]]:
    """What a step does with them, in order: windows with the ordinal that takes each place."""
    state, done, committed = StepWarmUp(W), [], -1
    inputs: list[int] = []
    left = dict(frames)
    while left:
        head = min(left)
        if state.shadow_is_complete(committed) or state.shadow_is_due(head, left[head]):
            assert state.shadow is not None
            done.append(("shadow", tuple(inputs)))
            state.warmed_up(state.shadow_window)
            continue
        taken = [head]
        if state.is_cold(left[head]):
            window = plan.together(head, left, count)
            if window is None:
                return done
            taken = list(window)
            done.append(("window", tuple(taken)))
            state.warmed_up(window_of(left[head].reset_at, head, W))
        else:
            done.append(("stream", (head,)))
        for ordinal in taken:
            committed = ordinal
            keep = state.keep(ordinal, left.pop(ordinal))
            inputs = {Keep.NOTHING: inputs, Keep.MORE: [*inputs, ordinal], Keep.ANEW: [ordinal]}[keep]
    return done


def windows(
    settings: Mapping[int, Settings],
    count: int = 14,
    lost: Sequence[int] = (),
    warm_up: WarmUpPlan | None = None,
) -> list[tuple[str, tuple[int, ...]]]:
    """What is not a streamed frame."""
    plan = warm_up or new()
    return [each for each in play(plan, frames_of(plan, settings, count, lost), count) if each[0] != "stream"]


def test_the_first_frames_warm_up_together_and_the_others_stream() -> None:
    plan = new()
    assert play(plan, frames_of(plan, {}, 7), 7) == [
        ("window", (0, 1, 2, 3)),
        ("stream", (4,)),
        ("stream", (5,)),
        ("stream", (6,)),
    ]


def test_a_window_waits_for_all_its_frames() -> None:
    assert windows({}, 3) == []
    assert windows({}, 4) == [("window", (0, 1, 2, 3))]


@pytest.mark.parametrize("change", [OTHER, CUT])
def test_a_shadow_reads_the_frames_of_the_change_again(change: Settings) -> None:
    assert windows({5: change}) == [("window", (0, 1, 2, 3)), ("shadow", (5, 6, 7, 8))]


@pytest.mark.parametrize("change", [OTHER, CUT])
def test_a_reset_makes_them_wait_for_each_other(change: Settings) -> None:
    plan = new(Rewarm.RESET, Rewarm.RESET)
    assert windows({5: change}, warm_up=plan) == [("window", (0, 1, 2, 3)), ("window", (5, 6, 7, 8))]


def test_nothing_happens_if_the_old_frames_are_kept() -> None:
    plan = new(Rewarm.KEEP, Rewarm.KEEP)
    assert windows({5: OTHER, 9: replace(OTHER, scene=1)}, warm_up=plan) == [("window", (0, 1, 2, 3))]


def test_other_timesteps_are_a_reset_whatever_the_policy_is() -> None:
    for change in (STEPS, replace(PLAIN, strength=0.9)):
        plan = new(Rewarm.KEEP, Rewarm.KEEP)
        assert windows({6: change}, warm_up=plan) == [("window", (0, 1, 2, 3)), ("window", (6, 7, 8, 9))]


def test_a_strength_that_visits_the_same_timesteps_is_none() -> None:
    settings = {0: replace(PLAIN, strength=0.624), 6: replace(PLAIN, strength=0.634)}
    assert windows(settings) == [("window", (0, 1, 2, 3))]


def test_a_newer_change_restarts_a_shadow() -> None:
    again = replace(PLAIN, prompt="c")
    assert windows({5: OTHER, 7: again})[1:] == [("shadow", (7, 8, 9, 10))]
    assert windows({5: OTHER, 9: again})[1:] == [("shadow", (5, 6, 7, 8)), ("shadow", (9, 10, 11, 12))]


def test_a_reset_ends_a_shadow() -> None:
    assert windows({5: OTHER, 7: replace(OTHER, steps=3)})[1:] == [("window", (7, 8, 9, 10))]


def test_a_change_inside_a_warm_up_is_followed_by_a_shadow() -> None:
    assert windows({2: OTHER}) == [("window", (0, 1, 2, 3)), ("shadow", (2, 3, 4, 5))]


def test_a_reset_inside_a_warm_up_cuts_it_short() -> None:
    assert windows({2: STEPS}) == [("window", (0, 1)), ("window", (2, 3, 4, 5))]


def test_frames_under_different_weights_never_warm_up_together() -> None:
    inked = replace(PLAIN, adapters="ink")
    assert windows({2: inked}) == [("window", (0, 1)), ("shadow", (2, 3, 4, 5))]
    plan = new(prompt_change=Rewarm.KEEP)
    found = windows({5: CUT, 7: replace(inked, scene=1)}, warm_up=plan)
    assert found == [("window", (0, 1, 2, 3)), ("shadow", (7, 8))]


def test_lost_frames_leave_their_places_and_if_all_are_lost_the_next_ones_warm_up() -> None:
    assert windows({}, lost=(0, 2)) == [("window", (1, 3))]
    assert windows({}, lost=(0, 1, 2, 3)) == [("window", (4, 5, 6, 7))]
    assert windows({}, lost=range(6)) == [("window", (6, 7))]


def test_lost_frames_of_a_shadow_are_missing_in_it_and_if_all_are_it_is_the_next_ones() -> None:
    first = ("window", (0, 1, 2, 3))
    assert windows({5: OTHER}, lost=(5, 8)) == [first, ("shadow", (6, 7))]
    assert windows({5: OTHER}, lost=(5, 6, 7, 8)) == [first, ("shadow", (9, 10, 11, 12))]


def test_the_loss_of_the_frame_that_brings_a_change_does_not_lose_the_change() -> None:
    assert windows({5: STEPS}, lost=(5,)) == [("window", (0, 1, 2, 3)), ("window", (6, 7, 8))]


def test_a_lost_places_frame_is_the_nearest_earlier_one_else_the_next() -> None:
    assert places([1, 3], range(W)) == [1, 1, 1, 3]
    frames = {n: in_flight(SPEC, n, Operator.parse("denoise-0")) for n in (1, 3)}
    window = filled(list(frames.values()), range(W))
    assert [frame.ordinal for frame in window] == [1, 1, 1, 3]
    assert [frame is frames[frame.ordinal] for frame in window] == [False, True, False, True]
