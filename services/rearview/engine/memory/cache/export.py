"""A session's temporal cache as plain values that can leave the process, and the checks before it enters one.

Keyed (step, layer name), never by slot or span: what one topology exported another can import. Of a layer
there are the slots that hold a frame, (pixels, heads, frames, channels of a head), as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from rearview.contract.session import SessionSpec
from rearview.engine.memory.bank.export import check_fields
from rearview.engine.memory.cache.window import CacheWindow

__all__ = ["check_cache", "export_header", "streamed_frames"]

EXPORT_FORMAT = 1


def export_header(spec: SessionSpec, window: CacheWindow, dtype: torch.dtype) -> dict[str, Any]:
    """What must be equal on both sides of a move."""
    return {
        "format": EXPORT_FORMAT,
        "dtype": str(dtype),
        "size": (spec.height, spec.width),
        "sink_frames": window.sink_frames,
        "ring_frames": window.ring_frames,
    }


def check_cache(state: Mapping[str, Any], expected: Mapping[str, Any], layers: Iterable[str]) -> None:
    """Raises ValueError that says what differs."""
    check_fields(state, expected)
    found = {name for _, name in state["tensors"]}
    if found and found != set(layers):
        raise ValueError("the export is of a UNet with other temporal layers")


def streamed_frames(state: Mapping[str, Any], steps: Sequence[int]) -> dict[int, int | None]:
    """n of those of `steps` that the export has. Raises ValueError if it has none of them."""
    found = {step: state["streamed"][step] for step in steps if step in state["streamed"]}
    if not found:
        raise ValueError(f"the export has steps {sorted(state['streamed'])}, not {tuple(steps)}")
    if any(n is not None and (not isinstance(n, int) or n < 0) for n in found.values()):
        raise ValueError("the export's numbers of streamed frames are none")
    return found
