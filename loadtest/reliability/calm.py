"""Nobody is hurt, for half an hour beside busy loops: whoever is taken for hung or dead is a false alarm.

A service of the chain model and one of the bundled model, both with two replicas and one ingress, share the
machine with as many busy loops as the machine of the targets has cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtest.figures import Figure
from loadtest.reliability.harness import Harness
from loadtest.reliability.history import Run, Snapshot, What, read_history
from loadtest.reliability.plan import steady_plan
from loadtest.reliability.pocket import METHODS, Round
from loadtest.reliability.pocket import config_of as config_of_pocket
from loadtest.reliability.runs import LIMITS, TENANTS, RunPlan, config_of, settled
from loadtest.reliability.spawner import Spawner
from loadtest.reliability.validators import validate
from loadtest.reliability.viewers import Viewer

__all__ = ["PIECES", "Alarms", "figures", "perform"]

MINUTES, LOOPS = 30.0, 2
STREAMS, RATE = 8, 10.0
RATE_OF_PICTURES = 2.0
END_S = 120.0


@dataclass(frozen=True, slots=True)
class Alarms:
    """What half an hour without a fault has seen."""

    minutes: float
    loops: int
    frames: int
    pictures: int
    replaced: Sequence[str]
    """Replicas and ingresses that ended, whoever ended them."""
    moved: int
    """Sessions that were told of another lane."""
    resumed: int
    ended: int
    """Sessions that ended before their last frame."""
    violations: Sequence[str] = field(default_factory=list)


async def perform(folder: Path, spawner: Spawner, minutes: float = MINUTES, loops: int = LOOPS) -> Alarms:
    """Serve for so long; histories and logs are in `folder`."""
    plan = steady_plan(1, TENANTS, streams=STREAMS, frames=round(60 * minutes * RATE), rate=RATE)
    chain, pocket = folder / "chain", folder / "pocket"
    for each in (chain, pocket):
        each.mkdir(parents=True, exist_ok=True)
    config = config_of(RunPlan(1, topology="pipeline"), chain)
    of_pocket = Round("bank")
    with _busy(loops):
        async with (
            Harness(config, chain, spawner) as service,
            Harness(config_of_pocket(of_pocket), pocket, spawner) as painter,
        ):
            await painter.start_replica(0)
            base = await service.snapshot()
            viewers = [Viewer(painter.addresses[0], dict(how), RATE_OF_PICTURES) for how in METHODS.values()]
            watching = [asyncio.create_task(viewer.watch()) for viewer in viewers]
            clients = await service.start_clients(plan, service.addresses, time.monotonic() + 0.2)
            async with asyncio.timeout(plan.seconds + END_S):
                await clients.ended.wait()
            for viewer in viewers:
                viewer.stop()
            async with asyncio.timeout(END_S):
                seen = await asyncio.gather(*watching)
            end = await settled(service, Snapshot(leases=base.leases))
            replaced = [
                name
                for harness in (service, painter)
                for name, member in harness.members.items()
                if member.ended.is_set() and member is not clients
            ]
            history = read_history(sorted((chain / "history").glob("clients*.jsonl")))
    run = Run(plan, history, (), base, end)
    told = [event.data["kind"] for event in run.events if event.what is What.NOTICE]
    ends = [event.data["status"] for event in run.events if event.what is What.ENDED]
    return Alarms(
        minutes,
        loops,
        run.count(What.SENT),
        sum(len(each.pictures) for each in seen),
        replaced,
        told.count("moved") + sum(len(each.said) for each in seen),
        told.count("resumed"),
        sum(status != "OK" for status in ends) + sum(bool(each.error) for each in seen),
        [str(each) for each in validate(run, LIMITS)],
    )


def figures(pieces: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """What a section says of it."""
    found = []
    for alarms in (Alarms(**piece) for piece in pieces):
        setting = (
            f"{alarms.minutes:g} min, {alarms.loops} busy loops, chain model {alarms.frames:,} frames"
            f" and pocket {alarms.pictures:,} pictures"
        )
        counts = {
            "replicas and ingresses taken for hung or dead": len(alarms.replaced),
            "sessions moved": alarms.moved,
            "sessions resumed": alarms.resumed,
            "sessions that ended early": alarms.ended,
            "violations": len(alarms.violations),
        }
        found.append(Figure("minutes without a fault", setting, alarms.minutes, "min", MINUTES))
        found += [Figure(what, setting, count, "", 0.0, at_most=True) for what, count in counts.items()]
    return found


async def _piece(folder: Path, spawner: Spawner) -> dict[str, Any]:
    return asdict(await perform(folder, spawner))


PIECES = {"half an hour": _piece}
"""By name: how each is run, and what is kept of it."""


@contextlib.contextmanager
def _busy(loops: int) -> Iterator[None]:
    """Processes that do nothing but use a core each."""
    command = [sys.executable, "-c", f"import os\nwhile os.getppid() == {os.getpid()}: pass"]
    processes = [subprocess.Popen(command) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
