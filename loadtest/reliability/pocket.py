"""The bundled model with its memories: replicas are killed and drained, and pictures compared bit by bit.

All sessions send one clip, so one session that nobody hurts is the reference of all. After a move that was
said to be EXACT every picture must be that of the reference; after APPROXIMATE it may differ by a bound.
The sessions of a round are all on one replica, and the other one is warm.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rearview.config import ServiceConfig, load_config
from rearview.contract.memories import BankOptions
from rearview.contract.methods import Method

from loadtest.figures import Figure
from loadtest.reliability.counters import samples
from loadtest.reliability.harness import Harness, Healing, Member
from loadtest.reliability.spawner import Spawner
from loadtest.reliability.viewers import SIDE, Seen, Viewer

__all__ = ["PIECES", "ROUNDS", "Found", "Round", "figures", "perform"]

RATE, RATE_OF_MOVES = 4.0, 10.0
"""Frames a second of each session: together less than a busy machine of two cores can do; and where the gap
of a move is measured, which must not be hidden between two frames.
"""
WARM_S, SETTLE_S, WINDOW_S = 1.5, 4.0, 2.0
"""From a replica's coming to the next fault; from a fault to the next replica, at most; around a move."""
READY_S = 150.0
APPROXIMATE_BOUND = 16.0
"""Mean difference, of 255, of a picture after APPROXIMATE from that of a session that was not hurt."""
OPERATORS = ("encode", "denoise-0", "denoise-1", "decode")
METHODS: Mapping[str, Mapping[str, Any]] = {
    "bank": {"method": Method.STREAMV2V, "feature_bank": BankOptions(interval=2)},
    "cache": {"method": Method.LIVE2DIFF},
}


@dataclass(frozen=True, slots=True)
class Round:
    """Sessions of one method on one replica, which is killed and drained so often."""

    method: str
    sessions: int = 1
    kills: int = 0
    drains: int = 0
    has_checkpoints: bool = True
    rate: float = RATE

    @property
    def name(self) -> str:
        without = "" if self.has_checkpoints else " without checkpoints"
        moved = "" if self.kills else ", moved"
        return f"{self.method}{without}, {self.sessions} on a replica{moved}, {self.rate:g} FPS"


ROUNDS = (
    Round("bank", 1, kills=5),
    Round("bank", 1, drains=5, rate=RATE_OF_MOVES),
    Round("bank", 2, kills=3),
    Round("bank", 3, kills=3),
    Round("cache", 1, kills=5),
    Round("cache", 1, drains=5, rate=RATE_OF_MOVES),
    Round("cache", 3, kills=3),
    Round("bank", 1, kills=2, has_checkpoints=False),
    Round("cache", 1, kills=2, has_checkpoints=False),
)


@dataclass
class Found:
    """What came of a round. Seconds."""

    name: str
    back_s: list[float] = field(default_factory=list)
    never: int = 0
    said: list[str] = field(default_factory=list)
    pictures: int = 0
    differ: int = 0
    """Pictures after EXACT alone that are not the reference's."""
    difference: float = 0.0
    """Of the worst picture after APPROXIMATE."""
    gaps_s: list[float] = field(default_factory=list)
    """The longest one between answers around each planned move, of each session."""
    normal_p99_s: float = 0.0
    in_flight_s: float = 0.0
    """Round trip of a frame while nothing happens, p99."""
    checkpoint_bytes: float = 0.0
    bytes_per_s: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def move_bound_s(self) -> float:
        """Time in flight, and what has to be copied at the rate that was measured."""
        return self.in_flight_s + self.checkpoint_bytes / (self.bytes_per_s or float("inf"))

    def as_json(self) -> dict[str, Any]:
        """To keep."""
        return {**asdict(self), "move_bound_s": self.move_bound_s}


def config_of(plan: Round) -> ServiceConfig:
    """One row a forward: pictures depend on the batch by rounding."""
    recovery = {} if plan.has_checkpoints else {"checkpoint_bytes_per_s": 0}
    return load_config(
        {
            "model": {"checkpoint": "pocket", "width": SIDE, "height": SIDE, "dtype": "float32"},
            "spans": [{"name": "span-0", "operators": list(OPERATORS), "slots": 8, "max_batch": 1}],
            "bank": {},
            "cache": {"sink_frames": 3, "ring_frames": 3},
            "ingress": {"port": 0, "drain_grace_s": 10.0},
            "link": {"secret": "of-these-tests-alone"},
            "recovery": recovery,
        }
    )


