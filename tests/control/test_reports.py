"""From what replicas report to what is decided, and which replicas are emptied for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.config import load_config
from rearview.contract.scaling import Why
from rearview.control.consolidation import leaving
from rearview.control.placement import Asked, Replica, place
from rearview.control.reports import BEGIN, Report, binding, figures_of, percentile_95, scale
from rearview.control.scaling import Figures
from rearview.errors import ConfigError

pytestmark = pytest.mark.unit

FIGURES = Figures(max_replicas=8, frame_age_slo_s=0.3, hold_s=0.0)


def test_a_report_is_read_whatever_else_is_said() -> None:
    report = Report(0.5, 3, 8, 12.0, 0.0, 7, 2, 0.2)
    assert Report.of({**report.described(), "running_requests": 4.0}) == report
    assert Report.of({"sessions": 1.0}) == Report(sessions=1.0)
    assert all(isinstance(value, int | float) for value in report.described().values())


def test_what_is_new_is_the_difference_to_what_was_known() -> None:
    """Ingresses count from their start; replicas have heard of them at different times."""
    full = Report(0.6, 6, 8, asked=100, refused=10)
    first, standing = scale([full], 0, FIGURES, BEGIN, 0.0)
    assert first.target == 1, "what was before the first report is not new"
    behind = replace(full, asked=40, refused=0)
    second, standing = scale([behind, replace(full, asked=108, refused=18)], 0, FIGURES, standing, 1.0)
    assert (second.wanted, standing.state.waiting) == (3, 8.0), "two of 0.6 and eight that wait, of 0.1 each"
    _, standing = scale([replace(full, asked=1, refused=0)], 0, FIGURES, standing, 100.0)
    assert standing.state.waiting < 1e-9, "ingresses that have restarted count anew"
    _, standing = scale([], 1, FIGURES, standing, 101.0)
    assert (standing.asked, standing.refused) == (1, 0), "nobody is there to tell"


def test_the_time_to_capacity_is_what_a_start_took() -> None:
    figures = replace(FIGURES, window_s=64.0, node_s=30.0, max_replicas=64)
    standings, wanted = dict.fromkeys((0.0, 60.0), BEGIN), {}
    for second in range(70):
        for start_s in standings:
            report = Report(0.1 * second, second, 256, start_s=start_s, asked=second)
            decision, standings[start_s] = scale([report], 0, figures, standings[start_s], float(second))
            wanted[start_s] = decision.wanted
    assert decision.why is Why.AHEAD
    assert wanted[0.0] > 10, "of which ten are for the load that is there"
    assert wanted[60.0] - 10 == pytest.approx(3 * (wanted[0.0] - 10), abs=2)


def test_age_counts_for_the_span_that_binds() -> None:
    late = Report(0.3, 3, 8, frame_age_s=0.5)
    assert scale([late, late], 0, FIGURES, BEGIN, 0.0)[0].why is Why.AGE
    assert scale([late, replace(late, frame_age_s=-1.0)], 0, FIGURES, BEGIN, 0.0)[0].why is Why.AGE
    fine = replace(late, frame_age_s=-1.0)
    assert scale([fine, fine], 0, FIGURES, BEGIN, 0.0)[0].why is not Why.AGE
    assert binding({"encode": 0.01, "denoise": 0.2, "decode": 0.0}) == "denoise"
    assert binding({"encode": 0.0001}) is None
    assert binding({}) is None


def test_one_that_drains_is_not_counted_and_one_that_is_silent_holds() -> None:
    figures = replace(FIGURES, hold_s=0.0)
    leaves = Report(0.1, 1, 8, is_leaving=1.0)
    assert scale([Report(0.1, 1, 8), leaves], 0, figures, BEGIN, 0.0)[0].target == 1
    assert scale([Report(0.1, 1, 8), None], 0, figures, BEGIN, 0.0)[0].why is Why.UNHEARD


@pytest.mark.parametrize(("count", "found"), [(1, 1), (19, 19), (20, 19), (100, 95)])
def test_the_95th_percentile_is_a_value_that_was_seen(count: int, found: int) -> None:
    assert percentile_95(range(1, count + 1)) == found
    assert percentile_95([]) is None


def test_the_figures_are_those_of_the_configuration() -> None:
    operators = ["encode", "denoise-0", "denoise-1", "decode"]
    span = {"name": "fused", "operators": operators, "replicas": 2, "max_replicas": 6, "slots": "auto"}
    scaling = {"target_share": 0.5, "node_s": 90, "image_s": 30, "frame_age_slo_s": 0.2}
    config = load_config({"spans": [span], "scaling": scaling, "placement": {"max_load": 0.9}})
    figures = figures_of(config, config.spans[0])
    assert (figures.min_replicas, figures.max_replicas, figures.slots) == (2, 6, None)
    assert (figures.target_share, figures.max_share, figures.frame_age_slo_s) == (0.5, 0.9, 0.2)
    assert (figures.node_s, figures.image_s, figures.hold_s) == (90.0, 30.0, 60.0)
    config = load_config({"spans": [{**span, "min_replicas": 0, "spares": 1}]})
    assert figures_of(config, config.spans[0]).min_replicas == 0


@pytest.mark.parametrize(
    ("span", "sections", "said"),
    [
        ({"min_replicas": 0}, {}, "needs max_replicas"),
        ({"min_replicas": 3, "max_replicas": 4, "replicas": 2}, {}, "min_replicas 3 > replicas 2"),
        ({"max_replicas": 4}, {"placement": {"max_load": 0.5}}, "max_load 0.5 < scaling.target_share 0.7"),
        ({"max_replicas": 4}, {"scaling": {"target_share": 1.1}}, "target_share"),
    ],
)
def test_what_cannot_scale_is_refused(span: dict[str, int], sections: dict[str, Any], said: str) -> None:
    operators = ["encode", "denoise-0", "denoise-1", "decode"]
    with pytest.raises(ConfigError, match=said):
        load_config({"spans": [{"name": "fused", "operators": operators, **span}], **sections})


def replica(name: str, started_s: float = 0.0, *, node: str = "n0", span: str = "fused") -> Replica:
    return Replica(name, span, f"tcp://{name}", node, 8, 8, started_s=started_s)


THREE = [replica("a", 1.0), replica("b", 3.0), replica("c", 2.0)]


@pytest.mark.parametrize(
    ("wanted", "replicas", "spares", "already", "chosen"),
    [
        ({"fused": 2}, THREE, "", "", "b"),
        ({"fused": 1}, THREE, "", "", "bc"),
        ({"fused": 3}, THREE, "", "b", ""),
        ({"fused": 4}, THREE, "", "", ""),
        ({}, THREE, "", "b", ""),
        ({"fused": 2}, THREE, "", "a", "a"),
        ({"fused": 1}, THREE, "", "a", "ab"),
        ({"fused": 2}, THREE, "b", "", "c"),
        ({"fused": 2}, [*THREE, replica("d", span="other")], "", "", "b"),
        ({"fused": 3}, [*THREE, replica("d", 0.0, node="n1")], "", "", "d"),
        ({"fused": 0}, THREE, "", "", "abc"),
    ],
    ids=[
        "the newest",
        "the newest two",
        "none any more",
        "more are to come",
        "it does not scale",
        "who leaves goes on leaving",
        "and then the newest",
        "no spare",
        "of its own span",
        "on the machine with the fewest",
        "all",
    ],
)
def test_those_that_serve_would_take_are_emptied(
    wanted: dict[str, int], replicas: list[Replica], spares: str, already: str, chosen: str
) -> None:
    assert leaving(wanted, replicas, set(spares), set(already)) == set(chosen)


@settings(deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from("xy"), st.integers(0, 5)),
    st.lists(st.tuples(st.sampled_from("xy"), st.floats(0, 9)), max_size=8),
    st.sets(st.integers(0, 7)),
    st.sets(st.integers(0, 7)),
)
def test_no_more_leave_than_are_to_go_and_the_same_ones_the_next_time(
    wanted: dict[str, int], known: list[tuple[str, float]], spares: set[int], already: set[int]
) -> None:
    replicas = [replica(str(n), started_s, span=span) for n, (span, started_s) in enumerate(known)]
    kept, left = {str(n) for n in spares}, {str(n) for n in already}
    chosen = leaving(wanted, replicas, kept, left)
    assert not chosen & kept
    assert leaving(wanted, replicas, kept, chosen) == chosen
    for span in "xy":
        of_span = [each for each in replicas if each.span == span]
        gone = sum(each.replica_id in chosen for each in of_span)
        assert gone <= max(0, len(of_span) - wanted.get(span, len(of_span)))


def test_sessions_go_to_one_that_leaves_only_where_no_other_has_room() -> None:
    full, empty = replace(replica("a"), free_slots=1), replica("b")
    asked = Asked(leaving=frozenset("b"))
    assert place(["fused"], [full, empty], {}, asked) == ("a",)
    assert place(["fused"], [replace(full, free_slots=0), empty], {}, asked) == ("b",)
    spare = replica("c")
    goes_on = replace(asked, goes_on=True, spares=frozenset("c"))
    assert place(["fused"], [empty, spare], {}, goes_on) == ("c",)
