"""The exactly-once bookkeeping, without I/O, against every place at which a connection can be lost."""

from __future__ import annotations

import random

import pytest
from rearview.client import SettingsChange, wire
from rearview.client.ledger import RESTORE_ID, Input, Ledger
from rearview.errors import Fault
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb

pytestmark = pytest.mark.unit


def frame(index: int) -> Input:
    return Input(pb.TranslateRequest(), index, True)


def control(number: int) -> Input:
    return Input(wire.control_request(number, SettingsChange(seed=number)), number, False)


def seed_of(item: Input) -> int:
    return item.message.control.settings.seed


def take_all(ledger: Ledger) -> list[str]:
    taken = []
    while (item := ledger.take(0.0)) is not None:
        taken.append(f"{'f' if item.is_frame else 'c'}{item.number}")
    return taken


def filled(*items: Input, credit: int = 100) -> Ledger:
    ledger = Ledger(frame_credit=credit)
    for item in items:
        ledger.submit(item)
    return ledger


def test_frames_wait_for_credit_and_controls_do_not_overtake_them() -> None:
    ledger = filled(frame(0), control(1), frame(1), control(2), credit=1)
    assert take_all(ledger) == ["f0", "c1"]
    ledger.frame_credit = 2
    assert take_all(ledger) == ["f1", "c2"]


def test_an_answer_out_of_order_is_refused() -> None:
    ledger = filled(frame(0), frame(1))
    take_all(ledger)
    with pytest.raises(Fault, match="answer for frame 1, expected 0"):
        ledger.answered(1)


def test_an_answer_to_nothing_is_refused() -> None:
    with pytest.raises(Fault, match="none is unanswered"):
        Ledger().answered(0)


def test_resume_sends_again_only_what_was_not_received() -> None:
    ledger = filled(*map(frame, range(5)))
    take_all(ledger)
    ledger.answered(0)
    ledger.resume(received_frames=3, frame_credit=100)
    assert take_all(ledger) == ["f3", "f4"]
    for index in (1, 2, 3, 4):
        ledger.answered(index)
    assert ledger.is_empty


def test_resume_sends_every_unanswered_control_again_in_its_place() -> None:
    ledger = filled(frame(0), control(1), frame(1), control(2), frame(2), control(3), frame(3))
    take_all(ledger)
    ledger.resume(received_frames=2, frame_credit=100)
    assert take_all(ledger) == ["c0", "c1", "c2", "f2", "c3", "f3"]


def test_a_control_keeps_its_place_when_it_is_sent_again() -> None:
    late = control(1)
    ledger = filled(frame(0), late, frame(1))
    take_all(ledger)
    ledger.resume(received_frames=2, frame_credit=100)
    take_all(ledger)
    assert late.frames_before == 1


def test_a_control_answered_twice_is_reported_once() -> None:
    ledger = filled(control(1))
    take_all(ledger)
    assert ledger.control_answered(1, settings_pb2.Settings(seed=1)) is not None
    assert ledger.control_answered(1, settings_pb2.Settings(seed=1)) is None
    assert ledger.is_empty


def test_frames_lost_from_before_an_answered_control_are_sent_again_under_their_settings() -> None:
    ledger = filled(frame(0), control(1), frame(1), control(2), frame(2))
    take_all(ledger)
    ledger.control_answered(1, settings_pb2.Settings(seed=1))
    ledger.control_answered(2, settings_pb2.Settings(seed=2))
    ledger.answered(0)
    ledger.resume(received_frames=1, frame_credit=100)
    restore = ledger.take(0.0)
    assert restore is not None
    assert (restore.number, seed_of(restore)) == (RESTORE_ID, 1)
    assert take_all(ledger) == ["f1", "c2", "f2"]
    assert ledger.control_answered(2, settings_pb2.Settings(seed=2)) is None


def test_the_mix_that_is_restored_comes_without_the_blank_prompt_beside_it() -> None:
    mixed = settings_pb2.Settings(
        prompt="", prompts=[settings_pb2.WeightedPrompt(prompt="a", weight=2.0)], adapters="ink"
    )
    ledger = filled(control(1))
    ledger.settings = mixed
    take_all(ledger)
    ledger.resume(received_frames=0, frame_credit=100)
    restore = ledger.take(0.0)
    assert restore is not None
    wanted = settings_pb2.Settings(prompts=mixed.prompts, adapters="ink")
    assert restore.message.control == pb.Control(control_id=RESTORE_ID, settings=wanted)
    assert ledger.settings == mixed


