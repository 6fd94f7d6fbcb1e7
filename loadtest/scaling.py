"""One replica of each span becomes three and one again, while sessions run: what they have seen of it.

make scaling     writes loadtest/results/scaling.json, and the table of it in docs/figures.md

A real Ray Serve on one machine, a pipeline of two spans, the chain model: each of its answers carries a hash
chain over every input of its session so far, so a frame that is lost, doubled, out of order or of another
past shows, and the validators of `loadtest.reliability` find it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from rearview.config import ServiceConfig, load_config
from rearview.local import RayService

from loadtest.figures import RESULTS, Figure, ResultFile, show
from loadtest.reliability.counters import scrape
from loadtest.reliability.history import Event, Log, Run, Snapshot, What
from loadtest.reliability.plan import ClientKind, Plan, steady_plan
from loadtest.reliability.runs import LIMITS, TENANTS, RunPlan, config_of
from loadtest.reliability.traffic import Clock, drive
from loadtest.reliability.validators import validate

__all__ = ["Scaled", "main", "perform", "scaling_config"]

NAME = "scaling"
MOST = 3
RATE = 10.0
"""Frames per second of a stream that stays."""
STAYING, CROWD = 4, 7
"""Sessions: one replica is to have four of them, so eleven ask for three."""
CROWD_RATE = 0.5
ENDLESS = 10_000
"""Frames of a stream that is ended by its clock."""
CALM_S = 3.0
HOLD_S = 3.0
WITHIN_S = 150.0
"""For each change of the number of replicas; a busy machine starts processes slowly."""
LOOK_EVERY_S = 0.2
SETTLE_S = 20.0


@dataclass(frozen=True, slots=True)
class Scaled:
    """What has happened. Seconds."""

    up_s: float
    """From the crowd's first session until every span had three replicas."""
    down_s: float
    """From the crowd's end until every span had one, the hold included."""
    frames: int
    moved: Mapping[str, int]
    """By continuity, of sessions that stayed."""
    dropped: int
    gaps_s: Mapping[str, float]
    """The longest time between two pictures of one session that stayed: before, while replicas came, while
    they went. Frames are 0.1 s apart.
    """
    spread: Mapping[str, int]
    """Sessions that stayed, by span and number of replica, when replicas began to go."""
    violations: Sequence[str]
    """What the validators find wrong."""


def scaling_config(folder: Path) -> ServiceConfig:
    """The service: `folder` is for its tenants file."""
    plain = config_of(RunPlan(0), folder).model_dump(mode="json")
    plain["ingress"] |= {"idle_timeout_s": 120.0}
    plain["scaling"] |= {"hold_s": HOLD_S}
    for span in plain["spans"]:
        span |= {"replicas": 1, "max_replicas": MOST, "sessions_per_replica": STAYING}
    return load_config(plain)


