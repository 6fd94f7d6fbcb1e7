"""A session's temporal cache as chunks, and the checks before one enters a pool.

A header; per step the number of frames that streamed since the warm-up (None: it was not warmed up) and their
size; per (step, layer) keys and values of the slots that hold a frame, (pixels, heads, frames, channels of a
head), as they are stored. They are exported as they lie: first the W sinks in their order, then the ring, in
which the n-th streamed frame is at place n modulo R, so the oldest of a full ring is at place `streamed`
modulo R.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from rearview.contract.session import SessionSpec
from rearview.contract.size import Size
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.export import Incoming, Json, check_number

__all__ = ["check_layers", "export_header", "held_sizes", "streamed_frames"]

EXPORT_FORMAT = 2


def export_header(spec: SessionSpec, window: CacheWindow, dtype: torch.dtype) -> dict[str, Json]:
    """What must be equal on both sides of a move."""
    return {
        "format": EXPORT_FORMAT,
        "dtype": str(dtype),
        "size": [spec.height, spec.width],
        "sink_frames": window.sink_frames,
        "ring_frames": window.ring_frames,
    }


def check_layers(incoming: Incoming, layers: Iterable[str]) -> None:
    """Raises ValueError for layers that this UNet does not have, or a lack of those that it has."""
    found = {name for _, name in incoming.layers}
    if found and found != set(layers):
        raise ValueError("the export is of a UNet with other temporal layers")


def streamed_frames(steps: Mapping[int, Mapping[str, Json]]) -> dict[int, int | None]:
    """n of each step. Raises ValueError for what is no such number."""
    return {
        step: None if values.get("streamed", "") is None else check_number(values, "streamed", 0)
        for step, values in steps.items()
    }


def held_sizes(steps: Mapping[int, Mapping[str, Json]], opened: Size) -> dict[int, Size]:
    """Pixels of the frames of each step. `opened`: the size with which the session began, which releases
    before took to be that of its cache. Raises ValueError for what is none.
    """
    sized = {step: {**opened._asdict(), **values} for step, values in steps.items()}
    return {
        step: Size(*(check_number(values, name, 0) for name in Size._fields))
        for step, values in sized.items()
    }
