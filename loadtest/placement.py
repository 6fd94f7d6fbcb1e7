"""How fast lanes are chosen, by itself: a part of `loadtest.control_loop`."""

from __future__ import annotations

import random
import time

from rearview.contract.cost import FrameCost
from rearview.contract.lease import Load, Usage
from rearview.control.placement import Asked, Replica
from rearview.control.ranked import Ranked

from loadtest.figures import Figure

__all__ = ["COST", "LOAD", "SPAN", "placement"]

SPAN, SLOTS, TARGET_PER_S = "fused", 60, 10_000.0
COST = FrameCost(512 * 512, 1.6e-3, 2.2e-3, 2.2e-3, (0, 1))
LOAD = Load.of(15.0, 512, 512)


def placement(replicas: int, seconds: float) -> Figure:
    """How many lanes are chosen in a second of CPU time, each after two replicas have changed."""
    described = {name: _half_full(name) for name in (f"replica-{number}" for number in range(replicas))}
    leased, random_ = dict.fromkeys(described, SLOTS // 2), random.Random(1)
    ranked, asked = Ranked([SPAN]), Asked(LOAD, 2)
    count, spent_s = 0, 0.0
    while spent_s < seconds:
        loads = {each: Load.of(15.0 * sessions, 512, 512) for each, sessions in leased.items()}
        usage = {each: Usage(leased[each], loads[each]) for each in leased}  # Anew, as a store tells it.
        begun_s = time.process_time()
        (chosen,) = ranked.place(described, usage, asked)
        spent_s, count = spent_s + time.process_time() - begun_s, count + 1
        leased[chosen] += 1
        leased[random_.choice([each for each, sessions in leased.items() if sessions])] -= 1
    setting = f"{replicas} replicas, two changed from call to call"
    return Figure("placement", setting, count / spent_s, "lanes/s of CPU time", TARGET_PER_S)


def _half_full(name: str) -> Replica:
    free, share = SLOTS // 2, SLOTS // 2 * COST.share(LOAD, 2, is_cached=False)
    return Replica(name, SPAN, name, "node", free, SLOTS, COST, share)
