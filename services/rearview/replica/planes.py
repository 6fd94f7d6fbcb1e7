"""Planes of a frame between links, where they are numpy arrays, and engine, where they are torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rearview.contract.frame import Frame

__all__ = ["on_arrays", "on_tensors"]


def on_tensors(frame: Frame[NDArray[Any]]) -> Frame[Tensor]:
    """A picture stays where the message has it, since it is nearly all of it. Of latents, which are small and
    lie anywhere in it, one copy.
    """
    planes = frame.planes
    return frame.carrying(None if planes is None else {name: _tensor(each) for name, each in planes.items()})


def on_arrays(frame: Frame[Tensor], epoch: int) -> Frame[NDArray[Any]]:
    """The frame as it leaves under `epoch`; planes share their memory."""
    planes = frame.planes
    arrays = None if planes is None else {name: plane.numpy() for name, plane in planes.items()}
    return frame.carrying(arrays, epoch=epoch)


def _tensor(plane: NDArray[Any]) -> Tensor:
    stays = plane.dtype == np.uint8 and plane.flags.writeable
    return torch.from_numpy(plane if stays else plane.copy())
