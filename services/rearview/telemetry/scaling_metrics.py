"""The metrics of autoscaling; `metrics.py` has them with all others."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from rearview.contract.scaling import Why

__all__ = ["ScalingMetrics"]


class ScalingMetrics:
    """Of how many replicas there should be, as an ingress sees it: all see the same."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.replicas_wanted = Gauge(
            "rearview_replicas_wanted",
            "Replicas that a span that scales is to get to; take the highest over ingresses.",
            ["span"],
            registry=registry,
        )
        self.replicas_leaving = Gauge(
            "rearview_replicas_leaving",
            "Replicas of a span whose sessions move to the others, so that they can go.",
            ["span"],
            registry=registry,
        )
        self.scaling_reason = Gauge(
            "rearview_scaling_reason",
            "1 for what decides the number of replicas of a span, 0 for all else.",
            ["span", "why"],
            registry=registry,
        )

    def replicas_decided(self, span: str, wanted: int, leaving: int, why: Why) -> None:
        """So many are wanted of a span, and why."""
        self.replicas_wanted.labels(span).set(wanted)
        self.replicas_leaving.labels(span).set(leaving)
        for each in Why:
            self.scaling_reason.labels(span, each.value).set(each is why)
