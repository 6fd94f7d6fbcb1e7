"""From what replicas report, and ingresses tell them, to how many replicas there should be. Pure.

Serve's policy and every ingress ask the same of the same reports: the policy orders what follows, the leader
among ingresses moves sessions together for it (`consolidation.py`). Counts only grow, so that whoever has
missed a report has missed nothing: what is new is the difference to what was known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from rearview.config import ServiceConfig, SpanConfig
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

__all__ = ["BEGIN", "Report", "Standing", "binding", "figures_of", "percentile_95", "scale"]

UNKNOWN_S = -1.0
WORTH_S = 1e-3
"""Frames that wait less bind nothing."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one replica says. Numbers only: Serve carries no others."""

    share: float = 0.0
    sessions: float = 0.0
    slots: float = 0.0
    start_s: float = 0.0
    """How long its start took."""
    is_leaving: float = 0.0
    """1: it takes no session any more."""
    asked: float = 0.0
    """Sessions that were asked for, as far as it has heard: of every ingress since that started."""
    refused: float = 0.0
    """How many of them found no room in this span."""
    frame_age_s: float = UNKNOWN_S
    """The worst 95th percentile that an ingress has told lately, if this span binds."""

    @classmethod
    def of(cls, said: Mapping[str, float]) -> Report:
        """Of what a replica says, whose version may say more or less."""
        return cls(**{one.name: float(said[one.name]) for one in fields(cls) if one.name in said})

    def described(self) -> dict[str, float]:
        """What `of` reads."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is carried from one decision about a span to the next."""

    state: ScalingState = START
    asked: float | None = None
    """As reported last. None: nothing was."""
    refused: float | None = None


BEGIN = Standing()


def scale(
    reports: Sequence[Report | None], starting: int, figures: Figures, standing: Standing, now: float
) -> tuple[Decision, Standing]:
    """How many replicas a span should have. `reports`: one of each replica that runs, None of one that has
    not reported. `starting`: how many more are ordered.
    """
    heard = [report for report in reports if report is not None]
    asked = max((each.asked for each in heard), default=standing.asked)
    refused = max((each.refused for each in heard), default=standing.refused)
    ages_s = [each.frame_age_s for each in heard if each.frame_age_s >= 0]
    span = SpanNow(
        [*map(_replica, reports), *[ReplicaNow(phase=Phase.STARTING)] * starting],
        arrivals=_new(asked, standing.asked),
        refusals=_new(refused, standing.refused),
        start_s=max((each.start_s for each in heard), default=0.0),
        frame_age_s=max(ages_s, default=None),
    )
    decision, state = decide(span, figures, standing.state, now)
    return decision, Standing(state, asked, refused)


def figures_of(config: ServiceConfig, span: SpanConfig) -> Figures:
    """What the operator wants of a span that scales."""
    wanted = config.scaling
    assert span.max_replicas is not None, f"span {span.name} does not scale"
    return Figures(
        max_replicas=span.max_replicas,
        min_replicas=span.replicas if span.min_replicas is None else span.min_replicas,
        spares=span.spares,
        target_share=wanted.target_share,
        max_share=config.placement.max_load or 1.0,
        sessions_per_replica=span.sessions_per_replica,
        slots=span.fixed_slots,
        frame_age_slo_s=wanted.frame_age_slo_s,
        node_s=wanted.node_s,
        image_s=wanted.image_s,
        window_s=wanted.window_s,
        hold_s=wanted.hold_s,
        idle_s=wanted.idle_s,
    )


def binding(queue_s: Mapping[str, float]) -> str | None:
    """The span for which old frames are counted: in which frames wait longest for their turn, whatever the
    networks take. None: they wait nowhere, so no replica more would help. `queue_s`: by span.
    """
    longest = max(queue_s, key=lambda span: queue_s[span], default=None)
    return None if longest is None or queue_s[longest] < WORTH_S else longest


def percentile_95(values: Iterable[float]) -> float | None:
    """The smallest that 95 % of them do not exceed. None of none."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * 95 // 100) - 1] if ordered else None


def _replica(report: Report | None) -> ReplicaNow:
    if report is None:
        return ReplicaNow(has_reported=False)
    phase = Phase.LEAVING if report.is_leaving else Phase.SERVING
    return ReplicaNow(report.share, int(report.sessions), int(report.slots), phase)


def _new(count: float | None, before: float | None) -> int:
    """What was not known before. Ingresses that have restarted begin anew, which is nothing new."""
    return 0 if count is None or before is None else max(0, int(count - before))
