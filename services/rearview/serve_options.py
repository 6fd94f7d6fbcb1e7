"""What Ray Serve is told of the deployments: how often to ask for their health, how they scale and end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from rearview.config import ServiceConfig, SpanConfig
from rearview.replica.openmp import SPINS

__all__ = ["ScaleByDemand", "common_options", "stage_options"]

HEALTH_CHECK_PERIOD_S = 0.5
"""Serve's default of 10 s is too slow for video. A replica is replaced when it has failed three in a row."""
HEALTH_CHECK_TIMEOUT_S = 1.5
"""One that does not answer for so long has failed: a process that is stopped is given up after 4.5 s."""
SHUTDOWN_MARGIN_S = 5.0
METRICS_INTERVAL_S = 0.5
"""How often replicas report what they hold to Serve's controller."""
HOLD_S = 5.0
"""How long fewer replicas must be enough before one goes."""


class ScaleByDemand:
    """Serve's autoscaling policy: see `control.scaling.decide`. Runs in the controller."""

    def __init__(self, figures: Mapping[str, Any]) -> None:
        """`figures`: fields of `control.scaling.Figures`."""
        self._figures = dict(figures)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas wanted, and the state for the next call."""
        # Serve pickles this class by value into its controller: names of this module are not there.
        from rearview.control import scaling

        told = context.aggregated_metrics or {}
        sessions, slots, shares = (told.get(name, {}) for name in ("sessions", "slots", "share"))
        heard = [
            scaling.ReplicaNow(shares.get(each, 0.0), int(sessions[each]), int(slots.get(each, 0)))
            for each in context.running_replicas
            if each in sessions
        ]
        unheard = len(context.running_replicas) - len(heard)
        starting = max(0, context.target_num_replicas - len(context.running_replicas))
        silent = [scaling.ReplicaNow(has_reported=False)] * unheard
        ordered = [scaling.ReplicaNow(phase=scaling.Phase.STARTING)] * starting
        span = scaling.SpanNow([*heard, *silent, *ordered])
        state = context.policy_state.get("scaling", scaling.START)
        decision, state = scaling.decide(span, scaling.Figures(**self._figures), state, context.current_time)
        return decision.wanted, {"scaling": state}


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
        scale = {"autoscaling_config": _autoscaling(span)}
    if span.metrics_port:
        scale["max_replicas_per_node"] = 1
    surge = {"max_surge_percent": span.max_surge_percent}
    return {"ray_actor_options": actor, **scale, **surge, **common_options(config)}


def _autoscaling(span: SpanConfig) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=span.replicas,
        max_replicas=span.max_replicas,
        metrics_interval_s=METRICS_INTERVAL_S,
        look_back_period_s=2 * METRICS_INTERVAL_S,
        upscale_delay_s=0.0,  # The policy holds by itself.
        downscale_delay_s=0.0,
        policy=AutoscalingPolicy(
            policy_function="rearview.serve_options:ScaleByDemand",
            policy_kwargs={
                "figures": {
                    "min_replicas": span.replicas,
                    "max_replicas": span.max_replicas,
                    "spares": span.spares,
                    "sessions_per_replica": span.sessions_per_replica,
                    "slots": span.fixed_slots,
                    "hold_s": HOLD_S,
                },
            },
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
