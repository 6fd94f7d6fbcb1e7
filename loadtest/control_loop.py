"""What a large service's control loop costs an ingress: CPU time, with replicas that only speak.

    python -m loadtest.control_loop

The replicas are fakes of another process: real links that beat, tell what changes of them as sessions come
and go, and describe themselves when they are asked. The ingress's side is its own code: pulses, roster,
leases against a real Valkey, placement. Each part is run by itself for some seconds, and then all together.
Not counted here: what an ask costs through Ray, what Serve's controller does, frames, and clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rearview.config import LinkConfig
from rearview.contract.beat import BEAT_S, Beat, Work
from rearview.contract.lease import Lease, LeaseRequest
from rearview.control.circuit import Circuit
from rearview.control.leases import RENEWALS_PER_LEASE
from rearview.control.placement import Asked
from rearview.directory.protocol import DirectoryUnavailable
from rearview.directory.redis_store import RedisDirectory
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases
from rearview.ingress.members import Roster
from rearview.replica.telling import AGAIN_BEATS
from rearview.transport.beat import encode_beat
from rearview.transport.links import LinkServer
from rearview.transport.wire import Kind, encode_json, encode_lease

from loadtest.figures import RESULTS, Figure, ResultFile, show
from loadtest.placement import COST, LOAD, SPAN, placement

__all__ = ["main"]

SECRET, NODE = "control-loop", "node"
LEASE_S, DURATION_S = 15.0, 600.0
"""How long a lease lasts, and a session on average."""
SETTLE_S = 2.0
TENANTS = 100
TARGET_PERCENT = 20.0
ENOUGH = 0.9
CONFIG = LinkConfig(secret=SECRET)


@dataclass(frozen=True, slots=True)
class Size:
    """How large the service is."""

    replicas: int
    sessions: int

    @property
    def opens_per_s(self) -> float:
        """So many sessions come, and go."""
        return self.sessions / DURATION_S

    @property
    def slots(self) -> int:
        """Of each replica: half as many more as it has sessions."""
        return self.sessions * 3 // (2 * self.replicas) + 1

    def lane(self, number: int) -> tuple[str, ...]:
        """Of the session of that number."""
        return (f"replica-{number % self.replicas}",)


# The replicas' process.


@dataclass
class _Fake:
    """One replica: it says what a real one with so many sessions does."""

    name: str
    size: Size
    server: LinkServer
    address: str = ""
    sessions: int = 0

    def capacity(self) -> Mapping[str, Any]:
        """See `Telling`."""
        share = self.sessions * COST.share(LOAD, 2, is_cached=False)
        return {
            "replica_id": self.name,
            "span": SPAN,
            "node": NODE,
            "address": self.address,
            "free_slots": self.size.slots - self.sessions,
            "slots": self.size.slots,
            "memory": "",
            "cost": COST.described(),
            "share": share,
            "pixels_per_s": self.sessions * LOAD.pixels_per_s,
            "draining": False,
        }


async def _speak(size: Size, told: Connection) -> None:
    fakes = []
    for number in range(size.replicas):
        server = LinkServer(CONFIG, NODE, on_message=lambda *_: None, on_closed=lambda _: None)
        fakes.append(_Fake(f"replica-{number}", size, server, sessions=size.sessions // size.replicas))
    for fake in fakes:
        fake.address = str(await fake.server.start())
    told.send([fake.capacity() for fake in fakes])
    beat = encode_beat(Beat(True, Work("denoise-0", 8, 0.01, 0.02)))
    changes_per_beat = 2 * size.opens_per_s * BEAT_S / size.replicas
    for number in range(sys.maxsize):
        begin_s = time.monotonic()
        for place, fake in enumerate(fakes):
            fake.server.broadcast(Kind.HEARTBEAT, beat)
            has_changed = random.random() < changes_per_beat
            fake.sessions += has_changed * (1 if number % 2 else -1)
            if has_changed or (number + place) % AGAIN_BEATS == 0:
                fake.server.broadcast(Kind.CAPACITY, encode_json(fake.capacity()))
            await asyncio.sleep(0)
        await asyncio.sleep(max(0.0, begin_s + BEAT_S - time.monotonic()))


def _replicas(size: Size, told: Connection) -> None:
    uvloop.run(_speak(size, told))


# The ingress's.


@dataclass
class _Ingress:
    """What an ingress does about replicas and leases, without streams."""

    size: Size
    lanes: Lanes
    roster: Roster
    leases: Leases
    described: Sequence[Mapping[str, Any]]
    asked: int = 0
    """Replicas that were asked."""
    renewed: int = 0
    placed: int = 0

    async def place(self) -> None:
        """Find lanes for sessions at the rate at which they come, and let them go again."""
        random_, number, due_s = random.Random(1), 0, time.monotonic()
        async with asyncio.TaskGroup() as under_way:
            while True:
                due_s += random_.expovariate(self.size.opens_per_s)
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                under_way.create_task(self._place(number))
                number += 1

    async def _place(self, number: int) -> None:
        with contextlib.suppress(DirectoryUnavailable):  # It counts as not done.
            lane = self.lanes.choose(await self.leases.usage_by_replica(), Asked(LOAD, 2))
            wanted = LeaseRequest(f"new-{number:028x}", "t", LOAD)
            self.leases.keep(await self.leases.acquire(wanted, lane))
            self.leases.let_go(f"new-{number - 50:028x}")
            self.placed += 1


def _words(described: Mapping[str, Any], size: Size, leases: Mapping[str, Lease]) -> Mapping[str, Any]:
    """What the replica answers when it is asked."""
    mine = [lease for lease in leases.values() if lease.lane == (described["replica_id"],)]
    told = {
        "sessions": sorted(lease.session_id for lease in mine),
        "orphans": [],
        "frames_by_session": {lease.session_id: 1 for lease in mine},
        "leases": {lease.session_id: encode_lease(lease) for lease in mine},
    }
    return {**described, **told, "metrics_url": "http://127.0.0.1:1/metrics"}


@asynccontextmanager
async def _ingress(
    size: Size, described: Sequence[Mapping[str, Any]], redis_url: str
) -> AsyncIterator[_Ingress]:
    lanes = Lanes(
        [SPAN],
        CONFIG,
        NODE,
        on_frame=lambda _: None,
        on_lane_lost=lambda *_: None,
        on_lane_drains=lambda *_: None,
        source=_nothing,
    )
    found: list[_Ingress] = []

    async def members() -> Sequence[Mapping[str, Any]]:
        found[0].asked += len(found[0].described)
        return found[0].described

    def granted(lease: Lease) -> None:
        found[0].renewed += 1

    directory = RedisDirectory.from_url(redis_url, Circuit(), lease_s=LEASE_S, key_prefix=f"c{size.replicas}")
    leases = Leases(
        directory, "ingress", LEASE_S, on_granted=granted, on_taken=lambda *_: None, held=_held_by_none
    )
    names = frozenset(size.lane(number)[0] for number in range(size.replicas))
    roster = Roster(members, lanes, (), lambda: names)  # Serve's router knows them.
    found.append(_Ingress(size, lanes, roster, leases, described))
    await lanes.start()
    await leases.begin(lanes.address)
    yield found[0]
    await leases.settle()
    await lanes.stop()
    await directory.close()


async def _nothing(request: Mapping[str, Any]) -> Any:
    raise AssertionError(f"nothing is pulled: {request}")


async def _held_by_none() -> Mapping[str, Lease | None]:
    return {}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a part takes, once it has settled."""

    part: str
    percent: float
    """Of one core."""
    asked_per_s: float
    renewed_per_s: float
    placed_per_s: float


