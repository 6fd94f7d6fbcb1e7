"""The one place where memories are put together: for service, laboratory, command line, benchmarks, tests.

A kind of memory is a wing of this package and one line of `KINDS`. A span keeps those kinds that serve one of
its operators, that its networks have and that are wanted. A session that asks for one of the others is
refused here; about a kind that serves no operator of the span nobody is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from rearview.contract.chain import OperatorKind, Span
from rearview.contract.memories import BankSettings, MergeMetric
from rearview.contract.session import SessionSpec
from rearview.engine.ahead import Ahead
from rearview.engine.devices import CPU
from rearview.engine.memory.bank.layers import BankLayout, KeptOutputs
from rearview.engine.memory.bank.pool import BankShape, FeatureBank
from rearview.engine.memory.bank.view import BANK
from rearview.engine.memory.cache.layers import CacheLayout
from rearview.engine.memory.cache.pool import CacheShape, TemporalKVCache
from rearview.engine.memory.cache.view import CACHE
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.chain.pool import Chains
from rearview.engine.memory.chain.view import CHAIN
from rearview.engine.memory.compose import Lacking, Memories
from rearview.engine.memory.depth.pool import DepthRange
from rearview.engine.memory.depth.view import DEPTH_RANGE
from rearview.engine.memory.protocol import AnyMemory

__all__ = ["KINDS", "CacheOptions", "Layouts", "MemoryOptions", "RegisteredKind", "build_memories"]


@dataclass(frozen=True, slots=True)
class Layouts:
    """What the networks of a span have that can be remembered. Nothing: the span has no networks."""

    bank: BankLayout | None = None
    """Of a UNet whose self-attention takes a feature bank."""
    cache: CacheLayout | None = None
    """Of a UNet with motion modules."""
    depth: bool = False
    """Whether frames are encoded with their depth."""
    chain: bool = False
    """Whether denoising steps keep a hash chain over what they have seen (the chain model)."""


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What a pool of temporal caches is like."""

    window: CacheWindow = field(default_factory=CacheWindow)
    storage: torch.dtype | None = None
    """How keys and values are kept. None: in the type of the networks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """Which memories are wanted, and how large."""

    num_slots: int
    """Sessions."""
    height: int
    """Pixels of the largest frame."""
    width: int
    dtype: torch.dtype
    """Of the networks."""
    device: torch.device = CPU
    latent_scale: int = 8
    """Pixels per latent cell."""
    bank: BankSettings | None = None
    """The largest bank that a session may ask for. None: no feature bank."""
    cache: CacheOptions | None = None
    """None: no temporal cache."""
    ahead: Ahead | None = None
    """Draws ahead what model and memories need at random. None: nobody does."""


Build = Callable[[Span, Layouts, MemoryOptions], AnyMemory | None]


@dataclass(frozen=True, slots=True)
class RegisteredKind:
    """A kind of memory: what to build, for which operators, and who is refused where there is none."""

    name: str
    operators: frozenset[OperatorKind]
    build: Build
    """The memory of a span that has one of the operators. None: its networks lack what the kind remembers,
    or the kind is not wanted."""
    title: str = ""
    """What a session is told that asks for it in vain."""
    is_asked_for: Callable[[SessionSpec], bool] = lambda spec: False
    """Whether a session must be refused where the kind is not kept."""

    def lacking(self) -> Lacking:
        """The kind where it is not kept."""
        return Lacking(self.name, f"this service keeps no {self.title}", self.is_asked_for)


def build_memories(
    span: Span, layouts: Layouts, options: MemoryOptions, kinds: Sequence[RegisteredKind] | None = None
) -> Memories:
    """What a span remembers. `kinds`: the registry, `KINDS` unless others are to be added. Raises ValueError
    for a window with more frames than the motion modules know.
    """
    found: list[AnyMemory] = []
    lacking: list[Lacking] = []
    for kind in KINDS if kinds is None else kinds:
        if span.kinds.isdisjoint(kind.operators):
            continue
        memory = kind.build(span, layouts, options)
        if memory is None:
            lacking.append(kind.lacking())
        else:
            found.append(memory)
    return Memories(found, options.num_slots, lacking, options.ahead)


def _steps(span: Span) -> tuple[int, ...]:
    return tuple(op.step for op in span.operators if op.kind is OperatorKind.DENOISE)


def _bank(span: Span, layouts: Layouts, options: MemoryOptions) -> FeatureBank | None:
    if layouts.bank is None or options.bank is None:
        return None
    merges_outputs = options.bank.metric is MergeMetric.OUTPUTS
    shape = BankShape(
        num_slots=options.num_slots,
        steps=_steps(span),
        height=options.height,
        width=options.width,
        size_frames=options.bank.size_frames,
        kept_outputs=KeptOutputs.ALL if merges_outputs else KeptOutputs.FUSED,
        latent_scale=options.latent_scale,
    )
    return FeatureBank(layouts.bank, shape, dtype=options.dtype, device=options.device, ahead=options.ahead)


def _cache(span: Span, layouts: Layouts, options: MemoryOptions) -> TemporalKVCache | None:
    if layouts.cache is None or options.cache is None:
        return None
    shape = CacheShape(
        num_slots=options.num_slots,
        steps=_steps(span),
        height=options.height,
        width=options.width,
        window=options.cache.window,
        latent_scale=options.latent_scale,
    )
    storage = options.cache.storage or options.dtype
    return TemporalKVCache(layouts.cache, shape, dtype=storage, device=options.device)


def _depth(span: Span, layouts: Layouts, options: MemoryOptions) -> DepthRange | None:
    """Sessions with a temporal cache have depth, in the type in which latents travel."""
    if not layouts.depth or options.cache is None:
        return None
    dtype = torch.float64 if options.dtype is torch.float64 else torch.float32
    return DepthRange(options.num_slots, device=options.device, dtype=dtype)


def _chain(span: Span, layouts: Layouts, options: MemoryOptions) -> Chains | None:
    return Chains(options.num_slots, span.steps) if layouts.chain else None


def _asks_for_bank(spec: SessionSpec) -> bool:
    return spec.bank is not None


def _asks_for_cache(spec: SessionSpec) -> bool:
    return spec.cache is not None


KINDS = (
    RegisteredKind(BANK.name, FeatureBank.operators, _bank, "feature bank", _asks_for_bank),
    RegisteredKind(CACHE.name, TemporalKVCache.operators, _cache, "temporal cache", _asks_for_cache),
    RegisteredKind(DEPTH_RANGE.name, DepthRange.operators, _depth),
    RegisteredKind(CHAIN.name, Chains.operators, _chain),
)
"""All kinds of memory."""
