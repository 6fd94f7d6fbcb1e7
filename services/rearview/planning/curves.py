"""How good streams are on a replica, by how many it has: fitted from row-accurate runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from rearview.engine.engine import Order
from rearview.planning.costs import DeviceCost
from rearview.planning.rows import Outcome, Stint, play
from rearview.planning.streams import Streams

__all__ = ["Curve", "Point", "fit"]

MAX_SHARE = 1.3
"""Beyond it nothing is measured: the last point holds."""
MIN_STREAMS = 4


@dataclass(frozen=True, slots=True)
class Point:
    """With so many streams on one replica."""

    streams: int
    load: float
    """Of the replica's time, as placement counts it."""
    attainment: float
    """Share of frames with a picture within the SLO."""
    play_ratio: float
    busy: float
    """Share of the time in which the device computes: more than `load`, since forwards are not full."""
    age_s: float = 0.0
    """95th percentile of the age of pictures when they are there."""


@dataclass(frozen=True)
class Curve:
    """Points from 1 stream on, without a gap."""

    points: Sequence[Point]

    def at(self, streams: int) -> Point:
        """Of a replica with so many, at least one; beyond the last point as there."""
        return self.points[min(streams, len(self.points)) - 1]

    def most(self, attainment: float, play_ratio: float) -> int:
        """The most streams with which, as with all fewer, both are reached; 0: not even with one."""
        good = 0
        for point in self.points:
            if point.attainment < attainment or point.play_ratio < play_ratio:
                break
            good = point.streams
        return good


def fit(
    device: DeviceCost,
    streams: Streams,
    order: Order = Order.BACK_TO_BACK,
    *,
    seconds: float = 30.0,
    rounds: int = 4,
    most: int = 64,
) -> Curve:
    """Play 1, 2, … streams that begin at random within a frame interval, each number `rounds` times."""
    share, points = streams.share(device), []
    for count in range(1, min(most, max(MIN_STREAMS, int(MAX_SHARE / share) + 1)) + 1):
        outcome = Outcome()
        for seed in range(rounds):
            outcome.add(play(_stints(count, streams, seconds, seed), device, streams, order, seed))
        busy = min(1.0, outcome.busy_s / (rounds * seconds))
        age_s = outcome.age_s(0.95)
        points.append(Point(count, count * share, outcome.attainment, outcome.play_ratio, busy, age_s))
    return Curve(points)


def _stints(count: int, streams: Streams, seconds: float, seed: int) -> Sequence[Stint]:
    random = Random(f"{count}/{seed}")
    starts_s = [random.uniform(0.0, 1 / streams.fps) for _ in range(count)]
    return [Stint(f"s{n}", start_s, start_s + seconds) for n, start_s in enumerate(starts_s)]
