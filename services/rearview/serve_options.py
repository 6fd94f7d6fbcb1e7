"""What Ray Serve is told of the deployments: how often to ask for their health, how they scale and end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from rearview.config import ServiceConfig, SpanConfig
from rearview.control.reports import figures_of
from rearview.replica.openmp import SPINS

__all__ = ["ScaleByDemand", "common_options", "stage_options"]

HEALTH_CHECK_PERIOD_S = 0.5
"""Serve's default of 10 s is too slow for video. A replica is replaced when it has failed three in a row."""
HEALTH_CHECK_TIMEOUT_S = 1.5
"""One that does not answer for so long has failed: a process that is stopped is given up after 4.5 s."""
SHUTDOWN_MARGIN_S = 5.0
REPORT_S = 0.5
"""How often a replica reports to Serve's controller what it holds, where there are few."""
REPORTS_PER_S = 100
"""More would keep the controller busy, so many replicas report less often."""


class ScaleByDemand:
    """Serve's autoscaling policy: see `control.scaling`. Runs in Serve's controller, so it waits for nothing.

    What surprises: Serve's aggregated metrics are means over time, in which half a session may be left of
    one; so the newest value of each is taken from its series. And a replica that is drained on request still
    runs for Serve: it is ordered on top, else another one would have to go for it.
    """

    def __init__(self, figures: Mapping[str, Any]) -> None:
        """`figures`: fields of `control.scaling.Figures`."""
        self._figures = dict(figures)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas to order, and the state for the next call."""
        # Serve pickles this class by value into its controller: names of this module are not there.
        from rearview.control import reports, scaling

        told, running = context.raw_metrics or {}, context.running_replicas
        heard = [
            {name: series[each][-1].value for name, series in told.items() if series.get(each)}
            for each in running
        ]
        said = [reports.Report.of(each) if "sessions" in each else None for each in heard]
        decision, standing = reports.scale(
            said,
            max(0, context.target_num_replicas - len(running)),
            scaling.Figures(**self._figures),
            context.policy_state.get("standing", reports.BEGIN),
            context.current_time,
        )
        drained = sum(each is not None and bool(each.is_leaving) for each in said)
        return decision.target + drained, {"standing": standing}


def stage_options(config: ServiceConfig, span: SpanConfig) -> dict[str, Any]:
    """Of a span's deployment."""
    actor = {
        "num_cpus": span.num_cpus,
        "num_gpus": span.num_gpus,
        "resources": span.resources,
        "runtime_env": {"env_vars": {"GOMP_SPINCOUNT": SPINS}},
    }
    scale: dict[str, Any] = {"num_replicas": span.replicas}
    if span.max_replicas is not None:
        scale = {"autoscaling_config": _autoscaling(config, span)}
    if span.metrics_port:
        scale["max_replicas_per_node"] = 1
    surge = {"max_surge_percent": span.max_surge_percent}
    return {"ray_actor_options": actor, **scale, **surge, **common_options(config)}


def _autoscaling(config: ServiceConfig, span: SpanConfig) -> AutoscalingConfig:
    figures = figures_of(config, span)
    most = sum(each.max_replicas or each.replicas for each in config.spans)
    report_s = max(REPORT_S, most / REPORTS_PER_S)
    return AutoscalingConfig(
        min_replicas=figures.min_replicas,
        initial_replicas=span.replicas,
        max_replicas=figures.max_replicas,
        metrics_interval_s=report_s,
        look_back_period_s=2 * report_s,
        upscale_delay_s=0.0,  # The policy holds by itself.
        downscale_delay_s=0.0,
        policy=AutoscalingPolicy(
            policy_function="rearview.serve_options:ScaleByDemand", policy_kwargs={"figures": asdict(figures)}
        ),
    )


def common_options(config: ServiceConfig) -> dict[str, Any]:
    """Of every deployment."""
    return {
        "max_ongoing_requests": 100,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": config.ingress.drain_grace_s + SHUTDOWN_MARGIN_S,
    }
