"""What can be chosen at the command line; no torch, so that `--help` is quick."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["DtypeChoice", "MethodChoice", "NoiseChoice", "Part"]


class MethodChoice(StrEnum):
    """`--method`."""

    PER_FRAME = "per-frame"
    STREAMV2V = "streamv2v"
    LIVE2DIFF = "live2diff"
    BOTH = "both"


class NoiseChoice(StrEnum):
    """`--noise`; names are those of `NoiseRule`."""

    FIXED = "fixed"
    FRESH = "fresh"


class Part(StrEnum):
    """`--part`: what can be left out."""

    WARP = "warp"
    AUTOENCODER = "autoencoder"
    STEPS = "steps"
    CLASSIFIER = "classifier"
    FILTER = "filter"
    DRIFT = "drift"


class DtypeChoice(StrEnum):
    """`--dtype`."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
