"""The whole wiring: spans and ingress as Ray Serve deployments. READ SECOND, after `engine/engine.py`.

Serve places, names, scales and heals; it does not carry frames. Each span of the configuration is one
deployment whose replicas hold a `Stage`; the ingress is one whose replicas run their own gRPC server.
Handles serve the ingress to ask replicas who they are (`describe`); all else travels over links.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ray import get_runtime_context, serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle

from rearview.config import ServiceConfig, SpanConfig, load_config
from rearview.contract.card import ModelCard
from rearview.environment import environment

__all__ = ["INGRESS", "IngressDeployment", "StageDeployment", "build_app", "build_app_from_args"]

INGRESS = "ingress"
"""Name of the ingress's deployment."""
HEALTH_CHECK_PERIOD_S = 0.5
"""Serve's default of 10 s is too slow for video. A replica is replaced when it has failed three in a row."""
HEALTH_CHECK_TIMEOUT_S = 1.5
"""One that does not answer for so long has failed: a process that is stopped is killed after 4.5 s."""
SHUTDOWN_MARGIN_S = 5.0
LEAVE_GRACE_S = 3600.0
"""A replica that is drained on request waits so long for its last session."""
DESCRIBE_TIMEOUT_S = 5.0
OPENMP_SPINS = "1000"
"""How long OpenMP workers spin before they sleep. Its default, 300 times that, makes a span with two threads
ten times slower as soon as another process wants one of their cores."""
METRICS_INTERVAL_S = 0.5
"""How often replicas report their sessions to Serve's controller."""
UPSCALE_DELAY_S = 0.0
DOWNSCALE_DELAY_S = 5.0


