"""What a frame is translated under, and how that changes: values only, so they travel between processes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import TypedDict

from rearview.contract.change import Change
from rearview.contract.controls import WeightedControl, acting, are_allowed
from rearview.contract.reference import MAX_REFERENCE_SCALE, NO_IMAGE, ImageFile
from rearview.contract.size import Size
from rearview.contract.timesteps import LCM_GRID, timestep_indices
from rearview.errors import out_of_range

__all__ = [
    "DEFAULT_JPEG_QUALITY",
    "MAX_ADAPTERS",
    "SINGLE_OF",
    "AdapterMix",
    "Blend",
    "Guidance",
    "NoiseRule",
    "SettingOptions",
    "Settings",
    "SettingsChange",
    "WeightedAdapters",
    "WeightedPrompt",
    "check_adapters",
    "check_guidance",
]

DEFAULT_JPEG_QUALITY = 85
MAX_GUIDANCE_SCALE = 20.0
MAX_DELTA = 10.0
MAX_PROMPTS = 8
"""In one mix."""
MAX_PROMPT_WEIGHT = 1000.0
MAX_BLEND_FRAMES = 10_000
MAX_ADAPTERS = 4
"""Sets in one mix."""
MAX_ADAPTER_WEIGHT = 4.0


SINGLE_OF = {"prompts": "prompt", "adapter_mix": "adapters"}
"""Of each setting that lists several of a kind, the one that names a single one: they replace each other."""


class NoiseRule(Enum):
    """How the noise of a denoising step is keyed. Links carry the numbers."""

    FIXED = 1
    """(seed, step): the same for every frame of the session, as in StreamDiffusion. Least flicker."""
    FRESH = 2
    """(seed, ordinal, step): new for every frame."""
    FIRST = 3
    """(seed, first step) for every frame, and none for the steps after it: StreamDiffusion's
    `do_add_noise=False`. More of the input is left."""


class Guidance(Enum):
    """What a prediction is pushed away from. Links carry the numbers."""

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
    """Beside those of the others; above 0, at most 1000."""


@dataclass(frozen=True, slots=True)
class WeightedAdapters:
    """One adapter set of a mix."""

    adapters: str
    """Name of a set of the deployment."""
    weight: float = 1.0
    """How much of it, -4 to 4; at 0 it is as if it were not there."""


AdapterMix = tuple[WeightedAdapters, ...]


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
    """The picture's description. Empty where there are `prompts`."""
    strength: float = 0.4
    """How far the picture may leave the input, in (0, 1]."""
    steps: int = 2
    """Denoising steps, 1 to the session's `max_steps`."""
    seed: int = 0
    """Unsigned 64-bit seed of the noise."""
    noise_rule: NoiseRule = NoiseRule.FIXED
    guidance: Guidance = Guidance.NONE
    guidance_scale: float = 1.0
    """How far a prediction is pushed, 1 to 20. At 1 no guidance acts, whatever its kind."""
    delta: float = 1.0
    """For SELF and INITIALIZE, 0 to 10: the share of the residual noise that counts as negative. Less adds
    grain, more softens."""
    negative_prompt: str = ""
    """What the picture should not be, for FULL and INITIALIZE; it may be empty."""
    prompts: tuple[WeightedPrompt, ...] = ()
    """Up to 8 prompts at a time, mixed by weight, instead of `prompt`."""
    blend_frames: int = 0
    """Ordinals over which a change of prompt is spread, at most 10000. 0 and 1: at once."""
    blend: Blend | None = None
    """Set by `blending.settings_under`, never by a client."""
    adapters: str = ""
    """Name of an adapter set of the deployment, at weight 1. Empty: none, or those of `adapter_mix`."""
    adapter_mix: AdapterMix = ()
    """Up to 4 adapter sets at a time, each at a weight of its own, instead of `adapters`."""
    scene: int = 0
    """Number of the scene that the frame belongs to. Set by the ingress, never by a client."""
    jpeg_quality: int = DEFAULT_JPEG_QUALITY
    """JPEG quality of the answers, 1 to 100. It acts in the ingress: no picture depends on it, and the engine
    hears of a change of it only together with another change."""
    timestep_indices: tuple[int, ...] = ()
    """The entries of the 50-step grid to visit, noisiest (lowest) first, one for each of `steps`, instead of
    those that `strength` gives. Empty: those of `strength`."""
    controls: tuple[WeightedControl, ...] = ()
    """Up to 4 ControlNets of the deployment, which hold the frame's shape in the picture. Empty: none."""
    width: int = 0
    """Pixels of the frame, and of its picture. 0: as the session was opened."""
    height: int = 0
    """Pixels, as the width."""
    reference: ImageFile = NO_IMAGE
    """A picture whose face, style or look is followed, at most 64 KiB. Empty: none."""
    reference_scale: float = 1.0
    """How much it is followed, 0 to 2. At 0 it is as if there were none."""
    reference_mask: ImageFile = NO_IMAGE
    """Where in the frame: bright is where, at most 16 KiB, stretched over the frame. Empty: everywhere."""

    def __post_init__(self) -> None:
        # Comparisons with NaN are false, so NaN is never allowed.
        allowed = {
            "guidance_scale": 1.0 <= self.guidance_scale <= MAX_GUIDANCE_SCALE,
            "delta": 0.0 <= self.delta <= MAX_DELTA,
            "blend_frames": 0 <= self.blend_frames <= MAX_BLEND_FRAMES,
            "jpeg_quality": 1 <= self.jpeg_quality <= 100,
            "prompts": len(self.prompts) <= MAX_PROMPTS
            and all(0.0 < one.weight <= MAX_PROMPT_WEIGHT for one in self.prompts)
            and not (self.prompt and self.prompts),
            "adapter_mix": len(self.adapter_mix) <= MAX_ADAPTERS
            and all(
                abs(one.weight) <= MAX_ADAPTER_WEIGHT for one in (*self.adapter_mix, *self.acting_adapters)
            )
            and not (self.adapters and self.adapter_mix),
            "timestep_indices": not self.timestep_indices
            or (len(self.timestep_indices) == self.steps and _ascends(self.timestep_indices)),
            "controls": are_allowed(self.controls),
            "width": self.width >= 0,
            "height": self.height >= 0,
            "reference_scale": 0.0 <= self.reference_scale <= MAX_REFERENCE_SCALE,
        }
        for name, is_allowed in allowed.items():
            if not is_allowed:
                raise out_of_range(name, f"{name} is out of range")

    @property
    def size(self) -> Size:
        """Of the frame, as far as it is said here: `SessionSpec.size_under` knows the rest."""
        return Size(self.width, self.height)

    @property
    def visited(self) -> tuple[int, ...]:
        """Which entries of the 50-step grid a frame visits, noisiest first. A sampler with timesteps of its
        own (`Schedule.timesteps`) visits those nearby: to memories these stand for them.
        """
        return self.timestep_indices or timestep_indices(self.strength, self.steps)

    @property
    def pictured(self) -> Settings:
        """These without what acts on answers alone: equal iff a frame becomes the same picture."""
        return replace(self, jpeg_quality=DEFAULT_JPEG_QUALITY)

    def as_change(self) -> SettingsChange:
        """The change that leads here from anywhere: settings that were read, to be sent again."""
        named = {one.name: getattr(self, one.name) for one in fields(SettingsChange)}
        for name in ("timestep_indices", "width", "height"):
            named[name] = named[name] or None
        unnamed = [single if named[several] else several for several, single in SINGLE_OF.items()]
        return SettingsChange(**{**named, **dict.fromkeys(unnamed)})

    @property
    def acting_guidance(self) -> Guidance:
        """The kind of guidance that changes anything."""
        return self.guidance if self.guidance_scale > 1.0 else Guidance.NONE

    @property
    def acting_controls(self) -> tuple[WeightedControl, ...]:
        """The controls that change anything, in the order of their names."""
        return acting(self.controls) if self.controls else ()

    @property
    def refers(self) -> bool:
        """Whether a reference image changes anything."""
        return bool(self.reference) and self.reference_scale > 0.0

    def rows_at(self, step: int) -> int:
        """Samples that a frame is in that denoising step: 2 where the UNet also predicts under the negative
        prompt, in every step (FULL) or in the first one (INITIALIZE).
        """
        guidance = self.acting_guidance
        return 1 + (guidance is Guidance.FULL or (guidance is Guidance.INITIALIZE and step == 0))

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
    def acting_adapters(self) -> AdapterMix:
        """The sets that change anything, by name and each once: weights of a set that comes twice add up."""
        if not self.adapter_mix:
            return (WeightedAdapters(self.adapters, 1.0),) if self.adapters else ()
        weights: dict[str, float] = {}
        for one in self.adapter_mix:
            weights[one.adapters] = weights.get(one.adapters, 0.0) + one.weight
        return tuple(WeightedAdapters(name, weights[name]) for name in sorted(weights) if weights[name])

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Of the sets that change anything."""
        return tuple(one.adapters for one in self.acting_adapters)

    @property
    def style(self) -> str:
        """Stands for the mix, for which adapter sets there are and for the reference image: what a session's
        memory calls a change of prompt. Weights and scales may move with every frame, and are none.
        """
        parts = [self.reference.digest] if self.refers else []
        if names := self.adapter_names:
            parts.append(" ".join(names))
        return "\n".join([*parts, self.wording])


@dataclass(frozen=True, slots=True)
class SettingsChange(Change[Settings]):
    """A change of settings: the fields of `Settings`, None keeps one. `prompt` and `prompts` replace each
    other, and so do `adapters` and `adapter_mix`; to name both is refused. So do `timestep_indices`, which
    say `steps` too, and `strength` or `steps` alone; an empty list says nothing.
    """

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
    jpeg_quality: int | None = None
    timestep_indices: tuple[int, ...] | None = None
    adapter_mix: AdapterMix | None = None
    controls: tuple[WeightedControl, ...] | None = None
    width: int | None = None
    height: int | None = None
    reference: ImageFile | None = None
    reference_scale: float | None = None
    reference_mask: ImageFile | None = None

    def apply(self, settings: Settings) -> Settings:
        """`settings` with the named fields changed. Raises InvalidRequest for both kinds of prompt, or of
        adapters.
        """
        named = self.named()
        for several, single in SINGLE_OF.items():
            if several in named:
                named[several] = tuple(named[several])
            if single in named:
                named.setdefault(several, ())
            elif named.get(several):
                named[single] = ""
        if self.timestep_indices:
            named["timestep_indices"] = tuple(self.timestep_indices)
            named.setdefault("steps", len(self.timestep_indices))
        elif self.strength is not None or self.steps is not None:
            named["timestep_indices"] = ()
        if self.controls is not None:
            named["controls"] = tuple(self.controls)
        return replace(settings, **named)

    @property
    def has_prompt(self) -> bool:
        """Whether it says what pictures shall look like."""
        return bool(self.prompt or self.prompts)


class SettingOptions(TypedDict, total=False):
    """`SettingsChange` as keyword arguments; a test compares the two."""

    prompt: str | None
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
    jpeg_quality: int | None
    timestep_indices: Sequence[int] | None
    adapter_mix: Sequence[WeightedAdapters] | None
    controls: Sequence[WeightedControl] | None
    width: int | None
    height: int | None
    reference: ImageFile | None
    reference_scale: float | None
    reference_mask: ImageFile | None


def check_adapters(settings: Settings, known: Collection[str], merged: Collection[str] = ()) -> None:
    """Raises InvalidRequest(SETTING_OUT_OF_RANGE) unless the adapter sets of `settings` are among the `known`
    ones. `merged`: those of them that are merged into weights, each to be taken alone and at weight 1.
    """
    mix = settings.acting_adapters
    field = "adapter_mix" if settings.adapter_mix else "adapters"
    if any(one.adapters not in known for one in settings.adapter_mix or mix):
        sets = ", ".join(sorted(filter(None, known))) or "none"
        raise out_of_range(field, f"there is no such adapter set; there are: {sets}")
    if any(one.adapters in merged for one in mix) and (len(mix) > 1 or mix[0].weight != 1.0):
        sets = ", ".join(sorted(filter(None, merged)))
        raise out_of_range(field, f"merged sets are taken alone and at weight 1: {sets}")


def check_guidance(settings: Settings, *, embeds_scale: bool) -> None:
    """Raises InvalidRequest(SETTING_OUT_OF_RANGE) for guidance beside a scale that the UNet embeds: such
    weights were distilled from guided ones, and guide themselves.
    """
    if embeds_scale and settings.guidance is not Guidance.NONE:
        text = "this model has guidance built in: take guidance none, and set guidance_scale alone"
        raise out_of_range("guidance", text)


def _ascends(indices: Sequence[int]) -> bool:
    return list(indices) == sorted(indices) and indices[0] >= 0 and indices[-1] < LCM_GRID