async def perform(plan: Round, folder: Path, spawner: Spawner) -> Found:
    """Run a round; logs are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    found = Found(plan.name)
    async with Harness(config_of(plan), folder, spawner, healing=Healing(restart_s=0.2)) as service:
        (address,) = service.addresses
        options = dict(METHODS[plan.method])
        viewers = [Viewer(address, options, plan.rate) for _ in range(plan.sessions)]
        watching = [asyncio.create_task(viewer.watch()) for viewer in viewers]
        await asyncio.gather(*(viewer.is_open.wait() for viewer in viewers))
        began_s = time.monotonic()
        await service.start_replica(0)  # Only now, so that all sessions are on the first one.
        await _until_warm(service)
        await asyncio.sleep(WINDOW_S)
        quiet_s = time.monotonic()
        kills = [await _strike(service, signal.SIGKILL) for _ in range(plan.kills)]
        drains = [await _strike(service, signal.SIGTERM) for _ in range(plan.drains)]
        for viewer in viewers:
            viewer.stop()
        async with asyncio.timeout(READY_S):
            seen = await asyncio.gather(*watching)
        reference = await _reference(address, options, max(len(each.sent_s) for each in seen))
        await _measure_checkpoints(service, found)
    _judge(found, seen, [reference.pictures[index] for index in range(len(reference.pictures))])
    found.back_s = [round(back, 3) for at in kills for each in seen if (back := each.back_s(at)) is not None]
    found.never = len(kills) * len(seen) - len(found.back_s)
    found.gaps_s = [
        round(max(each.gaps_s(at, at + WINDOW_S), default=WINDOW_S), 3) for at in drains for each in seen
    ]
    normal = sorted(gap for each in seen for gap in each.gaps_s(began_s + WARM_S, quiet_s))
    found.normal_p99_s = round(normal[int(0.99 * (len(normal) - 1))], 4)
    trips = sorted(trip for each in seen for trip in each.round_trips_s)
    found.in_flight_s = round(trips[len(trips) // 2], 4)
    return found


async def _piece(plan: Round, folder: Path, spawner: Spawner) -> dict[str, Any]:
    return (await perform(plan, folder, spawner)).as_json()


PIECES = {plan.name: partial(_piece, plan) for plan in ROUNDS}
"""By name: how each is run, and what is kept of it."""


def figures(rounds: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """What a section says of them."""
    found, p50_by_method = [], {}
    for each in rounds:
        setting = f"pocket {SIDE}x{SIDE}, {each['name']}"
        if each["back_s"]:
            times = sorted(each["back_s"])
            method, sessions = each["name"].split(",")[0], int(each["name"].split(",")[1].split()[0])
            p50_by_method.setdefault(method, {})[sessions] = times[len(times) // 2]
            target = 3.0 if (method, sessions) == ("bank", 1) else None
            what = "first good picture after SIGKILL, worst"
            found.append(Figure(what, f"{setting}, {len(times)} times", times[-1], "s", target, at_most=True))
        found.append(Figure("hurt and never back", setting, each["never"], "", 0.0, at_most=True))
        exact = f"{setting}, {each['pictures']} pictures, {each['said'].count('exact')} moves"
        what = "pictures after EXACT that are not the reference's"
        found.append(Figure(what, exact, each["differ"], "", 0.0, at_most=True))
        if approximate := each["said"].count("approximate"):
            what = "worst mean difference of a picture after APPROXIMATE, of 255"
            after = f"{setting}, {approximate} moves"
            bound = APPROXIMATE_BOUND
            found.append(Figure(what, after, round(each["difference"], 2), "", bound, at_most=True))
        found += _gaps(each, setting)
    for method, by_sessions in p50_by_method.items():
        few, many = min(by_sessions), max(by_sessions)
        if few != many:
            more_s = max(0.0, by_sessions[many] - by_sessions[few]) / (many - few)
            setting = f"pocket {SIDE}x{SIDE}, {method}, {few} to {many} on a replica, of p50"
            found.append(Figure("first good picture, for each further session", setting, more_s, "s"))
    return found


def _gaps(each: Mapping[str, Any], setting: str) -> list[Figure]:
    if not each["gaps_s"]:
        return []
    gap_s = max(0.0, max(each["gaps_s"]) - each["normal_p99_s"])
    target = 0.2
    if each["name"].startswith("cache"):
        target = round(each["move_bound_s"], 3)
        setting += (
            f"; bound: {1000 * each['in_flight_s']:.0f} ms in flight +"
            f" {each['checkpoint_bytes'] / 2**20:.2f} MiB at {each['bytes_per_s'] / 2**20:.1f} MiB/s"
        )
    what = "longest gap of a planned move over the normal p99"
    return [Figure(what, f"{setting}, {len(each['gaps_s'])} moves", gap_s, "s", target, at_most=True)]


async def _strike(service: Harness, number: signal.Signals) -> float:
    """Kill or drain the replica that has the sessions; returns when. The service is whole again then."""
    target = service.busiest(0)
    if number is signal.SIGTERM:
        target.wanted = False
        await service.start_replica(0)
        await service.until(lambda: _warm(service, 3), READY_S)
        await asyncio.sleep(WARM_S)
    now = time.monotonic()
    service.signal(target, number)
    async with asyncio.timeout(READY_S):
        await target.ended.wait()
    await asyncio.sleep(WINDOW_S)
    await _until_warm(service)
    return now


async def _until_warm(service: Harness) -> None:
    await service.until(lambda: _warm(service, 2), READY_S)
    await asyncio.sleep(WARM_S)


def _warm(service: Harness, replicas: int) -> bool:
    def is_fresh(member: Member) -> bool:
        card = service.card(member)
        return card is not None and time.monotonic() - card["written_s"] < 1.0

    return sum(map(is_fresh, service.replicas())) >= replicas


async def _reference(address: str, options: dict[str, Any], frames: int) -> Seen:
    """The clip by a session that nobody hurts."""
    seen = await Viewer(address, options, 0.0).watch(frames)
    assert len(seen.pictures) == frames, f"{len(seen.pictures)} pictures of {frames}: {seen.error}"
    return seen


async def _measure_checkpoints(service: Harness, found: Found) -> None:
    cards = [card for member in service.ingresses() if (card := service.card(member)) is not None]
    for card in cards:
        counted = await asyncio.to_thread(samples, card["metrics_url"])
        seconds = counted.get("rearview_checkpoint_seconds_sum", 0.0)
        if taken := counted.get("rearview_checkpoint_seconds_count", 0.0):
            total = counted["rearview_checkpoint_bytes_total"]
            found.checkpoint_bytes, found.bytes_per_s = total / taken, total / seconds


def _judge(found: Found, seen: Sequence[Seen], reference: Sequence[bytes]) -> None:
    for each in seen:
        differ, worst = each.broken(reference)
        found.pictures += len(each.pictures)
        found.said += [what for _, what in each.said]
        found.differ += differ
        found.difference = max(found.difference, worst)
        found.errors += [each.error] if each.error else []
