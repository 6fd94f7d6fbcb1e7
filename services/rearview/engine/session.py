"""What a session is to the engine: values only, so they travel between processes and need no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import Enum

from rearview.errors import InvalidRequest, Reason

__all__ = [
    "BankPolicy",
    "BankSettings",
    "Blend",
    "CacheSettings",
    "Guidance",
    "MergeMetric",
    "NoiseRule",
    "PromptChange",
    "Rewarm",
    "SessionSpec",
    "Settings",
    "SettingsChange",
    "WeightedPrompt",
    "check_adapters",
]

MAX_GUIDANCE_SCALE = 20.0
MAX_DELTA = 10.0
MAX_PROMPTS = 8
"""In one mix."""
MAX_PROMPT_WEIGHT = 1000.0
MAX_BLEND_FRAMES = 10_000


class NoiseRule(Enum):
    """How the noise of a denoising step is keyed."""

    FIXED = 1
    """(seed, step): the same for every frame of the session, as in StreamDiffusion."""
    FRESH = 2
    """(seed, ordinal, step): new for every frame."""


class Guidance(Enum):
    """What a prediction is pushed away from; numbers are those of `rearview.v1.Guidance`."""

    NONE = 1
    SELF = 2
    """The encoded frame itself, through its virtual residual noise (RCFG): no further UNet work."""
    INITIALIZE = 3
    """What the negative prompt makes of the frame in the first step (RCFG): one UNet row more a frame."""
    FULL = 4
    """What the negative prompt makes of it in every step: twice the UNet rows."""


@dataclass(frozen=True, slots=True)
class WeightedPrompt:
    """One prompt of a mix."""

    prompt: str
    weight: float
    """Above 0; beside those of the others."""


@dataclass(frozen=True, slots=True)
class Blend:
    """A change of prompt under way: from `start` to the mix of the settings that hold it."""

    start: tuple[WeightedPrompt, ...]
    """The mix of the last frame before the change."""
    first: int
    """Ordinal of the first frame under the change."""
    frames: int
    """Ordinals until the new mix is reached."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one frame is translated under. A frame keeps those it was admitted with.

    Raises InvalidRequest(SETTING_OUT_OF_RANGE) that names the field.
    """

    prompt: str = ""
    """Empty where there are `prompts`."""
    strength: float = 0.4
    """How far the picture may leave the input, in (0, 1]."""
    steps: int = 2
    """Denoising steps, at least 1."""
    seed: int = 0
    """Unsigned 64-bit seed of the noise."""
    noise_rule: NoiseRule = NoiseRule.FIXED
    guidance: Guidance = Guidance.NONE
    guidance_scale: float = 1.0
    """How far a prediction is pushed, at least 1. At 1 no guidance acts, whatever its kind."""
    delta: float = 1.0
    """For SELF and INITIALIZE: the share of the residual noise that counts as negative. Less adds grain,
    more softens."""
    negative_prompt: str = ""
    """For FULL and INITIALIZE; it may be empty."""
    prompts: tuple[WeightedPrompt, ...] = ()
    """Several prompts at a time, instead of `prompt`."""
    blend_frames: int = 0
    """Ordinals over which a change of prompt is spread. 0 and 1: at once."""
    blend: Blend | None = None
    """Set by `blending.settings_under`, never by a client."""
    adapters: str = ""
    """Name of an adapter set of the deployment. Empty: none."""
    scene: int = 0
    """Number of the scene that the frame belongs to. Set by the ingress, never by a client."""

    def __post_init__(self) -> None:
        # Comparisons with NaN are false, so NaN is never allowed.
        allowed = {
            "guidance_scale": 1.0 <= self.guidance_scale <= MAX_GUIDANCE_SCALE,
            "delta": 0.0 <= self.delta <= MAX_DELTA,
            "blend_frames": 0 <= self.blend_frames <= MAX_BLEND_FRAMES,
            "prompts": len(self.prompts) <= MAX_PROMPTS
            and all(0.0 < one.weight <= MAX_PROMPT_WEIGHT for one in self.prompts)
            and not (self.prompt and self.prompts),
        }
        for name, is_allowed in allowed.items():
            if not is_allowed:
                raise _out_of_range(name, f"{name} is out of range")

    @property
    def acting_guidance(self) -> Guidance:
        """The kind of guidance that changes anything."""
        return self.guidance if self.guidance_scale > 1.0 else Guidance.NONE

    @property
    def mix(self) -> tuple[WeightedPrompt, ...]:
        """What a change leads to: weights that sum to 1, in an order that is not the client's."""
        if not self.prompts:
            return (WeightedPrompt(self.prompt, 1.0),)
        total = sum(one.weight for one in self.prompts)
        weights: dict[str, float] = {}
        for one in self.prompts:
            weights[one.prompt] = weights.get(one.prompt, 0.0) + one.weight / total
        return tuple(WeightedPrompt(prompt, weights[prompt]) for prompt in sorted(weights))

    @property
    def texts(self) -> tuple[str, ...]:
        """Every prompt in it; the negative one only if there is any."""
        positive = tuple(one.prompt for one in self.mix)
        return (*positive, self.negative_prompt) if self.negative_prompt else positive

    @property
    def wording(self) -> str:
        """Stands for the mix: equal iff the mixes are. A blend's frames share the one that it leads to."""
        if not self.prompts:
            return self.prompt
        return "\n".join(f"{one.weight:.9g} {one.prompt}" for one in self.mix)

    @property
    def style(self) -> str:
        """Stands for the mix and the adapter set: what a session's memory calls a change of prompt."""
        return f"{self.adapters}\n{self.wording}" if self.adapters else self.wording


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """A change of settings; None keeps a field. `prompt` and `prompts` replace each other."""

    prompt: str | None = None
    strength: float | None = None
    steps: int | None = None
    seed: int | None = None
    noise_rule: NoiseRule | None = None
    guidance: Guidance | None = None
    guidance_scale: float | None = None
    delta: float | None = None
    negative_prompt: str | None = None
    prompts: tuple[WeightedPrompt, ...] | None = None
    blend_frames: int | None = None
    adapters: str | None = None

    def apply(self, settings: Settings) -> Settings:
        """`settings` with the named fields changed. Raises InvalidRequest for both kinds of prompt."""
        named = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        if self.prompt is not None:
            named.setdefault("prompts", ())
        elif self.prompts:
            named["prompt"] = ""
        return replace(settings, **named)


