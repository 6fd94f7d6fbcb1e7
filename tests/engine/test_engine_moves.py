"""A session that was frozen anywhere, exported and imported elsewhere is as if it had never moved.

The toy model and cache are exact, and the tiny bank runs one row at a time: equal means bit-equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.chain import OperatorKind, Span, chain
from rearview.contract.frame import Frame
from rearview.contract.memories import BankPolicy, BankSettings
from rearview.contract.settings import Blend, Guidance, WeightedPrompt
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.compose import Memories
from rearview.engine.player import Clip
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.sessions import joined
from rearview.errors import Refused
from support.frames import content, entering, planes_of
from support.memories import composed
from support.moves import frozen, move, play_moving
from support.tiny import whole_chain
from support.tiny_bank import banked, denoise_span, tiny_bank, tiny_model, video
from support.toy import (
    TOY_STEPS,
    Faults,
    ToyModel,
    admit,
    drain,
    expect,
    player,
    toy_engine,
    toy_payload,
    toy_spec,
)
from support.toy_cache import SINK, ToyCache
from support.toy_clips import BASE, CHANGES, CUTS, STYLE, cached_engine, cached_spec, per_frame, spans_of

pytestmark = pytest.mark.unit

FRAMES = 16


def toy_clip(change: str = "none", frames: int = FRAMES, lost: Sequence[int] = ()) -> Clip:
    under = per_frame(frames, CHANGES[change])
    payloads = [None if n in lost else planes_of(toy_payload("a", n)) for n in range(frames)]
    return Clip(cached_spec(settings=under[0]), payloads, dict(enumerate(under)))


def never_moved(clip: Clip, *engines: Engine) -> list[Frame[torch.Tensor]]:
    return player(*engines).play(clip)[clip.spec.session_id]


def assert_same(found: Sequence[Frame[torch.Tensor]], expected: Sequence[Frame[torch.Tensor]]) -> None:
    assert [frame.ordinal for frame in found] == [frame.ordinal for frame in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.is_lost == theirs.is_lost, f"frame {ours.ordinal}"
        assert ours.is_lost or torch.equal(content(ours), content(theirs)), f"frame {ours.ordinal} differs"


def fused(**options: object) -> list[Engine]:
    return [cached_engine(**options)]  # type: ignore[arg-type]


def pieces(cut: str) -> list[Engine]:
    return [cached_engine(span) for span in spans_of(cut)]


# A temporal cache, in exact integers.


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("change", CHANGES)
def test_l20_a_session_that_moves_anywhere_goes_on_as_if_it_had_not(change: str, order: Order) -> None:
    """Before it is warm, while it streams, and while a shadow's inputs are kept."""
    clip = toy_clip(change)
    expected = never_moved(clip, *fused())
    for moved_at in range(FRAMES):
        found = play_moving(clip, [fused(order=order), fused(order=order)], [moved_at])
        assert_same(found, expected)


@pytest.mark.parametrize("change", ["prompt", "more steps", "a newer one during a shadow", "weights"])
@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut != "one span"])
def test_a_session_moves_from_one_engine_to_pieces_of_the_chain_and_back(cut: str, change: str) -> None:
    clip = toy_clip(change)
    expected = never_moved(clip, *fused())
    for first in (1, 5, 8):
        found = play_moving(clip, [fused(), pieces(cut), fused()], [first, first + 3])
        assert_same(found, expected)
    assert_same(play_moving(clip, [pieces(cut), pieces("after step 1")], [7]), expected)


@settings(deadline=None, max_examples=60)
@given(
    moved_at=st.lists(st.integers(0, 19), min_size=2, max_size=2).map(sorted),
    lost=st.sets(st.integers(0, 19)),
    changes=st.dictionaries(
        st.integers(1, 19),
        st.builds(
            replace,
            st.just(BASE),
            prompt=st.sampled_from(["p", "q"]),
            scene=st.integers(0, 1),
            steps=st.sampled_from([2, 3]),
            adapters=st.sampled_from(["", "ink"]),
        ),
        max_size=4,
    ),
    cut=st.sampled_from(list(CUTS)),
)
def test_losses_and_changes_around_a_move_alter_nothing(moved_at, lost, changes, cut) -> None:  # type: ignore[no-untyped-def]
    frames = 20 + 2 * SINK  # Every window is whole in the end: of one that is not, a fused chain knows more.
    clip = toy_clip(frames=frames, lost=sorted(lost))
    clip = replace(clip, changes=dict(enumerate(per_frame(frames, changes))))
    found = play_moving(clip, [fused(), pieces(cut), fused()], moved_at)
    assert_same(found, never_moved(clip, *fused()))


