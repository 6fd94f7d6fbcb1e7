"""Warm-up, streaming and re-warm-up in the engine, by a toy cache in exact integers: equal means bit-equal.

The plain path is `reference/clip.py`; the toy sees in every frame all that is cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from rearview.contract.chain import Operator, OperatorKind, Span, chain
from rearview.contract.memories import CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Order
from support.frames import content, entering
from support.toy import (
    TOY_STEPS,
    Faults,
    ToyModel,
    drain,
    toy_payload,
    toy_spec,
)
from support.toy_cache import SINK, ToyCache
from support.toy_clips import (
    BASE,
    CHANGES,
    CUTS,
    FEWER,
    POLICIES,
    assert_same,
    cached_engine,
    cached_spec,
    per_frame,
    pictures,
    plain_pictures,
    spans_of,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("cut", CUTS)
def test_l17_every_cut_gives_the_plain_loops_pictures_from_the_first_frame(cut: str, steps: int) -> None:
    first = replace(BASE, steps=steps)
    spec, settings = cached_spec(steps=steps, settings=first), per_frame(12, {}, first)
    found = pictures([cached_engine(span) for span in spans_of(cut)], [spec], settings)["a"]
    assert_same(found, plain_pictures(spec, settings))
    assert all(picture is not None for picture in found)


@pytest.mark.parametrize("policy", POLICIES, ids=["shadow", "reset", "keep"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cut", ["one span", "after step 0", "a span each"])
def test_changes_give_the_plain_paths_pictures_for_every_cut(
    cut: str, change: str, policy: CacheSettings
) -> None:
    settings = per_frame(18, CHANGES[change])
    spec = cached_spec(cache=policy, settings=settings[0])
    found = pictures([cached_engine(span) for span in spans_of(cut)], [spec], settings)["a"]
    assert_same(found, plain_pictures(spec, settings))


@pytest.mark.parametrize("burst", [1, 3, 18])
@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("change", CHANGES)
def test_back_to_back_equals_stream_batch_however_frames_arrive(
    change: str, order: Order, burst: int
) -> None:
    settings = per_frame(18, CHANGES[change])
    spec = cached_spec(settings=settings[0])
    found = pictures([cached_engine(order=order)], [spec], settings, burst)["a"]
    assert_same(found, plain_pictures(spec, settings))


@pytest.mark.parametrize("max_batch", [1, 3, 16])
def test_l19_sessions_that_share_forwards_are_as_if_alone(max_batch: int) -> None:
    settings = per_frame(14, CHANGES["prompt"])
    specs = [cached_spec(name, cache=policy) for name, policy in zip("abc", POLICIES, strict=True)]
    engine = cached_engine(max_batch=max_batch)
    found = pictures([engine], specs, settings)
    for spec in specs:
        assert_same(found[spec.session_id], plain_pictures(spec, settings))


def test_sessions_with_and_without_a_cache_share_an_engine() -> None:
    model = ToyModel(groups=lambda spec: spec.cache is not None)
    settings = per_frame(8, {})
    specs = [cached_spec("a"), toy_spec("b", TOY_STEPS)]
    found = pictures([cached_engine(model=model)], specs, settings)
    assert_same(found["a"], plain_pictures(specs[0], settings))
    assert all(picture is not None for picture in found["b"])


def test_l1_causality_a_frame_after_the_warm_up_alters_no_earlier_picture() -> None:
    settings = per_frame(12, {})
    spec = cached_spec()
    before = pictures([cached_engine()], [spec], settings)["a"]

    def changed(n: int) -> list[int]:
        engine = cached_engine()
        engine.open(spec)
        for ordinal in range(12):
            payload = toy_payload("a", ordinal) + (ordinal == n)
            engine.admit(entering("a", ordinal, payload), 0.0)
        left = {each.ordinal: content(each) for each in drain(engine)}
        return [i for i, picture in enumerate(before) if not torch.equal(left[i], picture)]

    for n in range(SINK, 12):
        assert changed(n)[0] == n
    assert changed(SINK - 1) == list(range(12)), "the frames of the warm-up see each other"


def test_encode_and_decode_stay_single_rows_and_the_window_is_one() -> None:
    model, cache = ToyModel(), ToyCache()
    engine = cached_engine(model=model, memory=cache, max_batch=1)
    pictures([engine], [cached_spec(steps=1, settings=replace(BASE, steps=1))], [replace(BASE, steps=1)] * 6)
    names = [batch[0][2] for batch in model.batches]
    assert names.count("encode") == names.count("decode") == 6
    assert cache.written == [(0, (0, 1, 2, 3), False), (0, (4,), False), (0, (5,), False)]


def test_nothing_is_denoised_before_the_warm_up_is_complete() -> None:
    model = ToyModel()
    engine = cached_engine(model=model)
    engine.open(cached_spec())
    for n in range(SINK - 1):
        engine.admit(entering("a", n, toy_payload("a", n)), 0.0)
    assert drain(engine) == []
    assert {row[2] for batch in model.batches for row in batch} == {"encode"}
    engine.admit(entering("a", SINK - 1, toy_payload("a", SINK - 1)), 0.0)
    assert len(drain(engine)) == SINK


# Faults.


def lost_in(operator: str, *ordinals: int, times: int = 10**9) -> ToyModel:
    """A model that fails for these frames at one operator."""
    return ToyModel(
        fails=Faults(
            lambda row: (
                row.operator.name == operator
                and not row.shadow
                and any(frame.ordinal in ordinals for frame in row.frames)
            ),
            times,
        )
    )


def outcome(model: ToyModel, count: int = 12, changes: Mapping[int, Settings] | None = None) -> tuple:
    cache = ToyCache()
    found = pictures(
        [cached_engine(model=model, memory=cache)], [cached_spec()], per_frame(count, changes or {})
    )["a"]
    return cache, [n for n, picture in enumerate(found) if picture is None]


@pytest.mark.parametrize("step", range(TOY_STEPS))
def test_l21_a_window_that_fails_once_runs_again_and_gives_the_same_pictures(step: int) -> None:
    settings = per_frame(12, {})
    model = lost_in(f"denoise-{step}", 1, times=1)
    found = pictures([cached_engine(model=model)], [cached_spec()], settings)["a"]
    assert_same(found, plain_pictures(cached_spec(), settings))


def test_l21_a_streamed_row_that_fails_once_leaves_the_cache_as_it_was() -> None:
    settings = per_frame(12, {})
    found = pictures([cached_engine(model=lost_in("denoise-1", 6, times=1))], [cached_spec()], settings)["a"]
    assert_same(found, plain_pictures(cached_spec(), settings))


@pytest.mark.parametrize("step", range(TOY_STEPS))
def test_a_window_that_fails_twice_drops_its_frames_and_the_next_ones_warm_up(step: int) -> None:
    cache, lost = outcome(lost_in(f"denoise-{step}", 1))
    assert lost == [0, 1, 2, 3]
    for each in range(TOY_STEPS):
        expected = [(0, 1, 2, 3)] if each < step else [(4, 5, 6, 7)]
        assert cache.windows(each) == expected, f"step {each}"


@pytest.mark.parametrize("cut", CUTS)
def test_a_frame_lost_before_a_window_is_replaced_by_its_neighbour_for_every_cut(cut: str) -> None:
    settings = per_frame(10, {})
    whole = pictures([cached_engine(model=lost_in("encode", 2))], [cached_spec()], settings)["a"]
    engines = [cached_engine(span, lost_in("encode", 2)) for span in spans_of(cut)]
    assert_same(pictures(engines, [cached_spec()], settings)["a"], whole)
    assert [n for n, picture in enumerate(whole) if picture is None] == [2]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("lost", [0, 3, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("step", range(TOY_STEPS))
def test_losses_around_a_shadow_are_the_same_for_every_cut(cut: str, lost: int, step: int) -> None:
    settings = per_frame(16, CHANGES["prompt"])
    operator = f"denoise-{step}"
    whole = pictures([cached_engine(model=lost_in(operator, lost))], [cached_spec()], settings)["a"]
    for order in Order:
        engines = [cached_engine(span, lost_in(operator, lost), order=order) for span in spans_of(cut)]
        assert_same(pictures(engines, [cached_spec()], settings, burst=4)["a"], whole)


def test_l22_frames_lost_upstream_leave_the_ring_untouched() -> None:
    cache, lost = outcome(lost_in("encode", 6, 7))
    assert lost == [6, 7]
    assert [each[1] for each in cache.written if each[0] == 0] == [
        (0, 1, 2, 3),
        (4,),
        (5,),
        (8,),
        (9,),
        (10,),
        (11,),
    ]


def test_l23_a_failing_session_leaves_its_neighbours_as_if_alone() -> None:
    settings = per_frame(12, CHANGES["prompt"])
    model = ToyModel(fails=Faults(lambda row: row.session_id == "bad" and row.operator.name == "denoise-1"))
    cache = ToyCache()
    engine = cached_engine(model=model, memory=cache)
    specs = [cached_spec("a"), cached_spec("bad"), cached_spec("b")]
    found = pictures([engine], specs, settings)
    assert found["bad"] == [None] * 12
    for spec in (specs[0], specs[2]):
        assert_same(found[spec.session_id], plain_pictures(spec, settings))
    engine.close("bad")
    assert {name for name, _ in cache.pasts} == {"a", "b"}


def test_a_shadow_that_fails_twice_keeps_the_old_cache_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = ToyModel(fails=Faults(lambda row: row.shadow and row.operator.step == 1))
    cache, lost = outcome(model, 14, CHANGES["prompt"])
    assert lost == []
    assert [len(cache.windows(step, shadow=True)) for step in range(TOY_STEPS)] == [1, 0, 1]
    assert "denoise-1 was not warmed up anew: the old cache is kept" in caplog.text


def test_a_shadow_that_fails_once_runs_again() -> None:
    settings = per_frame(14, CHANGES["prompt"])
    model = ToyModel(fails=Faults(lambda row: row.shadow, times=1))
    found = pictures([cached_engine(model=model)], [cached_spec()], settings)["a"]
    assert_same(found, plain_pictures(cached_spec(), settings))


def test_a_reset_to_more_steps_may_wait_for_a_shadow_that_is_due() -> None:
    """The frame that waits for the shadow has steps that nobody has asked for yet."""
    settings = per_frame(4 * SINK, {0: FEWER, SINK: replace(FEWER, prompt="other"), 2 * SINK: BASE})
    spec = cached_spec(settings=FEWER)
    expected = plain_pictures(spec, settings)
    for cut in CUTS:
        for burst in (1, 3 * SINK):
            engines = [cached_engine(span) for span in spans_of(cut)]
            assert_same(pictures(engines, [spec], settings, burst)["a"], expected)
    engine = cached_engine(Span("denoise", chain(TOY_STEPS)[1:-1]))
    engine.open(spec)
    for version, under in enumerate(settings):
        engine.update("a", version, under)
    for n in range(2 * SINK):
        engine.admit(entering("a", n, toy_payload("a", n), n), 0.0)
    while not any(row.shadow for row in engine._ready.queues):
        engine.step(0.0)
    engine.admit(entering("a", 2 * SINK, toy_payload("a", 2 * SINK), 2 * SINK), 0.0)
    assert any(row.shadow for row in engine._ready.queues)


def test_l24_frames_that_arrive_out_of_order_are_put_in_order() -> None:
    engine = cached_engine()
    engine.open(cached_spec())
    for n in (3, 1, 0, 5, 2, 4):
        engine.admit(entering("a", n, toy_payload("a", n)), 0.0)
    left = {each.ordinal: content(each) for each in drain(engine)}
    assert_same([left[n] for n in range(6)], plain_pictures(cached_spec(), per_frame(6, {})))


def test_a_frame_that_is_sent_again_is_answered_again_and_not_run() -> None:
    cache = ToyCache()
    engine = cached_engine(memory=cache)
    engine.open(cached_spec())
    for n in range(6):
        engine.admit(entering("a", n, toy_payload("a", n)), 0.0)
    first = {each.ordinal: content(each) for each in drain(engine)}
    ran = list(cache.written)
    for n in (1, 5):
        engine.admit(entering("a", n, toy_payload("a", n)), 0.0)
    assert all(torch.equal(content(each), first[each.ordinal]) for each in drain(engine))
    assert cache.written == ran


def test_l27_the_same_seed_gives_the_same_pictures_and_another_does_not() -> None:
    settings = per_frame(8, {})
    first, again = (pictures([cached_engine()], [cached_spec()], settings)["a"] for _ in range(2))
    assert_same(first, again)
    other = pictures([cached_engine()], [cached_spec()], [replace(each, seed=8) for each in settings])["a"]
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_reset_session_slot_warms_up_again() -> None:
    settings = per_frame(8, {})
    engine = cached_engine(slots=1)
    for name in ("a", "b"):
        spec = cached_spec(name)
        assert_same(pictures([engine], [spec], settings)[name], plain_pictures(spec, settings))
        engine.close(name)


class Ordered(ToyCache):
    """Its encode rows share something, as frames with depth do."""

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        return operator.kind is OperatorKind.ENCODE and spec.cache is not None


@pytest.mark.parametrize("lost", [(), (1,), (2, 5)])
def test_encoding_keeps_the_order_of_sessions_whose_memory_needs_it(lost: tuple[int, ...]) -> None:
    model = lost_in("encode", *lost) if lost else ToyModel()
    engine = cached_engine(model=model, memory=Ordered())
    specs = [cached_spec("a"), toy_spec("b", TOY_STEPS)]
    pictures([engine], specs, per_frame(8, {}), burst=8)
    encoding = [batch for batch in model.batches if batch[0][2] == "encode"]
    ordinals = [ordinal for batch in encoding for name, ordinal, _ in batch if name == "a"]
    assert ordinals == sorted(ordinals)
    assert sorted(set(ordinals)) == list(range(8))
    assert all(sum(name == "a" for name, *_ in batch) <= 1 for batch in encoding)
    assert any(sum(name == "b" for name, *_ in batch) > 1 for batch in encoding)
