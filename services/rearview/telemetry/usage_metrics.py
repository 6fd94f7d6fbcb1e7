"""The metrics of what tenants use; `metrics.py` has them with all others."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

__all__ = ["UsageMetrics"]


class UsageMetrics:
    """Of what tenants use, as the records of usage count it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.usage_frames = Counter(
            "rearview_usage_frames_total",
            "Frames whose answers will not be asked for again, by tenant and outcome: translated, or the"
            " reason of the drop.",
            ["tenant", "outcome"],
            registry=registry,
        )
        self.usage_pixel_steps = Counter(
            "rearview_usage_pixel_steps_total",
            "Width times height times denoising steps of these, where they have passed them.",
            ["tenant"],
            registry=registry,
        )
        self.usage_device_seconds = Counter(
            "rearview_usage_device_seconds_total",
            "Shares that these had of the time of forwards.",
            ["tenant"],
            registry=registry,
        )
