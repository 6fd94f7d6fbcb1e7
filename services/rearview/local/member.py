"""What a process of a service does: it is one replica or one ingress, until the service tells it to go.

Its end of the pipe is read by a thread. Where the pipe ends the service's own process is gone, whatever has
ended it, and so the process ends too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from rearview.environment import become
from rearview.errors import ConfigError, RearviewError
from rearview.forks import end_with_parent
from rearview.local.words import Ask, Card, Failed, Go, Order, Said, Starting, Told

__all__ = ["CARD_S", "NODE", "run"]

CARD_S = 0.1
"""How often a process says that it lives, and who it is."""
NODE = "here"
"""All processes share it: links between them are Unix sockets."""
EXIT_ORPHAN = 71
"""Of a process whose service is gone."""

logger = logging.getLogger(__name__)


def run(order: Order, pipe: Connection[Said, Told]) -> None:
    """Be what is ordered, until told to go. Says why if it cannot be."""
    try:
        _begin(order)
    except OSError:
        os._exit(EXIT_ORPHAN)  # The folder of its log is gone, and so is the service.
    try:
        asyncio.run(_live(order, pipe))
    except (ConfigError, RearviewError) as error:
        _fail(pipe, " ".join(str(error).split()))
    except Exception as error:  # The edge of a process: the service is told, and its log has the rest.
        logger.exception("the process has failed")
        _fail(pipe, f"{type(error).__name__}: {' '.join(str(error).split())}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # An engine's thread that hangs would be waited for.


def _fail(pipe: Connection[Said, Told], reason: str) -> None:
    try:
        pipe.send(Failed(reason))
    except OSError:
        logger.warning("nobody hears why the process ends")


def _begin(order: Order) -> None:
    from rearview.telemetry.logging import log_as

    end_with_parent()  # It has forked this one, and alone knows how it ends.
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    become(order.environment)
    log_as(order.config.telemetry.logs, "text")


class _Line:
    """The process's end of the pipe. For one event loop."""

    def __init__(self, pipe: Connection[Said, Told]) -> None:
        self._pipe = pipe
        self._loop = asyncio.get_running_loop()
        self._asked: asyncio.Future[Sequence[Mapping[str, Any]]] | None = None
        self.told_to_go = asyncio.Event()
        threading.Thread(target=self._read, name="pipe", daemon=True).start()

    def say(self, said: Said) -> None:
        """If there is room: a service that does not listen must hold up nobody."""
        if select.select([], [self._pipe], [], 0)[1]:
            self._pipe.send(said)

    async def replicas(self) -> Sequence[Mapping[str, Any]]:
        """Ask who they are."""
        if self._asked is None:
            self._asked = self._loop.create_future()
            self._pipe.send(Ask())
        return await asyncio.shield(self._asked)

    def _read(self) -> None:
        while True:
            try:
                told = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(EXIT_ORPHAN)
            self._loop.call_soon_threadsafe(self._take, told)

    def _take(self, told: Told) -> None:
        if isinstance(told, Go):
            self.told_to_go.set()
        elif self._asked is not None:
            asked, self._asked = self._asked, None
            asked.set_result(told.replicas)


class _Member(Protocol):
    """What a process is."""

    async def start(self) -> None:
        """Serve."""

    def card(self) -> Card:
        """What it says of itself."""

    async def stop(self) -> None:
        """Serve no more."""


async def _live(order: Order, pipe: Connection[Said, Told]) -> None:
    line = _Line(pipe)
    member: _Member = _Ingress(order, line) if order.span is None else _Replica(order, order.span, line)
    starting = asyncio.create_task(member.start())
    told = asyncio.create_task(line.told_to_go.wait())
    while not starting.done():
        line.say(Starting(""))
        await asyncio.wait((starting, told), timeout=CARD_S, return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            return  # Nobody has been served: there is nothing to end in order.
    await starting
    while not told.done():
        line.say(member.card())
        await asyncio.wait((told,), timeout=CARD_S)
    await member.stop()


class _Replica:
    def __init__(self, order: Order, span: int, line: _Line) -> None:
        from rearview.replica.pulse import end_process
        from rearview.replica.stage import Stage

        loop = asyncio.get_running_loop()

        def tell(text: str) -> None:  # By the engine's thread.
            loop.call_soon_threadsafe(line.say, Starting(text))

        self._stage = Stage(order.config, span, order.name, NODE, on_end=end_process, on_progress=tell)
        self.start, self.stop = self._stage.start, self._stage.stop

    def card(self) -> Card:
        try:
            self._stage.check_health()
            healthy = True
        except RuntimeError:
            healthy = False
        return Card(self._stage.describe(), healthy)


class _Ingress:
    def __init__(self, order: Order, line: _Line) -> None:
        from rearview.ingress.server import IngressServer
        from rearview.ingress.service import Ingress

        self._order = order
        self._ingress = Ingress(order.config, order.name, NODE, line.replicas, generation=order.generation)
        self._server = IngressServer(self._ingress)
        self.stop = self._server.stop

    async def start(self) -> None:
        try:
            await self._server.start()
        except RuntimeError as error:
            if "bind" not in str(error):
                raise
            edge = self._order.config.ingress
            raise ConfigError(f"ingress.port: {edge.port} of {edge.host} is taken") from None

    def card(self) -> Card:
        content = {"address": self._server.address, "metrics_url": self._server.metrics_url}
        return Card(content, healthy=True)