def test_settings_are_restored_whole_so_that_a_blend_begins_with_the_frame_that_began_it() -> None:
    ledger = filled(control(1), frame(0), frame(1), control(2), frame(2))
    take_all(ledger)
    ledger.control_answered(1, settings_pb2.Settings(prompt="a", blend_frames=8))
    ledger.control_answered(2, settings_pb2.Settings(prompt="b", blend_frames=8))
    ledger.resume(received_frames=0, frame_credit=100)
    restore = ledger.take(0.0)
    assert restore is not None
    assert restore.message.control.settings == settings_pb2.Settings(prompt="a", blend_frames=8)
    assert take_all(ledger) == ["f0", "f1", "c2", "f2"]


def test_frames_sent_again_respect_the_credit_of_the_new_connection() -> None:
    ledger = filled(*map(frame, range(4)))
    take_all(ledger)
    ledger.resume(received_frames=1, frame_credit=2)
    assert take_all(ledger) == ["f1"]


@pytest.mark.parametrize("received", [0, 4])
def test_impossible_numbers_on_resume_are_refused(received: int) -> None:
    ledger = filled(*map(frame, range(3)))
    take_all(ledger)
    ledger.answered(0)
    with pytest.raises(Fault, match=f"received {received} frames"):
        ledger.resume(received, 100)


def test_only_an_input_never_sent_can_be_withdrawn() -> None:
    sent, waiting = frame(0), frame(1)
    ledger = filled(sent, waiting, credit=1)
    take_all(ledger)
    assert not ledger.withdraw(sent)
    assert ledger.withdraw(waiting)
    ledger.frame_credit = 10
    assert take_all(ledger) == []


@pytest.mark.parametrize("seed", range(50))
def test_every_frame_is_received_once_under_its_settings_over_random_losses(seed: int) -> None:
    """A model of the server: it applies what comes, and loses a random tail of frames at each cut."""
    rng = random.Random(seed)
    script = [control(k) if rng.random() < 0.3 else frame(k) for k in range(1, 40)]
    ledger = filled(*script)
    wanted, setting = [], 0
    for item in script:
        setting = setting if item.is_frame else item.number
        if item.is_frame:
            wanted.append((item.number, setting))
    received: list[tuple[int, int]] = []
    settings, reported = 0, []
    while not ledger.is_empty:
        answers_arrive = True
        for _ in range(rng.randrange(8)):
            item = ledger.take(0.0)
            if item is None:
                break
            if item.is_frame:
                received.append((item.number, settings))
                continue
            settings = seed_of(item)
            answers_arrive &= rng.random() < 0.7
            if answers_arrive and ledger.control_answered(item.number, settings_pb2.Settings(seed=settings)):
                reported.append(item.number)
        for number, _ in received[ledger.received_answers :][: rng.randrange(4) if answers_arrive else 0]:
            ledger.answered(number)
        del received[rng.randint(ledger.received_answers, len(received)) :]
        ledger.resume(len(received), 100)
    assert received == wanted
    assert reported == [item.number for item in script if not item.is_frame]


def test_settings_that_the_server_has_lost_are_restored() -> None:
    ledger = filled(control(1), frame(0), frame(1))
    take_all(ledger)
    ledger.control_answered(1, settings_pb2.Settings(seed=1))
    ledger.answered(0)
    ledger.resume(received_frames=2, frame_credit=100, settings=settings_pb2.Settings(seed=1))
    assert take_all(ledger) == []
    ledger.resume(received_frames=1, frame_credit=100, settings=settings_pb2.Settings(seed=0))
    restore = ledger.take(0.0)
    assert restore is not None
    assert (restore.number, seed_of(restore)) == (RESTORE_ID, 1)
    assert take_all(ledger) == ["f1"]


def test_what_was_sent_and_not_answered_is_known_by_number() -> None:
    ledger = filled(frame(3), control(1), frame(7), frame(9), credit=2)
    take_all(ledger)
    assert ledger.sent_indices == [3, 7]
    ledger.answered(3)
    assert ledger.sent_indices == [7]


def resize(number: int, width: int) -> Input:
    return Input(wire.control_request(number, SettingsChange(width=width)), number, False)


def test_the_size_of_the_next_frame_follows_controls_until_one_is_refused_and_after_a_loss() -> None:
    ledger = filled(frame(0), resize(1, 64), frame(1), resize(2, 96))
    ledger.settings = settings_pb2.Settings(width=128, height=128)
    take_all(ledger)
    assert ledger.size == (96, 128)
    ledger.control_answered(1, settings_pb2.Settings(width=64, height=128))
    assert ledger.size == (96, 128)
    ledger.control_answered(2, settings_pb2.Settings(width=64, height=128))  # Refused.
    assert ledger.size == (64, 128)
    ledger.resume(0, 100)
    assert take_all(ledger) == ["c0", "f0", "c1", "f1", "c2"]
    assert ledger.size == (96, 128)  # It may be taken now.
