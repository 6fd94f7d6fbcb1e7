"""What a replica is from its start to its end: part of how it describes itself."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rearview.config import ModelConfig, SpanConfig
from rearview.contract.card import is_opaque
from rearview.engine.devices import device_name, pick_device, pick_dtype
from rearview.environment import visible_gpus

__all__ = ["computes_on", "identity"]


def identity(model: ModelConfig, span: SpanConfig, replica_id: str, node: str) -> Mapping[str, object]:
    """Its names, its place, and what its networks compute on. Raises ConfigError for a device that is not
    there.
    """
    return {
        "replica_id": replica_id,
        "span": span.name,
        "node": node,
        "pid": os.getpid(),
        "gpus": visible_gpus(),
        **computes_on(model),
    }


def computes_on(model: ModelConfig) -> Mapping[str, str]:
    """Device, its name and the type, by name; empty for a model without networks. Raises ConfigError."""
    if is_opaque(model.checkpoint):
        return {"device": "", "device_name": "", "dtype": ""}
    device = pick_device(model.device)
    dtype = str(pick_dtype(model.dtype, device)).removeprefix("torch.")
    return {"device": str(device), "device_name": device_name(device), "dtype": dtype}
