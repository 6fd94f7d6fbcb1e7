"""The keyword arguments of `Client.open` and `Session.control`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from rearview.client.answers import ImageFormat
from rearview.client.settings import (
    DropPolicy,
    FeatureBank,
    Guidance,
    Method,
    NoiseRule,
    Settings,
    SimilarityFilter,
    TemporalCache,
    WeightedPrompt,
)

__all__ = ["OpenOptions", "SettingOptions", "settings_of"]


class SettingOptions(TypedDict, total=False):
    """The fields of `Settings`, which says what they mean; what is left out or None is not set."""

    prompt: str | None
    """The service refuses to open without one, or `prompts`."""
    strength: float | None
    steps: int | None
    seed: int | None
    noise_rule: NoiseRule | None
    guidance: Guidance | None
    guidance_scale: float | None
    delta: float | None
    negative_prompt: str | None
    prompts: Sequence[WeightedPrompt] | None
    blend_frames: int | None
    adapters: str | None


class OpenOptions(SettingOptions, total=False):
    """The keyword arguments of `Client.open`; all but the prompt may be left out."""

    model: str
    """Default: the one that the server serves."""
    width: int
    """Pixels, a multiple of 8. Default: the model's."""
    height: int
    """Pixels, a multiple of 8. Default: the model's."""
    drop_policy: DropPolicy
    """Default LATEST, for live video; use LOSSLESS for files."""
    frame_budget_s: float
    """For DropPolicy.DEADLINE: the age at which a frame is worthless."""
    frame_rate: float
    """Frames per second that will be sent, for admission. Default 30."""
    answer_format: ImageFormat
    """Default JPEG."""
    jpeg_quality: int
    """Of the answers, 1 to 100. Default 85."""
    max_steps: int
    """The most steps that a control may ask for. Default: the model's."""
    method: Method
    """Default: the deployment's."""
    feature_bank: FeatureBank
    """For Method.STREAMV2V. Default: the deployment's. With Method.LIVE2DIFF: the session has a bank too."""
    temporal_cache: TemporalCache
    """For Method.LIVE2DIFF. Default: the deployment's."""
    similarity_filter: SimilarityFilter
    """Default: every frame is translated."""
    answer_window: int
    """Answers held for a slow reader before the server is stopped. Default 32."""
    send_quality: int
    """JPEG quality of frames sent as arrays, 1 to 100; 0 sends raw RGB. Default 90."""


def settings_of(options: SettingOptions) -> Settings:
    """The settings among the options."""
    return Settings(
        prompt=options.get("prompt"),
        strength=options.get("strength"),
        steps=options.get("steps"),
        seed=options.get("seed"),
        noise_rule=options.get("noise_rule"),
        guidance=options.get("guidance"),
        guidance_scale=options.get("guidance_scale"),
        delta=options.get("delta"),
        negative_prompt=options.get("negative_prompt"),
        prompts=tuple(options.get("prompts") or ()) or None,
        blend_frames=options.get("blend_frames"),
        adapters=options.get("adapters"),
    )
