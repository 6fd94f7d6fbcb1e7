"""What is done to the service or to clients while traffic runs: one function for each kind of fault.

A kind says where its fault goes; when, and to which replica, is drawn from the run's seed. What comes back by
itself (a stopped process, a cut link) is brought back here, what has died is brought back by the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from loadtest.reliability.harness import Harness, Member
from loadtest.reliability.history import Fault
from loadtest.reliability.hosts import Cable
from loadtest.reliability.relay import Relay, Way

__all__ = ["KINDS", "Kind", "Scene"]

SHORT_S, LONG_S = 0.8, 4.5
"""Within and beyond what health checks forgive."""
CUT_S, SLOW_S = 3.0, 4.0
HANG_S = 30.0
REACHED_S = 60.0


@dataclass
class Scene:
    """All that a fault may touch."""

    service: Harness
    clients: list[Member]
    chance: random.Random
    edge: list[Relay] = field(default_factory=list)
    """Between the clients and each ingress."""
    inside: list[Relay] = field(default_factory=list)
    """Before the first replica of the first span."""
    hidden: Member | None = None
    """The replica behind that."""
    cable: Cable | None = None
    """Between this host and the other one, where half of the replicas are."""
    armed: Member | None = None
    """The process whose failpoints fail."""
    redis_pid: Callable[[], int] | None = None
    restart_redis: Callable[[], None] | None = None
    done: list[Fault] = field(default_factory=list)

    def note(self, kind: str, target: str, hurt: Member | None = None, time_s: float | None = None) -> None:
        """A fault happens now, or has happened; `hurt`: whose sessions it takes away."""
        now = time.monotonic() if time_s is None else time_s
        sessions = () if hurt is None else self.service.sessions(hurt)
        self.done.append(Fault(kind, target, now, None, sessions))

    def over(self) -> None:
        """The last fault is over."""
        self.done.append(replace(self.done.pop(), until_s=time.monotonic()))

    def span(self, wanted: str) -> int:
        """Index of the first, the last or any span."""
        spans = len(self.service.config.spans)
        return {"first": 0, "last": spans - 1, "any": self.chance.randrange(spans)}[wanted]


Deed = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault."""

    deed: Deed
    failpoints: str = ""
    """Armed before the traffic in one replica (`ingress`: in one ingress); `{at}` is drawn."""
    where: str = "first"
    """The span of that replica, or `ingress`."""
    wants: frozenset[str] = frozenset()
    """What the run must have: `redis`, `two ingresses`, `edge`, `inside`, `two spans`, `hosts`."""
    kills_clients: bool = False


def _signalled(who: str, number: signal.Signals, back_s: float | None = None) -> Deed:
    async def deed(scene: Scene) -> None:
        if who == "ingress":
            target = scene.chance.choice(scene.service.ingresses())
        elif who == "clients":
            target = scene.clients[-1]
        else:
            target = scene.service.busiest(scene.span(who))
        scene.note(number.name, target.name, None if who == "clients" else target)
        scene.service.signal(target, number)
        if back_s is not None:
            await asyncio.sleep(back_s)
            scene.service.signal(target, signal.SIGCONT)
            scene.over()

    return deed


async def _nothing(scene: Scene) -> None:
    """The failpoint does it, or nobody does anything."""


async def _failpoint(scene: Scene) -> None:
    """It is armed. One that is never reached is no fault."""
    armed = scene.armed
    assert armed is not None, "a kind with failpoints"
    service = scene.service

    def is_known() -> bool:
        return service.failed_s(armed) is not None or all(each.ended.is_set() for each in scene.clients)

    with contextlib.suppress(TimeoutError):
        await service.until(is_known, REACHED_S)
    if service.failed_s(armed) is not None:
        scene.note("failpoint", armed.name, armed, service.failed_s(armed))


async def _both_spans(scene: Scene) -> None:
    for span in range(len(scene.service.config.spans)):
        target = scene.service.busiest(span)
        scene.note("SIGKILL", target.name, target)
        scene.service.signal(target, signal.SIGKILL)


async def _replica_and_ingress(scene: Scene) -> None:
    for target in (scene.service.busiest(0), scene.chance.choice(scene.service.ingresses())):
        scene.note("SIGKILL", target.name, target)
        scene.service.signal(target, signal.SIGKILL)


async def _drained(scene: Scene) -> None:
    """What Serve does at a scale-down: told to go, with time to finish; another one comes at once."""
    target = scene.service.busiest(0)
    target.wanted = False
    await scene.service.start_replica(0)
    scene.note("SIGTERM", target.name, target)
    scene.service.signal(target, signal.SIGTERM)


async def _ingress_drained(scene: Scene) -> None:
    target = scene.chance.choice(scene.service.ingresses())
    scene.note("SIGTERM", target.name, target)
    scene.service.signal(target, signal.SIGTERM)


