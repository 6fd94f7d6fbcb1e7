"""What memory goes to, by numbers alone: what is refused, and how many slots `auto` is."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.contract.memory_plan import (
    AUTO_SHARE,
    DEFAULT_SLOTS,
    Budget,
    Part,
    plan_memory,
    told,
    workspace_bytes,
)
from rearview.errors import ConfigError

pytestmark = pytest.mark.unit

GIB, MIB = 2**30, 2**20
GPU = Budget("a GPU", 80 * GIB, 80 * GIB)
WEIGHTS = Part("weights", 2 * GIB)
FORWARDS = Part("forwards of 16", 3 * GIB)
CACHE = {"bank": 256 * MIB, "cache": 5 * GIB}


def test_a_plan_is_one_line_with_all_parts() -> None:
    plan = plan_memory("fused", GPU, [WEIGHTS, FORWARDS], CACHE, 8)
    assert plan.num_bytes == plan.certain_bytes == 47 * GIB
    assert str(plan) == (
        "fused: 47 GiB of 80 GiB (a GPU): weights 2 GiB, forwards of 16 3 GiB,"
        " 8 slots of 5.25 GiB (bank 0.25 GiB, cache 5 GiB)"
    )


def test_an_estimate_is_called_one_and_what_takes_nothing_is_not_told() -> None:
    parts = [Part("weights", 0), Part("forwards of 2", 300 * MIB, is_certain=False)]
    plan = plan_memory("one", Budget("CPU", 0, 0), parts, {"bank": 0}, 1)
    assert str(plan) == "one: 0.29 GiB (CPU): forwards of 2 about 0.29 GiB, 1 slot"


def test_what_does_not_fit_is_refused_with_the_sum_and_what_would_fit() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_memory("fused", GPU, [WEIGHTS, FORWARDS], CACHE, 16)
    assert str(caught.value) == (
        "span fused needs 89 GiB of memory, and a GPU has 80 GiB: weights 2 GiB, forwards of 16 3 GiB,"
        " 16 slots of 5.25 GiB (bank 0.25 GiB, cache 5 GiB)."
        " 14 slots would fit: lower slots of the span, or set slots: auto"
    )
    assert plan_memory("fused", GPU, [WEIGHTS, FORWARDS], CACHE, 14).slots == 14


@pytest.mark.parametrize(
    ("weights", "slots", "said"),
    [(79 * GIB, 1, "Not one slot fits"), (79 * GIB, None, "Not one slot fits"), (81 * GIB, 1, "Without any")],
)
def test_where_not_one_slot_fits_auto_is_refused_too(weights: int, slots: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_memory("fused", GPU, [Part("weights", weights)], CACHE, slots)


def test_what_is_estimated_refuses_nothing() -> None:
    guess = Part("forwards of 16", 90 * GIB, is_certain=False)
    assert plan_memory("fused", GPU, [WEIGHTS, guess], CACHE, 14).slots == 14
    assert plan_memory("fused", GPU, [WEIGHTS, guess], CACHE, None).slots == 1


def test_room_for_graphs_is_named_and_refuses_nothing() -> None:
    budget = Budget("a GPU", 80 * GIB, 80 * GIB, graph_bytes=4 * GIB)
    plan = plan_memory("fused", budget, [WEIGHTS, FORWARDS], CACHE, 14)
    assert "forwards of 16 3 GiB, graphs about 4 GiB, 14 slots of" in str(plan)
    assert plan.num_bytes - plan.certain_bytes == 4 * GIB


@pytest.mark.parametrize(
    ("budget", "slot", "slots"),
    [
        (GPU, CACHE, 12),
        (Budget("half of it", 40 * GIB, 40 * GIB), CACHE, 5),
        (Budget("shared by two", 80 * GIB, 40 * GIB), CACHE, 5),
        (Budget("with graphs", 80 * GIB, 80 * GIB, graph_bytes=11 * GIB), CACHE, 10),
        (GPU, {"bank": 256 * MIB}, 64),
        (GPU, {}, 64),
        (Budget("CPU", 80 * GIB, 80 * GIB, most_slots=16), {"bank": 256 * MIB}, 16),
        (Budget("nobody knows", 0, 0), CACHE, DEFAULT_SLOTS),
    ],
)
def test_auto_takes_what_is_left_of_nine_tenths(budget: Budget, slot: Mapping[str, int], slots: int) -> None:
    assert plan_memory("fused", budget, [WEIGHTS, FORWARDS], slot, None).slots == slots


@given(st.integers(0, 100), st.integers(0, 20), st.integers(1, 40), st.integers(1, 4))
def test_auto_never_plans_more_than_its_share_unless_it_is_one_slot(
    weights: int, guess: int, slot: int, sharers: int
) -> None:
    budget = Budget("a GPU", 80 * GIB, 80 * GIB // sharers)
    parts = [Part("weights", weights * GIB), Part("forwards", guess * GIB, is_certain=False)]
    try:
        plan = plan_memory("s", budget, parts, {"cache": slot * GIB}, None)
    except ConfigError:
        assert (weights + slot) > 80
        return
    assert plan.certain_bytes <= budget.num_bytes
    assert plan.slots == 1 or plan.num_bytes <= AUTO_SHARE * budget.own_bytes


@pytest.mark.parametrize(
    ("measured", "samples", "expected"),
    [
        ([{1: 100, 2: 130}], 2, 130),
        ([{1: 100, 2: 130}], 16, 130 + 14 * 30),
        ([{1: 100, 2: 130, 8: 250}], 4, 250),
        ([{1: 100}], 4, 400),
        ([{8: 100}], 16, 200),
        ([{1: 100, 2: 90}], 16, 90),
        ([{1: 1, 2: 2}, {1: 100, 2: 101}], 16, 115),
        ([{}, {1: 5, 2: 5}], 16, 5),
        ([{}], 16, 0),
    ],
)
def test_forwards_that_were_not_measured_lie_on_the_line(
    measured: list[dict[int, int]], samples: int, expected: int
) -> None:
    assert workspace_bytes(measured, samples) == expected


def test_bytes_are_told_as_people_read_them() -> None:
    sizes = [0, 1024, 100 * 1024, MIB, 150 * MIB, 3 * GIB // 2, 141 * GIB]
    assert [told(size) for size in sizes] == [
        "0 KiB",
        "1 KiB",
        "100 KiB",
        "1 MiB",
        "0.15 GiB",
        "1.50 GiB",
        "141 GiB",
    ]
