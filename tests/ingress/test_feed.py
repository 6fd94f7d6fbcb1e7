"""The lane side of a session: what is sent, what has come back, and that a lane may be lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rearview.contract.events import Direction, FillerSent, LinkBytes
from rearview.contract.frame import NO_PLACE, PICTURE, UNSEEN
from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.settings import SettingsChange
from rearview.contract.similarity import SimilaritySettings
from rearview.contract.stream import DropPolicy
from rearview.errors import DropReason
from support.edge import EdgeCore, lane, picture, terms

pytestmark = pytest.mark.unit

WARMS = CacheSettings(Rewarm.RESET, Rewarm.RESET, scene_detection=False)


def fed(frames: int, **options: object) -> EdgeCore:
    """A session that has sent frames into its lane."""
    core = EdgeCore(terms(**options))  # type: ignore[arg-type]
    for index in range(frames):
        core.now = index / 10
        core.offer(10 * index, picture(index))
    return core


def test_every_frame_has_its_place_its_index_and_its_ordinal() -> None:
    core = fed(2)
    core.offer(20, picture(0), DropReason.RATE_LIMITED)
    core.offer(30, picture(1))
    frames = core.sender.frames
    assert [(f.place, f.frame_index, f.ordinal, f.epoch) for f in frames] == [
        (0, 0, 0, 1),
        (1, 10, 1, 1),
        (3, 30, 2, 1),
    ]


def test_settings_are_announced_with_the_first_frame_under_them() -> None:
    core = fed(1)
    core.intake.apply(SettingsChange(prompt="b", blend_frames=4).apply(core.intake.settings))
    core.intake.apply(SettingsChange(seed=2).apply(core.intake.settings))
    assert core.sender.settings == []
    core.offer(1, picture(1))
    core.offer(2, picture(2))
    ((epoch, version, announced),) = core.sender.settings
    assert (epoch, version, announced.prompt, announced.seed) == (1, 1, "b", 2)
    assert announced.blend is not None
    assert announced.blend.first == 1
    assert [f.settings_version for f in core.sender.frames] == [0, 1, 1]


def test_settings_that_come_back_before_a_frame_was_under_others_change_nothing() -> None:
    """So a client that resumes restores what frames before were under, and a still picture stays one."""
    core = fed(1, similarity=SimilaritySettings(0.9, 3))
    found = core.intake.settings
    core.intake.apply(SettingsChange(prompt="b", blend_frames=4).apply(found))
    core.intake.apply(found)
    core.offer(10, picture(0))
    core.intake.apply(SettingsChange(jpeg_quality=50).apply(found))
    core.offer(20, picture(0))
    assert core.sender.settings == []
    for frame in tuple(core.sender.frames):
        core.comes_back(frame)
    assert core.outcomes == [b"picture", DropReason.UNCHANGED, DropReason.UNCHANGED]


def test_fillers_have_no_place_and_their_whole_budget_from_now() -> None:
    core = fed(2, policy=DropPolicy.DEADLINE, budget_s=0.5, cache=WARMS, warm_up_frames=4)
    core.now = 7.0
    core.intake.finish()
    core.run()
    last, *fillers = core.sender.frames[1:]
    assert (last.ordinal, last.place, last.deadline_s) == (1, 1, pytest.approx(0.1 + 0.5))
    assert [(f.ordinal, f.place, f.frame_index) for f in fillers] == [(2, NO_PLACE, 10), (3, NO_PLACE, 10)]
    assert [f.deadline_s for f in fillers] == [pytest.approx(7.5)] * 2
    assert core.events.count(FillerSent()) == 2
    assert list(core.feed.in_lane) == [0, 1]


def test_an_instant_start_sends_its_fillers_before_the_frame() -> None:
    core = fed(1, cache=replace(WARMS, instant_start=True), warm_up_frames=3)
    assert [(f.ordinal, f.place) for f in core.sender.frames] == [(0, NO_PLACE), (1, NO_PLACE), (2, 0)]
    assert len({id(f.planes) for f in core.sender.frames}) == 1, "fillers show the frame's own picture"


def test_bytes_are_told_frame_by_frame() -> None:
    assert fed(2).events == [LinkBytes("ingress", Direction.SENT, 10)] * 2


def test_a_filler_and_a_second_answer_are_nobodys() -> None:
    core = fed(1, cache=replace(WARMS, instant_start=True), warm_up_frames=3)
    for frame in (*core.sender.frames, core.sender.frames[-1]):
        core.comes_back(frame)
    assert core.outcomes == [b"picture"]


def test_frames_of_an_older_epoch_are_ignored() -> None:
    core = fed(2)
    old = tuple(core.sender.frames)
    core.feed.attach(lane(2), 0)
    core.comes_back(old[0])
    assert core.outcomes == []
    core.comes_back(replace(old[0], epoch=2))
    assert core.outcomes == [b"picture"]


def test_a_lane_is_only_followed_by_one_of_a_newer_epoch() -> None:
    core = fed(1)
    with pytest.raises(AssertionError, match="epoch 1"):
        core.feed.attach(lane(1), 1)


def test_what_was_in_a_lost_lane_is_known_by_place_and_ordinal() -> None:
    core = fed(3)
    core.comes_back(core.sender.frames[1])
    core.feed.detach()
    assert {ordinal: sent.place for ordinal, sent in core.feed.in_lane.items()} == {0: 0, 2: 2}
    core.comes_back(core.sender.frames[0])
    assert core.outcomes == [], "a lost lane answers nothing"


def test_pictures_that_the_client_has_are_not_made_once_more_for_a_lane_that_replays() -> None:
    core = fed(5)
    for frame in core.sender.frames[:4]:
        core.comes_back(frame)
    core.feed.acknowledge(2)
    core.feed.detach()
    core.feed.attach(lane(2), 0)
    for kept in core.feed.inputs.since(0):
        core.feed.send_again(kept, {PICTURE: picture(kept.ordinal)}, 1.0)
    again = core.sender.frames[5:]
    assert [frame.ordinal for frame in again] == [0, 1, 2, 3, 4]
    assert [frame.place for frame in again] == [UNSEEN, UNSEEN, 2, 3, 4], "2 and 3 may be asked for again"


def test_frames_wait_while_there_is_no_lane_and_go_into_the_next_one() -> None:
    core = fed(1)
    core.intake.apply(SettingsChange(prompt="b").apply(core.intake.settings))
    core.offer(10, picture(1))
    core.feed.detach()
    credit = core.credit
    for index in range(2, credit):
        core.offer(10 * index, picture(index))
    assert core.credit == credit == core.book.received, "credit stops the sender"
    assert len(core.sender.frames) == 2
    core.feed.attach(lane(2), 0)
    core.run()
    frames = core.sender.frames[2:]
    assert [(f.ordinal, f.epoch, f.settings_version) for f in frames] == [(2, 2, 1), (3, 2, 1)]
    assert [(epoch, version) for epoch, version, _ in core.sender.settings] == [(1, 1), (2, 1)]
    # Those of the first lane are sent again by a recovery; here the new lane answers for them.
    done = 0
    while done < len(core.sender.frames):
        core.comes_back(replace(core.sender.frames[done], epoch=2))
        done += 1
    assert core.outcomes == [b"picture"] * credit


def test_a_live_session_without_a_lane_keeps_the_newest_frames_and_says_so_of_the_others() -> None:
    core = fed(0, policy=DropPolicy.LATEST)
    core.feed.detach()
    for index in range(10):
        core.offer(index, picture(index))
    assert core.outcomes == [DropReason.SUPERSEDED] * 6
    core.feed.attach(lane(2), 0)
    core.run()
    assert [f.place for f in core.sender.frames] == [6, 7, 8, 9]


def test_a_link_that_is_closed_loses_no_frame_of_the_books() -> None:
    core = fed(1)
    core.sender.is_closed = True
    core.offer(10, picture(1))
    core.book.receive(20, (0, 0), 0.0)
    assert list(core.feed.in_lane) == [0, 1]
    core.feed.acknowledge(1)


def test_the_lane_hears_which_answers_nobody_will_ask_for_again() -> None:
    core = fed(4)
    core.feed.acknowledge(0)
    assert core.sender.acknowledged == []
    core.feed.acknowledge(2)
    core.feed.acknowledge(2)
    assert core.sender.acknowledged == [(1, 1)]
    core.feed.acknowledge(4)
    assert core.sender.acknowledged == [(1, 1), (1, 3)]


def test_drops_have_no_ordinal_to_acknowledge() -> None:
    core = fed(1)
    core.offer(20, picture(0), DropReason.RATE_LIMITED)
    core.offer(30, picture(1))
    core.feed.acknowledge(2)
    assert core.sender.acknowledged == [(1, 0)]
    core.feed.acknowledge(3)
    assert core.sender.acknowledged == [(1, 0), (1, 1)]
