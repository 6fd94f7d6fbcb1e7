"""A run that asks several questions, of which one may fail and the others still be answered."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Part"]

TRACEBACK_LINES = 12


@dataclass
class Part:
    """One question and what came of it."""

    name: str
    passed: bool = False
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    """As far as it came."""
    failure: str | None = None
    """The end of the traceback."""

    def run(self, work: Callable[[dict[str, Any]], None], device: torch.device) -> None:
        """Do the work, which fills `figures`; whatever it raises is kept as text."""
        begin_s = time.perf_counter()
        try:
            work(self.figures)
            self.passed = True
        except Exception:  # The edge of a part: the others are still asked.
            lines = traceback.format_exc().strip().splitlines()
            self.failure = "\n".join(lines[-TRACEBACK_LINES:])
        self.seconds = round(time.perf_counter() - begin_s, 2)
        gc.collect()
        if device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()
