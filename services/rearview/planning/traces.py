"""Who comes when: sessions over a day, by chance from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

__all__ = ["DAY_S", "TRACES", "Trace", "Visit", "trace"]

DAY_S = 86_400.0
HOUR_S = 3_600.0
NIGHT = 0.15
"""Of the peak, what is there at the quietest of a day."""
QUIET = 0.2
"""Of the peak, what is there before a crowd comes."""
CROWD_COMES_S = 600.0
LOST_NODES = 5
BEYOND_S = 60.0
"""Over which the change of the number of sessions is looked at."""


@dataclass(frozen=True, slots=True)
class Visit:
    """Somebody wants a session."""

    at_s: float
    lasts_s: float
    """From its admission."""


@dataclass(frozen=True)
class Trace:
    """What happens to a fleet."""

    name: str
    duration_s: float
    visits: Sequence[Visit]
    """In order of time. Those at 0 are there from the start."""
    losses: Sequence[tuple[float, int]] = ()
    """When how many nodes are lost at once."""

    @property
    def at_start(self) -> int:
        """Sessions that are there from the start."""
        return next((n for n, visit in enumerate(self.visits) if visit.at_s > 0), len(self.visits))


def steady(part_s: float) -> float:
    """The same at all times."""
    return 1.0


def diurnal(part: float) -> float:
    """Least at the start, most in the middle."""
    return NIGHT + (1 - NIGHT) * (1 - math.cos(2 * math.pi * part)) / 2


def crowd(part: float) -> float:
    """From the middle on all come within ten minutes of a day, and stay for an hour."""
    since_s = (part - 0.5) * DAY_S
    if since_s < 0:
        return QUIET
    if since_s < CROWD_COMES_S:
        return QUIET + (1 - QUIET) * since_s / CROWD_COMES_S
    return 1.0 if since_s < CROWD_COMES_S + HOUR_S else QUIET


TRACES: dict[str, Callable[[float], float]] = {
    "steady": steady,
    "diurnal": diurnal,
    "flash-crowd": crowd,
    "node-loss": steady,
}
"""Share of the peak that is wanted, by part of the whole time; all but the first two are of a day."""


def trace(
    name: str, peak: float, *, duration_s: float = DAY_S, life_s: float = 1800.0, seed: int = 1
) -> Trace:
    """So many sessions at the peak on average, each for `life_s` on average. Raises KeyError for a name that
    is not one of TRACES.
    """
    wanted, random = TRACES[name], Random(f"{name}/{seed}")

    def level(at_s: float) -> float:
        return peak * wanted(min(1.0, max(0.0, at_s / duration_s)))

    visits = [Visit(0.0, random.expovariate(1 / life_s)) for _ in range(round(level(0.0)))]
    # As many come as leave, and as many more as there are to be.
    most = 1.05 * max(_rate(level, life_s, duration_s * n / 2000) for n in range(2001))
    now = random.expovariate(most)
    while now < duration_s:
        if random.random() * most < _rate(level, life_s, now):
            visits.append(Visit(now, random.expovariate(1 / life_s)))
        now += random.expovariate(most)
    losses = ((duration_s / 2, LOST_NODES),) if name == "node-loss" else ()
    return Trace(name, duration_s, visits, losses)


def _rate(level: Callable[[float], float], life_s: float, now: float) -> float:
    """Arrivals per second."""
    rise = (level(now + BEYOND_S / 2) - level(now - BEYOND_S / 2)) / BEYOND_S
    return max(0.0, level(now) / life_s + rise)
