"""What the kernels of a temporal cache are compared on: for the interpreter, and for a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rearview.engine.memory.cache.view import LayerPool
from rearview.engine.networks.attention.temporal import attend_stored
from rearview.engine.networks.attention.temporal_ops import attend_indexed, store_frames
from rearview.engine.networks.motion_module import PositionTables
from torch import Tensor

__all__ = ["CASES", "Case"]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """Sizes of one layer, and random content. Half of what is stored is hidden."""

    samples: int
    pixels: int
    heads: int
    frames: int
    size: int
    """D"""
    gap: int = 0
    """Pixels of the pool that the samples do not have."""
    slots: int = 5
    dtype: torch.dtype = torch.float32
    """Of the networks."""
    storage: torch.dtype = torch.float32
    device: torch.device = CPU

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        """On the case's device, in float32."""
        generator = torch.Generator().manual_seed(seed + 1000 * sum(shape))
        return torch.randn(shape, generator=generator).to(self.device)

    def projections(self, seed: int = 0) -> list[Tensor]:
        """Query, key and value, (S, N, C)."""
        channels = self.heads * self.size
        draws = (self.draw(self.samples, self.pixels, channels, seed=seed + i) for i in range(3))
        return [each.to(self.dtype) for each in draws]

    def pool(self) -> LayerPool:
        """Full."""
        shape = (self.slots, self.pixels + self.gap, self.heads, self.frames, self.size)
        keys, values = (self.draw(*shape, seed=10 + i).to(self.storage) for i in range(2))
        return LayerPool(keys, values)

    def tables(self) -> PositionTables:
        """As many positions as frames."""
        draws = (self.draw(self.frames, self.heads * self.size, seed=20 + i) for i in range(3))
        return PositionTables(self.heads, *(each.to(self.dtype) for each in draws))

    def indices(self) -> Tensor:
        """One slot twice if there are more samples than slots, as twins have it."""
        return (torch.arange(self.samples, device=self.device) * 3 + 1) % self.slots

    def seen(self) -> tuple[Tensor, Tensor, Tensor]:
        """Position, positions, visible."""
        generator = torch.Generator().manual_seed(7)
        position = torch.randint(self.frames, (self.samples,), generator=generator)
        orders = [torch.randperm(self.frames, generator=generator) for _ in range(self.samples)]
        visible = torch.rand(self.samples, self.frames, generator=generator) < 0.5
        visible[0] = False  # A frame that sees itself alone.
        return position.to(self.device), torch.stack(orders).to(self.device), visible.to(self.device)

    def attended(self, pool: LayerPool, exact: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """By the kernel, and by torch in `exact`, the networks' type unless it is given."""
        query, key, value = self.projections()
        tables, seen = self.tables(), self.seen()
        found = attend_indexed(query, key, value, *pool.tensors, tables, self.indices(), *seen)
        exact = exact or self.dtype
        past = [tensor.to(exact)[self.indices(), : self.pixels] for tensor in pool.tensors]
        exact_tables = PositionTables(
            self.heads, *(each.to(exact) for each in (tables.query, tables.key, tables.value))
        )
        given = [each.to(exact) for each in (query, key, value)]
        return found, attend_stored(given[0], given[1], given[2], past[0], past[1], exact_tables, *seen)

    def stored(self, at: Tensor, scale: float = 1.0) -> tuple[LayerPool, LayerPool]:
        """A pool after one write by the kernel, and by torch."""
        _, key, value = (each * scale for each in self.projections(seed=30))
        found, expected = self.pool(), self.pool()
        store_frames(key, value, *found.tensors, self.indices(), at)
        limit = min(torch.finfo(self.storage).max, torch.finfo(self.dtype).max)
        for pool, new in zip(expected.tensors, (key, value), strict=True):
            kept = new.double().clamp(-limit, limit).to(self.dtype).to(self.storage)
            heads = kept.unflatten(-1, (self.heads, self.size)).to(torch.float64)
            whole = pool.to(torch.float64)
            whole[self.indices(), : self.pixels, :, at] = heads
            pool.copy_(whole.to(self.storage))
        return found, expected


CASES = {
    "of one head of 40": Case(2, 3, 1, 16, 40),
    "of 80": Case(3, 2, 2, 16, 80),
    "of 160, with a gap": Case(2, 2, 1, 16, 160, gap=3),
    "of odd sizes": Case(3, 5, 3, 7, 6, gap=1),
    "of 24 frames": Case(1, 2, 2, 24, 8),
    "with twins": Case(5, 2, 2, 8, 4, slots=3),
}
"""What layers are like."""
