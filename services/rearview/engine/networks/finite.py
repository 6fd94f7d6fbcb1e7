"""Whether numbers are finite, at a price that every forward can pay.

A sum that is finite has only finite terms, and takes a thirtieth of the time of a look at each. One that is
not may have overflowed, so then each is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rearview.contract.frame import is_for_controls

__all__ = ["broken_planes", "broken_samples", "is_finite"]


def is_finite(values: Tensor) -> bool:
    """Whether every one is."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def broken_samples(values: Tensor) -> frozenset[int]:
    """Which of the first dimension have one that is not; `values` has two dimensions or more."""
    if is_finite(values):
        return frozenset()
    return frozenset((~values.isfinite().flatten(1).all(1)).nonzero().flatten().tolist())


def broken_planes(samples: Sequence[Mapping[str, Tensor]]) -> frozenset[int]:
    """Which samples have a plane with a value that is not. The device is asked once. What a sample only takes
    along for its controls is left out: what is not finite there is not finite in its latent.
    """
    made = [[plane for name, plane in planes.items() if not is_for_controls(name)] for planes in samples]
    sums = [plane.sum() for planes in made for plane in planes]
    if not sums or bool(torch.stack(sums).isfinite().all()):
        return frozenset()
    return frozenset(i for i, planes in enumerate(made) if not all(map(is_finite, planes)))
