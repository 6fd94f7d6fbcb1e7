"""The one loop that steps engines: what it lets in, what comes out, and what it says of lost frames."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rearview.engine.engine import Order
from rearview.engine.player import Clip, FrameLost, Player, planes_of
from support.frames import content
from support.frames import planes_of as as_planes
from support.tiny import whole_chain
from support.toy import TOY_STEPS, Clock, Faults, ToyModel, toy_engine, toy_payload, toy_picture, toy_spec
from support.toy_clips import cached_engine, cached_spec, spans_of

pytestmark = pytest.mark.unit


def clip(name: str, frames: int = 4) -> Clip:
    return Clip(toy_spec(name), [as_planes(toy_payload(name, n)) for n in range(frames)])


@pytest.mark.parametrize("burst", [1, 2, 9])
@pytest.mark.parametrize("order", Order)
def test_clips_of_several_sessions_come_out_whole_and_in_order(order: Order, burst: int) -> None:
    player = Player(toy_engine(ToyModel(), whole_chain(TOY_STEPS), order=order), clock=Clock())
    clips = [clip("a"), clip("b", 7)]
    found = player.play(*clips, burst=burst)
    for each in clips:
        name = each.spec.session_id
        assert [frame.ordinal for frame in found[name]] == list(range(len(each.frames)))
        for n, frame in enumerate(found[name]):
            assert torch.equal(content(frame), toy_picture(toy_payload(name, n), each.spec.settings, n))


def test_settings_change_at_their_ordinal() -> None:
    other = replace(toy_spec("a").settings, seed=9)
    player = Player(toy_engine(ToyModel(), whole_chain(TOY_STEPS)), clock=Clock())
    found = player.play(replace(clip("a"), changes={2: other}))["a"]
    for n, frame in enumerate(found):
        under = other if n >= 2 else toy_spec("a").settings
        assert torch.equal(content(frame), toy_picture(toy_payload("a", n), under, n))


def test_engines_in_a_row_give_what_one_gives() -> None:
    frames = [as_planes(toy_payload("a", n)) for n in range(9)]
    whole = Player(cached_engine(), clock=Clock()).play(Clip(cached_spec(), frames))["a"]
    passed = []
    engines = [cached_engine(span) for span in spans_of("a span each")]
    line = Player(*engines, clock=Clock(), link=lambda frame: passed.append(frame.ordinal) or frame)
    found = line.play(Clip(cached_spec(), frames))["a"]
    assert all(torch.equal(content(a), content(b)) for a, b in zip(found, whole, strict=True))
    assert sorted(passed) == sorted([*range(9)] * 4)


def test_a_lost_frame_is_an_error_that_names_it_where_its_planes_are_asked_for() -> None:
    model = ToyModel(fails=Faults(lambda row: row.ordinal == 2))
    found = Player(toy_engine(model, whole_chain(TOY_STEPS)), clock=Clock()).play(clip("a"))["a"]
    assert [frame.is_lost for frame in found] == [False, False, True, False]
    assert planes_of(found[0]) == found[0].planes
    with pytest.raises(FrameLost, match="frame 2 could not be translated: the log says why"):
        planes_of(found[2])


def test_a_clip_that_ends_before_it_is_warm_gives_nothing() -> None:
    frames = [as_planes(toy_payload("a", n)) for n in range(2)]
    assert Player(cached_engine(), clock=Clock()).play(Clip(cached_spec(), frames)) == {"a": []}


def test_frames_may_be_fed_between_steps_and_waited_for() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    steps = []
    player = Player(engine, clock=Clock(), watch=lambda _, result: steps.append(result.batch))
    player.open(toy_spec("a"))
    coming, waits = [0, 1, 2], []

    def more() -> bool:
        waits.append(len(coming))
        if coming:
            ordinal = coming.pop(0)
            player.admit("a", ordinal, as_planes(toy_payload("a", ordinal)))
            return True
        return False

    assert [frame.ordinal for frame in player.left(more=more)] == [0, 1, 2]
    assert waits == [3, 2, 1, 0]
    assert len(steps) == 3 * 4
