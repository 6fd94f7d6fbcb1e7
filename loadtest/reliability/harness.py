"""The service under test as plain processes: one for each replica and ingress, and somebody who heals it.

The supervisor does what Serve does: who has died comes back under a new name after a delay, who does not
answer or says that it is not healthy is killed. It starts nothing by itself that was told to go. With a
directory in Redis there may be several ingresses, each on a port of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rearview.config import ServiceConfig
from rearview.control.circuit import Circuit
from rearview.directory import open_directory

from loadtest.reliability.counters import scrape
from loadtest.reliability.history import Snapshot
from loadtest.reliability.hosts import Host
from loadtest.reliability.plan import Plan
from loadtest.reliability.processes import read_card, read_cards
from loadtest.reliability.spawner import Spawner

__all__ = ["Harness", "Healing", "Member"]

START_S = 180.0
STOP_S = 30.0
POLL_S = 0.02
WATCH_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Healing:
    """What the supervisor does, and how fast. Seconds."""

    restart_s: float = 1.0
    """From a death to the new process: what Serve and a small model take."""
    health_timeout_s: float = 3.0
    """Who does not answer for so long is killed."""


@dataclass(slots=True)
class Member:
    """A process of the service."""

    name: str
    order: dict[str, Any]
    pid: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    status: int | None = None
    wanted: bool = True
    """Whether it is started anew when it ends."""
    last_card: Mapping[str, Any] | None = None
    """Of one that has ended."""

    @property
    def is_replica(self) -> bool:
        return bool(self.order["run"] == "replica")


class Harness:
    """`async with Harness(config, folder, spawner) as service:` serves at `service.addresses`."""

    def __init__(
        self,
        config: ServiceConfig,
        folder: Path,
        spawner: Spawner,
        *,
        ingresses: int = 1,
        healing: Healing | None = None,
        failpoints: str = "",
    ) -> None:
        """`config`: with a directory in Redis where there are several ingresses. `failpoints`: of every
        process, once it is told to arm them.
        """
        self.config, self.folder = config, folder
        self._num_ingresses = ingresses
        self._healing = healing or Healing()
        self._failpoints = failpoints
        self._spawner = spawner
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0
        self.members: dict[str, Member] = {}
        """By name: those that live, and clients."""
        self.was_whole = True
        """Whether no ingress has died, with what it had counted."""

    async def __aenter__(self) -> Self:
        for name in ("members", "ingresses", "logs", "history", "marks"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        try:
            for span, wanted in enumerate(self.config.spans):
                for _ in range(wanted.replicas):
                    await self.start_replica(span)
            for _ in range(self._num_ingresses):
                await self.start_ingress()
            await self.until(self._is_up, START_S)
            self._spawn(self._watch())
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    # -- who there is

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the ingresses, dead ones included: they come back under the same."""
        ports = sorted(
            {member.order["port"] for member in self.members.values() if member.order["run"] == "ingress"}
        )
        return tuple(f"127.0.0.1:{port}" for port in ports)

    def replicas(self, span: int | None = None) -> list[Member]:
        """Of a span, or of all."""
        return [
            member
            for member in self.members.values()
            if member.is_replica and not member.ended.is_set() and span in (None, member.order["span"])
        ]

    def ingresses(self) -> list[Member]:
        """Those that live."""
        return [m for m in self.members.values() if m.order["run"] == "ingress" and not m.ended.is_set()]

    def at(self, address: str) -> Member | None:
        """The ingress that lives there."""
        port = int(address.rpartition(":")[2])
        return next((member for member in self.ingresses() if member.order["port"] == port), None)

    def card(self, member: Member) -> dict[str, Any] | None:
        """What it last said of itself."""
        kind = "members" if member.is_replica else "ingresses"
        return read_card(self.folder / kind / f"{member.name}.json")

    def sessions(self, member: Member) -> tuple[str, ...]:
        """Those that it has, or had when it ended."""
        card = self.card(member) or member.last_card or {}
        return tuple(card.get("sessions", ()))

    def arm(self, member: Member) -> None:
        """Let its failpoints fail from now on."""
        self.signal(member, signal.SIGUSR1)

    def failed_s(self, member: Member) -> float | None:
        """When its failpoint failed; None: not yet."""
        path = self.folder / "marks" / member.name
        return float(path.read_text(encoding="utf-8")) if path.exists() else None

    def busiest(self, span: int | None = None) -> Member:
        """The replica that holds most sessions."""
        return max(self.replicas(span), key=lambda member: len(self.sessions(member)))

    # -- what is started and hurt

    async def start_replica(self, span: int, relay: int | None = None, host: Host | None = None) -> Member:
        """One more replica of a span; `host`: elsewhere."""
        name = f"{self.config.spans[span].name}#{self._next()}"
        order: dict[str, Any] = {
            "run": "replica",
            "span": span,
            "failpoints": self._failpoints,
            "relay": relay,
        }
        content = self._content()
        if host is not None:
            order["host"] = asdict(host)
            content["link"] = {**content["link"], "host": host.address}
        return await self._start(name, {**order, "config": content})

    async def start_ingress(self, port: int | None = None) -> Member:
        """One more ingress, on a port that it keeps."""
        port = port or _free_port()
        content = self._content()
        content["ingress"] = {**content["ingress"], "port": port}
        name = f"ingress#{self._next()}"
        return await self._start(
            name, {"run": "ingress", "port": port, "failpoints": self._failpoints, "config": content}
        )

    async def start_clients(
        self, plan: Plan, addresses: tuple[str, ...], start_s: float, kind: str = "clients"
    ) -> Member:
        """A process of clients, which ends with their streams."""
        name = f"{kind}#{self._next()}"
        history = self.folder / "history" / f"{name}.jsonl"
        order = {"plan": plan.to_json(), "addresses": list(addresses), "start_s": start_s}
        return await self._start(name, {"run": "clients", **order, "history": str(history)}, wanted=False)

    def signal(self, member: Member, number: signal.Signals) -> None:
        """Kill, stop, continue or end it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, number)

    async def until(self, holds: Callable[[], bool], within_s: float) -> None:
        """Wait for a condition. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)

    async def snapshot(self) -> Snapshot:
        """What the service holds and has counted now."""
        members, ingresses = self._cards("members"), self._cards("ingresses")
        everyone = {card.get("replica_id") or card["name"]: card for card in (*members, *ingresses)}
        return Snapshot(
            slots={card["replica_id"]: len(card["sessions"]) for card in members},
            leases=await self._leases(ingresses),
            tasks={name: card["tasks"] for name, card in everyone.items()},
            fds={name: card["fds"] for name, card in everyone.items()},
            frames=await scrape(card["metrics_url"] for card in ingresses),
            is_whole=self.was_whole,
        )

    # -- how

    async def _leases(self, ingresses: Sequence[Mapping[str, Any]]) -> int:
        """Entries of the directory; without Redis each ingress has as many as it has sessions."""
        if self.config.directory.redis_url is None:
            return sum(len(card["sessions"]) for card in ingresses)
        directory = open_directory(self.config.directory, Circuit())
        try:
            return len([lease for lease in await directory.list(None) if lease.expiry_s > time.time()])
        finally:
            await directory.close()

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _content(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    def _is_up(self) -> bool:
        replicas = sum(span.replicas for span in self.config.spans)
        return (
            len(self._cards("members")) >= replicas and len(self._cards("ingresses")) >= self._num_ingresses
        )

    def _cards(self, kind: str) -> list[dict[str, Any]]:
        return read_cards(self.folder / kind)

    async def _start(self, name: str, order: dict[str, Any], *, wanted: bool = True) -> Member:
        log = str(self.folder / "logs" / f"{name}.log")
        member = Member(name, {"folder": str(self.folder), "log": log, **order}, wanted=wanted)
        self.members[name] = member
        loop = asyncio.get_running_loop()

        def ended(status: int) -> None:
            with contextlib.suppress(RuntimeError):  # The run is over, and its loop too.
                loop.call_soon_threadsafe(self._ended, member, status)

        member.pid = await asyncio.wrap_future(self._spawner.start(name, member.order, ended))
        return member

    def _ended(self, member: Member, status: int) -> None:
        member.status = status
        member.ended.set()
        if member.order["run"] == "clients":
            return
        kind = "members" if member.is_replica else "ingresses"
        member.last_card = self.card(member)
        (self.folder / kind / f"{member.name}.json").unlink(missing_ok=True)
        if member.wanted:
            self.was_whole = self.was_whole and member.is_replica
            self._spawn(self._replace(member))

    async def _replace(self, member: Member) -> None:
        await asyncio.sleep(self._healing.restart_s)
        if member.is_replica:
            order, host = member.order, member.order.get("host")
            await self.start_replica(order["span"], relay=order["relay"], host=host and Host(**host))
        else:
            await self.start_ingress(port=member.order["port"])

    async def _watch(self) -> None:
        """Kill who does not answer, or is not healthy."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            for member in (*self.replicas(), *self.ingresses()):
                card = self.card(member)
                if card is None or not member.wanted:
                    continue
                silent_s = time.monotonic() - card["written_s"]
                if silent_s > self._healing.health_timeout_s or not card["healthy"]:
                    self.signal(member, signal.SIGKILL)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        """Everything at once: what a run leaves behind was looked at before."""
        for member in self.members.values():
            member.wanted = False
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for member in self.members.values():
            if not member.ended.is_set():
                self.signal(member, signal.SIGKILL)
        async with asyncio.timeout(STOP_S):
            for member in self.members.values():
                await member.ended.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