def check_adapters(adapters: str, known: Collection[str]) -> None:
    """Raises InvalidRequest(SETTING_OUT_OF_RANGE) unless `adapters` is empty or one of the `known` sets."""
    if adapters and adapters not in known:
        sets = ", ".join(sorted(filter(None, known))) or "none"
        raise _out_of_range("adapters", f"there is no such adapter set; there are: {sets}")


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
                raise _out_of_range(f"bank.{name}", f"bank.{name} {getattr(self, name)} is out of range")
        if self.policy is BankPolicy.MERGE and self.max_frames != 1:
            text = "a merged bank has no max_frames: set bank.policy to queue, or bank.max_frames to 1"
            raise _out_of_range("bank.max_frames", text)

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


def _out_of_range(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(Reason.SETTING_OUT_OF_RANGE, message, metadata={"field": name})


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What is fixed for a session's life."""

    session_id: str
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    max_steps: int
    """Slots are taken for so many denoising steps."""
    settings: Settings = field(default_factory=Settings)
    """Version 0 of the settings."""
    tenant: str = "local"
    weight: float = 1.0
    """The tenant's share beside others."""
    bank: BankSettings | None = None
    """None: spatial attention sees the frame itself alone."""
    cache: CacheSettings | None = None
    """None: there is no temporal attention."""
