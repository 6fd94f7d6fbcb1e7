"""When a device was busy: the union of its kernels and copies, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["busy_share", "idle_share"]


def idle_share(run: Callable[[], object], device: torch.device) -> float | None:
    """Of the time from the first kernel of a run to its last, that in which the device did nothing. Only the
    device is watched, which hardly slows the run. None: the device cannot tell.
    """
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    spans = [_span(event) for event in profiler.events() or () if _is_on_device(event)]
    return 1.0 - busy_share(spans) if spans else None


def busy_share(spans: Iterable[tuple[float, float]]) -> float:
    """Of the time from the first beginning to the last end, that which is in any of the spans."""
    ordered = sorted(spans)
    begin, busy, until = ordered[0][0], 0.0, ordered[0][0]
    for start, end in ordered:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / (until - begin) if until > begin else 1.0


def _is_on_device(event: Any) -> bool:
    return "CUDA" in str(event.device_type) and not getattr(event, "is_user_annotation", False)


def _span(event: Any) -> tuple[float, float]:
    return event.time_range.start, event.time_range.end