@pytest.mark.parametrize("lost_in", ["encode", "denoise-0", "denoise-2"])
def test_a_loss_after_the_freeze_moves_it_to_the_end_of_the_window_that_begins_for_it(lost_in: str) -> None:
    """Frozen right behind the first warm-up, whose frames then fail: the next ones warm up instead."""
    fails = Faults(
        lambda row: row.operator.name == lost_in and any(frame.ordinal < SINK for frame in row.frames)
    )
    engine = cached_engine(model=ToyModel(fails=fails))
    engine.open(cached_spec())
    for n in range(SINK + 1):
        engine.admit(entering("a", n, toy_payload("a", n)), 0.0)
    assert engine.freeze("a") == SINK, "the window is whole: nothing waits"
    left = drain(engine)
    assert [frame.ordinal for frame in left if frame.is_lost] == list(range(SINK))
    assert not engine.is_quiet("a")
    assert engine.freeze("a") == 2 * SINK - 1
    for n in range(SINK + 1, 2 * SINK + 1):
        engine.admit(entering("a", n, toy_payload("a", n)), 0.0)
    assert [frame.ordinal for frame in drain(engine)] == list(range(SINK, 2 * SINK))
    assert engine.is_quiet("a")


# Freezing.


def test_a_frozen_session_runs_up_to_the_ordinal_and_no_further_until_it_is_thawed() -> None:
    for order in Order:
        engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS), order=order)
        engine.open(toy_spec("a"))
        admit(engine, "a", 0, 1, 2)
        assert engine.freeze("a") == 2
        assert not engine.is_quiet("a")
        admit(engine, "a", 4, 3)
        expect(drain(engine), toy_spec("a"), [0, 1, 2])
        assert engine.is_quiet("a")
        assert not engine.has_work
        engine.thaw("a")
        assert not engine.is_quiet("a")
        engine.flush("a")
        expect(drain(engine), toy_spec("a"), [3, 4])


def test_a_session_may_be_frozen_ahead_of_what_has_come_and_never_behind_it() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    assert engine.freeze("a") == -1
    assert engine.is_quiet("a")
    assert engine.freeze("a", 3) == 3
    assert not engine.is_quiet("a"), "frames up to it are to come"
    admit(engine, "a", 0, 1, 2, 3, 4)
    expect(drain(engine), toy_spec("a"), [0, 1, 2, 3])
    assert engine.is_quiet("a")
    assert engine.freeze("a", 1) == 3


def test_a_lost_frame_that_has_not_left_yet_is_not_quiet() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    engine.admit(entering("a", 0, None), 0.0)
    engine.freeze("a")
    assert not engine.is_quiet("a")
    assert [frame.is_lost for frame in drain(engine)] == [True]
    assert engine.is_quiet("a")


@pytest.mark.parametrize("come", range(1, SINK))
def test_a_freeze_inside_a_warm_up_waits_for_its_end(come: int) -> None:
    engine = cached_engine()
    engine.open(cached_spec())
    for n in range(come):
        engine.admit(entering("a", n, toy_payload("a", n)), 0.0)
    assert engine.freeze("a") == SINK - 1
    assert drain(engine) == []
    assert not engine.is_quiet("a")
    for n in range(come, SINK + 2):
        engine.admit(entering("a", n, toy_payload("a", n)), 0.0)
    assert [frame.ordinal for frame in drain(engine)] == list(range(SINK))
    assert engine.is_quiet("a")
    engine.thaw("a")
    assert [frame.ordinal for frame in drain(engine)] == [SINK, SINK + 1]


def test_a_reset_that_comes_before_the_end_of_the_window_moves_the_freeze_to_the_end_of_its_own() -> None:
    engine = cached_engine()
    engine.open(cached_spec())
    engine.update("a", 1, replace(BASE, steps=2))
    for n in range(2):
        engine.admit(entering("a", n, toy_payload("a", n)), 0.0)
    assert engine.freeze("a") == SINK - 1
    for n in range(2, 2 + SINK):
        engine.admit(entering("a", n, toy_payload("a", n), 1), 0.0)
    assert engine.freeze("a") == 2 + SINK - 1
    assert len(drain(engine)) == 2 + SINK
    assert engine.is_quiet("a")


