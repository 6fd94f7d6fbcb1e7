"""One run: a service of plain processes, traffic, one fault, and what the validators say of the history."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rearview.config import ServiceConfig, load_config
from rearview.directory import DirectoryUnavailable

from loadtest.reliability.faults import KINDS, Scene
from loadtest.reliability.harness import Harness, Healing, Member
from loadtest.reliability.history import Run, Snapshot, What, read_history
from loadtest.reliability.hosts import Namespaces, Relays, can_have_namespaces
from loadtest.reliability.plan import Plan, StreamPlan, make_plan, token_of, token_sha256
from loadtest.reliability.processes import FRESH_S
from loadtest.reliability.recovery import Recovery, recovered, recoveries
from loadtest.reliability.relay import Relay
from loadtest.reliability.spawner import Spawner
from loadtest.reliability.validators import Limits, Violation, validate

__all__ = ["LIMITS", "Outcome", "RunPlan", "config_of", "perform", "settled"]

TENANTS = ("alpha", "beta", "gamma")
SPANS = {
    "fused": (("encode", "denoise-0", "denoise-1", "decode"),),
    "pipeline": (("encode", "denoise-0"), ("denoise-1", "decode")),
}
REPLICAS = 2
SLOTS = 24
END_S = 60.0
SETTLE_S = 12.0
GRACE_S = 2.0
"""How long sessions without a client stay, seconds: the default would make each run a minute long."""
LIMITS = Limits(refusal_s=0.5, stale_s=1.0, more_tasks=12, more_fds=16)
"""On machines that others use too, and beside links that come with new replicas."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is run: made again from these fields."""

    seed: int
    kind: str = "none"
    topology: str = "pipeline"
    ingresses: int = 1
    streams: int = 8
    seconds: float = 4.0
    pace: float = 1.0
    """By which the frame rates of all streams are multiplied."""

    @property
    def has_redis(self) -> bool:
        """Whether leases are in Redis."""
        return self.ingresses > 1 or "redis" in KINDS[self.kind].wants


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    plan: RunPlan
    run: Run
    violations: Sequence[Violation]
    recoveries: Sequence[Recovery]
    """Of the streams that were hurt."""
    seconds: float
    load: float
    """Average of the machine in the last minute."""

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        told = [event for event in self.run.events if event.what is What.NOTICE]
        notices = [event.data["continuity"] for event in told if event.data["kind"] == "moved"]
        ends = [event for event in self.run.events if event.what is What.ENDED]
        return {
            "seed": self.plan.seed,
            "kind": self.plan.kind,
            "topology": self.plan.topology,
            "ingresses": self.plan.ingresses,
            "streams": self.plan.streams,
            "frames": self.run.count(What.SENT),
            "results": self.run.count(What.RESULT),
            "dropped": self.run.count(What.DROPPED),
            "sessions": self.run.count(What.OPENED),
            "refused": self.run.count(What.REFUSED),
            "resumed": sum(event.data["kind"] == "resumed" for event in told),
            "ended_ok": sum(event.data["status"] == "OK" for event in ends),
            "ended_announced": sum(event.data["status"] != "OK" for event in ends),
            "moved": {said: notices.count(said) for said in ("exact", "approximate", "reset")},
            "reached": bool(self.run.faults),
            **recovered(self.recoveries),
            "violations": [str(each) for each in self.violations],
            "seconds": round(self.seconds, 1),
            "load": self.load,
        }