PARTS: Mapping[str, Callable[[_Ingress], Sequence[Awaitable[None]]]] = {
    "heartbeats and changes told": lambda ingress: (),
    "asking who is there": lambda ingress: (ingress.roster.run(),),
    "renewing leases": lambda ingress: (ingress.leases.run(),),
    "placing": lambda ingress: (ingress.place(),),
    "all": lambda ingress: (ingress.roster.run(), ingress.leases.run(), ingress.place()),
}
"""What runs beside the links, which always do."""


async def _measure(
    size: Size, described: Sequence[Mapping[str, Any]], redis_url: str, seconds: float
) -> Sequence[Cost]:
    costs = []
    async with _ingress(size, described, redis_url) as ingress:
        await ingress.roster.refresh()
        leases = await _fill(ingress)
        ingress.described = [_words(each, size, leases) for each in described]
        for name, running in PARTS.items():
            tasks = [asyncio.ensure_future(each) for each in running(ingress)]
            await asyncio.sleep(SETTLE_S)
            begun, cpu_s, at_s = _counts(ingress), time.process_time(), time.monotonic()
            await asyncio.sleep(seconds)
            cpu_s, took_s = time.process_time() - cpu_s, time.monotonic() - at_s
            rates = [(now - before) / took_s for now, before in zip(_counts(ingress), begun, strict=True)]
            await _end(tasks)
            costs.append(Cost(name, 100 * cpu_s / took_s, *rates))
            print(f"{size.replicas} replicas, {name}: {costs[-1].percent:.1f} % of a core", flush=True)
    return costs


