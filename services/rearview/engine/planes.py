"""Where the planes of frames lie: on the device inside a span, on the host where a frame comes and goes.

What a forward leaves stays where it was computed, as a part of its whole batch, and the frame's next row
reads it there. Only what leaves the span, or is kept, comes to have storage of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rearview.contract.frame import HINT
from rearview.engine.devices import CPU, PINS, same_device, upload

__all__ = ["Planes", "kept", "moved", "on_host", "stacked"]

Planes = Mapping[str, Tensor]


def stacked(samples: Sequence[Planes], name: str, device: torch.device) -> Tensor:
    """One plane of every sample on `device`, wherever they lie, as a batch."""
    return torch.stack([planes[name] for planes in moved(samples, device)])


def moved(samples: Sequence[Planes], device: torch.device) -> Sequence[Planes]:
    """The samples' planes on `device`. Those of a kind that are elsewhere go there together."""
    members: dict[tuple[str, torch.Size, torch.dtype, torch.device], list[int]] = {}
    for index, planes in enumerate(samples):
        for name, tensor in planes.items():
            if not same_device(tensor.device, device):
                members.setdefault((name, tensor.shape, tensor.dtype, tensor.device), []).append(index)
    if not members:
        return samples
    found = [dict(planes) for planes in samples]
    for (name, *_), group in members.items():
        together = _uploaded([samples[index][name] for index in group], device)
        for index, tensor in zip(group, together.unbind(0), strict=True):
            found[index][name] = tensor
    return found


def on_host(samples: Sequence[Planes]) -> Sequence[Planes]:
    """The samples' planes on the host, none a part of something larger, without what is made again where it
    is needed. Waits for the device once.
    """
    found = [
        {name: _to_host(tensor) for name, tensor in planes.items() if not name.startswith(HINT)}
        for planes in samples
    ]
    for device in {tensor.device for planes in samples for tensor in planes.values()}:
        if device.type in PINS:
            torch.cuda.current_stream(device).synchronize()
    return found


def kept(planes: Planes) -> Planes:
    """Where they are, none a part of something larger: a frame that stays must not keep its whole batch. Nor
    what can be made again.
    """
    return {name: _whole(tensor) for name, tensor in planes.items() if not name.startswith(HINT)}


def _to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type in PINS:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)
    return _whole(tensor) if tensor.device == CPU else tensor.to(CPU)


def _whole(tensor: Tensor) -> Tensor:
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _uploaded(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stacked, by way of pinned memory where the device reads it by itself."""
    if device.type not in PINS:
        return torch.stack(list(tensors)).to(device)
    first = tensors[0]
    pinned = torch.empty((len(tensors), *first.shape), dtype=first.dtype, pin_memory=True)
    return upload(torch.stack(list(tensors), out=pinned), device)
