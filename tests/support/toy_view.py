"""What the toy model reads of the toy cache, and what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rearview.engine.memory.protocol import Kind
from torch import Tensor

__all__ = ["MODULUS", "TOY", "Seen", "ToyUpdate", "ToyView"]

MODULUS = 2**31 - 1
RING = 3


@dataclass(frozen=True)
class Seen:
    """The past of one (session, step): a number for each frame that it keeps."""

    sinks: tuple[int, ...] = ()
    ring: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        total = 0
        for each in (*self.sinks, -1, *self.ring):
            total = (total * 31 + each) % MODULUS
        return total

    def after(self, number: int) -> Seen:
        return Seen(self.sinks, (*self.ring, number)[-RING:])


@dataclass(frozen=True)
class ToyUpdate:
    """Per row what it would write; a row without a cache writes nothing."""

    pasts: tuple[Seen | None, ...]

    @property
    def key(self) -> tuple[Seen | None, ...]:
        return self.pasts

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return ()

    def over(self, tensors: Sequence[Tensor]) -> ToyUpdate:
        return self


@dataclass(frozen=True, eq=False)
class ToyView:
    """Per sample the number of its past, int64."""

    seen_S: Tensor
    update: ToyUpdate

    @property
    def key(self) -> None:
        pass

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.seen_S,)

    @property
    def pooled(self) -> tuple[Tensor, ...]:
        return ()

    def over(self, tensors: Sequence[Tensor], pooled: Sequence[Tensor]) -> ToyView:
        return ToyView(tensors[0], self.update)

    def beside(self, indices: Sequence[int]) -> ToyView:
        return ToyView(torch.cat([self.seen_S, self.seen_S[list(indices)]]), self.update)


TOY = Kind[ToyView, ToyUpdate]("cache")
