"""The whole service in one process and on one event loop: real stages, links, ingress and gRPC, no Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rearview.config import ServiceConfig
from rearview.ingress.server import IngressServer
from rearview.ingress.service import Ingress
from rearview.replica.stage import Stage


@dataclass
class InProcessService:
    """What a test may look into."""

    server: IngressServer
    ingress: Ingress
    stages: list[Stage]

    @property
    def address(self) -> str:
        return self.server.address


@asynccontextmanager
async def in_process_service(config: ServiceConfig) -> AsyncIterator[InProcessService]:
    """Start every replica that `config` names; stop them all at the end."""
    stages = [
        Stage(config, index, f"{span.name}#{replica}", "node")
        for index, span in enumerate(config.spans)
        for replica in range(span.replicas)
    ]
    for stage in stages:
        await stage.start()

    async def members() -> list[dict[str, object]]:
        return [dict(stage.describe()) for stage in stages]

    server = IngressServer(Ingress(config, "ingress#0", "node", members))
    await server.start()
    try:
        yield InProcessService(server, server._ingress, stages)
    finally:
        await server.stop()
        for stage in stages:
            await stage.stop()
