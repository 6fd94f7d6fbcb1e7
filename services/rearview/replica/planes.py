"""Planes of a frame between links, where they are numpy arrays, and engine, where they are torch tensors."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from rearview.contract.frame import Frame

__all__ = ["on_arrays", "on_tensors"]


def on_tensors(frame: Frame[NDArray[Any]]) -> Frame[Tensor]:
    """One copy: a tensor must be writable and must not pin the whole message."""
    planes = frame.planes
    copied = None if planes is None else {n: torch.from_numpy(plane.copy()) for n, plane in planes.items()}
    return frame.carrying(copied)


def on_arrays(frame: Frame[Tensor], epoch: int) -> Frame[NDArray[Any]]:
    """The frame as it leaves under `epoch`; planes share their memory."""
    planes = frame.planes
    arrays = None if planes is None else {name: plane.numpy() for name, plane in planes.items()}
    return frame.carrying(arrays, epoch=epoch)
