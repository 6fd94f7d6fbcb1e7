"""Named places where tests let a process fail: off unless a process arms them, and free of cost then.

`arm("engine.commit.after=kill@40; engine.forward=hang:3")` lets the process be killed when it passes the
first place for the 40th time, and sleeps 3 s at the second. `exhaust` and `break` raise what torch does where
memory does not suffice and where a device has broken. The places where a fault can do harm are before
and after what is done for good: a commit, a compare-and-set, an activation, an acknowledgement.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["PLACES", "arm", "reach"]

PLACES = frozenset(
    {
        "engine.forward",
        "engine.commit.before",
        "engine.commit.after",
        "directory.set.before",
        "directory.set.after",
        "replica.activate.before",
        "replica.activate.after",
        "replica.acknowledge.before",
        "replica.acknowledge.after",
        "ingress.answer.before",
        "ingress.answer.after",
    }
)
"""All of them."""
RAISED = {
    "raise": "the failpoint {place} was reached",
    "exhaust": "DefaultCPUAllocator: can't allocate memory: the failpoint {place} was reached",
    "break": "CUDA error: an illegal memory access was encountered\nThe failpoint {place} was reached.",
}
ACTIONS = frozenset({"kill", "stop", "hang", *RAISED})


@dataclass(slots=True)
class _Armed:
    action: str
    seconds: float
    left: int
    """How often it is passed before it fails."""
    times: int
    """How often it fails then."""


_armed: dict[str, _Armed] = {}
_told: list[Callable[[str], None]] = []


def arm(text: str, tell: Callable[[str], None] | None = None) -> None:
    """Let places fail: `place=action[:seconds][@passes[xtimes]]`, with `;` between them; `hang` needs
    seconds. `tell` is called with the name of a place just before it fails. What was armed before is not any
    more. Raises ValueError.
    """
    found = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        place, _, how = entry.partition("=")
        how, _, passes = how.partition("@")
        action, _, seconds = how.partition(":")
        count, _, times = passes.partition("x")
        if place not in PLACES or action not in ACTIONS:
            raise ValueError(f"{entry!r} is no failpoint; places: {', '.join(sorted(PLACES))}")
        found[place] = _Armed(action, float(seconds or 0.0), int(count or 1), int(times or 1))
    _armed.clear()
    _armed.update(found)
    _told[:] = [] if tell is None else [tell]


def reach(place: str) -> None:
    """A place is passed. Raises RuntimeError if it is to fail so."""
    if _armed:
        _pass(place)


def _pass(place: str) -> None:
    armed = _armed.get(place)
    if armed is None:
        return
    armed.left -= 1
    if armed.left > 0:
        return
    armed.times -= 1
    if armed.times <= 0:
        del _armed[place]
    for tell in _told:
        tell(place)
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif armed.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif armed.action == "hang":
        time.sleep(armed.seconds)
    else:
        raise RuntimeError(RAISED[armed.action].format(place=place))