async def _end(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Cancel until they end: a call that waits for the store may not hear it. Raises what one failed of."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=0.01)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _fill(ingress: _Ingress) -> Mapping[str, Lease]:
    """Leases of all sessions, their renewals spread as if they had come one by one."""
    size, found = ingress.size, {}
    for number in range(size.sessions):
        wanted = LeaseRequest(f"{number:032x}", f"tenant-{number % TENANTS}", LOAD)
        found[wanted.session_id] = lease = await ingress.leases.acquire(wanted, size.lane(number))
        ingress.leases.keep(lease)
    return found


def _counts(ingress: _Ingress) -> Sequence[int]:
    return ingress.asked, ingress.renewed, ingress.placed


def run(size: Size, seconds: float) -> Sequence[Cost]:
    """Measure every part, with replicas and a Valkey of its own."""
    from support.valkey import Server

    here, there = multiprocessing.Pipe()
    speaking = multiprocessing.get_context("spawn").Process(target=_replicas, args=(size, there), daemon=True)
    with tempfile.TemporaryDirectory() as folder:
        store = Server(Path(folder))
        store.start()
        speaking.start()
        try:
            return uvloop.run(_measure(size, here.recv(), store.url, seconds))
        finally:
            speaking.kill()
            speaking.join()
            store.stop()


def figures(size: Size, costs: Sequence[Cost]) -> Sequence[Figure]:
    """A line for each part; the whole has a target at the most replicas."""
    setting = f"{size.replicas} replicas, {size.sessions} sessions, one ingress"
    return [
        Figure(
            f"control loop, {cost.part}",
            setting,
            cost.percent,
            "% of a core",
            TARGET_PERCENT if cost.part == "all" else None,
            at_most=True,
        )
        for cost in costs
    ]


def problems(size: Size, costs: Sequence[Cost]) -> Sequence[str]:
    """Where less was done than such a service asks for: what it costs is then more than what was measured."""
    found = []
    whole = next(cost for cost in costs if cost.part == "all")
    renewals_per_s = size.sessions * RENEWALS_PER_LEASE / LEASE_S
    for what, done, wanted in (
        ("renewals", whole.renewed_per_s, renewals_per_s),
        ("placements", whole.placed_per_s, size.opens_per_s),
    ):
        if done < ENOUGH * wanted:
            found.append(f"{size.replicas} replicas: {done:.1f} {what} a second of {wanted:.1f}")
    return found


def main(
    replicas: Annotated[list[int] | None, typer.Option(help="How many, all of them in turn.")] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Of the one ingress.")] = 10_000,
    seconds: Annotated[float, typer.Option(min=1.0, help="Of each part.")] = 10.0,
    results: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
) -> None:
    """Measure what the control loop of a large service costs one ingress that has all of its sessions."""
    found, parts, short = [], {}, []
    for count in replicas or [64, 256]:
        size = Size(count, sessions)
        costs = run(size, seconds)
        found += figures(size, costs)
        found.append(placement(count, min(seconds, 2.0)))
        short += problems(size, costs)
        parts[str(count)] = [asdict(cost) for cost in costs]
    command = f"python -m loadtest.control_loop --sessions {sessions} --seconds {seconds:g}"
    result = ResultFile.of("control_loop", command, found, {"parts": parts}, short)
    show(result, result.write(results))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]
    typer.run(main)
