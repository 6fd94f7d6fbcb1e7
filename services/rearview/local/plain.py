"""The service as plain processes on this machine: no Ray, nothing to set up, ready in seconds.

One process for each replica of a span and for each ingress, over the same links and with the same classes as
through Ray, so with the same pictures. What it lacks: other machines, autoscaling, a GPU for each replica.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rearview.config import ServiceConfig
from rearview.local.crew import Crew
from rearview.local.places import INGRESS
from rearview.local.service import LocalService
from rearview.scratch import Scratch
from rearview.transport.secrets import with_secret

__all__ = ["PlainService", "Replica", "SpanOfReplicas"]

LINK_ROOM = len("/l/rearview-12345678/link")
"""Bytes of a link's socket path below the service's folder."""


@dataclass(frozen=True, slots=True)
class Replica:
    """Whoever fills a place in a span, or did last."""

    id: str
    """Of no other replica before or after it."""
    state: str
    """`up`, `starting`, or `down`: it has ended, and another one is about to be started."""
    sessions: tuple[str, ...]
    """Ids of those that it holds."""


@dataclass(frozen=True, slots=True)
class SpanOfReplicas:
    """A span and who serves it."""

    name: str
    replicas: tuple[Replica, ...]


class PlainService(LocalService):
    """`with PlainService(config) as service:` serves at `service.address` until the block ends.

    A second instance serves beside the first one. All but `__enter__` may be called by any thread. A script
    that starts one has its own deeds under `if __name__ == "__main__"`, as `multiprocessing` asks.
    """

    def __init__(self, config: ServiceConfig, on_progress: Callable[[str], None] | None = None) -> None:
        super().__init__(config, on_progress)
        self._scratch: Scratch | None = None
        self._crew: Crew | None = None
        self._address = ""

    @property
    def address(self) -> str:
        """`host:port` of the gRPC service."""
        return self._address

    @property
    def metrics_urls(self) -> list[str]:
        """`/metrics` of every ingress and of every replica that is ready."""
        ingresses = [card["metrics_url"] for name, card in self._cards() if name == INGRESS]
        return [*ingresses, *(stage["metrics_url"] for stage in self.stages)]

    @property
    def stages(self) -> list[Mapping[str, Any]]:
        """What every replica that is ready last said of itself (`Stage.describe`): 0.1 s old as a rule."""
        return [card for name, card in self._cards() if name != INGRESS]

    def lanes(self) -> list[SpanOfReplicas]:
        """Who there is, span by span."""
        found: dict[str, list[Replica]] = {span.name: [] for span in self._config.spans}
        for name, id, state, card in self._crew.look() if self._crew is not None else ():
            if name in found:
                found[name].append(Replica(id, state.value, tuple(card.get("sessions", ()))))
        return [SpanOfReplicas(name, tuple(replicas)) for name, replicas in found.items()]

    def kill(self, span_name: str) -> str:
        """Kill the replica of a span that holds most sessions, as a fault would; returns its id.

        Another one takes its place. Raises NotFound if there is no such span, or none of it runs.
        """
        assert self._crew is not None, "enter it first"
        return self._crew.kill(span_name)

    def stop(self) -> None:
        """Stop what was started. Idempotent."""
        if self._scratch is None:
            return
        if self._crew is not None:
            self._crew.stop()
        self._scratch.remove()
        self._scratch = None

    def _start(self) -> None:
        self._scratch = Scratch(marks=False, room=LINK_ROOM)
        self._on_progress("starting the service")
        logs, links = (self._scratch.path / name for name in ("logs", "l"))
        for folder in (logs, links):
            folder.mkdir()
        link = with_secret(self._config.link)
        link = link.model_copy(update={"unix_dir": link.unix_dir or str(links)})
        self._crew = Crew(self._config.model_copy(update={"link": link}), logs)
        self._crew.start(self._on_progress)
        self._address = next(card["address"] for name, card in self._cards() if name == INGRESS)

    def _cards(self) -> list[tuple[str, Mapping[str, Any]]]:
        looked = self._crew.look() if self._crew is not None else ()
        return [(name, card) for name, _, _, card in looked if card]