class StageDeployment:
    """A `Stage` as Serve sees it."""

    async def __init__(self, config: Mapping[str, Any], span_index: int) -> None:  # type: ignore[misc]  # Serve awaits it
        from rearview.replica.pulse import end_process
        from rearview.replica.stage import Stage

        context = serve.get_replica_context()
        node = get_runtime_context().get_node_id()
        self._config = ServiceConfig.model_validate(config)
        replica_id = context.replica_id.unique_id
        self._replica_id = replica_id
        self._leaving: asyncio.Task[None] | None = None
        self._stage = Stage(self._config, span_index, replica_id, node, on_end=end_process)
        await self._stage.start()

    async def describe(self) -> Mapping[str, Any]:
        """See `Stage.describe`."""
        return self._stage.describe()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `ScaleBySessions` reads."""
        return {"sessions": float(self._stage.num_sessions)}

    async def leave(self, replica_id: str) -> bool:
        """If it is this replica that is meant: let its sessions move off, and be replaced then."""
        if replica_id != self._replica_id:
            return False
        self._leaving = self._leaving or asyncio.create_task(self._stage.drain(LEAVE_GRACE_S))
        return True

    async def check_health(self) -> None:
        """Raises if the replica must be replaced."""
        if self._leaving is not None and self._leaving.done():
            raise RuntimeError("the replica was drained: another one takes its place")
        self._stage.check_health()

    async def __del__(self) -> None:
        # Serve's drain hook: it is awaited, within graceful_shutdown_timeout_s.
        await self._stage.drain(self._config.ingress.drain_grace_s)
        await self._stage.stop()


class IngressDeployment:
    """An `IngressServer` as Serve sees it."""

    async def __init__(self, config: Mapping[str, Any], *spans: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        from rearview.ingress.server import IngressServer
        from rearview.ingress.service import Ingress
        from rearview.telemetry.logging import configure_logging

        configure_logging()
        self._spans = spans
        replica_id = serve.get_replica_context().replica_id.unique_id
        node = get_runtime_context().get_node_id()
        self._ingress = Ingress(ServiceConfig.model_validate(config), replica_id, node, self._members)
        self._server = IngressServer(self._ingress)
        await self._server.start()

    async def describe(self) -> Mapping[str, Any]:
        """Where the edge listens."""
        stages = await self._ingress.refresh()
        return {
            "address": self._server.address,
            "metrics_urls": [self._server.metrics_url, *(stage["metrics_url"] for stage in stages)],
            "stages": list(stages),
        }

    async def check_health(self) -> None:
        """Answers if the event loop is alive."""

    async def __del__(self) -> None:
        await self._server.drain()
        await self._server.stop()

    async def _members(self) -> Sequence[Mapping[str, Any]]:
        asked = (
            span.broadcast("describe").results_async(timeout_s=DESCRIBE_TIMEOUT_S, return_exceptions=True)
            for span in self._spans
        )
        described = [answer for answers in await asyncio.gather(*asked) for answer in answers]
        # A replica that died while it was asked is not there.
        return [answer for answer in described if not isinstance(answer, BaseException)]


class ScaleBySessions:
    """Serve's autoscaling policy: see `control.autoscaling.desired_replicas`. Runs in the controller."""

    def __init__(self, sessions_per_replica: float, slots: int) -> None:
        self._sessions_per_replica, self._slots = sessions_per_replica, slots

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas wanted; no state is kept."""
        # Serve pickles this class by value into its controller: names of this module are not there.
        from rearview.control.autoscaling import desired_replicas

        sessions = list((context.aggregated_metrics or {}).get("sessions", {}).values())
        current = context.current_num_replicas
        return desired_replicas(sessions, current, self._sessions_per_replica, self._slots), {}


def build_app(config: ServiceConfig) -> Application:
    """One deployment per span, and the ingress in front of them. Raises ConfigError at once."""
    ModelCard.read(config.model.checkpoint)
    secret = config.link.secret or environment("LINK_SECRET") or secrets.token_hex(32)
    link = config.link.model_copy(update={"secret": secret})
    content = config.model_copy(update={"link": link}).model_dump(mode="json")
    spans = [
        serve.deployment(StageDeployment, name=span.name)
        .options(**_stage_options(config, span))
        .bind(content, index)
        for index, span in enumerate(config.spans)
    ]
    ingress = serve.deployment(IngressDeployment, name=INGRESS).options(
        num_replicas=config.ingress.replicas,
        ray_actor_options={"num_cpus": config.ingress.num_cpus, "resources": config.ingress.resources},
        **_common_options(config),
    )
    application: Application = ingress.bind(content, *spans)
    return application


def build_app_from_args(args: Mapping[str, Any]) -> Application:
    """`build_app` for Serve config files: `args: {config: <content of a ServiceConfig>}`."""
    return build_app(load_config(args["config"]))


def _stage_options(config: ServiceConfig, span: SpanConfig) -> dict[str, Any]:
    actor = {
        "num_cpus": span.num_cpus,
        "num_gpus": span.num_gpus,
        "resources": span.resources,
        "runtime_env": {"env_vars": {"GOMP_SPINCOUNT": OPENMP_SPINS}},
    }
    scale: dict[str, Any] = {"num_replicas": span.replicas}
    if span.max_replicas is not None:
        scale = {"autoscaling_config": _autoscaling(span)}
    if span.metrics_port:
        scale["max_replicas_per_node"] = 1
    return {"ray_actor_options": actor, **scale, **_common_options(config)}


def _autoscaling(span: SpanConfig) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=span.replicas,
        max_replicas=span.max_replicas,
        metrics_interval_s=METRICS_INTERVAL_S,
        look_back_period_s=2 * METRICS_INTERVAL_S,
        upscale_delay_s=UPSCALE_DELAY_S,
        downscale_delay_s=DOWNSCALE_DELAY_S,
        policy=AutoscalingPolicy(
            policy_function="rearview.app:ScaleBySessions",
            policy_kwargs={"sessions_per_replica": span.sessions_per_replica, "slots": span.slots},
        ),
    )


def _common_options(config: ServiceConfig) -> dict[str, Any]:
    return {
        "max_ongoing_requests": 100,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": config.ingress.drain_grace_s + SHUTDOWN_MARGIN_S,
    }
