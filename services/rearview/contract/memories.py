"""How a session relates its frames to its past: the settings of each kind of memory."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rearview.contract.change import Change
from rearview.errors import out_of_range

__all__ = [
    "BankOptions",
    "BankPolicy",
    "BankSettings",
    "CacheOptions",
    "CacheSettings",
    "MergeMetric",
    "PromptChange",
    "Rewarm",
]


class BankPolicy(Enum):
    """What a write does to a feature bank."""

    MERGE = "merge"
    """Old and new tokens are split at random and merged by similarity (DyMe): constant size, about half
    of the older mass survives each write."""
    QUEUE = "queue"
    """The last `max_frames` written frames are kept whole."""


class MergeMetric(Enum):
    """Which features decide what is merged with what."""

    KEYS = "keys"
    VALUES = "values"
    OUTPUTS = "outputs"
    """Needs a pool that keeps outputs in every layer."""


class PromptChange(Enum):
    """What happens to the bank when the prompt changes."""

    KEEP = "keep"
    """The new style blends in over some writes."""
    CLEAR = "clear"
    """The first frame under the new prompt finds an empty bank: an immediate change."""
    FADE = "fade"
    """The bank is kept; feature fusion restarts at zero and returns over `fade_frames`."""


@dataclass(frozen=True, slots=True)
class BankSettings:
    """How a session relates its frames to a feature bank of its past (StreamV2V).

    Raises InvalidRequest(SETTING_OUT_OF_RANGE) that names the field.
    """

    policy: BankPolicy = BankPolicy.MERGE
    interval: int = 4
    """Ordinals from one write to the next."""
    phase: int = 0
    """Writes are at ordinals n with (n - phase) mod interval = 0, and wherever the bank is empty."""
    max_frames: int = 1
    """Frames that a queue keeps. A merged bank has no such number: it must be 1."""
    merge_ratio: float = 0.5
    """Share of the union of old and new tokens that each write merges away. 0.5 keeps the size of one
    frame; less lets the bank grow to (1 - ratio) / ratio frames, more lets it shrink to that."""
    metric: MergeMetric = MergeMetric.KEYS
    layers: tuple[str, ...] = ()
    """Paths in the UNet of the layers that take part: `mid_block`, `up_blocks`, `up_blocks.1.attentions.0`,
    and all that is below them. In the others a frame attends to itself alone. Empty: all layers."""
    fusion_strength: float = 0.8
    """How much of a matching past feature replaces the present one, in [0, 1], in those of the `layers`
    that fuse: the middle block's and the first up block's with attention. 0: no fusion."""
    fusion_threshold: float = 0.98
    """Cosine similarity from which a past feature matches. Above 1: none does."""
    prompt_change: PromptChange = PromptChange.KEEP
    fade_frames: int = 8
    """Ordinals over which fusion returns after a prompt change (`PromptChange.FADE`)."""
    keep_on_timestep_change: bool = False
    """Whether a step whose timestep changes live (strength, steps) keeps its bank."""

    def __post_init__(self) -> None:
        allowed = {
            "interval": self.interval >= 1,
            "phase": self.phase >= 0,
            "max_frames": 1 <= self.max_frames <= MAX_QUEUE_FRAMES,
            "merge_ratio": MIN_MERGE_RATIO <= self.merge_ratio <= 1.0 - MIN_MERGE_RATIO,
            "layers": all(self.layers),
            "fusion_strength": 0.0 <= self.fusion_strength <= 1.0,
            "fusion_threshold": -1.0 <= self.fusion_threshold <= 2.0,
            "fade_frames": self.fade_frames >= 1,
        }
        for name, is_allowed in allowed.items():
            if not is_allowed:
                raise out_of_range(f"bank.{name}", f"bank.{name} {getattr(self, name)} is out of range")
        if self.policy is BankPolicy.MERGE and self.max_frames != 1:
            text = "a merged bank has no max_frames: set bank.policy to queue, or bank.max_frames to 1"
            raise out_of_range("bank.max_frames", text)

    @property
    def keeps_size(self) -> bool:
        """Whether the bank holds exactly one frame's tokens after every write: then nothing is masked."""
        return self.max_frames == 1 if self.policy is BankPolicy.QUEUE else self.merge_ratio == 0.5

    @property
    def size_frames(self) -> float:
        """The most tokens it ever holds, in frames."""
        if self.policy is BankPolicy.QUEUE:
            return float(self.max_frames)
        return max(1.0, (1.0 - self.merge_ratio) / self.merge_ratio)


@dataclass(frozen=True, slots=True)
class BankOptions(Change[BankSettings]):
    """What a client asks of its bank: fields of `BankSettings`. None keeps the deployment's value."""

    policy: BankPolicy | None = None
    interval: int | None = None
    phase: int | None = None
    max_frames: int | None = None
    fusion_strength: float | None = None
    fusion_threshold: float | None = None
    prompt_change: PromptChange | None = None


MAX_QUEUE_FRAMES = 16
MIN_MERGE_RATIO = 0.1
"""A tenth merged away per write already lets a bank grow to nine frames."""


class Rewarm(Enum):
    """What happens to a temporal cache whose first frames no longer show what is to be seen."""

    RESET = "reset"
    """The change's first frames warm it up as a session's first ones do: they wait for each other."""
    SHADOW = "shadow"
    """They go on against the old cache, and are then read once more, together, into a new one."""
    KEEP = "keep"
    """The old first frames stay in it for ever."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """How a session treats its temporal cache, the keys and values of its past frames (Live2Diff).

    A change of the visited timesteps (strength, steps) always resets it: keys and values of another
    timestep mean nothing.
    """

    prompt_change: Rewarm = Rewarm.SHADOW
    """When the prompts or the adapter set change."""
    scene_cut: Rewarm = Rewarm.SHADOW
    """When `Settings.scene` changes."""
    scene_detection: bool = True
    """Whether the ingress looks for scene cuts; without, the whole video is one scene."""
    instant_start: bool = False
    """Whether a warm-up repeats its first frame, unseen, instead of waiting for the next ones: the first
    picture comes at once and shows less motion. Needed to wait for each answer before the next frame. It acts
    in the ingress, as `scene_detection`."""


@dataclass(frozen=True, slots=True)
class CacheOptions(Change[CacheSettings]):
    """What a client asks of its cache: the fields of `CacheSettings`. None keeps the deployment's value."""

    prompt_change: Rewarm | None = None
    scene_cut: Rewarm | None = None
    scene_detection: bool | None = None
    instant_start: bool | None = None
