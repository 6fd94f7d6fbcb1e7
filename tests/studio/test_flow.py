"""What bounds a wall, in counts: no socket, no clock."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.client import SettingsChange, SpanTiming, Timings, WeightedAdapters, WeightedPrompt
from rearview.studio.figures import Figures
from rearview.studio.flow import (
    LIVE_FRAMES,
    LOSSLESS_FRAMES,
    MAX_CONTROLS,
    MAX_UNACKNOWLEDGED,
    PAGE_FRAMES,
    Change,
    PageCredit,
    Taken,
    Unacknowledged,
    Waiting,
)
from rearview.studio.outbox import MAX_LIVE_PICTURES, MAX_WAITING, Outbox, SlowPeer
from rearview.studio.program import Program
from rearview.studio.protocol import FrameIn, ProgramAsked

pytestmark = pytest.mark.unit

MIX = (WeightedPrompt("a", 1.0), WeightedPrompt("b", 0.5))


def taken(number: int) -> Taken:
    return Taken(number, FrameIn(number, 0.0, b"x"), 0.0)


@given(st.lists(st.sampled_from(["frame", "control", "take"]), max_size=80), st.booleans())
def test_order_is_kept_and_only_the_oldest_live_frame_is_displaced(
    events: list[str], is_lossless: bool
) -> None:
    waiting, expected, frames, controls = Waiting(is_lossless=is_lossless), [], 0, 0
    for number, event in enumerate(events):
        if event == "frame":
            if is_lossless and waiting.room == 0:
                continue
            displaced = waiting.put(taken(number))
            expected.append(number)
            frames += 1
            if frames > LIVE_FRAMES and not is_lossless:
                oldest = next(each for each in expected if each >= 0)
                assert displaced is not None
                assert displaced.number == oldest
                expected.remove(oldest)
                frames -= 1
            else:
                assert displaced is None
        elif event == "control":
            if waiting.control(Change(number, SettingsChange())):
                expected.append(-number - 1)
                controls += 1
            else:
                assert controls == MAX_CONTROLS
        else:
            item = waiting.take()
            if item is None:
                assert expected == []
                continue
            mark = item.number if isinstance(item, Taken) else -item.id - 1  # type: ignore[operator]
            assert mark == expected.pop(0)
            frames -= isinstance(item, Taken)
        assert frames <= (LOSSLESS_FRAMES if is_lossless else LIVE_FRAMES)


@given(st.lists(st.sampled_from(["turn", "frame", "control", "take", "answer"]), max_size=120))
def test_between_two_frames_there_is_one_turned_change_at_most_with_the_newest_of_each(
    events: list[str],
) -> None:
    waiting, turns, out, since = Waiting(is_lossless=False), 0, [], 0
    applied = None

    def take() -> bool:
        nonlocal since, applied
        item = waiting.take()
        if isinstance(item, Taken):
            since = 0
        elif item is not None:
            out.append(item)
            if item.is_turned:
                since += 1
                assert item.settings.seed == turns, "the newest"
                applied = turns
        assert since <= 1
        return item is not None

    for number, event in enumerate(events):
        if event == "turn":
            turns += 1
            waiting.turn(SettingsChange(seed=turns))
        elif event == "frame":
            waiting.put(taken(number))
        elif event == "control":
            waiting.control(Change(number, SettingsChange()))
        elif event == "take" and len(waiting.changes) < MAX_CONTROLS:
            take()
        elif event == "answer" and out:
            waiting.control_answered(out.pop())
    for change in out:
        waiting.control_answered(change)
    waiting.put(taken(len(events)))
    waiting.put(taken(len(events) + 1))
    while take():
        pass
    assert applied == (turns or None), "the last one is not lost"


def all_of(waiting: Waiting) -> list[SettingsChange]:
    """The changes before the next frame, in order."""
    waiting.put(taken(0))
    changes = []
    while isinstance(item := waiting.take(), Change):
        changes.append(item.settings)
    return changes


@pytest.mark.parametrize(
    ("turned", "asked", "left"),
    [
        (SettingsChange(strength=0.3, seed=7), SettingsChange(strength=0.8), SettingsChange(seed=7)),
        (SettingsChange(prompts=MIX), SettingsChange(prompt="b"), None),
        (SettingsChange(adapters=""), SettingsChange(adapter_mix=(WeightedAdapters("ink"),)), None),
        (SettingsChange(steps=1, seed=7), SettingsChange(timestep_indices=(0, 9)), SettingsChange(seed=7)),
        (SettingsChange(prompts=MIX), SettingsChange(strength=0.8), SettingsChange(prompts=MIX)),
    ],
)
def test_the_page_has_the_last_word_over_what_was_turned_before(
    turned: SettingsChange, asked: SettingsChange, left: SettingsChange | None
) -> None:
    waiting = Waiting(is_lossless=False)
    waiting.turn(turned)
    assert waiting.control(Change(1, asked))
    assert all_of(waiting) == ([asked] if left is None else [asked, left])
    waiting.turn(turned)
    assert waiting.control(Change(None, asked))
    assert turned in waiting.changes, "what the gateway asks by itself is older"


def test_a_turn_goes_after_a_control_that_was_asked_before_it() -> None:
    waiting = Waiting(is_lossless=False)
    waiting.put(taken(0))
    asked = Change(1, SettingsChange(strength=0.8))
    assert waiting.control(asked)
    waiting.turn(SettingsChange(strength=0.3))
    assert isinstance(waiting.take(), Taken)
    assert waiting.take() is asked
    assert all_of(waiting) == [SettingsChange(strength=0.3)]


def test_what_was_refused_together_is_asked_apart_but_what_is_newer() -> None:
    waiting = Waiting(is_lossless=False)
    refused = SettingsChange(prompt="", strength=0.3, seed=7, delta=0.5)
    waiting.put(taken(0))
    assert waiting.control(Change(1, SettingsChange(strength=0.8)))
    waiting.turn(SettingsChange(prompts=MIX))
    assert waiting.ask_apart(refused)
    apart = [waiting.take() for _ in range(2)]
    assert all(isinstance(each, Change) and each.is_turned for each in apart)
    assert [each.settings for each in apart] == [SettingsChange(seed=7), SettingsChange(delta=0.5)]  # type: ignore[union-attr]
    assert all_of(waiting) == [SettingsChange(prompts=MIX)]
    waiting = Waiting(is_lossless=False)
    waiting.turn(refused)
    assert not waiting.ask_apart(refused), "all of it is said anew"
    assert all_of(waiting) == [refused]
    for number in range(MAX_CONTROLS - 1):
        waiting.control(Change(number, SettingsChange()))
    assert not waiting.ask_apart(refused), "too many are unanswered"


def test_what_is_turned_waits_while_too_many_are_unanswered_and_is_then_the_newest() -> None:
    waiting = Waiting(is_lossless=False)
    for number in range(MAX_CONTROLS):
        assert waiting.control(Change(number, SettingsChange()))
    controls = [waiting.take() for _ in range(MAX_CONTROLS)]
    for seed in range(200):
        waiting.turn(SettingsChange(seed=seed))
    waiting.turn(SettingsChange(strength=0.5))
    waiting.put(taken(0))
    waiting.put(taken(1))
    assert isinstance(waiting.take(), Taken)
    waiting.control_answered(controls[0])  # type: ignore[arg-type]
    turned = waiting.take()
    assert isinstance(turned, Change)
    assert (turned.is_turned, turned.settings) == (True, SettingsChange(seed=199, strength=0.5))
    assert isinstance(waiting.take(), Taken)
    assert waiting.take() is None


@given(st.lists(st.integers(0, LOSSLESS_FRAMES), max_size=60))
def test_credit_never_falls_and_never_exceeds_the_room(rooms: list[int]) -> None:
    credit, received = PageCredit(), 0
    for room in rooms:
        before = credit.granted
        is_news = credit.grant(room)
        assert credit.granted == max(before, received + min(room, PAGE_FRAMES))
        assert is_news == (credit.granted > before)
        if credit.receive():
            received += 1
        assert received <= credit.granted


def test_a_lossless_tile_has_room_for_all_that_credit_was_given_for() -> None:
    waiting, credit = Waiting(is_lossless=True), PageCredit()
    number = 0
    while credit.receive():
        assert waiting.put(taken(number)) is None
        number += 1
        credit.grant(waiting.room)
    assert number == LOSSLESS_FRAMES


@given(st.lists(st.integers(0, 8), max_size=100), st.lists(st.integers(0, 200), max_size=20))
def test_answers_that_the_page_has_taken_make_room_in_their_order(given_: list[int], said: list[int]) -> None:
    book = Unacknowledged()
    for frame, tile in enumerate(given_):
        book.given(tile, frame, f"{frame}")
    acknowledged = 0
    for answers in said:
        book.received(answers)
        acknowledged = max(acknowledged, min(answers, len(given_)))
        left = given_[acknowledged:]
        assert list(book) == [f"{frame}" for frame in range(acknowledged, len(given_))]
        for tile in range(9):
            assert book.has_room(tile) == (left.count(tile) < MAX_UNACKNOWLEDGED)


def test_what_a_page_has_not_taken_waits_in_the_order_in_which_it_was_given() -> None:
    book = Unacknowledged()
    for frame in range(4):
        book.given(0, frame, f"{frame}")
        book.applied(0, f"control {frame}")
    book.displaced(0, 2, "late 2")
    assert list(book) == ["0", "control 0", "1", "control 1", "control 2", "3", "control 3", "late 2"]
    book.received(2)
    assert list(book) == ["control 1", "control 2", "3", "control 3", "late 2"]
    book.received(4)
    book.displaced(0, 9, "never given")
    assert list(book) == []
    for number in range(100):
        book.applied(0, f"{number}")
    assert list(book) == [f"{number}" for number in range(100 - MAX_CONTROLS, 100)]


def test_answers_to_the_controls_of_one_tile_displace_none_of_another() -> None:
    book = Unacknowledged()
    book.applied(1, "of tile 1")
    for number in range(2 * MAX_CONTROLS):
        book.applied(0, f"{number}")
    newest = [f"{number}" for number in range(MAX_CONTROLS, 2 * MAX_CONTROLS)]
    assert list(book) == ["of tile 1", *newest]


async def test_a_newer_word_takes_the_place_of_the_one_that_waits() -> None:
    outbox = Outbox()
    for number in range(5):
        outbox.put(f"stats {number}", "stats")
        outbox.put(f"other {number}")
    outbox.close()
    assert [await outbox.next() for _ in range(7)] == [
        "stats 4",
        *(f"other {number}" for number in range(5)),
        None,
    ]


async def test_of_a_live_tile_the_newest_pictures_wait_and_each_is_accounted_for() -> None:
    outbox = Outbox()
    displaced = [outbox.put_live(3, frame, b"%d" % frame) for frame in range(6)]
    assert displaced == [None] * MAX_LIVE_PICTURES + [0, 1, 2, 3]
    assert outbox.put_live(4, 0, b"another tile") is None
    assert [await outbox.next() for _ in range(3)] == [b"4", b"5", b"another tile"]
    assert outbox.put_live(3, 6, b"6") is None


async def test_a_peer_that_never_reads_is_given_up() -> None:
    outbox = Outbox()
    for _ in range(MAX_WAITING):
        outbox.put("a word")
    with pytest.raises(SlowPeer):
        outbox.put("one more")
    waits = asyncio.create_task(Outbox().next())
    await asyncio.sleep(0)
    assert not waits.done()
    waits.cancel()


def test_a_fade_needs_both_pictures_until_it_is_over() -> None:
    program = Program()
    assert program.said(0.0).a is None
    assert program.begin_with(2)
    assert not program.begin_with(3), "something is on program"
    program.ask(ProgramAsked(a=5, b=6, mix=0.25, fade_ms=500), 10.0)
    assert [tile for tile in range(9) if program.shows(tile, 10.2)] == [2, 5, 6]
    assert [tile for tile in range(9) if program.shows(tile, 10.5)] == [5, 6]
    said = program.said(10.2)
    assert (said.a, said.b, said.mix, said.fade_ms) == (5, 6, 0.25, 300)
    assert said.start == {"a": 2, "b": None, "mix": 0.0}
    assert program.said(10.6).start is None
    program.ask(ProgramAsked(a=1), 11.0)
    assert (program.said(11.0).fade_ms, program.said(11.0).start) == (0, None), "a cut"


def test_figures_are_of_the_last_two_seconds() -> None:
    figures = Figures()
    timings = Timings(spans=(SpanTiming("encode", 0.001, 0.002), SpanTiming("decode", 0.0, 0.004)))
    for number in range(40):
        figures.translated(number / 10, number / 1000, timings)
    figures.dropped("late")
    said = figures.said(1, 4.0)
    assert said.fps == 9.5
    assert (said.p50_ms, said.p95_ms) == (30.0, 39.0)
    assert [(one["name"], one["queue_ms"], one["work_ms"]) for one in said.spans] == [
        ("encode", 1.0, 2.0),
        ("decode", 0.0, 4.0),
    ]
    assert said.drops == {"late": 1}
    assert figures.said(1, 99.0).p50_ms is None