def _relayed(which: str, way: Way, for_s: float) -> Deed:
    async def deed(scene: Scene) -> None:
        at = scene.chance.randrange(len(scene.edge if which == "edge" else scene.inside))
        relay = (scene.edge if which == "edge" else scene.inside)[at]
        hurt = scene.service.at(scene.service.addresses[at]) if which == "edge" else scene.hidden
        scene.note(f"link {way.value}", which, hurt)
        relay.set(way)
        await asyncio.sleep(for_s)
        relay.set(Way.OPEN)
        scene.over()

    return deed


def _between_hosts(what: str, fault: Callable[[Cable], None], for_s: float) -> Deed:
    async def deed(scene: Scene) -> None:
        assert scene.cable is not None, "a run with two hosts"
        scene.note(what, "between hosts")
        fault(scene.cable)
        await asyncio.sleep(for_s)
        scene.cable.mend()
        scene.over()

    return deed


async def _redis_restarted(scene: Scene) -> None:
    assert scene.restart_redis is not None, "a run with Redis"
    scene.note("restarted empty", "redis")
    await asyncio.to_thread(scene.restart_redis)
    scene.over()


async def _redis_stopped(scene: Scene) -> None:
    assert scene.redis_pid is not None, "a run with Redis"
    pid = scene.redis_pid()
    scene.note("SIGSTOP", "redis")
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(SHORT_S)
    os.kill(pid, signal.SIGCONT)
    scene.over()


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
TWO_SPANS, REDIS, EDGE = frozenset({"two spans"}), frozenset({"redis"}), frozenset({"edge"})
HOSTS = frozenset({"hosts"})

KINDS: Mapping[str, Kind] = {
    "none": Kind(_nothing),
    "first span killed": Kind(_signalled("first", KILL)),
    "last span killed": Kind(_signalled("last", KILL), wants=TWO_SPANS),
    "replica stopped briefly": Kind(_signalled("any", STOP, SHORT_S)),
    "replica frozen": Kind(_signalled("any", STOP, LONG_S)),
    "engine hangs": Kind(_failpoint, f"engine.forward=hang:{HANG_S}@{{at}}"),
    "forward raises": Kind(_failpoint, "engine.forward=raise@{at}x6"),
    "killed before a commit": Kind(_failpoint, "engine.commit.before=kill@{at}"),
    "killed after a commit": Kind(_failpoint, "engine.commit.after=kill@{at}", where="last"),
    "killed before it activates": Kind(_failpoint, "replica.activate.before=kill@3"),
    "killed after it activates": Kind(_failpoint, "replica.activate.after=kill@3", where="last"),
    "killed before it acknowledges": Kind(
        _failpoint, "replica.acknowledge.before=kill@4", where="last", wants=TWO_SPANS
    ),
    "killed after it acknowledges": Kind(
        _failpoint, "replica.acknowledge.after=kill@4", where="last", wants=TWO_SPANS
    ),
    "ingress killed": Kind(_signalled("ingress", KILL)),
    "ingress stopped briefly": Kind(_signalled("ingress", STOP, SHORT_S)),
    "ingress killed before it answers": Kind(
        _failpoint, "ingress.answer.before=kill@{at}", where="ingress", wants=REDIS
    ),
    "ingress killed after it answers": Kind(
        _failpoint, "ingress.answer.after=kill@{at}", where="ingress", wants=REDIS
    ),
    "ingress killed before it takes a lease": Kind(
        _failpoint, "directory.set.before=kill@3", where="ingress", wants=REDIS
    ),
    "ingress killed after it took a lease": Kind(
        _failpoint, "directory.set.after=kill@3", where="ingress", wants=REDIS
    ),
    "directory restarted empty": Kind(_redis_restarted, wants=REDIS),
    "directory frozen": Kind(_redis_stopped, wants=REDIS),
    "clients killed": Kind(_signalled("clients", KILL), kills_clients=True),
    "clients frozen": Kind(_signalled("clients", STOP), kills_clients=True),
    "clients cut off": Kind(_relayed("edge", Way.CUT, SHORT_S), wants=EDGE),
    "clients stalled": Kind(_relayed("edge", Way.STALLED, SHORT_S), wants=EDGE),
    "clients slowed down": Kind(_relayed("edge", Way.SLOW, 2.0), wants=EDGE),
    "link to a replica cut": Kind(_relayed("inside", Way.CUT, SHORT_S), wants=frozenset({"inside"})),
    "link to a replica stalled": Kind(_relayed("inside", Way.STALLED, SHORT_S), wants=frozenset({"inside"})),
    "hosts cut off": Kind(_between_hosts("cut", lambda cable: cable.cut(), CUT_S), wants=HOSTS),
    "slow network between hosts": Kind(
        _between_hosts("slow", lambda cable: cable.slow(), SLOW_S), wants=HOSTS
    ),
    "replica drained": Kind(_drained),
    "ingress drained": Kind(_ingress_drained),
    "two spans killed at once": Kind(_both_spans, wants=TWO_SPANS),
    "replica and ingress killed at once": Kind(_replica_and_ingress),
}
"""By name."""