def config_of(
    plan: RunPlan, folder: Path, redis_url: str | None = None, grace_s: float = GRACE_S
) -> ServiceConfig:
    """The service of a run. `grace_s`: how long sessions without a client stay."""
    tenants = folder / "tenants.yaml"
    content = [
        {"name": name, "token_sha256": token_sha256(name), "max_streams": 256, "max_frames_per_s": 1e5}
        for name in TENANTS
    ]
    tenants.write_text(yaml.safe_dump(content), encoding="utf-8")
    directory: Mapping[str, Any] = {} if redis_url is None else {"redis_url": redis_url, "lease_s": 2.0}
    return load_config(
        {
            "topology": plan.topology,
            "spans": [
                {
                    "name": f"span-{number}",
                    "operators": list(operators),
                    "slots": SLOTS,
                    "replicas": REPLICAS,
                }
                for number, operators in enumerate(SPANS[plan.topology])
            ],
            "model": {"checkpoint": "chain:1+0.1", "width": 64, "height": 64},
            "ingress": {"port": 0, "resume_grace_s": grace_s, "idle_timeout_s": 5.0, "drain_grace_s": 2.0},
            "link": {"orphan_grace_s": grace_s, "secret": "of-these-tests-alone", "unix_dir": None},
            "directory": directory,
            "tenants_file": str(tenants),
        }
    )


async def perform(plan: RunPlan, folder: Path, spawner: Spawner) -> Outcome:
    """Run it; what is in `folder` afterwards is its history and logs."""
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    began_s, kind, chance = time.monotonic(), KINDS[plan.kind], random.Random(plan.seed)
    async with AsyncExitStack() as stack:
        redis = None
        if plan.has_redis:
            from support.valkey import Server

            redis = Server(folder)
            await asyncio.to_thread(redis.start)
            stack.callback(redis.stop)
        config = config_of(plan, folder, None if redis is None else redis.url)
        cable = _cable(kind.wants, stack)
        if cable is not None:
            link = config.link.model_copy(update={"host": cable.here})
            config = config.model_copy(update={"link": link})
        service = await stack.enter_async_context(
            Harness(
                config,
                folder,
                spawner,
                ingresses=plan.ingresses,
                healing=Healing(),
                failpoints=kind.failpoints.format(at=chance.randrange(30, 90)),
            )
        )
        scene = Scene(service, [], chance)
        if redis is not None:
            scene.redis_pid = lambda: redis.process.pid if redis.process is not None else 0
            scene.restart_redis = lambda: (redis.stop(), redis.start())[-1]
        await _relays(scene, kind.wants, stack)
        if cable is not None:
            await _other_host(scene, cable, stack)
        if scene.inside or scene.cable is not None:
            await asyncio.sleep(2 * FRESH_S)  # Cards of those who were replaced are too old by then.
        await _warm(service)
        base = await service.snapshot()
        if kind.failpoints:
            _arm(scene, kind.where)
        traffic, killed = await _traffic(scene, plan, kills=kind.kills_clients)
        if not kind.failpoints:
            await asyncio.sleep(plan.seconds * chance.uniform(0.3, 0.5))
        await kind.deed(scene)
        for clients in scene.clients if not kind.kills_clients else scene.clients[:-1]:
            async with asyncio.timeout(END_S):
                await clients.ended.wait()
        if kind.kills_clients:
            await asyncio.sleep(plan.seconds / 4)
        end = await settled(service, base)
        run = Run(
            traffic,
            read_history(sorted((folder / "history").glob("clients*.jsonl"))),
            scene.done,
            base,
            end,
            killed,
        )
    violations = validate(run, LIMITS)
    outcome = Outcome(
        plan, run, violations, recoveries(run), time.monotonic() - began_s, round(os.getloadavg()[0], 1)
    )
    (folder / "run.json").write_text(
        json.dumps({"outcome": outcome.as_json(), **run.as_json()}, indent=1), encoding="utf-8"
    )
    (folder / "plan.json").write_text(traffic.to_json(), encoding="utf-8")
    return outcome


def _arm(scene: Scene, where: str) -> None:
    """Choose the process whose failpoints fail."""
    service = scene.service
    if where == "ingress":
        scene.armed = scene.chance.choice(service.ingresses())
    else:
        scene.armed = scene.chance.choice(service.replicas(scene.span(where)))
    service.arm(scene.armed)


async def _gone(service: Harness, member: Member) -> None:
    member.wanted = False
    service.signal(member, signal.SIGKILL)
    await member.ended.wait()


