"""How many replicas a span should have: single decisions, and what holds for every one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.config import load_config
from rearview.contract.scaling import Why
from rearview.control.scaling import (
    START,
    Decision,
    Figures,
    Phase,
    ReplicaNow,
    ScalingState,
    SpanNow,
    decide,
)
from rearview.serve_options import ScaleByDemand, stage_options

pytestmark = pytest.mark.unit

STARTING = ReplicaNow(phase=Phase.STARTING)
UNHEARD = ReplicaNow(has_reported=False)


def held(*sessions: int, share: float = 0.1, slots: int = 8) -> list[ReplicaNow]:
    """Replicas with so many sessions of `share` each."""
    return [ReplicaNow(each * share, each, slots) for each in sessions]


def settled(span: SpanNow, figures: Figures, state: ScalingState = START, hold_s: float = 100.0) -> Decision:
    """What is decided when nothing has changed for so long."""
    for now in (0.0, hold_s / 2, hold_s):
        decision, state = decide(span, figures, state, now)
    return decision


@pytest.mark.parametrize(
    ("replicas", "figures", "wanted", "why"),
    [
        ([], {}, 1, Why.MINIMUM),
        (held(0), {}, 1, Why.MINIMUM),
        (held(7), {}, 1, Why.MINIMUM),
        (held(8), {}, 2, Why.LOAD),
        (held(20, slots=32), {"target_share": 0.5}, 4, Why.LOAD),
        (held(8, 8, share=0.0), {}, 2, Why.SLOTS),
        (held(8, 8, share=0.0), {"slots": 5}, 4, Why.SLOTS),
        (held(4, 5, share=0.0, slots=0), {"sessions_per_replica": 4.0}, 3, Why.LOAD),
        (held(4, 5, share=0.0, slots=0), {}, 2, Why.SESSIONS),
        (held(40, 40, slots=64), {"max_replicas": 5}, 5, Why.MAXIMUM),
        (held(7, 0), {"spares": 1}, 2, Why.MINIMUM),
        (held(8, 0), {"spares": 1}, 3, Why.LOAD),
        (held(0), {"min_replicas": 3}, 3, Why.MINIMUM),
        ([*held(6), ReplicaNow(0.6, 6, 8, Phase.LEAVING)], {}, 2, Why.LOAD),
        ([*held(0), UNHEARD, UNHEARD], {}, 3, Why.UNHEARD),
        ([*held(8, 8), UNHEARD], {}, 3, Why.LOAD),
        ([*held(9), STARTING], {}, 2, Why.LOAD),
        (held(1, 0, 0), {}, 1, Why.MINIMUM),
        (held(2, 2, share=0.3), {"target_share": 1.0}, 2, Why.LOAD),
        (held(1, 1, share=0.4), {"target_share": 0.9, "max_share": 0.7}, 2, Why.SESSIONS),
    ],
    ids=[
        "none",
        "idle",
        "just full",
        "one more",
        "a crowd",
        "slots are full",
        "slots as configured",
        "sessions, with no cost and no slots known",
        "nothing known",
        "the most",
        "a spare on top of one",
        "a spare on top of load",
        "the fewest",
        "sessions of one that leaves",
        "two not heard",
        "one not heard, and a crowd",
        "one is coming",
        "two idle",
        "just full on two",
        "two that do not fit on one",
    ],
)
def test_load_and_slots_say_how_many_are_wanted(
    replicas: Sequence[ReplicaNow], figures: dict[str, float], wanted: int, why: Why
) -> None:
    decision = settled(SpanNow(replicas), Figures(**{"max_replicas": 16, **figures}))  # type: ignore[arg-type]
    assert (decision.wanted, decision.why) == (wanted, why)


def test_a_replica_with_a_session_is_not_given_up() -> None:
    figures = Figures(max_replicas=8)
    assert settled(SpanNow(held(1, 1, 1)), figures) == Decision(3, 1, Why.SESSIONS)
    assert settled(SpanNow(held(2, 1, 0)), figures) == Decision(2, 1, Why.SESSIONS)
    assert settled(SpanNow(held(3, 0, 0)), figures) == Decision(1, 1, Why.MINIMUM)


def test_a_spare_is_not_what_is_given_up() -> None:
    figures = Figures(max_replicas=8, spares=1)
    assert settled(SpanNow(held(1, 1, 0)), figures) == Decision(3, 2, Why.SESSIONS)
    assert settled(SpanNow(held(2, 0, 0)), figures) == Decision(2, 2, Why.MINIMUM)


def test_up_at_once_and_down_after_the_hold() -> None:
    figures = Figures(max_replicas=8, hold_s=60.0)
    _, state = decide(SpanNow(held(5)), figures, START, 0.0)
    up, state = decide(SpanNow(held(15, slots=32)), figures, state, 1.0)
    assert up == Decision(3, 3, Why.LOAD)
    quiet = SpanNow(held(5, 0, 0))
    for now in (2.0, 30.0, 60.9):
        decision, state = decide(quiet, figures, state, now)
        assert decision == Decision(3, 3, Why.HOLD), now
    decision, _ = decide(quiet, figures, state, 61.0)
    assert decision == Decision(1, 1, Why.MINIMUM)


def test_a_new_policy_holds_what_it_finds() -> None:
    """The controller has restarted: what was needed before is not known."""
    figures = Figures(max_replicas=8, hold_s=60.0)
    first, state = decide(SpanNow(held(1, 0, 0)), figures, START, 1000.0)
    assert first == Decision(3, 3, Why.HOLD)
    assert decide(SpanNow(held(1, 0, 0)), figures, state, 1060.0)[0].target == 1


def test_old_frames_ask_for_one_more_though_the_load_says_fine() -> None:
    figures = Figures(max_replicas=8, frame_age_slo_s=0.3, node_s=20.0, hold_s=5.0, relearn_s=600.0)
    late, fine = SpanNow(held(3, 3), frame_age_s=0.5), SpanNow(held(2, 2, 2), frame_age_s=0.1)
    decision, state = decide(replace(late, frame_age_s=0.3), figures, START, 0.0)
    assert decision.target == 2
    decision, state = decide(late, figures, state, 1.0)
    assert decision == Decision(3, 3, Why.AGE)
    coming = SpanNow([*late.replicas, STARTING], frame_age_s=0.5)
    decision, state = decide(coming, figures, state, 10.0)
    assert decision.target == 3, "one is on its way"
    decision, state = decide(fine, figures, state, 300.0)
    assert decision.target == 3, "what helped is not taken back at once"
    decision, state = decide(fine, figures, state, 602.0)
    assert decision.wanted == 1


def test_old_frames_never_ask_for_much_more_than_double_the_load() -> None:
    """More of them is then not what helps: somebody sends too much, or a machine is slow."""
    figures = Figures(max_replicas=64, frame_age_slo_s=0.3, slots=8)
    state, counts = START, []
    count = 3
    for now in range(40):
        span = SpanNow(held(*([7] * 3 + [0] * (count - 3))), frame_age_s=9.0)
        decision, state = decide(span, figures, state, float(now))
        counts.append(count := decision.target)
    assert counts[:3] == [4, 5, 6]
    assert max(counts) == 7


def test_refused_sessions_are_demand() -> None:
    figures = Figures(max_replicas=16, retry_after_s=2.0)
    _, state = decide(SpanNow(held(8)), figures, START, 0.0)
    decision, state = decide(SpanNow(held(8), arrivals=16, refusals=16), figures, state, 1.0)
    assert decision == Decision(4, 4, Why.LOAD), "24 sessions of a tenth"
    for second in range(2, 40):
        decision, state = decide(SpanNow(held(8), arrivals=8, refusals=8), figures, state, float(second))
    assert decision.wanted <= 5, "those that ask again are counted once"


def test_an_idle_pool_goes_to_zero_and_a_live_one_keeps_its_spare() -> None:
    figures = Figures(max_replicas=8, min_replicas=0, spares=1, idle_s=600.0, hold_s=10.0)
    live, idle = SpanNow(held(1, 0)), SpanNow(held(0, 0))
    state = START
    for now in (0.0, 1000.0):
        decision, state = decide(live, figures, state, now)
        assert decision.target == 2
    decision, state = decide(idle, figures, state, 1600.0)
    assert decision.target == 2
    decision, asked = decide(replace(idle, arrivals=1, refusals=1), figures, state, 1600.0)
    assert decision.target == 2, "somebody asked"
    decision, asked = decide(idle, figures, asked, 2200.0)
    assert decision.target == 2
    decision, state = decide(idle, figures, state, 1601.0)
    assert decision == Decision(0, 0, Why.IDLE)
    decision, state = decide(SpanNow([]), figures, state, 9000.0)
    assert decision.target == 0
    decision, state = decide(SpanNow([], arrivals=1, refusals=1), figures, state, 9001.0)
    assert decision.target == 2


def test_a_pool_that_nobody_has_used_starts_none() -> None:
    figures = Figures(max_replicas=8, min_replicas=0)
    assert decide(SpanNow([]), figures, START, 0.0)[0] == Decision(0, 0, Why.IDLE)


REPLICA = st.one_of(
    st.builds(
        ReplicaNow,
        share=st.floats(0.0, 2.0),
        sessions=st.integers(1, 8),
        slots=st.just(8),
        phase=st.sampled_from([Phase.SERVING, Phase.LEAVING]),
    ),
    st.just(ReplicaNow(slots=8)),
    st.sampled_from([STARTING, UNHEARD]),
)
FIGURES = st.builds(
    Figures,
    max_replicas=st.integers(1, 40),
    min_replicas=st.integers(0, 1),
    spares=st.integers(0, 2),
    target_share=st.floats(0.2, 1.0),
    sessions_per_replica=st.none() | st.floats(0.5, 8.0),
    frame_age_slo_s=st.none() | st.just(0.3),
    node_s=st.floats(0.0, 100.0),
    hold_s=st.floats(0.0, 100.0),
    idle_s=st.floats(0.0, 100.0),
)
SPAN = st.builds(
    SpanNow,
    replicas=st.lists(REPLICA, max_size=8),
    arrivals=st.integers(0, 40),
    refusals=st.integers(0, 40),
    frame_age_s=st.none() | st.floats(0.0, 1.0),
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(SPAN, min_size=1, max_size=6), FIGURES, st.floats(0.1, 60.0))
def test_never_below_what_sessions_need_and_never_above_the_most(
    spans: list[SpanNow], figures: Figures, step_s: float
) -> None:
    state = START
    for count, span in enumerate(spans):
        decision, state = decide(span, figures, state, count * step_s)
        sessions = sum(each.sessions for each in span.replicas)
        assert 0 <= decision.wanted <= decision.target <= figures.max_replicas
        assert decision.target * 8 >= min(sessions, figures.max_replicas * 8)
        holding = sum(each.sessions > 0 for each in span.replicas if each.phase is not Phase.LEAVING)
        assert decision.target >= min(holding, figures.max_replicas), "one with a session would go"
        if sessions:
            assert decision.wanted >= min(1 + figures.spares, figures.max_replicas)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.lists(SPAN, min_size=1, max_size=4),
    FIGURES,
    st.floats(1.0, 3.0),
    st.integers(0, 9),
    st.floats(0.0, 1.0),
)
def test_more_load_never_asks_for_fewer(
    spans: list[SpanNow], figures: Figures, times: float, refusals: int, age_s: float
) -> None:
    state = START
    for count, span in enumerate(spans[:-1]):
        _, state = decide(span, figures, state, float(count))
    less, now = spans[-1], float(len(spans))
    busier = [replace(each, share=each.share * times) for each in less.replicas]
    asked, age_s = less.arrivals + refusals, (less.frame_age_s or 0.0) + age_s
    more = replace(
        less, replicas=busier, refusals=less.refusals + refusals, arrivals=asked, frame_age_s=age_s
    )
    few, many = (decide(span, figures, state, now)[0] for span in (less, more))
    assert many.target >= few.target


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(st.integers(0, 8), max_size=8), st.integers(0, 8), FIGURES, st.floats(0.0, 0.5))
def test_more_sessions_never_ask_for_fewer(
    sessions: list[int], more: int, figures: Figures, share: float
) -> None:
    fuller = [min(8, each + more) for each in sessions]
    few, many = (
        settled(SpanNow(held(*each, share=share), arrivals=9), figures, hold_s=500.0)
        for each in (sessions, fuller)
    )
    assert many.target >= few.target
    assert many.wanted >= few.wanted


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=8), FIGURES, st.floats(0.0, 0.3), st.floats(0.5, 30.0)
)
def test_a_constant_load_settles_and_does_not_flap(
    sessions: list[int], figures: Figures, share: float, step_s: float
) -> None:
    """Whatever it finds: up to what it needs, down once, and then as it is."""
    state, replicas, counts = START, held(*sessions, share=share), []
    for count in range(400):
        decision, state = decide(SpanNow(replicas), figures, state, count * step_s)
        empty = [each for each in replicas if not each.sessions]
        while len(replicas) > decision.target and empty:
            replicas.remove(empty.pop())
        replicas += held(*[0] * (decision.target - len(replicas)))
        counts.append(decision.target)
    changes = [now - before for before, now in pairwise(counts) if now != before]
    downs = [change < 0 for change in changes]
    assert downs == sorted(downs), counts
    assert len(set(counts[-50:])) == 1 or step_s * 350 < figures.idle_s


def test_serve_tells_the_policy_what_replicas_say() -> None:
    context = SimpleNamespace(
        raw_metrics=None,
        running_replicas=["a", "b"],
        target_num_replicas=2,
        policy_state={},
        current_time=0.0,
    )

    def report(**said: tuple[float, float]) -> None:
        """Of each replica, over what it said before."""
        series = {name: dict(zip("ab", values, strict=True)) for name, values in said.items()}
        context.raw_metrics = {
            name: {
                each: [SimpleNamespace(value=99.0), SimpleNamespace(value=now)] for each, now in of.items()
            }
            for name, of in series.items()
        }

    policy = ScaleByDemand({"max_replicas": 8, "hold_s": 5.0})
    assert policy(context)[0] == 2, "nobody is heard yet"
    report(sessions=(4.0, 5.0), slots=(8.0, 4.0))
    context.target_num_replicas, context.policy_state = policy(context)
    assert context.target_num_replicas == 3, "by the least of the slots"
    report(sessions=(1.0, 0.0), slots=(8.0, 4.0))
    context.current_time = 4.0
    wanted, context.policy_state = policy(context)
    assert wanted == 3
    context.current_time = 5.0
    wanted, context.policy_state = policy(context)
    assert wanted == 1
    report(sessions=(1.0, 1.0), slots=(8.0, 4.0))
    context.target_num_replicas, context.current_time = 2, 6.0
    assert policy(context)[0] == 2, "none of them is empty"
    report(sessions=(1.0, 3.0), slots=(8.0, 8.0), is_leaving=(1.0, 0.0))
    context.policy_state, context.current_time = {}, 7.0
    _, context.policy_state = policy(context)
    context.current_time = 60.0
    assert policy(context)[0] == 2, "one that is drained on request is not what Serve would take"


@pytest.mark.parametrize(("most", "every_s"), [((1, 1), 0.5), ((20, 30), 0.5), ((200, 56), 2.56)])
def test_serves_controller_hears_a_hundred_reports_a_second_at_most(
    most: tuple[int, int], every_s: float
) -> None:
    spans = [
        {"name": "a", "operators": ["encode"], "max_replicas": most[0]},
        {"name": "b", "operators": ["denoise-0", "denoise-1", "decode"], "replicas": most[1]},
    ]
    config = load_config({"topology": "pipeline", "spans": spans})
    scaling = stage_options(config, config.spans[0])["autoscaling_config"]
    assert scaling.metrics_interval_s == pytest.approx(every_s)
    assert scaling.look_back_period_s == pytest.approx(2 * every_s)
