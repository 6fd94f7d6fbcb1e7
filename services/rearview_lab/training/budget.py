"""Time budgets, learning-rate shape, averaged weights and atomic saves: what every training stage shares.

Schedules follow the share of the time budget that is spent, not a step count, so that a slow machine still
ends its learning rate at the right place. Time spent before an interruption counts.
"""

from __future__ import annotations

import copy
import math
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

SAVE_INTERVAL_S = 120.0
WARM_UP_STEPS = 60
FINAL_RELATIVE_RATE = 0.02


class Budget:
    """The clock of one stage: how much of its minutes is spent, and when the next save is due."""

    def __init__(self, minutes: float, *, spent_s: float = 0.0) -> None:
        self._total_s = minutes * 60
        self._start = time.monotonic() - spent_s
        self._saved = time.monotonic()

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def fraction(self) -> float:
        return min(1.0, self.spent_s / self._total_s) if self._total_s > 0 else 1.0

    @property
    def over(self) -> bool:
        return self.fraction >= 1

    def save_due(self) -> bool:
        """True once per interval; resets the interval."""
        due = time.monotonic() - self._saved > SAVE_INTERVAL_S
        if due:
            self._saved = time.monotonic()
        return due


def relative_rate(step: int, fraction: float, *, warm_up_steps: int = WARM_UP_STEPS) -> float:
    """Linear warm-up in steps, then a cosine over the budget down to a small rest."""
    cosine = 0.5 * (1 + math.cos(math.pi * fraction))
    return min(1.0, (step + 1) / warm_up_steps) * (FINAL_RELATIVE_RATE + (1 - FINAL_RELATIVE_RATE) * cosine)


class Average:
    """Exponential moving average of a module's weights; ``module`` is the averaged copy."""

    def __init__(self, source: nn.Module, decay: float, saved: Mapping[str, Any] | None = None) -> None:
        """`saved`: state of an interrupted stage, to go on from its ``"average"``."""
        self.module = copy.deepcopy(source).eval().requires_grad_(False)
        self._decay = decay
        if saved is not None:
            self.module.load_state_dict(saved["average"])

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        """Move towards ``source``; faster at first, when the average still holds the start values."""
        weight = 1 - min(self._decay, (step + 1) / (step + 10))
        pairs = zip(self.module.parameters(), source.parameters(), strict=True)
        for mean, value in pairs:
            mean.lerp_(value.detach(), weight)


class Journal:
    """Prints the mean losses of a stage every few steps."""

    def __init__(self, stage: str, *, every: int = 25) -> None:
        self._stage, self._every = stage, every
        self._recent: list[Mapping[str, float]] = []

    def add(self, step: int, fraction: float, losses: Mapping[str, float]) -> None:
        """Count the losses of one step; `step` steps are done, and `fraction` of the budget is spent."""
        self._recent.append(losses)
        if step % self._every:
            return
        every = {name: [row[name] for row in self._recent if name in row] for name in losses}
        figures = " ".join(f"{name} {statistics.fmean(values):.3f}" for name, values in every.items())
        threads = torch.get_num_threads()
        print(f"{self._stage}: step {step}, {fraction:.0%}, {figures}, threads {threads}", flush=True)
        self._recent.clear()


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write beside the target and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_if_present(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The saved state of a stage, or None when it has not begun."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
