"""A session's bank as chunks, and the checks before one enters a pool.

A header; per step its record; per (step, layer) keys, values and, where they are kept, outputs, (tokens, C)
each, as many tokens as the record stands for. A queue is exported as it lies: place i holds the newest of
those written frames whose number is i modulo `max_frames`, so the oldest of a full queue is at place `writes`
modulo `max_frames`, and of one that is not yet full at place 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any

import torch

from rearview.contract.session import SessionSpec
from rearview.engine.memory.bank.layers import BankLayout, KeptOutputs
from rearview.engine.memory.export import Incoming, Json

__all__ = ["check_layers", "export_header"]

EXPORT_FORMAT = 2


def export_header(spec: SessionSpec, dtype: torch.dtype, kept_outputs: KeptOutputs) -> dict[str, Json]:
    """What must be equal on both sides of a move."""
    return {
        "format": EXPORT_FORMAT,
        "dtype": str(dtype),
        "size": [spec.height, spec.width],
        "kept_outputs": kept_outputs.value,
        "settings": None if spec.bank is None else _plain(asdict(spec.bank)),
    }


def check_layers(incoming: Incoming, layout: BankLayout) -> None:
    """Raises ValueError for layers that this UNet does not have, or a lack of those that it has."""
    found = {name for _, name in incoming.layers}
    if found != {layer.name for layer in layout.layers}:
        raise ValueError("the export is of a UNet with other attention layers")


def _plain(values: Mapping[str, Any]) -> dict[str, Json]:
    """As JSON gives them back."""
    return {name: _as_json(value) for name, value in values.items()}


def _as_json(value: Any) -> Json:
    if isinstance(value, Enum):
        return str(value.value)
    return list(value) if isinstance(value, tuple) else value
