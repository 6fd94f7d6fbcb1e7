"""How many samples a forward may have, as it is learned and forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.engine.queues import RowQueues
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.sizes import FIRST_WAIT_S, MAX_WAIT_S, BatchSizes
from support.frames import in_flight
from support.tiny import session, whole_chain

pytestmark = pytest.mark.unit


def learned(holds: int, rows: int, now: float, sizes: BatchSizes) -> list[int]:
    """The forwards tried for so many rows, where so many fit."""
    tried = []
    while rows:
        samples = min(rows, sizes.most("g", now))
        tried.append(samples)
        if samples <= holds:
            sizes.ran("g", samples, now)
            rows -= samples
        else:
            sizes.did_not_fit("g", samples, now)
    return tried


def test_without_a_failure_everything_is_allowed() -> None:
    assert BatchSizes(16).most("g", 0.0) == 16
    assert learned(99, 40, 0.0, BatchSizes(16)) == [16, 16, 8]


def test_a_size_that_fails_is_halved_until_it_fits() -> None:
    assert learned(3, 16, 0.0, BatchSizes(16)) == [16, 8, 4, *[2] * 8]


def test_groups_learn_apart() -> None:
    sizes = BatchSizes(16)
    assert sizes.did_not_fit("g", 16, 0.0) == 8
    assert (sizes.most("g", 0.0), sizes.most("h", 0.0)) == (8, 16)


def test_the_largest_size_that_works_is_found_in_time() -> None:
    sizes, now, most = BatchSizes(16), 0.0, []
    for _ in range(12):
        learned(11, 64, now, sizes)
        most.append(sizes._limits["g"].most)
        now += MAX_WAIT_S
    assert most[:5] == [8, 8, 10, 11, 11]
    assert set(most[4:]) == {11}


def test_each_trial_that_fails_doubles_the_wait_up_to_an_hour() -> None:
    sizes, now = BatchSizes(2), 0.0
    sizes.did_not_fit("g", 2, now)
    for n in range(12):
        wait_s = min(MAX_WAIT_S, FIRST_WAIT_S * 2**n)
        assert sizes.most("g", now + 0.99 * wait_s) == 1
        now += wait_s
        assert sizes.most("g", now) == 2
        sizes.did_not_fit("g", 2, now)


def test_a_failure_that_had_a_passing_cause_is_forgotten() -> None:
    sizes = BatchSizes(16)
    sizes.did_not_fit("g", 16, 0.0)
    for n, most in enumerate((12, 14, 15, 16), start=1):
        assert sizes.most("g", n * FIRST_WAIT_S) == most
        sizes.ran("g", most, n * FIRST_WAIT_S)
    assert sizes._limits == {}


def test_memory_that_grows_scarcer_halves_what_worked() -> None:
    sizes = BatchSizes(16)
    sizes.did_not_fit("g", 16, 0.0)
    sizes.ran("g", 8, 0.0)
    assert sizes.did_not_fit("g", 8, 1.0) == 4
    assert sizes.most("g", FIRST_WAIT_S) == 4, "the wait begins anew"


def test_a_wide_row_that_ran_alone_shows_that_there_is_room() -> None:
    sizes = BatchSizes(16)
    sizes.did_not_fit("g", 8, 0.0)
    sizes.ran("g", 6, 1.0)
    assert sizes.most("g", 1.0) == 6


@given(st.integers(2, 40), st.integers(1, 40), st.lists(st.integers(1, 60), max_size=8))
def test_whatever_fits_every_row_runs_and_a_size_that_failed_is_not_formed_again_at_once(
    max_batch: int, holds: int, loads: list[int]
) -> None:
    sizes, now = BatchSizes(max_batch), 0.0
    for rows in loads:
        tried = learned(holds, rows, now, sizes)
        assert sum(size for size in tried if size <= holds) == rows
        failed = [size for size in tried if size > holds]
        assert len(set(failed)) == len(failed)
        now += FIRST_WAIT_S / 2


def test_the_scheduler_forms_no_batch_that_is_larger() -> None:
    scheduler = Scheduler(CostTable({"g": {1: 1.0, 16: 1.0}}), 16)
    operator = whole_chain(2).operators[1]
    rows = [Row((in_flight(session(f"s{n}"), 0, operator),), operator, "g", 0.0) for n in range(12)]
    assert len(scheduler.choose(RowQueues(rows), 0.0)) == 12
    scheduler.sizes.did_not_fit("g", 12, 0.0)
    assert len(scheduler.choose(RowQueues(rows), 0.0)) == 6
    late = [Row(row.frames, operator, "g", float("inf")) for row in rows]
    assert len(scheduler.choose(RowQueues(late), 0.0)) == 6
