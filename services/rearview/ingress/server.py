"""The edge: a grpc.aio server of our own around an `Ingress`, with health, reflection, TLS and drain.

Health has two answers. Of the whole server ("") it is SERVING until the drain; of the TranslationService only
while every span has a replica whose link beats, without which no frame can come back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from rearview.config import ServiceConfig
from rearview.ingress.door import OVERSIZE, Door
from rearview.ingress.running import RunningCalls
from rearview.ingress.service import Ingress
from rearview.ingress.servicer import ModelServicer, SessionServicer, TranslationServicer
from rearview.ingress.tls import server_credentials
from rearview.telemetry.exposition import MetricsServer, serve_metrics
from rearview.telemetry.logging import log_fault
from rearview.transport.heap import keep_freed_memory
from rearview.transport.links import reachable
from rearview.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    translation_service_pb2,
    translation_service_pb2_grpc,
)

__all__ = ["IngressServer"]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

logger = logging.getLogger(__name__)

FLUSH_S = 1.5
"""How long calls have to send why they end; those that watch the health never end by themselves."""
WATCH_PERIOD_S = 0.25
"""How often files of tokens are looked at: a call ends well within a second of its token."""
MIN_KEEPALIVE_S, MAX_KEEPALIVE_S = 1.0, 5.0
KEEPALIVE_SHARE = 0.35
"""Of the time after which a silent stream is idle. A client that is frozen is known by twice that, before its
session would be ended for want of frames."""
_SERVICES = (
    translation_service_pb2.DESCRIPTOR.services_by_name["TranslationService"].full_name,
    session_service_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)


class IngressServer:
    """Serves one `Ingress`. Construct, start and stop it on one event loop."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress
        self._config = ingress.config
        self._health = health.aio.HealthServicer()
        self._credentials = server_credentials(self._config.ingress, self._config.access.tls_client_ca_file)
        self._running = RunningCalls(ingress.credentials.authenticate)
        door = Door(
            self._running,
            self._config.access.peers,
            self._config.max_message_bytes,
            ingress.events,
        )
        self._server: grpc.aio.Server = grpc.aio.server(interceptors=(door,), options=_options(self._config))
        self._metrics_server: MetricsServer | None = None
        self._watching: asyncio.Task[None] | None = None
        self._yielding: asyncio.Task[None] | None = None
        """Drains, for a newer cluster serves."""
        self.port = 0
        self.metrics_port = 0

    async def start(self) -> None:
        """Listen. Raises RuntimeError if the port is taken."""
        keep_freed_memory()
        await self._ingress.start()
        server, edge = self._server, self._config.ingress
        translation_service_pb2_grpc.add_TranslationServiceServicer_to_server(
            TranslationServicer(self._ingress), server
        )
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(self._ingress), server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(self._ingress), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if edge.reflection:
            names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        self.port = self._listen()
        await server.start()
        self._watching = asyncio.create_task(self._watch())
        self._metrics_server = serve_metrics(
            self._ingress.metrics.registry, edge.metrics_port, self._config.access.metrics
        )
        self.metrics_port = self._metrics_server.port
        for service in ("", *_SERVICES):
            await self._health.set(service, SERVING)

    @property
    def address(self) -> str:
        return f"{self._config.ingress.host}:{self.port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{reachable(self._config.access.metrics.host)}:{self.metrics_port}/metrics"

    async def drain(self) -> None:
        """Refuse new streams, tell the others, and give them the drain grace to finish; then end them."""
        grace_s = self._config.ingress.drain_grace_s
        await self._health.enter_graceful_shutdown()
        self._ingress.drain()
        # The port is closed at once, so that new streams go to another ingress.
        stopping = asyncio.create_task(self._server.stop(grace_s + FLUSH_S))
        await self._ingress.sessions.wait_until_unfed(grace_s)
        self._ingress.leave()
        await self._server.stop(FLUSH_S)
        await stopping

    async def stop(self) -> None:
        """End everything now."""
        for task in (self._watching, self._yielding):
            if task is not None:
                task.cancel()
        await self._ingress.stop()
        await self._server.stop(FLUSH_S)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)

    def _listen(self) -> int:
        edge = self._config.ingress
        address = f"{edge.host}:{edge.port}"
        if self._credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._credentials)

    async def _watch(self) -> None:
        """Say whether frames can flow, and end the calls whose token is over, soon after it is or after its
        file has changed.
        """
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            try:
                flows = self._ingress.roster.is_complete
                await self._health.set(_SERVICES[0], SERVING if flows else NOT_SERVING)
                if self._ingress.clusters.is_superseded and self._yielding is None:
                    logger.warning("a newer cluster serves: this ingress drains")
                    self._yielding = asyncio.create_task(self.drain())
                self._running.expire(time.time())
                if self._ingress.credentials.refresh():
                    self._ingress.sessions.revoke(self._ingress.credentials)
                    self._running.recheck()
            except Exception as error:  # The edge of a look: the next one must come.
                log_fault(logger, "health and tokens could not be looked at", error)


def _options(config: ServiceConfig) -> list[tuple[str, Any]]:
    largest, peers = config.max_message_bytes, config.access.peers
    keepalive_s = max(MIN_KEEPALIVE_S, KEEPALIVE_SHARE * config.ingress.idle_timeout_s)
    keepalive_ms = round(1000 * min(MAX_KEEPALIVE_S, keepalive_s))
    return [
        ("grpc.max_concurrent_streams", peers.max_calls_per_connection),
        ("grpc.max_allowed_incoming_connections", peers.max_connections),
        ("grpc.server_handshake_timeout_ms", round(1000 * peers.handshake_timeout_s)),
        ("grpc.max_connection_idle_ms", round(1000 * peers.idle_connection_s)),
        ("grpc.so_reuseport", int(config.ingress.replicas > 1)),
        ("grpc.max_receive_message_length", OVERSIZE * largest),
        ("grpc.max_send_message_length", largest),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.http2.ping_timeout_ms", keepalive_ms),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ]