def test_a_freeze_within_a_shadow_waits_for_nothing() -> None:
    engine = cached_engine()
    engine.open(cached_spec())
    engine.update("a", 1, STYLE)
    for n in range(SINK + 2):
        engine.admit(entering("a", n, toy_payload("a", n), int(n >= SINK)), 0.0)
    assert engine.freeze("a") == SINK + 1
    drain(engine)
    assert engine.is_quiet("a")
    state = engine.export("a")
    assert {step: [kept.ordinal for kept in inputs] for step, (_, inputs) in state.windows.steps.items()} == {
        step: [SINK, SINK + 1] for step in range(TOY_STEPS)
    }


def test_unknown_sessions_are_thawed_in_silence_and_not_frozen() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.thaw("gone")
    for ask in (engine.freeze, engine.is_quiet, engine.export):
        with pytest.raises(KeyError):
            ask("gone")


# Exports.


def test_what_is_in_flight_is_no_part_of_an_export() -> None:
    engine = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    engine.open(toy_spec("a"))
    admit(engine, "a", 0)
    with pytest.raises(AssertionError, match="freeze the session first"):
        engine.export("a")
    engine.freeze("a")
    admit(engine, "a", 1)
    drain(engine)
    there = toy_engine(ToyModel(), whole_chain(TOY_STEPS))
    move([engine], [there], "a")
    assert drain(there) == [], "a frame that was held is sent there by whoever holds it"
    admit(there, "a", 0)
    assert drain(there) == [], "it was answered elsewhere, and is not run again"
    admit(there, "a", 1)
    expect(drain(there), toy_spec("a"), [1])


def test_an_export_is_a_copy() -> None:
    clip, here, there = toy_clip("prompt", 12), cached_engine(), cached_engine()
    expected = never_moved(clip, *fused())
    here.open(clip.spec)
    for version, under in clip.changes.items():
        here.update("a", version + 1, under)
    for n in range(8):
        here.admit(entering("a", n, toy_payload("a", n), n + 1), 0.0)
    here.freeze("a")
    left = drain(here)
    there.import_(here.export("a"))
    here.thaw("a")
    for engine in (here, there):
        for n in range(8, 12):
            engine.admit(entering("a", n, toy_payload("a", n), n + 1), 0.0)
            engine.update("a", n + 1, clip.changes[n])
    assert_same([*left, *drain(here)], expected[:12])
    assert_same(drain(there), expected[8:12])


def test_an_engine_refuses_a_session_whose_steps_it_would_have_to_invent() -> None:
    spans = spans_of("after step 0")
    here, there = [cached_engine(span) for span in spans], cached_engine()
    for engine in here:
        engine.open(cached_spec())
        engine.freeze("a")
    first = here[0].export("a")
    with pytest.raises(ValueError, match="without denoise-1, denoise-2, decode"):
        there.import_(first)
    assert there.sessions == ()
    there.open(cached_spec())
    there.close("a")
    there.import_(joined([engine.export("a") for engine in here]))
    assert there.sessions == ("a",)


def test_pieces_that_stand_at_different_ordinals_are_not_one_session() -> None:
    here = [cached_engine(span) for span in spans_of("after step 0")]
    for engine in here:
        engine.open(cached_spec())
    here[1].admit(entering("a", 0, None), 0.0)
    for engine in here:
        engine.freeze("a")
        drain(engine)
    with pytest.raises(ValueError, match="stand at ordinals"):
        joined([engine.export("a") for engine in here])


def test_an_engine_with_another_number_of_warm_up_frames_refuses() -> None:
    class Shorter(ToyCache):
        def warm_up_frames(self, spec: object) -> int:
            return SINK - 1

    here, there = cached_engine(), cached_engine(memory=Shorter())
    here.open(cached_spec())
    here.freeze("a")
    with pytest.raises(ValueError, match=f"warmed up with {SINK} frames"):
        there.import_(here.export("a"))
    assert there.free_slots == 64


def test_an_import_that_fails_for_whatever_reason_holds_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, *arguments: object) -> None:
        raise MemoryError("planted")

    here, there = cached_engine(), cached_engine()
    here.open(cached_spec())
    here.freeze("a")
    monkeypatch.setattr(type(there._memory), "import_", fail)
    with pytest.raises(MemoryError):
        there.import_(here.export("a"))
    assert there.free_slots == 64
    there.check_integrity()


