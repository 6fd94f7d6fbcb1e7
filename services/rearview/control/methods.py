"""Which method a session runs: what its client asked for, over what the deployment has. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from rearview.config import BankConfig, CacheConfig
from rearview.contract.memories import BankOptions, BankSettings, CacheOptions, CacheSettings
from rearview.contract.methods import Method
from rearview.contract.session import SessionSpec
from rearview.errors import InvalidRequest, Reason

__all__ = ["Offer", "choose_method", "default_bank", "default_cache"]


def default_bank(config: BankConfig) -> BankSettings:
    """The bank of a session that says nothing about it."""
    return BankSettings(**_configured(BankSettings, config))


def default_cache(config: CacheConfig) -> CacheSettings:
    """The temporal cache of a session that says nothing about it."""
    return CacheSettings(**_configured(CacheSettings, config))


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

    @property
    def methods(self) -> tuple[Method, ...]:
        """Those that a session may choose."""
        has_cache = self.cache is not None and self.has_motion
        has = {Method.STREAMV2V: self.bank is not None, Method.LIVE2DIFF: has_cache}
        return (Method.PER_FRAME, *(method for method, is_served in has.items() if is_served))

    def warm_up_frames(self, spec: SessionSpec) -> int:
        """How many frames of the session warm up together; 0: none."""
        return 0 if spec.cache is None or self.cache is None else self.cache.sink_frames


def choose_method(
    offer: Offer, method: Method | None, bank: BankOptions | None, cache: CacheOptions | None
) -> tuple[BankSettings | None, CacheSettings | None]:
    """What a new session remembers. `method` None is the deployment's default.

    With LIVE2DIFF a `bank` that is not None, even without a word, makes the session use both. Raises
    InvalidRequest: METHOD_UNSUPPORTED, or SETTING_OUT_OF_RANGE naming the field.
    """
    method = method or offer.default
    if method is Method.PER_FRAME:
        return None, None
    if method is Method.STREAMV2V:
        return _bank(offer, bank or BankOptions(), "method"), None
    if offer.cache is None:
        raise _unsupported("this deployment has no temporal cache", "method")
    if not offer.has_motion:
        raise _unsupported("the model has no motion modules, which a temporal cache needs", "method")
    chosen = None if bank is None else _bank(offer, bank, "feature_bank")
    return chosen, (cache or CacheOptions()).apply(default_cache(offer.cache))


def _bank(offer: Offer, asked: BankOptions, field: str) -> BankSettings:
    if offer.bank is None:
        raise _unsupported("this deployment has no feature bank", field)
    return asked.apply(default_bank(offer.bank))


def _configured(kind: type[BankSettings | CacheSettings], config: BankConfig | CacheConfig) -> dict[str, Any]:
    """Those of its fields that a deployment sets."""
    names = [one.name for one in fields(kind) if one.name in type(config).model_fields]
    return {name: getattr(config, name) for name in names}


def _unsupported(text: str, field: str) -> InvalidRequest:
    return InvalidRequest(Reason.METHOD_UNSUPPORTED, text, metadata={"field": field})
