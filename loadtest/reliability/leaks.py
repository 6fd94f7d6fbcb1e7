"""Sessions with all kinds of end, a thousand and more, and what is left of them; and clients that freeze.

An *end* is how a session goes: by its client, its connection, its deadline, its token, a slip, the service.
Two replicas and one ingress live through all of it and are measured; a second ingress is there to be drained,
and is replaced each time. What is measured is resident memory, descriptors, threads and tasks by process, and
slots, leases and keys of the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio

from loadtest.figures import Figure
from loadtest.reliability.ends import Site, end_one, schedule
from loadtest.reliability.harness import Harness, Healing, Member
from loadtest.reliability.history import Snapshot, What, read_history
from loadtest.reliability.plan import ClientKind, Plan, StreamPlan, token_of
from loadtest.reliability.processes import FRESH_S
from loadtest.reliability.runs import RunPlan, config_of, settled
from loadtest.reliability.spawner import Spawner

__all__ = ["PIECES", "Left", "figures", "frozen", "perform"]

AT_A_TIME = 12
WARM_UP, SESSIONS = 300, 1000
SETTLE_S = 15.0
MAX_GROWTH_MIB = 10.0
FAILPOINTS = "ingress.answer.before=raise@1"
FROZEN, FROZEN_FOR_S = 4, 55.0
SLOT_FREE_S = 12.0


@dataclass
class Left:
    """What a thousand sessions have left behind, by process: after them, less what was there before."""

    sessions: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    growth_mib: dict[str, float] = field(default_factory=dict)
    fds: dict[str, int] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    slots: int = 0
    leases: int = 0
    keys: int = 0
    """Of the directory, without a time at which they go: epochs are remembered for minutes."""
    seconds: float = 0.0


async def perform(
    folder: Path, spawner: Spawner, *, warm_up: int = WARM_UP, sessions: int = SESSIONS
) -> Left:
    """End `sessions` sessions, after `warm_up` others, and look at what is left."""
    from support.tokens import Issuer
    from support.valkey import Server

    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    began_s, server = time.monotonic(), Server(folder)
    await asyncio.to_thread(server.start)
    try:
        issuer = Issuer(folder / "jwks.json")
        config = config_of(RunPlan(1, topology="fused", ingresses=2), folder, server.url)
        jwt = {"keys_file": str(folder / "jwks.json"), "algorithms": ["RS256", "ES256"]}
        config = config.model_validate(
            {
                **config.model_dump(),
                "access": {"jwt": {**jwt, "audience": "rearview", "issuer": "https://issuer.example"}},
            }
        )
        healing = Healing(restart_s=0.2)
        async with Harness(
            config, folder, spawner, ingresses=2, healing=healing, failpoints=FAILPOINTS
        ) as service:
            kept, drained = service.ingresses()
            site = Site(service, kept, drained, issuer)
            await _end_many(site, warm_up, Counter())
            await settled(service, Snapshot())
            before = await _stand(service, kept, server.url)
            ends: Counter[str] = Counter()
            await _end_many(site, sessions, ends)
            await settled(service, Snapshot())
            after = await _until_back(service, kept, server.url, before)
    finally:
        server.stop()
    return _left(before, after, sessions, ends, time.monotonic() - began_s)


async def frozen(folder: Path, spawner: Spawner) -> dict[str, Any]:
    """Clients are stopped: when their slots are free, and whether their sessions go on when they wake."""
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    config = config_of(RunPlan(1, topology="fused"), folder)
    edge = {**config.ingress.model_dump(), "idle_timeout_s": 10.0, "resume_grace_s": 60.0}
    link = {**config.link.model_dump(), "orphan_grace_s": 60.0}
    config = config.model_validate({**config.model_dump(), "ingress": edge, "link": link})
    async with Harness(config, folder, spawner) as service:
        streams = tuple(
            StreamPlan(
                f"alpha/{number}",
                "alpha",
                token_of("alpha"),
                client=ClientKind.LIBRARY,
                frames=300,
                rate=10.0,
            )
            for number in range(FROZEN)
        )
        clients = await service.start_clients(Plan(1, streams), service.addresses, time.monotonic())
        await service.until(lambda: _slots(service) == FROZEN, SETTLE_S)
        await asyncio.sleep(2.0)
        service.signal(clients, signal.SIGSTOP)
        frozen_s = time.monotonic()
        free_s: float | None = None
        with contextlib.suppress(TimeoutError):
            await service.until(lambda: _slots(service) == 0, FROZEN_FOR_S)
            free_s = time.monotonic() - frozen_s
        await asyncio.sleep(max(0.0, frozen_s + FROZEN_FOR_S - time.monotonic()))
        service.signal(clients, signal.SIGCONT)
        woken_s = time.monotonic()
        await asyncio.sleep(8.0)
        events = read_history(sorted((folder / "history").glob("clients*.jsonl")))
    later = [event for event in events if event.time_s > woken_s]
    resumed = {
        event.stream for event in later if event.what is What.NOTICE and event.data["kind"] == "resumed"
    }
    back = {event.stream for event in later if event.what is What.RESULT}
    ends = [event.data for event in later if event.what is What.ENDED]
    return {
        "frozen": FROZEN,
        "slot_free_s": free_s,
        "for_s": FROZEN_FOR_S,
        "resumed": len(resumed & back),
        "said": Counter(
            str(event.data["continuity"])
            for event in later
            if event.what is What.NOTICE and event.data["kind"] == "resumed"
        ),
        "ended": [f"{end['status']} {end.get('reason')}" for end in ends],
    }


async def _piece(folder: Path, spawner: Spawner) -> dict[str, Any]:
    return {"what": "ends", **asdict(await perform(folder, spawner))}


async def _frozen_piece(folder: Path, spawner: Spawner) -> dict[str, Any]:
    return {"what": "frozen", **await frozen(folder, spawner)}


PIECES: Mapping[str, Callable[[Path, Spawner], Awaitable[dict[str, Any]]]] = {
    "ends": _piece,
    "frozen": _frozen_piece,
}
"""By name: how each is run, and what is kept of it."""


def figures(pieces: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """What a section says of them."""
    found = []
    for piece in pieces:
        found += _ends_figures(piece) if piece["what"] == "ends" else _frozen_figures(piece)
    return found


def _ends_figures(piece: Mapping[str, Any]) -> list[Figure]:
    setting = f"chain model, {piece['sessions']} sessions of {len(piece['ends'])} ends after {WARM_UP} others"
    setting += ", without the pool of connections to the directory"
    growth = max(piece["growth_mib"].values())
    counts = {
        **{f"{name} left, worst process": max(piece[name].values()) for name in ("fds", "threads", "tasks")},
        **{f"{name} left": piece[name] for name in ("slots", "leases", "keys")},
    }
    return [
        Figure(
            "growth of resident memory, worst process", setting, growth, "MiB", MAX_GROWTH_MIB, at_most=True
        ),
        *(Figure(what, setting, count, "", 0.0, at_most=True) for what, count in counts.items()),
    ]


def _frozen_figures(piece: Mapping[str, Any]) -> list[Figure]:
    setting = f"chain model, {piece['frozen']} clients stopped for {piece['for_s']:g} s"
    free_s = piece["slot_free_s"] if piece["slot_free_s"] is not None else float("nan")
    return [
        Figure("slots of frozen clients free after", setting, free_s, "s", SLOT_FREE_S, at_most=True),
        Figure("frozen clients whose session went on", setting, piece["resumed"], "", float(piece["frozen"])),
    ]


async def _end_many(site: Site, sessions: int, ends: Counter[str]) -> None:
    """So many sessions, several at a time."""
    waiting = iter(schedule(sessions))

    async def worker() -> None:
        for name in waiting:
            await end_one(site, name)
            ends[name] += 1

    async with asyncio.TaskGroup() as workers:
        for _ in range(AT_A_TIME):
            workers.create_task(worker())


@dataclass(frozen=True)
class Stand:
    """What there is now, by process and in all."""

    cards: Mapping[str, Mapping[str, Any]]
    slots: int
    leases: int
    keys: int


async def _stand(service: Harness, kept: Member, url: str) -> Stand:
    gc.collect()  # A channel that is closed lets go of its socket when nobody has it any more.
    await asyncio.sleep(2 * FRESH_S)
    cards: dict[str, Mapping[str, Any]] = {}
    for member in (*service.replicas(), kept):
        if (card := service.card(member)) is not None:
            pooled = _connections(member.pid, urlsplit(url).port or 0)
            cards[member.name] = {**card, "fds": card["fds"] - pooled}
    snapshot = await service.snapshot()
    async with redis.asyncio.from_url(url) as client:
        keys = sum([await client.ttl(key) == -1 async for key in client.scan_iter(count=1000)])
    return Stand(cards, sum(snapshot.slots.values()), snapshot.leases, keys)


def _connections(pid: int, port: int) -> int:
    """Sockets of a process that lead to a port: those of its pool to the directory, which is bounded and as
    large as the busiest moment needed.
    """
    mine = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # Closed since it was listed.
            mine.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    lines = Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split() for line in lines]
    return sum(each[9] in mine and int(each[2].split(":")[1], 16) == port for each in fields)


async def _until_back(service: Harness, kept: Member, url: str, before: Stand) -> Stand:
    """The state once it is as before, or when there was time enough for it."""
    until_s = time.monotonic() + SETTLE_S
    while True:
        after = await _stand(service, kept, url)
        is_back = after.leases <= before.leases and not after.slots and after.keys <= before.keys
        no_more = all(
            after.cards[name][what] <= card[what]
            for name, card in before.cards.items()
            for what in ("fds", "threads", "tasks")
        )
        if (is_back and no_more) or time.monotonic() > until_s:
            return after


def _left(before: Stand, after: Stand, sessions: int, ends: Counter[str], seconds: float) -> Left:
    def more(what: str) -> dict[str, int]:
        return {name: max(0, after.cards[name][what] - card[what]) for name, card in before.cards.items()}

    growth = {name: round(grown / 2**20, 2) for name, grown in more("rss_bytes").items()}
    counts = (after.slots, max(0, after.leases - before.leases), max(0, after.keys - before.keys))
    return Left(
        sessions, dict(ends), growth, more("fds"), more("threads"), more("tasks"), *counts, round(seconds, 1)
    )


def _slots(service: Harness) -> int:
    return sum(len(service.sessions(member)) for member in service.replicas())
