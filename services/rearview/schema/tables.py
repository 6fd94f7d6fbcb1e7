"""The table: every message that carries settings, field by field."""

from __future__ import annotations

from typing import Any

from rearview.contract.controls import WeightedControl
from rearview.contract.memories import BankOptions, CacheOptions, CacheSettings
from rearview.contract.model import Model, Style
from rearview.contract.opening import OpenRequest
from rearview.contract.settings import Settings, SettingsChange, WeightedAdapters, WeightedPrompt
from rearview.contract.similarity import SimilarityOptions
from rearview.schema.enums import (
    BANK_POLICIES,
    DROP_POLICIES,
    GUIDANCES,
    IMAGE_FORMATS,
    METHODS,
    NOISE_RULES,
    PROMPT_CHANGES,
    REWARMS,
)
from rearview.schema.table import FLOAT32, IMAGE_FILE, PLAIN, SECONDS, Held, Listed, Nested, Row, Table
from rearview.v1 import model_service_pb2 as models_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["FEATURE_BANK", "MODEL", "OPEN", "SETTINGS", "SIMILARITY_FILTER", "TABLES", "TEMPORAL_CACHE"]

WEIGHTED_PROMPT = Table(
    settings_pb2.WeightedPrompt,
    (WeightedPrompt,),
    (
        Row("prompt", "prompt", PLAIN, reads_zero=True),
        Row("weight", "weight", FLOAT32, reads_zero=True),
    ),
)

WEIGHTED_ADAPTERS = Table(
    settings_pb2.WeightedAdapters,
    (WeightedAdapters,),
    (
        Row("adapters", "adapters", PLAIN, reads_zero=True),
        Row("weight", "weight", FLOAT32),
    ),
)

WEIGHTED_CONTROL = Table(
    settings_pb2.WeightedControl,
    (WeightedControl,),
    (
        Row("name", "name", PLAIN, reads_zero=True),
        Row("weight", "weight", FLOAT32),
    ),
)

SETTINGS = Table(
    settings_pb2.Settings,
    (SettingsChange, Settings),
    (
        Row("prompt", "prompt", PLAIN),
        Row("strength", "strength", FLOAT32),
        Row("steps", "steps", PLAIN),
        Row("seed", "seed", PLAIN),
        Row("noise_rule", "noise_rule", NOISE_RULES),
        Row("guidance", "guidance", GUIDANCES),
        Row("guidance_scale", "guidance_scale", FLOAT32),
        Row("delta", "delta", FLOAT32),
        Row("negative_prompt", "negative_prompt", PLAIN),
        Row("prompts", "prompts", Listed(Nested(WEIGHTED_PROMPT, WeightedPrompt))),
        Row("blend_frames", "blend_frames", PLAIN),
        Row("adapters", "adapters", PLAIN),
        Row("adapter_mix", "adapter_mix", Listed(Nested(WEIGHTED_ADAPTERS, WeightedAdapters))),
        Row("timestep_indices", "timestep_indices", Listed(PLAIN)),
        Row(
            "controls",
            "controls",
            Held(settings_pb2.Controls, "controls", Listed(Nested(WEIGHTED_CONTROL, WeightedControl))),
        ),
        Row("width", "width", PLAIN),
        Row("height", "height", PLAIN),
        Row("reference", "reference", IMAGE_FILE),
        Row("reference_scale", "reference_scale", FLOAT32),
        Row("reference_mask", "reference_mask", IMAGE_FILE),
        Row("jpeg_quality", "jpeg_quality", PLAIN),
    ),
    inside=frozenset({"blend", "scene"}),
)

FEATURE_BANK = Table(
    pb.FeatureBank,
    (BankOptions,),
    (
        Row("policy", "policy", BANK_POLICIES),
        Row("interval", "interval", PLAIN),
        Row("phase", "phase", PLAIN),
        Row("max_frames", "max_frames", PLAIN),
        Row("fusion_strength", "fusion_strength", FLOAT32),
        Row("fusion_threshold", "fusion_threshold", FLOAT32),
        Row("prompt_change", "prompt_change", PROMPT_CHANGES),
    ),
)

