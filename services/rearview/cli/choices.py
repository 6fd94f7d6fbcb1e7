"""Options of `translate` that choose the picture and the method: their values, and what goes together.

Imports neither gRPC nor numpy before a command runs: `--help` must be quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rearview.client import OpenOptions

__all__ = ["BankPolicyChoice", "GuidanceChoice", "Look", "MethodChoice", "Past", "RewarmChoice", "parse_size"]

DEFAULT_GUIDANCE_SCALE = 1.5
"""With `--guidance`: at the service's own default, 1, no guidance acts."""


class MethodChoice(StrEnum):
    """`--method`."""

    PER_FRAME = "per-frame"
    STREAMV2V = "streamv2v"
    LIVE2DIFF = "live2diff"


class GuidanceChoice(StrEnum):
    """`--guidance`."""

    NONE = "none"
    SELF = "self"
    INITIALIZE = "initialize"
    FULL = "full"


class BankPolicyChoice(StrEnum):
    """`--bank-policy`."""

    MERGE = "merge"
    QUEUE = "queue"


class RewarmChoice(StrEnum):
    """`--prompt-change` and `--scene-cut`."""

    RESET = "reset"
    SHADOW = "shadow"
    KEEP = "keep"


WITH_DELTA = (GuidanceChoice.SELF, GuidanceChoice.INITIALIZE)
WITH_NEGATIVE_PROMPT = (GuidanceChoice.INITIALIZE, GuidanceChoice.FULL)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the pictures are translated under. Raises BadParameter for an option that would do nothing."""

    prompt: str
    strength: float | None
    steps: int | None
    seed: int
    guidance: GuidanceChoice | None
    guidance_scale: float | None
    delta: float | None
    negative_prompt: str | None
    adapters: str | None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise typer.BadParameter("is empty", param_hint="--prompt")
        guides = self.guidance not in (None, GuidanceChoice.NONE)
        if self.guidance_scale is not None and not guides:
            raise typer.BadParameter("needs --guidance", param_hint="--guidance-scale")
        if self.delta is not None and self.guidance not in WITH_DELTA:
            raise typer.BadParameter(f"needs --guidance {_either(WITH_DELTA)}", param_hint="--delta")
        if self.negative_prompt is not None and self.guidance not in WITH_NEGATIVE_PROMPT:
            needed = f"needs --guidance {_either(WITH_NEGATIVE_PROMPT)}"
            raise typer.BadParameter(needed, param_hint="--negative-prompt")

    def options(self) -> OpenOptions:
        """For `Client.open`; None keeps the service's default."""
        from rearview.client import Guidance

        guidance, scale = self.guidance, self.guidance_scale
        if guidance not in (None, GuidanceChoice.NONE) and scale is None:
            scale = DEFAULT_GUIDANCE_SCALE
        return {
            "prompt": self.prompt,
            "strength": self.strength,
            "steps": self.steps,
            "seed": self.seed,
            "guidance": None if guidance is None else Guidance[guidance.name],
            "guidance_scale": scale,
            "delta": self.delta,
            "negative_prompt": self.negative_prompt,
            "adapters": self.adapters,
        }


@dataclass(frozen=True, kw_only=True)
class Past:
    """How frames relate to those before them. Raises BadParameter for an option that would do nothing."""

    method: MethodChoice | None
    bank_interval: int | None
    bank_policy: BankPolicyChoice | None
    prompt_change: RewarmChoice | None
    scene_cut: RewarmChoice | None
    instant_start: bool
    skip_unchanged: bool
    skip_threshold: float | None

    def __post_init__(self) -> None:
        if self._sets_bank and self.method is MethodChoice.PER_FRAME:
            hint = "--bank-interval" if self.bank_interval is not None else "--bank-policy"
            raise typer.BadParameter("needs --method streamv2v or live2diff", param_hint=hint)
        if self._sets_cache and self.method is not MethodChoice.LIVE2DIFF:
            raise typer.BadParameter("needs --method live2diff", param_hint=self._cache_hint)

    @property
    def _sets_bank(self) -> bool:
        return self.bank_interval is not None or self.bank_policy is not None

    @property
    def _sets_cache(self) -> bool:
        return self.prompt_change is not None or self.scene_cut is not None or self.instant_start

    @property
    def _cache_hint(self) -> str:
        if self.prompt_change is not None:
            return "--prompt-change"
        return "--scene-cut" if self.scene_cut is not None else "--instant-start"

    def options(self) -> OpenOptions:
        """For `Client.open`; what was not chosen is left out. Options of the bank choose its method."""
        from rearview.client import BankPolicy, FeatureBank, Method, Rewarm, SimilarityFilter, TemporalCache

        method = self.method or (MethodChoice.STREAMV2V if self._sets_bank else None)
        chosen: OpenOptions = {}
        if method is not None:
            chosen["method"] = Method[method.name]
        if self._sets_bank:
            policy = BankPolicy[self.bank_policy.name] if self.bank_policy is not None else None
            chosen["feature_bank"] = FeatureBank(policy=policy, interval=self.bank_interval)
        if self._sets_cache:
            chosen["temporal_cache"] = TemporalCache(
                prompt_change=Rewarm[self.prompt_change.name] if self.prompt_change is not None else None,
                scene_cut=Rewarm[self.scene_cut.name] if self.scene_cut is not None else None,
                instant_start=self.instant_start or None,
            )
        if self.skip_unchanged or self.skip_threshold is not None:
            chosen["similarity_filter"] = SimilarityFilter(threshold=self.skip_threshold)
        return chosen


def parse_size(text: str) -> tuple[int, int]:
    """ "256x192" as (256, 192). Raises BadParameter."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise typer.BadParameter(f"{text!r} is no size; write WIDTHxHEIGHT, such as 256x256")
    if int(width) % 8 or int(height) % 8:
        raise typer.BadParameter(f"{text}: width and height must be multiples of 8")
    return int(width), int(height)


def _either(choices: tuple[GuidanceChoice, ...]) -> str:
    return " or ".join(choice.value for choice in choices)
