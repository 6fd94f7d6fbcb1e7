"""The whole wiring: spans and ingress as Ray Serve deployments. READ SECOND, after `engine/engine.py`.

Serve places, names, scales and heals; it does not carry frames. Each span of the configuration is one
deployment whose replicas hold a `Stage`; the ingress is one whose replicas run their own gRPC server.
Handles serve the ingress to ask replicas who they are (`describe`); all else travels over links.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import get_runtime_context, serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from rearview.config import ServiceConfig, load_config
from rearview.contract.family import check_checkpoint
from rearview.errors import ConfigError
from rearview.machine import this_machine
from rearview.serve_options import common_options, stage_options
from rearview.serve_secret import kept_secret
from rearview.telemetry.logging import log_as
from rearview.telemetry_config import check_traces
from rearview.transport.secrets import with_secret

__all__ = ["INGRESS", "IngressDeployment", "StageDeployment", "build_app", "build_app_from_args"]

INGRESS = "ingress"
"""Name of the ingress's deployment."""
LEAVE_GRACE_S = 3600.0
"""A replica that is drained on request waits so long for its last session."""


class StageDeployment:
    """A `Stage` as Serve sees it."""

    async def __init__(self, config: Mapping[str, Any], span_index: int) -> None:  # type: ignore[misc]  # Serve awaits it
        from rearview.replica.pulse import end_process
        from rearview.replica.stage import Stage

        node = get_runtime_context().get_node_id()
        self._config = ServiceConfig.model_validate(config)
        log_as(self._config.telemetry.logs, "json")
        self._replica_id: str = serve.get_replica_context().replica_id.unique_id
        self._leaving: asyncio.Task[None] | None = None
        self._stage = Stage(self._config, span_index, self._replica_id, node, on_end=end_process)
        await self._stage.start()

    async def describe(self) -> Mapping[str, Any]:
        """See `Stage.describe`."""
        return self._stage.describe()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `ScaleByDemand` reads: a `Report`."""
        return self._stage.reporting.report().described()

    async def hear(self, told: Mapping[str, Any]) -> None:
        """See `Reporting.hear`."""
        self._stage.reporting.hear(told)

    async def leave(self, replica_id: str) -> bool:
        """If it is this replica that is meant: let its sessions move off, and be replaced then."""
        if replica_id == self._replica_id and self._leaving is None:
            self._leaving = asyncio.create_task(self._stage.drain(LEAVE_GRACE_S))
        return replica_id == self._replica_id

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
        from rearview.serve_members import ServeMembers

        content = ServiceConfig.model_validate(config)
        log_as(content.telemetry.logs, "json")
        self._members = members = ServeMembers(spans, content.spans)
        replica_id = serve.get_replica_context().replica_id.unique_id
        node = get_runtime_context().get_node_id()
        born = get_runtime_context().get_session_name()  # It begins with when this Ray was started.
        self._ingress = Ingress(content, replica_id, node, members.describe, None, born, members.present)
        self._server = IngressServer(self._ingress)
        await self._server.start()
        self._members.tell(self._ingress.demand.told)

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
        await self._members.stop()


def build_app(config: ServiceConfig) -> Application:
    """One deployment per span, and the ingress in front of them. Raises ConfigError at once."""
    check_checkpoint(config.model.checkpoint)
    check_traces(config.telemetry.traces)
    if config.ingress.replicas > 1 and not this_machine().shares_ports:
        raise ConfigError("ingress.replicas > 1: on this system one process would get all connections")
    link = with_secret(config.link, partial(kept_secret, config))
    content = config.model_copy(update={"link": link}).model_dump(mode="json")
    stage = serve.deployment(StageDeployment)
    spans = [
        stage.options(name=span.name, **stage_options(config, span)).bind(content, index)
        for index, span in enumerate(config.spans)
    ]
    ingress = serve.deployment(IngressDeployment, name=INGRESS).options(
        num_replicas=config.ingress.replicas,
        ray_actor_options={"num_cpus": config.ingress.num_cpus, "resources": config.ingress.resources},
        **common_options(config),
    )
    application: Application = ingress.bind(content, *spans)
    return application


def build_app_from_args(args: Mapping[str, Any]) -> Application:
    """`build_app` for Serve config files: `args: {config: <content of a ServiceConfig>}`."""
    return build_app(load_config(args["config"]))
