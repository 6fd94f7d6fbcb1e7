"""What a user asks of a session: settings, method, drop policy. Frozen dataclasses, no protobuf.

The same types come back in `Opened` and `ControlApplied`, so that settings which were read can be sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "BankPolicy",
    "DropPolicy",
    "FeatureBank",
    "Guidance",
    "Method",
    "NoiseRule",
    "PromptChange",
    "Rewarm",
    "Settings",
    "SimilarityFilter",
    "TemporalCache",
    "WeightedPrompt",
]


class DropPolicy(Enum):
    """What happens to a frame when frames come too fast (`rearview.v1.DropPolicy`)."""

    LATEST = 1
    LOSSLESS = 2
    DEADLINE = 3


class NoiseRule(Enum):
    """How the noise of a denoising step is chosen (`rearview.v1.NoiseRule`)."""

    FIXED = 1
    FRESH = 2


class Guidance(Enum):
    """What a prediction is pushed away from (`rearview.v1.Guidance`)."""

    NONE = 1
    SELF = 2
    """The frame as it came: costs nothing."""
    INITIALIZE = 3
    """What the negative prompt makes of the frame in its first step: one network row more a frame."""
    FULL = 4
    """What the negative prompt makes of it in every step: twice the cost."""


@dataclass(frozen=True)
class WeightedPrompt:
    """One prompt of a mix."""

    prompt: str
    weight: float
    """Beside those of the others; above 0, at most 1000."""


@dataclass(frozen=True)
class Settings:
    """What frames are translated under. None: the model's default, or in a control: unchanged."""

    prompt: str | None = None
    """The picture's description. Replaces `prompts`; None where there are any."""
    strength: float | None = None
    """How far the picture may leave the input, in (0, 1]."""
    steps: int | None = None
    """Denoising steps, 1 to the session's `max_steps`."""
    seed: int | None = None
    """Seed of the noise."""
    noise_rule: NoiseRule | None = None
    guidance: Guidance | None = None
    guidance_scale: float | None = None
    """How far predictions are pushed, 1 to 20. At 1, the default, no guidance acts, whatever its kind."""
    delta: float | None = None
    """For SELF and INITIALIZE, 0 to 10: the share of the frame's noise that counts as negative."""
    negative_prompt: str | None = None
    """What the picture should not be, for INITIALIZE and FULL."""
    prompts: tuple[WeightedPrompt, ...] | None = None
    """Up to 8 prompts at a time, mixed by weight. Replaces `prompt`; to set both is refused."""
    blend_frames: int | None = None
    """Translated frames over which a change of prompt is spread, in this control and later ones."""
    adapters: str | None = None
    """Name of one of the deployment's adapter sets; empty: none."""


@dataclass(frozen=True)
class SimilarityFilter:
    """Frames to leave out because they look like the last translated one: `Dropped(UNCHANGED)`."""

    threshold: float | None = None
    """Cosine similarity, 0 to 1, above which a frame may be left out. Default 0.98."""
    max_skip_frames: int | None = None
    """The most frames that are left out one after another, 1 to 1000. Default 10."""


class Method(Enum):
    """How a frame relates to the frames before it (`rearview.v1.Method`)."""

    PER_FRAME = 1
    STREAMV2V = 2
    LIVE2DIFF = 3
    """The first frames (`Opened.warm_up_frames`) are answered together, once all of them were received."""


class BankPolicy(Enum):
    """What a write does to a feature bank (`rearview.v1.FeatureBank.Policy`)."""

    MERGE = 1
    QUEUE = 2


class PromptChange(Enum):
    """What happens to the bank when the prompt changes (`rearview.v1.FeatureBank.PromptChange`)."""

    KEEP = 1
    CLEAR = 2
    FADE = 3


@dataclass(frozen=True)
class FeatureBank:
    """How a session's feature bank is kept (Method.STREAMV2V); None keeps the deployment's value."""

    policy: BankPolicy | None = None
    interval: int | None = None
    """Frames from one write to the next."""
    phase: int | None = None
    """Writes are at frames n with (n - phase) mod interval = 0."""
    max_frames: int | None = None
    """Frames that a queue keeps; 1 for a merged bank."""
    fusion_strength: float | None = None
    """How much of a matching past feature replaces the present one, 0 to 1."""
    fusion_threshold: float | None = None
    """Cosine similarity from which a past feature matches."""
    prompt_change: PromptChange | None = None


class Rewarm(Enum):
    """What happens to a cache whose first frames no longer show what is to be seen
    (`rearview.v1.TemporalCache.Rewarm`).
    """

    RESET = 1
    """The next frames wait for each other, as the session's first ones did."""
    SHADOW = 2
    """No frame waits: the next ones become the first frames of a new cache once they are through."""
    KEEP = 3
    """The old first frames stay."""


@dataclass(frozen=True)
class TemporalCache:
    """How a session's temporal cache is kept (Method.LIVE2DIFF); None keeps the deployment's value."""

    prompt_change: Rewarm | None = None
    scene_cut: Rewarm | None = None
    scene_detection: bool | None = None
    """Whether the service looks for scene cuts. Default True."""
    instant_start: bool | None = None
    """Whether a warm-up repeats its first frame instead of waiting for the next ones: the first picture comes
    at once and shows less motion. Needed to wait for each answer before the next frame. Default False."""
