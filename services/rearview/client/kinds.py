"""Pictures as programs have them: numpy arrays, torch tensors, PIL images, JPEG bytes.

Torch and PIL are imported only by a program that hands over, or asks for, their pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeAlias

import numpy as np

from rearview.client.answers import Image, Translated

__all__ = ["Kind", "PictureKind", "kind_named", "kind_of"]

PictureKind: TypeAlias = Literal["numpy", "torch", "pil", "bytes"]


@dataclass(frozen=True)
class Kind:
    """How a program has its pictures."""

    read: Callable[[Any], Image | bytes]
    """A picture of it as a session takes it. Raises ValueError for what is none."""
    give: Callable[[Translated], Any]
    """An answer as a picture of it."""


def kind_of(picture: Any) -> Kind:
    """The kind of a picture; its pictures are like it. Raises TypeError for what none is known of.

    * numpy: (height, width, 3) uint8, R, G, B.
    * torch: (3, height, width) or (height, width, 3), uint8 or floating from 0 to 1, on any device.
    * PIL: of any mode, which becomes RGB.
    * bytes: a JPEG.
    """
    if isinstance(picture, np.ndarray):
        return _NUMPY
    if isinstance(picture, bytes):
        return _BYTES
    if (torch := sys.modules.get("torch")) is not None and isinstance(picture, torch.Tensor):
        is_first = picture.ndim == 3 and picture.shape[0] == 3
        return _torch(torch, is_first=is_first, dtype=picture.dtype, device=picture.device)
    if (pil := sys.modules.get("PIL.Image")) is not None and isinstance(picture, pil.Image):
        return _pil(pil)
    raise TypeError(
        f"a picture is a numpy array, a torch tensor, a PIL image or JPEG bytes, not {type(picture).__name__}"
    )


def kind_named(name: PictureKind) -> Kind:
    """The kind of that name; torch: (3, height, width) uint8 on the CPU. Raises ValueError for no name, and
    ImportError where the library is missing.
    """
    if name == "numpy":
        return _NUMPY
    if name == "bytes":
        return _BYTES
    if name == "pil":
        return _pil(import_module("PIL.Image"))
    if name == "torch":
        torch: Any = import_module("torch")
        return _torch(torch, is_first=True, dtype=torch.uint8, device="cpu")
    raise ValueError(f"kind is numpy, torch, pil or bytes, not {name!r}")


_NUMPY = Kind(lambda picture: picture, lambda answer: answer.image)
_BYTES = Kind(lambda picture: picture, lambda answer: answer.data)


def _pil(pil: Any) -> Kind:
    return Kind(
        lambda picture: np.asarray(picture.convert("RGB")),
        lambda answer: pil.fromarray(answer.image),
    )


def _torch(torch: Any, *, is_first: bool, dtype: Any, device: Any) -> Kind:
    def read(picture: Any) -> Image:
        levels = picture.detach()
        if levels.is_floating_point():
            levels = levels.float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
        elif levels.dtype is not torch.uint8:
            raise ValueError(f"a tensor must be uint8 or floating from 0 to 1, not {levels.dtype}")
        if levels.ndim != 3:
            raise ValueError(f"a tensor must be (3, height, width), not {tuple(levels.shape)}")
        image: Image = (levels.permute(1, 2, 0) if is_first else levels).contiguous().cpu().numpy()
        return image

    def give(answer: Translated) -> Any:
        picture = torch.from_numpy(np.array(answer.image)).to(device)
        if is_first:
            picture = picture.permute(2, 0, 1).contiguous()
        return picture if dtype is torch.uint8 else picture.float().div(255.0).to(dtype)

    return Kind(read, give)
