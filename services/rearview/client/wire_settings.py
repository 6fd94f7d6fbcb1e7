"""`Settings` and the options of methods as messages of `rearview.v1`, and what is read back of them."""

from __future__ import annotations

import numpy as np

from rearview.client.settings import (
    FeatureBank,
    Guidance,
    NoiseRule,
    Rewarm,
    Settings,
    SimilarityFilter,
    TemporalCache,
    WeightedPrompt,
)
from rearview.v1 import translation_service_pb2 as pb

__all__ = [
    "bank_message",
    "cache_from",
    "cache_message",
    "settings_from",
    "settings_message",
    "similarity_message",
]


def settings_message(settings: Settings) -> pb.Settings:
    """A field that is None is absent."""
    rule, guidance = settings.noise_rule, settings.guidance
    return pb.Settings(
        prompt=settings.prompt,
        strength=settings.strength,
        steps=settings.steps,
        seed=settings.seed,
        noise_rule=None if rule is None else pb.NoiseRule.ValueType(rule.value),
        guidance=None if guidance is None else pb.Guidance.ValueType(guidance.value),
        guidance_scale=settings.guidance_scale,
        delta=settings.delta,
        negative_prompt=settings.negative_prompt,
        prompts=[pb.WeightedPrompt(prompt=one.prompt, weight=one.weight) for one in settings.prompts or ()],
        blend_frames=settings.blend_frames,
        adapters=settings.adapters,
    )


def settings_from(message: pb.Settings) -> Settings:
    """An absent field is None, and so is a value that this client does not know."""
    prompts = tuple(WeightedPrompt(one.prompt, _float32(one.weight)) for one in message.prompts)
    rules, kinds = {rule.value: rule for rule in NoiseRule}, {kind.value: kind for kind in Guidance}
    return Settings(
        prompt=message.prompt if message.HasField("prompt") and not prompts else None,
        strength=_float32(message.strength) if message.HasField("strength") else None,
        steps=message.steps if message.HasField("steps") else None,
        seed=message.seed if message.HasField("seed") else None,
        noise_rule=rules.get(message.noise_rule),
        guidance=kinds.get(message.guidance),
        guidance_scale=_float32(message.guidance_scale) if message.HasField("guidance_scale") else None,
        delta=_float32(message.delta) if message.HasField("delta") else None,
        negative_prompt=message.negative_prompt if message.HasField("negative_prompt") else None,
        prompts=prompts or None,
        blend_frames=message.blend_frames if message.HasField("blend_frames") else None,
        adapters=message.adapters if message.HasField("adapters") else None,
    )


def bank_message(bank: FeatureBank) -> pb.FeatureBank:
    return pb.FeatureBank(
        policy=pb.FeatureBank.Policy.ValueType(bank.policy.value if bank.policy else 0),
        interval=bank.interval,
        phase=bank.phase,
        max_frames=bank.max_frames,
        fusion_strength=bank.fusion_strength,
        fusion_threshold=bank.fusion_threshold,
        prompt_change=pb.FeatureBank.PromptChange.ValueType(
            bank.prompt_change.value if bank.prompt_change else 0
        ),
    )


def cache_message(cache: TemporalCache) -> pb.TemporalCache:
    """A field that is None is absent."""
    kinds = pb.TemporalCache.Rewarm
    return pb.TemporalCache(
        prompt_change=kinds.ValueType(cache.prompt_change.value if cache.prompt_change else 0),
        scene_cut=kinds.ValueType(cache.scene_cut.value if cache.scene_cut else 0),
        scene_detection=cache.scene_detection,
        instant_start=cache.instant_start,
    )


def cache_from(message: pb.TemporalCache) -> TemporalCache:
    """An absent field is None, and so is a value that this client does not know."""
    kinds = {kind.value: kind for kind in Rewarm}
    return TemporalCache(
        prompt_change=kinds.get(message.prompt_change),
        scene_cut=kinds.get(message.scene_cut),
        scene_detection=message.scene_detection if message.HasField("scene_detection") else None,
        instant_start=message.instant_start if message.HasField("instant_start") else None,
    )


def similarity_message(similarity: SimilarityFilter) -> pb.SimilarityFilter:
    return pb.SimilarityFilter(threshold=similarity.threshold, max_skip_frames=similarity.max_skip_frames)


def _float32(value: float) -> float:
    """The decimal that was written, 0.4 for 0.4000000059…; sent again, it is the same number."""
    return float(str(np.float32(value)))