async def perform(service: RayService) -> Scaled:
    """Serve a crowd and those who stay, on a service that has just started."""
    base = await _snapshot(service)
    log, clocks = Log(), [Clock(), Clock()]
    first = _plan(1, STAYING // 2, RATE)
    staying = [asyncio.create_task(drive(first, [service.address], log, clocks[0]))]
    await asyncio.sleep(CALM_S)
    crowd_s, crowd = time.monotonic(), _plan(2, CROWD, CROWD_RATE)
    clock = Clock()
    passing = asyncio.create_task(drive(crowd, [service.address], log, clock))
    await _until(service, lambda spans: all(len(each) == MOST for each in spans.values()))
    there_s = time.monotonic()
    second = _plan(3, STAYING - STAYING // 2, RATE)  # They find the new replicas empty.
    staying.append(asyncio.create_task(drive(second, [service.address], log, clocks[1])))
    await asyncio.sleep(CALM_S)
    spread = await _spread(service, log, [first, second])
    gone_s, clock.is_over = time.monotonic(), True
    await passing
    await _until(service, lambda spans: all(len(each) == 1 for each in spans.values()))
    back_s = time.monotonic()
    await asyncio.sleep(CALM_S)
    for each in clocks:
        each.is_over = True
    await asyncio.gather(*staying)
    plan = Plan(0, (*first.streams, *crowd.streams, *second.streams))
    events = sorted(log.events, key=lambda event: event.time_s)
    run = Run(plan, events, (), base, await _snapshot(service, settled=True))
    stayed = [event for event in events if any(event.stream == each.key for each in _staying(first, second))]
    phases = {
        "before": (crowd_s - CALM_S, crowd_s),
        "coming": (crowd_s, there_s),
        "going": (gone_s, back_s),
    }
    return Scaled(
        there_s - crowd_s,
        back_s - gone_s,
        run.count(What.RESULT),
        dict(Counter(event.data["continuity"] for event in stayed if _is_move(event))),
        run.count(What.DROPPED),
        {name: _longest_gap_s(stayed, *when) for name, when in phases.items()},
        spread,
        [str(each) for each in validate(run, LIMITS)],
    )


def _plan(number: int, streams: int, rate: float) -> Plan:
    """Streams with names of their own, all by raw stubs: nothing but the service makes up for a loss."""
    plan = steady_plan(number, TENANTS, streams=streams, frames=ENDLESS, rate=rate)
    own = (
        replace(each, key=f"{each.tenant}/{number}{index:03}", client=ClientKind.RAW)
        for index, each in enumerate(plan.streams)
    )
    return replace(plan, streams=tuple(own))


def _staying(*plans: Plan) -> Iterator[Any]:
    for plan in plans:
        yield from plan.streams


def _is_move(event: Event) -> bool:
    return event.what is What.NOTICE and event.data["kind"] == "moved"


def _longest_gap_s(events: Sequence[Event], begin_s: float, end_s: float) -> float:
    """Between two answers of one stream, of those that came in that time."""
    times: dict[str, list[float]] = {}
    for event in events:
        if event.what is What.RESULT and begin_s <= event.time_s <= end_s:
            times.setdefault(event.stream, []).append(event.time_s)
    return max((b - a for each in times.values() for a, b in pairwise(each)), default=0.0)


async def _spread(service: RayService, log: Log, plans: Sequence[Plan]) -> dict[str, int]:
    """How many of those who stay each replica holds."""
    keys = {stream.key for stream in _staying(*plans)}
    opened = {
        event.data["session"] for event in log.events if event.what is What.OPENED and event.stream in keys
    }
    found = {}
    for number, stage in enumerate(await asyncio.to_thread(lambda: service.stages)):
        found[f"{stage['span']}/{number % MOST}"] = len(opened.intersection(stage["sessions"]))
    return found


async def _until(service: RayService, holds: Callable[[Mapping[str, list[Any]]], bool]) -> None:
    """Until it holds of the replicas of each span that serve. Raises TimeoutError."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            spans: dict[str, list[Any]] = {}
            for stage in await asyncio.to_thread(lambda: service.stages):
                spans.setdefault(stage["span"], []).append(stage)
            if holds(spans):
                return
            await asyncio.sleep(LOOK_EVERY_S)


async def _snapshot(service: RayService, *, settled: bool = False) -> Snapshot:
    """What is held and counted. `settled`: once nothing is held, or when there was time enough for it."""
    until_s = time.monotonic() + SETTLE_S
    while True:
        stages = await asyncio.to_thread(lambda: service.stages)
        slots = {stage["replica_id"]: len(stage["sessions"]) for stage in stages}
        if not settled or not any(slots.values()) or time.monotonic() > until_s:
            return Snapshot(slots, frames=await scrape(service.metrics_urls[:1]))
        await asyncio.sleep(LOOK_EVERY_S)


def result(found: Scaled, command: str) -> ResultFile:
    """What one run says."""
    setting = f"chain model, {STAYING} streams of {RATE:g} FPS, 1 → {MOST} → 1 replicas of 2 spans"
    wrongs, moved = len(found.violations), found.moved
    figures = [
        Figure("frames lost, doubled or out of order", setting, wrongs, "", 0.0, at_most=True),
        Figure("sessions reset", setting, moved.get("reset", 0), "", 0.0, at_most=True),
        Figure("sessions moved, exact", setting, moved.get("exact", 0), ""),
        Figure("longest gap while replicas go", setting, found.gaps_s["going"], "s"),
        Figure("longest gap while replicas come", setting, found.gaps_s["coming"], "s"),
        Figure("longest gap before", setting, found.gaps_s["before"], "s"),
        Figure("from one to three", setting, found.up_s, "s"),
        Figure(f"from three to one, {HOLD_S:g} s of hold included", setting, found.down_s, "s"),
    ]
    return ResultFile.of(NAME, command, figures, asdict(found))


def main(out: Annotated[Path, typer.Option(help="Folder of the result file.")] = RESULTS) -> None:
    """Scale a pipeline up and down while streams run, and judge what they have seen."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rearview-scaling-"))
        service = stack.enter_context(RayService(scaling_config(Path(folder)), print))
        found = asyncio.run(perform(service))
    report = result(found, "python -m loadtest.scaling")
    show(report, report.write(out))
    for violation in found.violations[:10]:
        print(violation)
    raise typer.Exit(1 if found.violations else 0)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]
    typer.run(main)
