"""A session's bank as plain values that can leave the process, and the checks before it enters one.

Keyed (step, layer name), never by slot or span: what one topology exported another can import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from rearview.contract.session import SessionSpec
from rearview.engine.memory.bank.layers import BankLayout, KeptOutputs
from rearview.engine.memory.bank.records import BankRecord

__all__ = [
    "EXPORT_FORMAT",
    "check_fields",
    "check_header",
    "check_tensors",
    "checked_tensors",
    "export_header",
    "records_of",
]

EXPORT_FORMAT = 1


def export_header(spec: SessionSpec, dtype: torch.dtype, kept_outputs: KeptOutputs) -> dict[str, Any]:
    """What must be equal on both sides of a move."""
    return {
        "format": EXPORT_FORMAT,
        "dtype": str(dtype),
        "size": (spec.height, spec.width),
        "kept_outputs": kept_outputs.value,
        "settings": None if spec.bank is None else _plain(asdict(spec.bank)),
    }


def check_header(state: Mapping[str, Any], expected: Mapping[str, Any], layout: BankLayout) -> None:
    """Raises ValueError that says what differs."""
    check_fields(state, expected)
    if {name for _, name in state["banks"]} != {layer.name for layer in layout.layers}:
        raise ValueError("the export is of a UNet with other attention layers")


def check_fields(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ValueError that names the first field of a header that differs."""
    for name, value in expected.items():
        if state.get(name) != value:
            raise ValueError(f"the export's {name} is {state.get(name)}, here it is {value}")


def records_of(state: Mapping[str, Any], steps: Sequence[int]) -> dict[int, BankRecord]:
    """Records of those of `steps` that the export has. Raises ValueError if it has none of them."""
    found = {step: BankRecord(**state["records"][step]) for step in steps if step in state["records"]}
    if not found:
        raise ValueError(f"the export has steps {sorted(state['records'])}, not {tuple(steps)}")
    return found


def checked_tensors(
    state: Mapping[str, Any], step: int, layer: str, shapes: Sequence[tuple[int, int]], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The tensors of one (step, layer). Raises ValueError unless they have these shapes and this type."""
    return check_tensors(tuple(state["banks"].get((step, layer), ())), step, layer, shapes, dtype)


def check_tensors(
    tensors: tuple[Tensor, ...],
    step: int,
    layer: str,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """`tensors`, of one (step, layer). Raises ValueError unless they have these shapes and this type."""
    found = [tuple(tensor.shape) for tensor in tensors]
    if found != list(shapes) or any(tensor.dtype is not dtype for tensor in tensors):
        raise ValueError(
            f"step {step} of {layer} has shapes {found}, here they are {list(shapes)} of {dtype}"
        )
    return tensors


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
