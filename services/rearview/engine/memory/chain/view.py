"""What the chain model reads of sessions' pasts, and what it leaves. Shape legend: B samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rearview.engine.memory.protocol import Kind

__all__ = ["CHAIN", "ChainUpdate", "ChainView"]


@dataclass(frozen=True, slots=True, eq=False)
class ChainView:
    """Chains before these frames. Copies."""

    chain_B16: Tensor
    """uint8."""
    count_B: Tensor
    """int64: inputs that are in them."""

    @property
    def key(self) -> None:
        """There is nothing to tell apart."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return self.chain_B16, self.count_B

    @property
    def pooled(self) -> tuple[Tensor, ...]:
        """None: what is read was copied."""
        return ()

    def over(self, tensors: Sequence[Tensor], pooled: Sequence[Tensor]) -> ChainView:
        """See `View.over`."""
        return ChainView(*tensors)

    def beside(self, indices: Sequence[int]) -> ChainView:
        """The chains of some samples once more."""
        chosen = torch.tensor(indices, dtype=torch.int64)
        chain_B16 = torch.cat([self.chain_B16, self.chain_B16[chosen]])
        return ChainView(chain_B16, torch.cat([self.count_B, self.count_B[chosen]]))


@dataclass(frozen=True, slots=True, eq=False)
class ChainUpdate:
    """Chains after these frames: with one input more each."""

    chain_B16: Tensor
    """uint8."""

    @property
    def key(self) -> None:
        """There is nothing to tell apart."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return (self.chain_B16,)

    def over(self, tensors: Sequence[Tensor]) -> ChainUpdate:
        """See `Update.over`."""
        return ChainUpdate(*tensors)


CHAIN = Kind[ChainView, ChainUpdate]("chain")
