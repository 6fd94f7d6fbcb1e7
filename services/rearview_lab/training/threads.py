"""Choice between one and several CPU threads while a stage trains.

On a machine shared with other work, several threads can be slower than one: every parallel region waits
for the thread that was scheduled last. Which is faster changes by the minute, so both are timed again.
"""

from __future__ import annotations

import time

import torch

_TRIAL_STEPS = 4
_KEEP_STEPS = 40


class ThreadChoice:
    """Call ``tick`` before every step; it sets the thread count of torch."""

    def __init__(self, most: int) -> None:
        self._options = (1, most)
        self._position = 0
        self._started = time.monotonic()
        self._times: list[float] = []

    def tick(self) -> None:
        """One cycle: a trial of each option, then the faster one for a while."""
        if self._options[1] <= 1:
            return
        if self._position in (0, _TRIAL_STEPS, 2 * _TRIAL_STEPS):
            self._switch(self._position // _TRIAL_STEPS)
        self._position = (self._position + 1) % (2 * _TRIAL_STEPS + _KEEP_STEPS)

    def _switch(self, phase: int) -> None:
        now = time.monotonic()
        self._times.append(now - self._started)
        self._started = now
        if phase < 2:
            torch.set_num_threads(self._options[phase])
        else:
            single, several = self._times[-2:]
            torch.set_num_threads(self._options[int(several < single)])
