"""Which sampler a checkpoint was made for. Needs no torch: what a model's defaults are follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["Sampler", "is_distilled_to_one_step", "sampler_of"]


class Sampler(Enum):
    """How a frame gets from one timestep to the next (methods 1.3 and 1.7)."""

    LCM = "lcm"
    """Noise is drawn anew for every step. For weights that were distilled for it, and with LCM-LoRA."""
    EULER = "euler"
    """The noise that is left goes on: drawn once a frame, and nothing is random after that."""
    EULER_ANCESTRAL = "euler_ancestral"
    """Some of the noise that is left goes on, and some is drawn anew for every step (SDXL-Turbo)."""


_BY_CLASS = {
    "EulerDiscreteScheduler": Sampler.EULER,
    "EulerAncestralDiscreteScheduler": Sampler.EULER_ANCESTRAL,
}


def sampler_of(scheduler_config: Mapping[str, Any], *, lcm_lora: bool = False) -> Sampler:
    """By the class in the checkpoint's scheduler config; LCM for every class but Euler's two.

    Checkpoints that LCM weights or a LoRA were merged into still name the scheduler of their base.
    """
    named = _BY_CLASS.get(str(scheduler_config.get("_class_name")), Sampler.LCM)
    return Sampler.LCM if lcm_lora else named


def is_distilled_to_one_step(scheduler_config: Mapping[str, Any]) -> bool:
    """Whether the config is that of a turbo (SD-Turbo, SDXL-Turbo): Euler from the end of the schedule."""
    is_trailing = scheduler_config.get("timestep_spacing") == "trailing"
    return is_trailing and sampler_of(scheduler_config) is not Sampler.LCM
