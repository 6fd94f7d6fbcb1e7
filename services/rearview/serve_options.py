"""What Ray Serve is told of the deployments: how often to ask for their health, how they scale and end."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from rearview.config import ServiceConfig, SpanConfig
from rearview.replica.openmp import SPINS

__all__ = ["ScaleBySessions", "common_options", "stage_options"]

HEALTH_CHECK_PERIOD_S = 0.5
"""Serve's default of 10 s is too slow for video. A replica is replaced when it has failed three in a row."""
HEALTH_CHECK_TIMEOUT_S = 1.5
"""One that does not answer for so long has failed: a process that is stopped is given up after 4.5 s."""
SHUTDOWN_MARGIN_S = 5.0
METRICS_INTERVAL_S = 0.5
"""How often replicas report their sessions to Serve's controller."""
UPSCALE_DELAY_S = 0.0
DOWNSCALE_DELAY_S = 5.0


class ScaleBySessions:
    """Serve's autoscaling policy: see `control.autoscaling.desired_replicas`. Runs in the controller."""

    def __init__(self, sessions_per_replica: float, slots: int | None, spares: int = 0) -> None:
        """`slots`: of each replica; None: each says how many it has."""
        self._sessions_per_replica, self._slots, self._spares = sessions_per_replica, slots, spares

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas wanted; no state is kept."""
        # Serve pickles this class by value into its controller: names of this module are not there.
        from rearview.control.autoscaling import desired_replicas

        told = context.aggregated_metrics or {}
        sessions, current = list(told.get("sessions", {}).values()), context.current_num_replicas
        slots = self._slots or min((each for each in told.get("slots", {}).values() if each), default=None)
        return desired_replicas(sessions, current, self._sessions_per_replica, slots, self._spares), {}


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
        upscale_delay_s=UPSCALE_DELAY_S,
        downscale_delay_s=DOWNSCALE_DELAY_S,
        policy=AutoscalingPolicy(
            policy_function="rearview.serve_options:ScaleBySessions",
            policy_kwargs={
                "sessions_per_replica": span.sessions_per_replica,
                "slots": span.fixed_slots,
                "spares": span.spares,
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
