"""Choices of the scheduler, one by one and over many forwards. Costs are milliseconds written as seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.chain import Operator
from rearview.contract.controls import WeightedControl
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, Settings
from rearview.engine.course import LaterRow
from rearview.engine.queues import RowQueues
from rearview.engine.rows import Row, row_width
from rearview.engine.scheduler import CostTable, Scheduler
from support.frames import in_flight

pytestmark = pytest.mark.unit

INF = float("inf")
PLAN = CostTable({"g": {1: 0.006, 2: 0.007}})
"""t(rows) = 5 + rows ms."""


def row(
    session_id: str,
    *,
    tenant: str = "t",
    weight: float = 1.0,
    due_s: float = INF,
    group: Hashable = "g",
    operator: str = "denoise-0",
    ordinal: int = 0,
    ready_s: float = 0.0,
    failures: int = 0,
    writes: int = 0,
    later: tuple[LaterRow, ...] = (),
    costs: CostTable = PLAN,
    guidance: Guidance = Guidance.NONE,
    controls: int = 0,
) -> Row:
    named = tuple(WeightedControl(f"c{i}") for i in range(controls))
    under = Settings(guidance=guidance, guidance_scale=2.0, controls=named)
    spec = SessionSpec(session_id, 64, 64, 4, under, tenant, weight)
    link = Operator.parse(operator)
    deadline_s = due_s + sum(costs.seconds(each.group, each.width, 0, each.controls) for each in later)
    frame = in_flight(spec, ordinal, link, deadline_s=deadline_s, ready_s=ready_s, failures=failures)
    return Row((frame,), link, group, due_s, writes, later)


def choose(scheduler: Scheduler, ready: Sequence[Row], now: float = 0.0) -> list[Row]:
    return scheduler.choose(RowQueues(ready), now)


def names(rows: Sequence[Row]) -> list[str]:
    return [each.session_id for each in rows]


# The cost table.


def test_costs_are_a_line_through_what_was_measured() -> None:
    table = CostTable({"g": {1: 1.0, 2: 1.5, 4: 2.5}}, write_s=0.25)
    expected = {1: 1.0, 2: 1.5, 3: 2.0, 4: 2.5, 6: 3.5}
    assert {n: table.seconds("g", n) for n in expected} == expected
    assert table.seconds("g", 2, writes=2) == 2.0


def test_one_measurement_is_taken_as_proportional() -> None:
    table = CostTable({"g": {2: 1.0}})
    assert [table.seconds("g", n) for n in (1, 2, 4)] == [1.0, 1.0, 2.0]


def test_a_larger_batch_never_counts_as_cheaper() -> None:
    """A forward of two is sometimes measured faster than one: 16 rows must not cost less than nothing."""
    table = CostTable({"g": {1: 1.0, 2: 0.9, 4: 0.95}})
    assert [table.seconds("g", n) for n in (1, 2, 4, 64)] == [1.0] * 4


def test_an_unknown_group_holds_nothing_back_and_is_charged_as_the_dearest() -> None:
    table = CostTable({"g": {1: 1.0, 2: 2.0}, "h": {1: 3.0, 2: 3.0}})
    assert table.seconds("other", 4) == 0.0
    assert table.service("other", 1) == 3.0
    assert table.service("other", 8) == 8.0
    assert CostTable().service("other", 4) == 4.0


# Growth.


def test_nothing_ready_is_nothing_chosen() -> None:
    assert choose(Scheduler(PLAN, 4), [], 0.0) == []


def test_earliest_deadline_first() -> None:
    rows = [row("c", due_s=3.0), row("a", due_s=1.0), row("b", due_s=2.0)]
    assert names(choose(Scheduler(PLAN, 1), rows, 0.0)) == ["a"]
    assert names(choose(Scheduler(PLAN, 2), rows, 0.0)) == ["a", "b"]


def test_the_batch_stops_growing_before_its_earliest_deadline_is_missed() -> None:
    for due_ms, rows in ((6, 1), (7, 2), (9, 4), (9.9, 4), (10, 5), (40, 16), (5.9, 16)):
        ready = [row("a", due_s=due_ms / 1e3 + 1e-9), *(row(f"b{i:02}", due_s=1.0) for i in range(20))]
        chosen = choose(Scheduler(PLAN, 16), ready, 0.0)
        assert (len(chosen), chosen[0].session_id) == (rows, "a"), due_ms


def test_it_leaves_time_for_the_steps_that_follow_in_the_same_company() -> None:
    """Two rows with two steps before them and 14 ms: 7 + 7. A third would leave 8 + 7."""
    pair = [row(name, due_s=0.008 + 1e-9, later=(LaterRow("g"),)) for name in "ab"]
    chosen = choose(Scheduler(PLAN, 8), [*pair, row("c", due_s=1.0, later=(LaterRow("g"),))], 0.0)
    assert names(chosen) == ["a", "b"]


def test_a_late_row_grows_its_batch_to_the_best_throughput() -> None:
    late, others = row("late", due_s=0.001), [row(f"b{i}", due_s=0.0061) for i in range(9)]
    assert len(choose(Scheduler(PLAN, 8), [late, *others], 0.0)) == 8
    # Here four rows take as long as one, and a fifth as long as all four.
    steps = CostTable({"g": {1: 1.0, 4: 1.0, 5: 2.0, 8: 2.6}})
    assert len(choose(Scheduler(steps, 8), [late, *others], 0.0)) == 4


def test_a_forward_costs_what_the_size_does_that_it_is_filled_up_to() -> None:
    """Nine rows take as long as twelve, so a late one is given company for eight."""
    line = {1: 1.0, 8: 8.0, 16: 16.0}
    filled = CostTable({"g": line}, sizes=(1, 2, 4, 8, 12))
    assert [filled.seconds("g", rows) for rows in (1, 3, 8, 9, 12, 13)] == [1.0, 4.0, 8.0, 12.0, 12.0, 13.0]
    ready = [row(f"b{i}", due_s=0.001) for i in range(9)]
    assert (
        len(choose(Scheduler(replace(filled, forward_s={"g": {1: 8.0, 8: 8.0, 12: 11.0}}), 16), ready)) == 8
    )
    assert len(choose(Scheduler(CostTable({"g": {1: 8.0, 8: 8.0, 12: 11.0}}), 16), ready)) == 9


def test_late_company_holds_nobody_back() -> None:
    ready = [row("a", due_s=0.008 + 1e-9), row("late", tenant="u", due_s=0.0), row("b", due_s=1.0)]
    scheduler = Scheduler(PLAN, 8)
    scheduler._served["u"] = 0.001  # So that it comes after the head and before "b".
    assert names(choose(scheduler, ready, 0.0)) == ["a", "late", "b"]


def test_more_rows_cost_no_more_than_several_forwards() -> None:
    """Two rows that were timed while another process had the core say nothing of eight."""
    table = CostTable({"g": {1: 0.001, 2: 0.060}})

    assert table.seconds("g", 8) == pytest.approx(4 * 0.060)


def test_writes_count_in_the_cost() -> None:
    table = CostTable({"g": {1: 0.006, 2: 0.007}}, write_s=0.010)
    ready = [row("a", due_s=0.008), row("b", due_s=1.0, writes=1)]
    assert names(choose(Scheduler(table, 8), ready, 0.0)) == ["a"]
    assert names(choose(Scheduler(PLAN, 8), ready, 0.0)) == ["a", "b"]


CONTROLLED = CostTable({"g": {1: 0.006, 2: 0.007}}, control_s=0.010)


def test_controls_count_in_the_cost() -> None:
    """Twice where guidance predicts twice; not where they weigh nothing, nor where nothing is denoised."""
    guided = row("a", guidance=Guidance.FULL, controls=2)
    assert (guided.controls, row("a", controls=1).controls) == (4, 1)
    assert row("a", operator="encode", controls=2).controls == 0
    assert CONTROLLED.seconds("g", 2, controls=4) == pytest.approx(0.047)
    ready = [row("a", due_s=0.008), row("b", due_s=1.0, controls=1)]
    assert names(choose(Scheduler(CONTROLLED, 8), ready, 0.0)) == ["a"]
    assert names(choose(Scheduler(PLAN, 8), ready, 0.0)) == ["a", "b"]


def test_controls_that_are_still_before_a_frame_count_towards_its_deadline() -> None:
    """Its own step takes 6 ms, those of its controls 20: another row would make it late."""
    for controls, expected in ((2, ["a"]), (0, ["a", "b"])):
        ahead = row("a", due_s=0.0065, later=(LaterRow("g", 1, controls),), costs=CONTROLLED)
        ahead.frame.came.deadline_s = 0.007 + 0.007 + 0.0005
        found = choose(Scheduler(CONTROLLED, 8), [ahead, row("b", due_s=1.0)], 0.0)
        assert names(found) == expected


def test_a_tenant_pays_for_its_own_controls() -> None:
    scheduler = Scheduler(CONTROLLED, 8)
    both = [row("a", tenant="t", controls=1), row("b", tenant="u")]
    assert names(choose(scheduler, both)) == ["a", "b"]
    again = [row("c", tenant="t", due_s=1.0), row("d", tenant="u", due_s=2.0)]
    assert names(choose(Scheduler(CONTROLLED, 1), again)) == ["c"]
    assert scheduler._served["t"] - scheduler._served["u"] == pytest.approx(CONTROLLED.control_s)


DRAWN = CostTable({"g": {1: 0.006, 2: 0.007}}, draw_s={"c0": 0.010, "c1": 0.020})


def test_what_is_drawn_for_controls_counts_where_frames_are_encoded() -> None:
    """Towards deadlines, and charged to the tenant whose frame it is for."""
    encoded = row("a", operator="encode", controls=3)
    assert (encoded.draws, row("a", controls=3).draws) == (("c0", "c1", "c2"), ())
    assert DRAWN.drawing_s([encoded, row("b", operator="encode", controls=1)]) == pytest.approx(0.040)
    for table, expected in ((DRAWN, ["a"]), (PLAN, ["a", "b"])):
        ready = [row("a", operator="encode", due_s=0.008)]
        ready.append(row("b", operator="encode", due_s=1.0, controls=1))
        assert names(choose(Scheduler(table, 8), ready, 0.0)) == expected
    scheduler = Scheduler(DRAWN, 8)
    both = [row("a", operator="encode", tenant="t", controls=2), row("b", operator="encode", tenant="u")]
    assert names(choose(scheduler, both)) == ["a", "b"]
    assert scheduler._served["t"] - scheduler._served["u"] == pytest.approx(0.030)


# Rows with guidance, which are wider.


FULL = Guidance.FULL


@pytest.mark.parametrize(
    ("guidance", "widths"),
    [
        (Guidance.NONE, [1, 1, 1, 1]),
        (Guidance.SELF, [1, 1, 1, 1]),
        (Guidance.INITIALIZE, [1, 2, 1, 1]),
        (FULL, [1, 2, 2, 1]),
    ],
)
def test_a_row_is_as_wide_as_its_samples_in_the_network(guidance: Guidance, widths: list[int]) -> None:
    operators = ("encode", "denoise-0", "denoise-1", "decode")
    assert [row("a", operator=name, guidance=guidance).width for name in operators] == widths
    idle = Settings(guidance=guidance, guidance_scale=1.0)
    assert row_width(Operator.parse("denoise-0"), idle) == 1


def test_the_batch_is_bounded_in_samples() -> None:
    rows = [row(f"{i}", guidance=FULL) for i in range(8)]
    assert [len(choose(Scheduler(PLAN, most), rows, 0.0)) for most in (1, 2, 3, 4, 16)] == [1, 1, 1, 2, 8]
    mixed = [row("a", guidance=FULL), row("b"), row("c", guidance=FULL), row("d")]
    assert names(choose(Scheduler(PLAN, 4), mixed, 0.0)) == ["a", "b"]


def test_the_second_sample_of_a_row_counts_in_the_cost() -> None:
    for due_ms, rows in ((7.9, 1), (8, 2)):
        ready = [row("a", due_s=due_ms / 1e3 + 1e-9), row("b", due_s=1.0, guidance=FULL)]
        assert len(choose(Scheduler(PLAN, 8), ready, 0.0)) == rows, due_ms


def test_a_wide_row_that_cannot_be_in_time_counts_as_late() -> None:
    ready = [row("a", due_s=0.0065, guidance=FULL), *(row(f"b{i}", due_s=1.0) for i in range(9))]
    assert len(choose(Scheduler(PLAN, 8), ready, 0.0)) == 7


def test_the_second_sample_of_the_steps_that_follow_counts_too() -> None:
    """Two wide rows take 9 ms, and then a wide one 7 and not 6."""
    for deadline_ms, rows in ((15.9, 1), (16, 2)):
        due_s = (deadline_ms - 7) / 1e3 + 1e-9
        pair = [row(name, due_s=due_s, later=(LaterRow("g", 2),), guidance=FULL) for name in "ab"]
        assert len(choose(Scheduler(PLAN, 8), pair, 0.0)) == rows, deadline_ms


def test_feeding_counts_the_samples_that_the_fed_frame_will_be() -> None:
    """Encoding for a wide row spares as much and takes a millisecond more."""
    for due_ms, chosen in ((9.9, "d"), (10, "e")):
        later = (LaterRow("g", 2),)
        feeder = row("e", due_s=1.0, group="e", operator="encode", guidance=FULL, later=later)
        ready = [row("d", due_s=due_ms / 1e3 + 1e-9), feeder]
        assert names(choose(Scheduler(BOTH, 8), ready, 0.0)) == [chosen], due_ms


@pytest.mark.parametrize("max_batch", [2, 5, 8])
def test_tenants_are_charged_for_samples(max_batch: int) -> None:
    plain = [row(f"plain{i}", tenant="plain") for i in range(12)]
    guided = [row(f"guided{i}", tenant="guided", guidance=FULL) for i in range(12)]
    served = rounds(Scheduler(PLAN, max_batch), [*plain, *guided], 300)
    assert served["plain"] == pytest.approx(2 * served["guided"], rel=0.05)


def test_of_equal_deadlines_the_furthest_frame_goes_first_then_who_waited_longest() -> None:
    rows = [row("young", ordinal=0, ready_s=2.0), row("old", ordinal=900, ready_s=1.0)]
    assert names(choose(Scheduler(PLAN, 1), rows, 3.0)) == ["old"]
    far = row("far", ready_s=2.5)
    far.frame.position = 2
    assert names(choose(Scheduler(PLAN, 1), [*rows, far], 3.0)) == ["far"]


def test_a_row_that_failed_goes_first_and_alone() -> None:
    rows = [row("a", due_s=1.0), row("failed", due_s=2.0, failures=1), row("b", due_s=1.0)]
    scheduler = Scheduler(PLAN, 8)
    assert names(choose(scheduler, rows, 0.0)) == ["failed"]
    assert names(choose(scheduler, [rows[0], rows[2]], 0.0)) == ["a", "b"]


# Encoding before denoising.


BOTH = CostTable({"g": {1: 0.006, 2: 0.007}, "e": {1: 0.002, 2: 0.003}})
FLAT = CostTable({"g": {1: 0.006, 2: 0.012}, "e": {1: 0.002, 2: 0.004}})


def first(costs: CostTable, due_s: float, max_batch: int = 8) -> str:
    feeder = row("e", due_s=1.0, group="e", operator="encode", later=(LaterRow("g"),))
    ready = [row("d", due_s=due_s), feeder]
    return choose(Scheduler(costs, max_batch), ready, 0.0)[0].session_id


def test_a_frame_is_encoded_first_if_it_then_shares_the_denoising_forward() -> None:
    assert first(BOTH, due_s=0.009 + 1e-9) == "e"


def test_it_is_not_if_that_makes_another_late() -> None:
    assert first(BOTH, due_s=0.0089) == "d"


def test_it_is_if_the_other_is_late_anyway() -> None:
    assert first(BOTH, due_s=0.005) == "e"


def test_it_is_not_if_larger_batches_spare_no_time() -> None:
    assert first(FLAT, due_s=1.0) == "d"


def test_it_is_not_if_the_forward_is_full_without_it() -> None:
    assert first(BOTH, due_s=1.0, max_batch=1) == "d"


# Fairness.


def rounds(scheduler: Scheduler, rows: Sequence[Row], forwards: int, counted_from: int = 0) -> Counter[str]:
    """Rows by tenant over many forwards in which the same rows are always ready."""
    served: Counter[str] = Counter()
    for number in range(forwards):
        chosen = choose(scheduler, rows, 0.0)
        if number >= counted_from:
            served.update(each.frame.spec.tenant for each in chosen)
    return served


@pytest.mark.parametrize("max_batch", [1, 2, 5, 8])
def test_service_follows_the_weights(max_batch: int) -> None:
    rows = [row(f"{t}{i}", tenant=t, weight=w) for t, w in (("a", 2.0), ("b", 1.0)) for i in range(12)]
    served = rounds(Scheduler(PLAN, max_batch), rows, 300)
    assert abs(served["a"] - 2 * served["b"]) <= 2 * max_batch


@pytest.mark.parametrize("max_batch", [1, 2, 4])
def test_a_tenant_of_ten_sessions_gets_no_more_than_a_tenant_of_as_many_as_its_share(max_batch: int) -> None:
    rows = [row(f"big{i}", tenant="big", due_s=1.0) for i in range(10)]
    rows += [row(f"small{i}", tenant="small", due_s=2.0) for i in range(max_batch)]
    served = rounds(Scheduler(PLAN, max_batch), rows, 100)
    assert abs(served["big"] - served["small"]) <= 2 * max_batch


def test_a_tenant_of_one_session_is_in_every_batch_beside_ten() -> None:
    rows = [row(f"big{i}", tenant="big", due_s=1.0) for i in range(10)] + [
        row("one", tenant="small", due_s=2.0)
    ]
    assert rounds(Scheduler(PLAN, 4), rows, 100)["small"] >= 99


def test_an_idle_tenant_earns_no_credit() -> None:
    busy = [row(f"busy{i}", tenant="busy") for i in range(8)]
    idle = [row(f"idle{i}", tenant="idle") for i in range(8)]
    scheduler = Scheduler(PLAN, 2)
    rounds(scheduler, busy, 500)
    served = rounds(scheduler, [*busy, *idle], 20)
    assert abs(served["busy"] - served["idle"]) <= 4


def test_a_tenant_with_little_to_do_earns_no_credit() -> None:
    """It always has one row ready, and that is always taken: it lacks nothing, so it is owed nothing."""
    busy = [row(f"busy{i}", tenant="busy") for i in range(8)]
    light = [row(f"light{i}", tenant="light") for i in range(8)]
    scheduler = Scheduler(PLAN, 4)
    rounds(scheduler, [*busy, light[0]], 500)
    served = rounds(scheduler, [*busy, *light], 20)
    assert abs(served["busy"] - served["light"]) <= 8


def test_a_pause_forgives_no_debt() -> None:
    """Who takes turns at being away still gets its share of the whole and no more."""
    steady = [row(f"steady{i}", tenant="steady") for i in range(4)]
    flapping = [row(f"flapping{i}", tenant="flapping") for i in range(4)]
    scheduler = Scheduler(PLAN, 2)
    served: Counter[str] = Counter()
    for number in range(300):
        ready = [*steady, *flapping] if number % 3 else steady
        served.update(each.frame.spec.tenant for each in choose(scheduler, ready, 0.0))
    assert served["flapping"] <= served["steady"] + 4


def test_tenants_that_never_meet_owe_each_other_nothing() -> None:
    scheduler = Scheduler(PLAN, 1)
    for _ in range(200):
        choose(scheduler, [row("a", tenant="a")], 0.0)
    rows = [row("a", tenant="a"), row("b", tenant="b")]
    served = rounds(scheduler, rows, 10)
    assert served == {"a": 5, "b": 5}


def test_tenants_that_have_gone_are_forgotten() -> None:
    scheduler = Scheduler(PLAN, 2)
    for number in range(200):
        choose(scheduler, [row(str(number), tenant=str(number)), row("s", tenant="steady")], 0.0)
    assert len(scheduler._served) <= 4


def test_a_tenant_of_a_group_without_costs_is_charged_like_the_others() -> None:
    rows = [row("a", tenant="a"), row("b", tenant="b", group="unmeasured")]
    served = rounds(Scheduler(PLAN, 1, max_wait_forwards=10**6), rows, 100)
    assert abs(served["a"] - served["b"]) <= 2


# Waiting.


@pytest.mark.parametrize(("groups", "max_wait"), [(2, 1), (3, 2), (3, 8), (8, 8), (9, 8)])
def test_no_group_waits_for_more_forwards_than_promised(groups: int, max_wait: int) -> None:
    """Group 0 has the earliest deadlines and would otherwise run for ever."""
    scheduler = Scheduler(PLAN, 4, max_wait)
    rows = [row(f"{g}-{i}", group=g, due_s=float(g + 1)) for g in range(groups) for i in range(4)]
    waited = Counter[Hashable]()
    for _ in range(100):
        (chosen,) = {each.group for each in choose(scheduler, rows, 0.0)}
        waited.update(g for g in range(groups) if g != chosen)
        waited[chosen] = 0
        assert max(waited.values()) <= max_wait


ready_rows = st.lists(
    st.builds(
        row,
        session_id=st.text("abcdef", min_size=1, max_size=2),
        tenant=st.sampled_from("xyz"),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        due_s=st.sampled_from([-1.0, 0.0, 0.007, 0.02, 1.0, INF]),
        group=st.sampled_from(["g", "h", "unmeasured"]),
        operator=st.sampled_from(["encode", "denoise-0", "denoise-1", "decode"]),
        failures=st.sampled_from([0, 0, 0, 1]),
        writes=st.integers(0, 1),
        later=st.sampled_from([(), (LaterRow("g", 2),), (LaterRow("g"), LaterRow("h"))]),
        guidance=st.sampled_from(Guidance),
    ),
    max_size=12,
    unique_by=lambda each: (each.session_id, each.operator),
)


@given(st.lists(ready_rows, min_size=1, max_size=6), st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_chosen_rows_are_ready_of_one_group_and_few_enough(
    rounds_of_ready: list[list[Row]], max_batch: int, max_wait: int
) -> None:
    costs = CostTable({"g": {1: 0.006, 2: 0.007}, "h": {1: 0.002, 4: 0.001}}, write_s=0.001)
    scheduler = Scheduler(costs, max_batch, max_wait)
    for ready in rounds_of_ready:
        chosen = choose(scheduler, ready, 0.0)
        assert bool(chosen) == bool(ready)
        assert len(chosen) == 1 or sum(each.width for each in chosen) <= max_batch
        assert len({each.group for each in chosen}) <= 1
        assert all(any(each is known for known in ready) for each in chosen)
        assert len({(each.session_id, each.operator) for each in chosen}) == len(chosen)
        assert len(chosen) <= 1 or not any(each.frame.failures for each in chosen)
