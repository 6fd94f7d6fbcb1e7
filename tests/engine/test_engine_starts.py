"""A session that is opened at an ordinal is one that was reset there, and knows nothing of what came before.

The toy model and cache are exact: equal means bit-equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.frame import NO_PLACE, Frame
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.player import Clip, Player
from rearview.engine.sessions import begun_at
from rearview.errors import Refused
from support.frames import content, entering, planes_of
from support.tiny import whole_chain
from support.toy import TOY_STEPS, ToyModel, drain, player, toy_engine, toy_payload, toy_spec
from support.toy_cache import SINK
from support.toy_clips import BASE, CUTS, FEWER, STYLE, cached_engine, cached_spec, per_frame, spans_of

pytestmark = pytest.mark.unit

FRAMES = 16


def begun(clip: Clip, ordinal: int, *engines: Engine) -> list[Frame[torch.Tensor]]:
    """The clip from an ordinal on, in engines that have seen nothing of it."""
    name, line = clip.spec.session_id, Player(*engines, clock=lambda: 0.0)
    under = {clip.version(n): clip.changes[n] for n in range(ordinal, len(clip.frames))}
    for engine in engines:
        engine.open_at(clip.spec, ordinal, under)
    left = []
    for n in range(ordinal, len(clip.frames)):
        line.admit(name, n, clip.frames[n], clip.version(n))
        left += list(line.left())
    line.flush(name)
    left += list(line.left())
    return sorted(left, key=lambda frame: frame.ordinal)


def reset_there(clip: Clip, ordinal: int) -> list[Frame[torch.Tensor]]:
    """What a session that has seen all of the clip makes of it from the ordinal on, since it was reset."""
    left = player(cached_engine()).play(clip)[clip.spec.session_id]
    return [frame for frame in left if frame.ordinal >= ordinal]


def toy_clip(ordinal: int, under: Sequence[Settings], lost: Sequence[int] = ()) -> Clip:
    """Under other steps before `ordinal`, so that a reset is due there."""
    given = [*[FEWER] * ordinal, *under[ordinal:]]
    payloads = [None if n in lost else planes_of(toy_payload("a", n)) for n in range(len(given))]
    return Clip(cached_spec(settings=given[0]), payloads, dict(enumerate(given)))


def assert_same(found: Sequence[Frame[torch.Tensor]], expected: Sequence[Frame[torch.Tensor]]) -> None:
    assert [frame.ordinal for frame in found] == [frame.ordinal for frame in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.is_lost == theirs.is_lost, f"frame {ours.ordinal}"
        assert ours.is_lost or torch.equal(content(ours), content(theirs)), f"frame {ours.ordinal} differs"


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("changes", [{}, {8: STYLE}, {6: STYLE, 9: replace(STYLE, adapters="ink")}], ids=len)
def test_windows_begin_anew_at_the_ordinal(cut: str, changes: dict[int, Settings]) -> None:
    for ordinal in (1, SINK, 5):
        clip = toy_clip(ordinal, per_frame(FRAMES, changes))
        engines = [cached_engine(span) for span in spans_of(cut)]
        assert_same(begun(clip, ordinal, *engines), reset_there(clip, ordinal))
        for engine in engines:
            engine.check_integrity()


@settings(deadline=None, max_examples=60)
@given(
    ordinal=st.integers(1, 9),
    lost=st.sets(st.integers(0, 19)),
    changes=st.dictionaries(
        st.integers(1, 19),
        st.builds(
            replace,
            st.just(BASE),
            prompt=st.sampled_from(["p", "q"]),
            scene=st.integers(0, 1),
            adapters=st.sampled_from(["", "ink"]),
        ),
        max_size=4,
    ),
)
def test_losses_and_changes_after_the_start_count_as_after_a_reset(ordinal, lost, changes) -> None:  # type: ignore[no-untyped-def]
    clip = toy_clip(ordinal, per_frame(20, changes), sorted(lost))
    assert_same(begun(clip, ordinal, cached_engine()), reset_there(clip, ordinal))


def test_a_start_at_0_is_an_open() -> None:
    clip = Clip(
        cached_spec(), [planes_of(toy_payload("a", n)) for n in range(FRAMES)], dict.fromkeys(range(16), BASE)
    )
    expected = player(cached_engine()).play(clip)["a"]
    assert_same(begun(clip, 0, cached_engine()), expected)
    spec = toy_spec("a")
    assert begun_at(spec, whole_chain(TOY_STEPS), 0, 0, {0: BASE}).committed == {}


def test_frames_from_before_the_start_are_not_run() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open_at(toy_spec("a"), 3, {0: BASE})
    for n in (2, 4, 3):
        engine.admit(entering("a", n, toy_payload("a", n)), 0.0)
    assert [frame.ordinal for frame in drain(engine)] == [3, 4]
    state = engine.standing("a")
    assert state is not None
    assert (state.expected, dict(state.committed)) == (5, dict.fromkeys(range(TOY_STEPS), 4))


def test_a_full_engine_refuses_a_start_and_changes_nothing() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), slots=1)
    engine.open(toy_spec("b"))
    with pytest.raises(Refused):
        engine.open_at(toy_spec("a"), 3, {0: BASE})
    assert engine.sessions == ("b",)
    engine.check_integrity()


def test_a_session_that_has_lost_its_past_on_the_way_is_not_one_that_begins() -> None:
    here, there = cached_engine(), cached_engine()
    here.open(cached_spec())
    here.freeze("a")
    with pytest.raises(ValueError, match="the export is of"):
        there.import_(replace(here.export("a"), memory=()))
    assert there.sessions == ()


def test_an_adopter_learns_of_every_frame_that_will_still_come() -> None:
    """Running, and arrived before an earlier one; not those that have left."""
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    engine.admit(replace(entering("a", 0, toy_payload("a", 0)), place=5), 0.0)
    drain(engine)
    for n in (1, 2, 5, 4):
        engine.admit(replace(entering("a", n, toy_payload("a", n)), place=n + 5), 0.0)
    standing = engine.standing("a")
    assert standing is not None
    assert [(frame.place, frame.ordinal) for frame in standing.coming] == [(6, 1), (7, 2), (9, 4), (10, 5)]
    assert [frame.ordinal for frame in standing.retained] == [0]


def test_an_export_says_the_highest_place_that_was_let_in() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    engine.freeze("a")
    assert engine.export("a").place == NO_PLACE
    engine.thaw("a")
    for n in (0, 1):
        engine.admit(replace(entering("a", n, toy_payload("a", n)), place=(9, NO_PLACE)[n]), 0.0)
    engine.freeze("a")
    engine.admit(replace(entering("a", 2, toy_payload("a", 2)), place=12), 0.0)
    drain(engine)
    assert engine.export("a").place == 9, "a filler has no place, and what is held comes again"
