"""What a replica says of itself several times a second: that it is alive, and what its engine does.

Whether it is well is for its peers to judge (`control/liveness.py`), since a process that is stopped says
nothing. Durations only: clocks differ between processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["BEAT_S", "Beat", "Cause", "Work"]

BEAT_S = 0.2
"""Seconds from one beat to the next."""


class Cause(Enum):
    """Why a replica was given up."""

    SILENT = "silent"
    """Nothing was heard of it: its process is stopped, or its machine is gone."""
    HUNG = "hung"
    """What its engine does takes far longer than it costs."""
    BROKEN = "broken"
    """Its engine has ended, or its device answers nothing but errors."""


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine is busy with."""

    operator: str
    """Of the forward; empty: a command, such as an open."""
    rows: int
    busy_s: float
    """For how long, not counting what its process, or a thread of it, did not get to run."""
    expected_s: float | None
    """What it costs. None: nothing like it has been done here before."""


@dataclass(frozen=True, slots=True)
class Beat:
    """One word of a replica."""

    alive: bool
    """Whether its engine's thread lives and was not given up."""
    work: Work | None
    """None: it waits for something to do."""