def test_a_full_engine_refuses_an_import_and_changes_nothing() -> None:
    here, there = (toy_engine(ToyModel(), whole_chain(TOY_STEPS), slots=1) for _ in range(2))
    here.open(toy_spec("a"))
    here.freeze("a")
    there.open(toy_spec("b"))
    with pytest.raises(Refused):
        there.import_(here.export("a"))
    assert there.sessions == ("b",)
    there.check_integrity()


# A feature bank and guidance, over the tiny checkpoint.

BANK_FRAMES = 8
BLEND = Blend((WeightedPrompt("a", 1.0),), 2, 4)
KINDS = {
    "no bank": (None, {}),
    "merged bank": (BankSettings(interval=2, fusion_threshold=0.5), {}),
    "queue": (BankSettings(policy=BankPolicy.QUEUE, max_frames=2, interval=1, fusion_threshold=0.5), {}),
    "blend": (BankSettings(interval=2, fusion_threshold=0.5), {"prompt": "b", "blend": BLEND}),
    "guidance": (
        BankSettings(interval=2, fusion_threshold=0.5),
        {"guidance": Guidance.FULL, "guidance_scale": 2.0, "negative_prompt": "zebra"},
    ),
    "other timesteps": (BankSettings(interval=2, fusion_threshold=0.5), {"steps": 3}),
}


def bank_engines(*cut: Sequence[int]) -> list[Engine]:
    """Over denoising steps alone: what leaves is a latent, exact."""
    return [
        Engine(
            denoise_span(steps),
            tiny_model(),
            composed(tiny_bank(1, steps=steps, size_frames=2.0)),
            Scheduler(CostTable(), 1),
            clock=lambda: 0.0,
        )
        for steps in cut
    ]


@pytest.mark.parametrize("moved_at", [0, 2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_moves_bit_by_bit_from_one_engine_to_pieces_and_back(kind: str, moved_at: int) -> None:
    bank, changed = KINDS[kind]
    spec = banked("s", bank, steps=2)
    clip = Clip(
        spec, [planes_of(each) for each in video(BANK_FRAMES)], {2: replace(spec.settings, **changed)}
    )
    expected = never_moved(clip, *bank_engines(range(3)))
    legs = [bank_engines(range(3)), bank_engines([0], [1, 2]), bank_engines(range(3))]
    assert_same(play_moving(clip, legs, [moved_at, moved_at + 2]), expected)


def test_frames_without_any_past_move_too() -> None:
    """Encode and decode are apart, and keep no order."""
    clip = Clip(toy_spec("a"), [planes_of(toy_payload("a", n)) for n in range(9)])
    expected = never_moved(clip, toy_engine(ToyModel(), whole_chain(TOY_STEPS)))
    spans = [Span(f"s{at}", (operator,)) for at, operator in enumerate(chain(TOY_STEPS))]
    assert {span.operators[0].kind for span in spans} == set(OperatorKind)
    apart = [toy_engine(ToyModel(), span) for span in spans]
    legs = [
        [toy_engine(ToyModel(), whole_chain(TOY_STEPS))],
        apart,
        [toy_engine(ToyModel(), whole_chain(TOY_STEPS))],
    ]
    assert_same(play_moving(clip, legs, [3, 6]), expected)


def test_a_span_without_any_memory_takes_its_part_of_a_session_with_one() -> None:
    clip = toy_clip("prompt")
    encode, denoise = spans_of("encode apart")
    bare = Engine(encode, ToyModel(), Memories([], 1), Scheduler(CostTable(), 16), clock=lambda: 0.0)
    found = play_moving(clip, [fused(), [bare, cached_engine(denoise)], fused()], [6, 9])
    assert_same(found, never_moved(clip, *fused()))


def test_engines_in_a_row_agree_where_to_freeze() -> None:
    """The first one has let in more than the others; only those with steps know of the window."""
    engines = [cached_engine(span) for span in spans_of("a span each")]
    line = player(*engines)
    line.open(cached_spec())
    for n in range(3):
        line.admit("a", n, planes_of(toy_payload("a", n)))
        list(line.left())
    assert frozen(engines, "a") == SINK - 1
    line.admit("a", 3, planes_of(toy_payload("a", 3)))
    assert [frame.ordinal for frame in line.left()] == list(range(SINK))
    assert all(engine.is_quiet("a") for engine in engines)
