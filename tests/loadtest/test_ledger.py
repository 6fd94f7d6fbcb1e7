"""One stream's history, written by hand: every frame is accounted for, every broken rule is named."""

from __future__ import annotations

import pytest

from loadtest.histograms import Histograms
from loadtest.ledger import Answer, StreamLedger, Unsent

pytestmark = pytest.mark.unit


def ledger(frames: int = 10, **options: float) -> StreamLedger:
    made = StreamLedger(0, frames, Histograms(), **options)  # type: ignore[arg-type]
    made.opened(0.01)
    made.granted(frames)
    return made


def send(history: StreamLedger, *indices: int, due_s: float = 0.0) -> None:
    for index in indices:
        history.sent(index, due_s, due_s, held=False)


def test_latency_counts_from_the_due_time_not_from_the_sending() -> None:
    history = ledger()
    history.sent(0, 1.0, 1.5, held=True)
    history.answered(Answer(0), 1.6)

    assert history._histograms.max_ms("latency") == pytest.approx(600, rel=0.01)
    assert history._histograms.max_ms("held") == pytest.approx(500, rel=0.01)
    assert history._histograms.count("client_lateness") == 0


def test_every_due_frame_ends_up_in_exactly_one_count() -> None:
    history = ledger(6)
    send(history, 0, 1, 2)
    history.unsent(3, 0.0, Unsent.NO_CREDIT)
    history.unsent(4, 0.0, Unsent.EXPIRED)
    history.answered(Answer(0), 1.0)
    history.answered(Answer(1, drop_reason="late"), 1.0)

    result = history.ended("UNAVAILABLE")

    assert result.due == 5
    assert (result.translated, result.dropped, result.cut) == (1, {"late": 1}, 1)
    assert result.unsent == {"no_credit": 1, "expired": 1}
    assert result.violations == {}


def test_a_later_answer_does_not_excuse_an_earlier_frame() -> None:
    history = ledger()
    send(history, 0, 1, 2)
    history.answered(Answer(2), 1.0)
    history.answered(Answer(0), 1.0)

    assert history.ended("OK").violations == {"out_of_order": 1, "missing": 1}


def test_a_second_answer_is_a_duplicate_whatever_it_says() -> None:
    history = ledger()
    send(history, 0)
    history.answered(Answer(0), 1.0)
    history.answered(Answer(0, drop_reason="late"), 1.0)

    result = history.ended("OK")

    assert result.violations == {"duplicate": 1}
    assert (result.translated, result.dropped) == (1, {})


def test_an_answer_to_a_frame_that_was_held_back_is_unknown() -> None:
    history = ledger()
    history.unsent(0, 0.0, Unsent.NO_CREDIT)
    history.answered(Answer(0), 1.0)
    history.answered(Answer(10**15), 1.0)

    assert history.ended("OK").violations == {"unknown_frame": 2}


def test_sending_beyond_credit_is_the_generators_own_violation() -> None:
    history = ledger(1)
    send(history, 0)
    history._states.append(0)
    send(history, 1)

    assert history.result.violations == {"credit_overrun": 1}


def test_an_ok_without_opened_is_not_a_stream() -> None:
    history = StreamLedger(0, 1, Histograms())

    assert history.ended("OK").violations == {"not_opened": 1}


def test_fps_of_an_open_loop_counts_over_the_schedule_and_a_backlog_lowers_it() -> None:
    prompt, late = ledger(3, scheduled_s=0.3), ledger(3, scheduled_s=0.3)
    for index in range(3):
        for history, delay_s in ((prompt, 0.01), (late, 1.0)):
            send(history, index, due_s=index / 10)
            history.answered(Answer(index), index / 10 + delay_s)

    assert prompt.ended("OK").fps == pytest.approx(10)
    assert late.ended("OK").fps == pytest.approx(3 / 1.2)


def test_fps_of_a_closed_loop_starts_when_the_last_warm_up_frame_is_back() -> None:
    history = ledger(4, warmup_frames=2)
    for index, sent_s, answered_s in ((0, 0.0, 5.0), (1, 5.0, 10.0), (2, 10.0, 10.5), (3, 10.5, 11.0)):
        send(history, index, due_s=sent_s)
        history.answered(Answer(index), answered_s)

    result = history.ended("OK")

    assert result.fps == pytest.approx(2.0)
    assert history._histograms.count("latency") == 2


def test_a_long_run_keeps_only_a_few_examples() -> None:
    history = ledger(100)
    send(history, *range(100))

    result = history.ended("OK")

    assert result.violations == {"missing": 100}
    assert len(result.examples) == 5