TEMPORAL_CACHE = Table(
    pb.TemporalCache,
    (CacheOptions, CacheSettings),
    (
        Row("prompt_change", "prompt_change", REWARMS),
        Row("scene_cut", "scene_cut", REWARMS),
        Row("scene_detection", "scene_detection", PLAIN),
        Row("instant_start", "instant_start", PLAIN),
    ),
)

SIMILARITY_FILTER = Table(
    pb.SimilarityFilter,
    (SimilarityOptions,),
    (
        Row("threshold", "threshold", FLOAT32),
        Row("max_skip_frames", "max_skip_frames", PLAIN),
    ),
)

OPEN = Table(
    pb.Open,
    (OpenRequest,),
    (
        Row("settings", "settings", Nested(SETTINGS, SettingsChange, is_named=False)),
        Row("model", "model", PLAIN),
        Row("width", "width", PLAIN),
        Row("height", "height", PLAIN),
        Row("drop_policy", "drop_policy", DROP_POLICIES),
        Row("frame_budget_s", "frame_budget", SECONDS),
        Row("frame_rate", "frame_rate", PLAIN),
        Row("answer_format", "answer_format", IMAGE_FORMATS),
        Row("jpeg_quality", "jpeg_quality", PLAIN),
        Row("max_steps", "max_steps", PLAIN),
        Row("answer_credit", "answer_credit", PLAIN),
        Row("method", "method", METHODS),
        Row("feature_bank", "feature_bank", Nested(FEATURE_BANK, BankOptions)),
        Row("similarity_filter", "similarity_filter", Nested(SIMILARITY_FILTER, SimilarityOptions)),
        Row("temporal_cache", "temporal_cache", Nested(TEMPORAL_CACHE, CacheOptions)),
    ),
)

STYLE = Table(
    models_pb.Style,
    (Style,),
    (
        Row("name", "name", PLAIN),
        Row("prompt", "prompt", PLAIN),
        Row("phrases", "phrases", Listed(PLAIN)),
    ),
)

MODEL = Table(
    models_pb.Model,
    (Model,),
    (
        Row("name", "name", PLAIN),
        Row("width", "width", PLAIN),
        Row("height", "height", PLAIN),
        Row("side_multiple", "side_multiple", PLAIN),
        Row("motion_side_multiple", "motion_side_multiple", PLAIN),
        Row("min_side", "min_side", PLAIN),
        Row("strength", "strength", FLOAT32),
        Row("steps", "steps", PLAIN),
        Row("max_steps", "max_steps", PLAIN),
        Row("methods", "methods", Listed(METHODS)),
        Row("default_method", "default_method", METHODS),
        Row("formats", "formats", Listed(IMAGE_FORMATS)),
        Row("styles", "styles", Listed(Nested(STYLE, Style))),
        Row("takes_any_prompt", "takes_any_prompt", PLAIN),
        Row("adapters", "adapters", Listed(PLAIN)),
        Row("max_image_bytes", "max_image_bytes", PLAIN),
        Row("max_pixels", "max_pixels", PLAIN),
        Row("max_prompt_bytes", "max_prompt_bytes", PLAIN),
        Row("controls", "controls", Listed(PLAIN)),
        Row("merged_adapters", "merged_adapters", Listed(PLAIN)),
        Row("sent_controls", "sent_controls", Listed(PLAIN)),
        Row("takes_reference", "takes_reference", PLAIN),
    ),
)

TABLES: tuple[Table[Any], ...] = (
    WEIGHTED_PROMPT,
    WEIGHTED_ADAPTERS,
    WEIGHTED_CONTROL,
    SETTINGS,
    FEATURE_BANK,
    TEMPORAL_CACHE,
    SIMILARITY_FILTER,
    OPEN,
    STYLE,
    MODEL,
)
