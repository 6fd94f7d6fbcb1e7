"""From where a session goes on, and what must be kept so that it can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.contract.memories import BankPolicy, BankSettings, CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.stream import Continuity
from rearview.control.recovery import MAX_FAILED_REPLAYS, Attempts, Kept, frames_to_rebuild, needed, plan

pytestmark = pytest.mark.unit


def spec(bank: BankSettings | None = None, cache: CacheSettings | None = None) -> SessionSpec:
    return SessionSpec("0" * 32, 64, 64, 2, bank=bank, cache=cache)


def test_a_past_is_rebuilt_by_as_many_frames_as_its_method_remembers() -> None:
    queue = BankSettings(BankPolicy.QUEUE, interval=3, max_frames=4)
    assert frames_to_rebuild(spec(), 8) == 0
    assert frames_to_rebuild(spec(BankSettings(interval=4)), 8) == 24
    assert frames_to_rebuild(spec(queue), 8) == 12
    assert frames_to_rebuild(spec(cache=CacheSettings()), 8) == 16
    assert frames_to_rebuild(spec(BankSettings(interval=4), CacheSettings()), 8) == 24


def test_a_past_that_forgets_nothing_is_rebuilt_by_all_its_frames_or_a_checkpoint() -> None:
    frames = frames_to_rebuild(spec(), 0, forgets=False)
    assert plan(Kept(first=0, following=900, unanswered=898), frames).continuity is Continuity.EXACT
    assert plan(Kept(first=9, following=900, unanswered=898), frames).continuity is Continuity.RESET
    assert plan(Kept(first=9, following=900, unanswered=898, checkpoint=20), frames).from_checkpoint


@pytest.mark.parametrize(
    ("kept", "frames", "start", "continuity", "from_checkpoint"),
    [
        (Kept(first=7, following=9, unanswered=7), 0, 7, Continuity.EXACT, False),
        (Kept(first=0, following=50, unanswered=48), 24, 0, Continuity.EXACT, False),
        (Kept(first=31, following=50, unanswered=48, checkpoint=30), 24, 31, Continuity.EXACT, True),
        (Kept(first=10, following=50, unanswered=48), 24, 26, Continuity.APPROXIMATE, False),
        (Kept(first=10, following=50, unanswered=20), 24, 20, Continuity.APPROXIMATE, False),
        (Kept(first=45, following=50, unanswered=48), 24, 45, Continuity.RESET, False),
        (Kept(first=50, following=50, unanswered=50, checkpoint=49), 24, 50, Continuity.EXACT, True),
    ],
)
def test_the_best_beginning_is_taken(
    kept: Kept, frames: int, start: int, continuity: Continuity, from_checkpoint: bool
) -> None:
    found = plan(kept, frames)
    assert (found.start, found.continuity, found.from_checkpoint) == (start, continuity, from_checkpoint)


@given(
    first=st.integers(0, 40),
    sent=st.integers(0, 60),
    missing=st.integers(0, 60),
    frames=st.sampled_from([0, 12, 24]),
    since=st.none() | st.integers(0, 60),
    checkpoints=st.booleans(),
)
def test_what_is_kept_is_enough_and_nothing_unanswered_is_forgotten(
    first: int, sent: int, missing: int, frames: int, since: int | None, checkpoints: bool
) -> None:
    following = first + sent
    unanswered = max(first, following - missing)
    checkpoint = None if since is None else unanswered - 1 - since
    if checkpoint is not None and checkpoint < first - 1:
        checkpoint = None
    before = Kept(first, following, unanswered, checkpoint)
    least = needed(before, frames, checkpoints=checkpoints)
    assert first <= least <= unanswered
    after = Kept(least, following, unanswered, checkpoint)
    follows = plan(after, frames)
    assert least <= follows.start <= unanswered
    if checkpoint is not None and frames and checkpoints:
        assert follows.from_checkpoint
        assert follows.start == checkpoint + 1
    if checkpoints or checkpoint is None:
        assert plan(before, frames).continuity is follows.continuity or first == 0
    assert checkpoints or not frames or following - least <= max(frames, missing)


def test_a_session_that_fails_two_lanes_in_a_row_gets_no_third() -> None:
    attempts = Attempts()
    for _ in range(5):
        attempts = attempts.lost(replaying=False)
    assert not attempts.is_over
    for _ in range(MAX_FAILED_REPLAYS):
        assert not attempts.is_over
        attempts = attempts.lost(replaying=True)
    assert attempts.is_over
