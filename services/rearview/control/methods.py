"""Which method a session runs: what its client asked for, over what the deployment has. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from rearview.config import BankConfig, CacheConfig
from rearview.contract.memories import (
    BankPolicy,
    BankSettings,
    CacheSettings,
    MergeMetric,
    PromptChange,
    Rewarm,
)
from rearview.contract.session import SessionSpec
from rearview.errors import InvalidRequest, Reason

__all__ = ["Method", "Offer", "choose_method", "default_bank", "default_cache", "method_of"]


class Method(Enum):
    """How a frame relates to the frames before it; numbers are those of `rearview.v1.Method`."""

    PER_FRAME = 1
    STREAMV2V = 2
    LIVE2DIFF = 3


def default_bank(config: BankConfig) -> BankSettings:
    """The bank of a session that says nothing about it."""
    return BankSettings(
        policy=BankPolicy(config.policy),
        interval=config.interval,
        max_frames=config.max_frames,
        merge_ratio=config.merge_ratio,
        metric=MergeMetric(config.metric),
        layers=config.layers,
        fusion_strength=config.fusion_strength,
        fusion_threshold=config.fusion_threshold,
        prompt_change=PromptChange(config.prompt_change),
    )


def default_cache(config: CacheConfig) -> CacheSettings:
    """The temporal cache of a session that says nothing about it."""
    return CacheSettings(prompt_change=Rewarm(config.prompt_change), scene_cut=Rewarm(config.scene_cut))


@dataclass(frozen=True, slots=True)
class Offer:
    """What a deployment has for its sessions."""

    bank: BankConfig | None
    cache: CacheConfig | None
    has_motion: bool
    """Whether the model has motion modules, without which a cache is of no use."""

    @property
    def default(self) -> Method:
        """The method of a session that names none."""
        if self.cache is not None and self.cache.default:
            return Method.LIVE2DIFF
        return Method.STREAMV2V if self.bank is not None and self.bank.default else Method.PER_FRAME

    def warm_up_frames(self, spec: SessionSpec) -> int:
        """How many frames of the session warm up together; 0: none."""
        return 0 if spec.cache is None or self.cache is None else self.cache.sink_frames


def choose_method(
    offer: Offer, method: Method | None, bank: Mapping[str, Any] | None, cache: Mapping[str, Any]
) -> tuple[BankSettings | None, CacheSettings | None]:
    """What a new session remembers. `method` None is the deployment's default.

    `bank` and `cache` are fields of BankSettings and CacheSettings that the client has set; with LIVE2DIFF
    a `bank` that is not None, even empty, makes the session use both. Raises InvalidRequest:
    METHOD_UNSUPPORTED, or SETTING_OUT_OF_RANGE naming the field.
    """
    method = method or offer.default
    if method is Method.PER_FRAME:
        return None, None
    if method is Method.STREAMV2V:
        return _bank(offer, bank or {}, "method"), None
    if offer.cache is None:
        raise _unsupported("this deployment has no temporal cache", "method")
    if not offer.has_motion:
        raise _unsupported("the model has no motion modules, which a temporal cache needs", "method")
    chosen = None if bank is None else _bank(offer, bank, "feature_bank")
    return chosen, replace(default_cache(offer.cache), **cache)


def method_of(spec: SessionSpec) -> Method:
    """The method of a session; LIVE2DIFF if it has both memories."""
    if spec.cache is not None:
        return Method.LIVE2DIFF
    return Method.PER_FRAME if spec.bank is None else Method.STREAMV2V


def _bank(offer: Offer, overrides: Mapping[str, Any], field: str) -> BankSettings:
    if offer.bank is None:
        raise _unsupported("this deployment has no feature bank", field)
    return replace(default_bank(offer.bank), **overrides)


def _unsupported(text: str, field: str) -> InvalidRequest:
    return InvalidRequest(Reason.METHOD_UNSUPPORTED, text, metadata={"field": field})
