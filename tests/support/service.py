"""The whole service in one process and on one event loop: real stages, links, ingresses and gRPC, no Ray.

It has the number of ingresses that `pytest --ingresses` says, one by default. With more they stand before the
same replicas, share one directory, and are called in turn: what one has opened another is asked to resume.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rearview.config import ServiceConfig
from rearview.directory import Directory, MemoryDirectory
from rearview.ingress.server import IngressServer
from rearview.ingress.service import Ingress
from rearview.ingress.sessions import Record
from rearview.replica.stage import Stage

__all__ = ["InProcessService", "SessionsOfAll", "in_process_service", "ingresses"]

ingresses = 1
"""How many a service has that does not say; set by the tests' options and marks."""


@dataclass
class InProcessService:
    """What a test may look into."""

    config: ServiceConfig
    stages: list[Stage]
    shared: Directory | None = None
    """The directory in memory that its ingresses share; None: each opens what `config` says."""
    servers: list[IngressServer] = field(default_factory=list)
    generation: str = ""
    """Of the cluster that it is."""

    def __post_init__(self) -> None:
        self._turns = itertools.count()

    async def add(self) -> IngressServer:
        """One ingress more."""
        name = f"{self.generation}ingress#{len(self.servers)}"
        ingress = Ingress(self.config, name, "node", self.members, self.shared, generation=self.generation)
        server = IngressServer(ingress)
        await server.start()
        self.servers.append(server)
        return server

    async def members(self) -> list[dict[str, object]]:
        return [dict(stage.describe()) for stage in self.stages]

    @property
    def ingresses(self) -> list[Ingress]:
        return [server._ingress for server in self.servers]

    @property
    def server(self) -> IngressServer:
        """The one there is: a test that asks for it is marked `one_ingress`."""
        (one,) = self.servers
        return one

    @property
    def ingress(self) -> Ingress:
        """The one there is: a test that asks for it is marked `one_ingress`."""
        return self.server._ingress

    @property
    def address(self) -> str:
        """Whom to call next: each ingress in turn."""
        return self.servers[next(self._turns) % len(self.servers)].address

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.servers]

    @property
    def metrics_urls(self) -> list[str]:
        return [server.metrics_url for server in self.servers]

    @property
    def directory(self) -> Directory:
        return self.ingresses[0]._directory

    @property
    def sessions(self) -> SessionsOfAll:
        return SessionsOfAll(self.ingresses)

    def holder(self, session_id: str) -> Ingress:
        """Where the session is. Raises KeyError."""
        return _latest(self.ingresses, session_id)[0]

    def counted(self, name: str, **labels: str) -> float:
        """A metric of all ingresses together."""
        registries = (ingress.metrics.registry for ingress in self.ingresses)
        return sum(each.get_sample_value(name, labels) or 0.0 for each in registries)


class SessionsOfAll:
    """Those of several ingresses. One that was taken over may be at two for a moment: the later holds it."""

    def __init__(self, ingresses: list[Ingress]) -> None:
        self._ingresses = ingresses

    def __len__(self) -> int:
        return len({record.session.spec.session_id for record in self})

    def __contains__(self, session_id: object) -> bool:
        return any(session_id in ingress.sessions for ingress in self._ingresses)

    def __iter__(self) -> Iterator[Record]:
        return itertools.chain.from_iterable(ingress.sessions for ingress in self._ingresses)

    def __getitem__(self, session_id: str) -> Record:
        return _latest(self._ingresses, session_id)[1]


@asynccontextmanager
async def in_process_service(
    config: ServiceConfig,
    count: int | None = None,
    *,
    shares: bool | None = None,
    directory: Directory | None = None,
    generation: str = "",
) -> AsyncIterator[InProcessService]:
    """Start every replica that `config` names and `count` ingresses; stop them all at the end. `shares`:
    whether the directory in memory is one to share, which it is if there are several. `directory`: one that
    another service shares, of which this is the `generation`.
    """
    count = ingresses if count is None else count
    in_memory = (config.directory.redis_url is None and count > 1) if shares is None else shares
    shared = MemoryDirectory(lease_s=config.directory.lease_s) if in_memory else directory
    stages = [
        Stage(config, index, f"{generation}{span.name}#{replica}", "node")
        for index, span in enumerate(config.spans)
        for replica in range(span.replicas)
    ]
    for stage in stages:
        await stage.start()
    service = InProcessService(config, stages, shared, generation=generation)
    try:
        for _ in range(count):
            await service.add()
        yield service
    finally:
        for server in service.servers:
            with contextlib.suppress(asyncio.CancelledError):  # Of one that a test has crashed.
                await server.stop()
        for stage in service.stages:
            await stage.stop()


def _latest(ingresses: list[Ingress], session_id: str) -> tuple[Ingress, Record]:
    found = ((ingress, ingress.sessions.get(session_id)) for ingress in ingresses)
    held = [(ingress, record) for ingress, record in found if record is not None]
    if not held:
        raise KeyError(session_id)
    return max(held, key=lambda pair: pair[1].session.lease.epoch)
