"""Which method a session runs: what its client asked for, over what the deployment has. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from rearview.config import BankConfig
from rearview.engine.session import BankPolicy, BankSettings, MergeMetric, PromptChange
from rearview.errors import InvalidRequest, Reason

__all__ = ["Method", "choose_bank", "default_bank"]


class Method(Enum):
    """How a frame relates to the frames before it; numbers are those of `rearview.v1.Method`."""

    PER_FRAME = 1
    STREAMV2V = 2


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


def choose_bank(
    config: BankConfig | None, method: Method | None, overrides: Mapping[str, Any]
) -> BankSettings | None:
    """The bank of a new session; None if it has none.

    `method` None is the deployment's default; `overrides` are fields of BankSettings that the client has
    set. Raises InvalidRequest: METHOD_UNSUPPORTED, or SETTING_OUT_OF_RANGE naming the field.
    """
    if method is None:
        method = Method.STREAMV2V if config is not None and config.default else Method.PER_FRAME
    if method is Method.PER_FRAME:
        return None
    if config is None:
        raise InvalidRequest(
            Reason.METHOD_UNSUPPORTED, "this deployment has no feature bank", metadata={"field": "method"}
        )
    return replace(default_bank(config), **overrides)
