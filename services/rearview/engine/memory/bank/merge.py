"""Dynamic merging of a bank's tokens with a new frame's (DyMe; methods 2.5), as pure functions.

The union of old and new tokens is split at random into sources and destinations. Each source goes to
its most similar destination; each destination becomes the unweighted mean of itself and what came to
it. One assignment serves keys, values and outputs. Tokens of both ages are on both sides, so every write
keeps about half of the older mass.
Shape legend: B rows, U tokens of the union, S sources, D destinations, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from rearview.contract.memories import BankPolicy, BankSettings

__all__ = ["MergeOrders", "bank_tokens", "max_bank_tokens", "merge_tokens", "num_sources", "permutation"]

SCORES_PER_CHUNK = 1 << 23
"""Scores held at a time: 16 MiB in float16, where a 512x512 frame would need 32 MiB a row and layer."""


def num_sources(union: int, ratio: float) -> int:
    """How many tokens of a union are merged away."""
    return int(union * ratio)


def permutation(seed: int, step: int, layer: int, ordinal: int, size: int) -> Tensor:
    """A random permutation (size,) int64 on the CPU.

    Keyed by counters alone: the same whoever shares the batch, and on whatever device and replica.
    """
    return torch.randperm(size, generator=_generator(seed, step, layer, ordinal))


@dataclass(frozen=True, slots=True)
class MergeOrders:
    """All permutations of one write, of one bank: those of its layers, one behind the other."""

    seed: int
    step: int
    ordinal: int
    sizes: tuple[tuple[int, int], ...]
    """By layer that merges its number and the tokens of the union there."""

    @property
    def nbytes(self) -> int:
        return torch.int32.itemsize * sum(size for _, size in self.sizes)

    def draw(self, *, pinned: bool = False) -> Tensor:
        """Those that `permutation` draws, int32 on the host; see `ahead.Draw`."""
        total = sum(size for _, size in self.sizes)
        drawn = torch.empty(total, dtype=torch.int32, pin_memory=pinned)
        first = 0
        for layer, size in self.sizes:
            generator = _generator(self.seed, self.step, layer, self.ordinal)
            torch.randperm(size, generator=generator, out=drawn[first : first + size])
            first += size
        return drawn


def _generator(seed: int, step: int, layer: int, ordinal: int) -> torch.Generator:
    text = f"merge/{seed}/{step}/{layer}/{ordinal}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


def merge_tokens(
    features_BUC: Sequence[Tensor], metric_BUC: Tensor, permutation_BU: Tensor, sources: int
) -> list[Tensor]:
    """Merge the first `sources` tokens of each row's permutation (int64, on the tokens' device) into the
    rest. Returns each of `features_BUC` as (B, U - sources, C), destinations in the permutation's order.
    """
    source_BS, destination_BD = permutation_BU[:, :sources], permutation_BU[:, sources:]
    unit_BUC = F.normalize(metric_BUC, dim=-1)
    target_BS = _most_similar(_take(unit_BUC, source_BS), _take(unit_BUC, destination_BD))
    return [
        _mean(_take(feature, source_BS), _take(feature, destination_BD), target_BS)
        for feature in features_BUC
    ]


def _take(tokens_BUC: Tensor, index_BT: Tensor) -> Tensor:
    return tokens_BUC.gather(1, index_BT.unsqueeze(-1).expand(-1, -1, tokens_BUC.shape[-1]))


def _most_similar(source_BSC: Tensor, destination_BDC: Tensor) -> Tensor:
    """For each source the index of its nearest destination (B, S), a chunk of scores at a time."""
    rows, _, _ = source_BSC.shape
    chunk = max(1, SCORES_PER_CHUNK // (rows * destination_BDC.shape[1]))
    transposed_BCD = destination_BDC.transpose(1, 2)
    parts = [(part @ transposed_BCD).argmax(-1) for part in source_BSC.split(chunk, dim=1)]
    return torch.cat(parts, dim=1)


def _mean(source_BSC: Tensor, destination_BDC: Tensor, target_BS: Tensor) -> Tensor:
    """Mean of each destination and its sources. Half types are summed in float32."""
    rows, places, channels = destination_BDC.shape
    first = torch.arange(rows, device=target_BS.device).unsqueeze(1) * places
    flat = (target_BS + first).flatten()
    # index_put_ and not index_add_: on CUDA the latter sums in no fixed order, and a moved or replayed
    # session must continue bit for bit.
    exact = torch.promote_types(destination_BDC.dtype, torch.float32)
    total = destination_BDC.to(exact).reshape(-1, channels).clone()
    total.index_put_((flat,), source_BSC.to(exact).reshape(-1, channels), accumulate=True)
    count = 1 + torch.bincount(flat, minlength=rows * places).unsqueeze(1)
    return (total / count).to(destination_BDC.dtype).view(rows, places, channels)


def bank_tokens(settings: BankSettings, tokens: int, writes: int) -> int:
    """Tokens in a bank after so many writes of `tokens` each."""
    if writes == 0:
        return 0
    if settings.policy is BankPolicy.QUEUE:
        return min(writes, settings.max_frames) * tokens
    return _merged_tokens(tokens, settings.merge_ratio, writes)


def max_bank_tokens(settings: BankSettings, tokens: int) -> int:
    """The most tokens that a bank of such settings ever holds."""
    if settings.policy is BankPolicy.QUEUE:
        return settings.max_frames * tokens
    return max(tokens, _merged_tokens(tokens, settings.merge_ratio, None))


@lru_cache(maxsize=4096)
def _merged_tokens(tokens: int, ratio: float, writes: int | None) -> int:
    """Sizes move monotonically to their limit; None asks for the limit."""
    size, done = tokens, 1
    while writes is None or done < writes:
        union = size + tokens
        merged = union - num_sources(union, ratio)
        if merged == size:
            break
        size, done = merged, done + 1
    return size
