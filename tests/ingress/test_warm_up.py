"""What the ingress knows of warm-ups, and how they are paced."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.settings import Settings
from rearview.contract.stream import DropPolicy
from rearview.contract.warmup import LaneWarmUp, LaneWarmUpState
from rearview.errors import DropReason
from rearview.ingress.pacing import Pacer

pytestmark = pytest.mark.unit

W = 4
SETTINGS = Settings("a")
RESET = CacheSettings(prompt_change=Rewarm.RESET, scene_cut=Rewarm.RESET)


def warm_up(cache: CacheSettings | None = RESET, *, instant: bool = False) -> LaneWarmUp:
    return LaneWarmUp.of(W, cache, LaneWarmUpState(SETTINGS), instant=instant)


def test_a_session_without_a_cache_has_no_warm_up() -> None:
    subject = warm_up(None, instant=True)
    assert (subject.frames, subject.missing(0), subject.enter(0, SETTINGS)) == (0, 0, 0)
    assert not subject.holds(0)


def test_the_first_ordinals_are_missing_one_by_one() -> None:
    assert [warm_up().missing(ordinal) for ordinal in range(W + 2)] == [4, 3, 2, 1, 0, 0]


@pytest.mark.parametrize(
    "changed", [{"prompt": "b"}, {"adapters": "ink"}, {"scene": 1}, {"steps": 1}, {"strength": 0.9}]
)
def test_a_reset_begins_with_the_first_frame_under_the_change(changed: dict[str, object]) -> None:
    subject, after = warm_up(), replace(SETTINGS, **changed)  # type: ignore[arg-type]
    subject.enter(0, SETTINGS)
    subject.enter(9, after)
    subject.enter(10, after)
    assert [subject.missing(ordinal) for ordinal in (10, 11, 13)] == [3, 2, 0]
    assert [subject.holds(ordinal) for ordinal in (8, 9, 12, 13)] == [False, True, True, False]


@pytest.mark.parametrize("changed", [{"seed": 2}, {"delta": 0.5}])
def test_other_changes_begin_none(changed: dict[str, object]) -> None:
    subject = warm_up()
    subject.enter(9, replace(SETTINGS, **changed))  # type: ignore[arg-type]
    assert subject.missing(10) == 0


def test_shadow_and_keep_wait_for_nothing() -> None:
    for kind in (Rewarm.SHADOW, Rewarm.KEEP):
        subject = warm_up(CacheSettings(kind, kind))
        subject.enter(9, replace(SETTINGS, prompt="b", scene=1))
        assert subject.missing(10) == 0


def test_an_instant_start_sends_fillers_before_the_first_frame_of_each_warm_up() -> None:
    subject = warm_up(instant=True)
    assert [subject.enter(ordinal, SETTINGS) for ordinal in (0, 4, 5)] == [W - 1, 0, 0]
    assert subject.enter(6, replace(SETTINGS, prompt="b")) == W - 1


def test_a_window_that_is_wholly_lost_is_followed_by_another() -> None:
    subject = warm_up()
    for ordinal in (0, 1, 2, 2):
        subject.came_back(ordinal, lost=True)
    assert subject.missing(6) == 0
    subject.came_back(3, lost=True)
    assert subject.missing(6) == 2


def test_losses_count_in_whatever_order_they_come() -> None:
    subject = warm_up()
    for ordinal in (W, *range(W), *range(W + 1, 2 * W)):
        subject.came_back(ordinal, lost=True)
    assert subject.missing(2 * W) == W


def test_losses_after_a_picture_begin_no_window() -> None:
    subject = warm_up()
    for ordinal in range(3 * W):
        subject.came_back(ordinal, lost=ordinal > 0)
    assert subject.missing(W) == 0
    subject.enter(3 * W, replace(SETTINGS, prompt="b"))
    assert subject.missing(3 * W + 1) == W - 1


def test_a_session_without_a_cache_begins_no_window_for_losses() -> None:
    subject = warm_up(None)
    subject.came_back(0, lost=True)
    assert subject.missing(1) == 0


def pacer(policy: DropPolicy, frames: int = W) -> Pacer[int]:
    subject: Pacer[int] = Pacer(policy, max_in_flight=1, max_waiting=1, budget_s=0.5)
    subject.warm_up(frames, W)
    return subject


@pytest.mark.parametrize("policy", list(DropPolicy))
def test_frames_of_a_warm_up_are_neither_dropped_nor_held_back(policy: DropPolicy) -> None:
    subject = pacer(policy)
    assert subject.credit() >= W
    for number in range(W):
        assert subject.offer(number, 0.0) == []
    assert [subject.take(9.0) for _ in range(W)] == [(number, []) for number in range(W)]
    assert subject.take(9.0) == (None, [])


@pytest.mark.parametrize("policy", list(DropPolicy))
def test_a_warm_up_has_its_places_and_its_credit_beside_all_that_is_in_flight(policy: DropPolicy) -> None:
    subject: Pacer[int] = Pacer(policy, max_in_flight=2, max_waiting=1, budget_s=0.5)
    for number in range(2):
        subject.offer(number, 0.0)
        subject.take(0.0)
    subject.warm_up(W, W)
    assert subject.credit() >= 2 + W
    for number in range(2, 2 + W):
        assert subject.offer(number, 0.0) == []
        assert subject.take(0.0) == (number, [])


@pytest.mark.parametrize("max_in_flight", [1, W])
def test_beside_a_warm_up_there_is_one_place_for_the_newest_frame(max_in_flight: int) -> None:
    subject: Pacer[int] = Pacer(DropPolicy.LATEST, max_in_flight, max_waiting=1)
    subject.warm_up(W, W)
    for number in range(W + 1):
        assert subject.offer(number, 0.0) == []
    assert subject.offer(W + 1, 0.0) == [(W, DropReason.SUPERSEDED)]


def test_a_frame_after_a_warm_up_is_late_while_those_of_it_wait_on() -> None:
    subject = pacer(DropPolicy.DEADLINE)
    for number in range(W + 1):
        subject.offer(number, 0.0)
    assert subject.take(9.0) == (0, [(W, DropReason.LATE)])


def test_after_a_warm_up_the_usual_limits_hold_and_credit_has_not_fallen() -> None:
    subject = pacer(DropPolicy.LOSSLESS)
    credit = subject.credit()
    for number in range(W):
        subject.offer(number, 0.0)
        subject.take(0.0)
    assert subject.credit() == credit
    subject.offer(W, 0.0)
    assert subject.take(0.0)[0] is None, "one in flight is usual"
    for _ in range(W):
        subject.finished()
    assert subject.take(0.0)[0] == W
    assert subject.credit() == W + 2
