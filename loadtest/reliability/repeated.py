"""The same blow again and again: how soon each stream that it hurts has a good picture again.

Eight streams run through; a replica (or an ingress) is killed, stopped or hung, the supervisor puts another
in its place, and once that is warm the one that now has most sessions is next. So every blow meets a service
with a warm second replica, and what is left of earlier blows.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.figures import Figure
from loadtest.reliability.faults import HANG_S, Scene
from loadtest.reliability.harness import Harness, Healing, Member
from loadtest.reliability.history import Run, Snapshot, What, read_history
from loadtest.reliability.plan import Plan, steady_plan
from loadtest.reliability.recovery import recovered, recoveries
from loadtest.reliability.runs import LIMITS, TENANTS, RunPlan, config_of, settled
from loadtest.reliability.spawner import Spawner
from loadtest.reliability.validators import validate

__all__ = ["BLOWS", "PIECES", "Blow", "Hit", "figures", "perform"]

STREAMS, RATE = 8, 25.0
WARM_S = 1.2
"""How long a replica that has come is left alone: an ingress asks who is there twice a second."""
READY_S = 8.0
"""How long the service may take to be whole again; whoever is not back by then is in the figures."""
END_S = 60.0
GRACE_S = 30.0
"""Longer than a machine that is too busy keeps clients and service apart."""


@dataclass(frozen=True, slots=True)
class Blow:
    """What is done again and again, and how soon streams are to be back. Seconds."""

    what: str
    times: int
    every_s: float
    """About how long one takes, with what follows it: by that the traffic is planned."""
    worst_s: float
    p50_s: float | None = None
    ingresses: int = 1
    failpoints: str = ""

    @property
    def hits_ingress(self) -> bool:
        return self.ingresses > 1


BLOWS = (
    Blow("replica SIGKILL", 30, 5.0, 2.0, 0.5),
    Blow("replica SIGSTOP", 8, 8.0, 4.0, 2.0),
    Blow("replica hangs", 8, 8.0, 4.0, 2.0, failpoints=f"engine.forward=hang:{HANG_S}"),
    Blow("ingress SIGKILL", 10, 8.0, 2.0, ingresses=2),
)


@dataclass(frozen=True, slots=True)
class Hit:
    """All that came of one kind of blow."""

    what: str
    times: int
    frames: int
    hurt: int
    recovery_s: Sequence[float]
    never: Sequence[str]
    hurt_ended: int
    violations: Sequence[str]
    seconds: float


async def perform(blow: Blow, folder: Path, spawner: Spawner, seed: int = 1) -> Hit:
    """Strike `blow.times` times; histories and logs are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    began_s = time.monotonic()
    async with AsyncExitStack() as stack:
        url = None
        if blow.hits_ingress:
            from support.valkey import Server

            redis = Server(folder)
            await asyncio.to_thread(redis.start)
            stack.callback(redis.stop)
            url = redis.url
        plan = RunPlan(seed, topology="fused", ingresses=blow.ingresses)
        config = config_of(plan, folder, url, grace_s=GRACE_S)
        service = await stack.enter_async_context(
            Harness(
                config,
                folder,
                spawner,
                ingresses=blow.ingresses,
                healing=Healing(restart_s=0.5),
                failpoints=blow.failpoints,
            )
        )
        base = await service.snapshot()
        traffic = _traffic(blow, seed)
        clients = await service.start_clients(traffic, service.addresses, time.monotonic() + 0.2)
        scene = Scene(service, [clients], random.Random(seed))
        for _ in range(blow.times):
            await _until_whole(service, blow)
            if clients.ended.is_set():
                break
            _strike(scene, blow)
        await _until_whole(service, blow)
        async with asyncio.timeout(traffic.seconds + END_S):
            await clients.ended.wait()
        end = await settled(service, Snapshot(leases=base.leases))
        history = read_history(sorted((folder / "history").glob("clients*.jsonl")))
    # Whoever came in the place of others has links and tasks that those of the beginning had not yet.
    run = Run(traffic, history, scene.done, _only_held(base), _only_held(end))
    found = recoveries(run)
    told = recovered(found)
    return Hit(
        blow.what,
        len(scene.done),
        run.count(What.SENT),
        **{name: told[name] for name in ("hurt", "recovery_s", "never", "hurt_ended")},
        violations=[str(each) for each in validate(run, LIMITS)],
        seconds=round(time.monotonic() - began_s, 1),
    )


def figures(pieces: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """What a section says of them."""
    found = []
    for hit in (Hit(**piece) for piece in pieces):
        (blow,) = (each for each in BLOWS if each.what == hit.what)
        times = sorted(hit.recovery_s)
        setting = f"chain model, {hit.times} times, {STREAMS} streams, {hit.hurt} hurt, those alone"
        what = f"first good picture after: {hit.what}"
        if times:
            p50 = Figure(f"{what}, p50", setting, times[len(times) // 2], "s", blow.p50_s, at_most=True)
            found += [p50, Figure(f"{what}, worst", setting, times[-1], "s", blow.worst_s, at_most=True)]
        lost = len(hit.never) + hit.hurt_ended
        found.append(
            Figure(f"streams that never were back: {hit.what}", setting, lost, "", 0.0, at_most=True)
        )
        found.append(Figure(f"violations: {hit.what}", setting, len(hit.violations), "", 0.0, at_most=True))
    return found


async def _piece(blow: Blow, folder: Path, spawner: Spawner) -> dict[str, Any]:
    return asdict(await perform(blow, folder, spawner))


PIECES = {blow.what: partial(_piece, blow) for blow in BLOWS}
"""By name: how each is run, and what is kept of it."""


def _traffic(blow: Blow, seed: int) -> Plan:
    frames = round((blow.times * blow.every_s + 4.0) * RATE)
    return steady_plan(seed, TENANTS, streams=STREAMS, frames=frames, rate=RATE)


def _strike(scene: Scene, blow: Blow) -> None:
    service = scene.service
    target = _most(service, service.ingresses()) if blow.hits_ingress else service.busiest(0)
    if blow.failpoints:
        scene.note(blow.what, target.name, target)
        service.arm(target)
        return
    number = signal.SIGSTOP if "SIGSTOP" in blow.what else signal.SIGKILL
    scene.note(blow.what, target.name, target)
    service.signal(target, number)


def _most(service: Harness, members: Sequence[Member]) -> Member:
    return max(members, key=lambda member: len(service.sessions(member)))


async def _until_whole(service: Harness, blow: Blow) -> None:
    """Wait until all who died were replaced, have been there for a while, and hold the sessions again."""
    since_s: float | None = None

    def is_whole() -> bool:
        nonlocal since_s
        now = time.monotonic()
        edges = [m for m in service.ingresses() if _is_fresh(service, m)]
        replicas = [m for m in service.replicas() if _is_fresh(service, m)]
        held = sum(len(service.sessions(member)) for member in edges)
        whole = len(edges) == blow.ingresses and len(replicas) == 2 and held >= STREAMS
        since_s = (since_s or now) if whole else None
        return since_s is not None and now - since_s >= WARM_S

    try:
        await service.until(is_whole, READY_S)
    except TimeoutError:
        return


def _is_fresh(service: Harness, member: Member) -> bool:
    card = service.card(member)
    return card is not None and time.monotonic() - card["written_s"] < 0.5


def _only_held(snapshot: Snapshot) -> Snapshot:
    return Snapshot(snapshot.slots, snapshot.leases, {}, {}, snapshot.frames, snapshot.is_whole)
