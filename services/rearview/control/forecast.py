"""How fast the sessions of a span grow, as far as that is not noise. Pure.

Arrivals alone say little: as many sessions end in a steady state. So growth is that of the sessions that want
to be there, over the window and over its halves: a crowd shows in the shortest, a day's rise in the longest.
Sessions that come and go independently change their number by the square root of those who came and went, by
chance; only what is above `SIGMAS` of that counts, so a constant load does not grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["NO_HISTORY", "History", "Sample", "growth", "seen"]

SIGMAS = 3.0
SAMPLES = 64
"""Kept of one window, and a few more."""
PARTS = (1, 2, 4, 8)
"""Of the window, over which growth is looked for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was known at one moment."""

    time_s: float
    wanted: float
    """Sessions that were there, or waited."""
    asked: int
    """Sessions that were asked for, since the history began."""


History: TypeAlias = tuple[Sample, ...]
"""In order of time; the last is of now."""
NO_HISTORY: History = ()


def seen(history: History, wanted: float, arrivals: int, window_s: float, now: float) -> History:
    """The history with what is known now. `arrivals`: since its last sample."""
    newest = Sample(now, wanted, (history[-1].asked if history else 0) + arrivals)
    kept = history[:-1] if len(history) > 1 and now - history[-2].time_s < window_s / SAMPLES else history
    while len(kept) > 1 and kept[1].time_s <= now - window_s:
        kept = kept[1:]
    return (*kept, newest)


def growth(history: History, window_s: float) -> float:
    """Sessions per second by which their number surely grows; 0 where it may be chance. A part of the window
    that the history does not reach back to says nothing.
    """
    if not history:
        return 0.0
    rates = [_growth(history, window_s / part) for part in PARTS]
    return max(0.0, *rates)


def _growth(history: History, window_s: float) -> float:
    newest, first = history[-1], history[0]
    if newest.time_s - first.time_s < window_s:
        return 0.0
    for sample in history:
        if sample.time_s > newest.time_s - window_s:
            break
        first = sample
    net = newest.wanted - first.wanted
    came = max(newest.asked - first.asked, net)
    noise = math.sqrt(max(0.0, came + came - net))
    return (net - SIGMAS * noise) / (newest.time_s - first.time_s)
