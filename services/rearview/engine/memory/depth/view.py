"""What encoding reads of a session's range of depth, and what it leaves for it. Shape legend: B samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rearview.engine.devices import upload
from rearview.engine.memory.protocol import Kind

__all__ = ["DEPTH_RANGE", "DepthUpdate", "DepthView"]


@dataclass(frozen=True, slots=True, eq=False)
class DepthView:
    """Ranges before these frames."""

    range_B2: Tensor
    """Least and greatest depth; (inf, -inf) where nothing is known. A copy."""

    @property
    def key(self) -> None:
        """There is nothing to tell apart."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return (self.range_B2,)

    @property
    def pooled(self) -> tuple[Tensor, ...]:
        """None: what is read was copied."""
        return ()

    def over(self, tensors: Sequence[Tensor], pooled: Sequence[Tensor]) -> DepthView:
        """See `View.over`."""
        return DepthView(*tensors)

    def beside(self, indices: Sequence[int]) -> DepthView:
        """The ranges of some samples once more."""
        chosen = upload(torch.tensor(indices, dtype=torch.int64), self.range_B2.device)
        return DepthView(torch.cat([self.range_B2, self.range_B2.index_select(0, chosen)]))


@dataclass(frozen=True, slots=True, eq=False)
class DepthUpdate:
    """Ranges after these frames."""

    range_B2: Tensor

    @property
    def key(self) -> None:
        """There is nothing to tell apart."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return (self.range_B2,)

    def over(self, tensors: Sequence[Tensor]) -> DepthUpdate:
        """See `Update.over`."""
        return DepthUpdate(*tensors)


DEPTH_RANGE = Kind[DepthView, DepthUpdate]("depth")