async def _relays(scene: Scene, wants: frozenset[str], stack: AsyncExitStack) -> None:
    service = scene.service
    if "edge" in wants:
        for address in service.addresses:
            port = int(address.rpartition(":")[2])
            relay = await stack.enter_async_context(Relay(lambda port=port: ("127.0.0.1", port)))
            scene.edge.append(relay)
    if "inside" in wants:
        former = service.replicas(0)[0]
        await _gone(service, former)
        relay = Relay(lambda: _tcp_of(service, hidden))
        await stack.enter_async_context(relay)
        hidden = await service.start_replica(0, relay=relay.port)
        await service.until(lambda: service.card(hidden) is not None, END_S)
        scene.inside.append(relay)
        scene.hidden = hidden


def _cable(wants: frozenset[str], stack: AsyncExitStack) -> Namespaces | Relays | None:
    if "hosts" not in wants:
        return None
    return stack.enter_context(Namespaces()) if can_have_namespaces() else Relays()


async def _other_host(scene: Scene, cable: Namespaces | Relays, stack: AsyncExitStack) -> None:
    """One replica of each span is there."""
    service, scene.cable = scene.service, cable
    for span in range(len(service.config.spans)):
        await _gone(service, service.replicas(span)[0])
        there = await _start_there(service, span, cable, stack)
        await service.until(lambda there=there: service.card(there) is not None, END_S)


async def _start_there(
    service: Harness, span: int, cable: Namespaces | Relays, stack: AsyncExitStack
) -> Member:
    if isinstance(cable, Namespaces):
        return await service.start_replica(span, host=cable.there)
    there = await service.start_replica(span, relay=await cable.add(lambda: _tcp_of(service, there), stack))
    return there


def _tcp_of(service: Harness, member: Member) -> tuple[str, int]:
    card = service.card(member)
    if card is None:
        raise ConnectionRefusedError(f"{member.name} is gone")
    _, _, host, port = card["true_address"].split("|")
    return host, int(port)


async def _warm(service: Harness) -> None:
    """A few frames on every replica: links and caches come with the first sessions, and stay."""
    streams = tuple(
        StreamPlan(f"alpha/{number}", "alpha", token_of("alpha"), frames=6, rate=30.0)
        for number in range(2 * REPLICAS * len(service.addresses))
    )
    warm = await service.start_clients(Plan(0, streams), service.addresses, time.monotonic(), "warm")
    async with asyncio.timeout(END_S):
        await warm.ended.wait()


async def _traffic(scene: Scene, plan: RunPlan, *, kills: bool) -> tuple[Plan, frozenset[str]]:
    """Start the clients; with `kills` some of them in a process of their own, which dies or freezes."""
    traffic = make_plan(plan.seed, streams=plan.streams, seconds=plan.seconds, pace=plan.pace)
    addresses = tuple(f"127.0.0.1:{relay.port}" for relay in scene.edge) or scene.service.addresses
    doomed = traffic.streams[: plan.streams // 3] if kills else ()
    parts = [tuple(stream for stream in traffic.streams if stream not in doomed), doomed]
    start_s = time.monotonic() + 0.2
    for part in filter(None, parts):
        clients = await scene.service.start_clients(replace(traffic, streams=part), addresses, start_s)
        scene.clients.append(clients)
    return traffic, frozenset(f"{stream.key}" for stream in doomed)


async def settled(service: Harness, base: Snapshot) -> Snapshot:
    """The state once all is given back, or when there was time enough for it."""
    until_s = time.monotonic() + SETTLE_S
    while True:
        await asyncio.sleep(0.2)
        try:
            end = await service.snapshot()
        except (OSError, DirectoryUnavailable):  # An ingress is on its way, or Redis.
            if time.monotonic() > until_s:
                raise
            continue
        is_done = not any(end.slots.values()) and end.leases <= base.leases
        if is_done or time.monotonic() > until_s:
            return end
