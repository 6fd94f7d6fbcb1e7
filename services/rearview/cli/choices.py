"""Options of `translate` that choose the picture and the method: their values, and what goes together.

The values are the contract's own enums. Imports neither gRPC nor numpy before a command runs: `--help` must
be quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import typer

from rearview.contract.controls import WeightedControl, are_allowed
from rearview.contract.memories import BankOptions, BankPolicy, CacheOptions, Rewarm
from rearview.contract.methods import Method
from rearview.contract.reference import MAX_REFERENCE_SCALE, ImageFile
from rearview.contract.settings import Guidance, Settings, SettingsChange, WeightedAdapters
from rearview.contract.similarity import SimilarityOptions
from rearview.contract.timesteps import LCM_GRID
from rearview.errors import InvalidRequest

if TYPE_CHECKING:
    from rearview.client import OpenOptions

__all__ = [
    "DEVICE_HELP",
    "MODEL_HELP",
    "DeviceOption",
    "Look",
    "ModelOption",
    "Past",
    "check_started_here",
    "one_of",
    "parse_adapters",
    "parse_control_videos",
    "parse_controls",
    "parse_mask",
    "parse_reference",
    "parse_size",
    "parse_timesteps",
    "spelled",
    "with_sent",
]

MODEL_HELP = "Folder, .safetensors or .ckpt file, hub id, or an id of `rearview models list`."
ModelOption = Annotated[str | None, typer.Option("--model", help=f"{MODEL_HELP} Default: the bundled one.")]
"""`model: ModelOption = None`, of a command that starts a service: for `model_choice.model_config`."""
DEVICE_HELP = "cuda, mps, xpu or cpu, also cuda:1. Default: the first that there is."
DeviceOption = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
"""`device: DeviceOption = "auto"`, for the same."""
DEFAULT_GUIDANCE_SCALE = 1.5
"""With `--guidance`: at the service's own default, 1, no guidance acts."""


WITH_DELTA = (Guidance.SELF, Guidance.INITIALIZE)
WITH_NEGATIVE_PROMPT = (Guidance.INITIALIZE, Guidance.FULL)

MemberT = TypeVar("MemberT", bound=Enum)


def spelled(member: Enum) -> str:
    """A member on the command line: PER_FRAME is `per-frame`."""
    return member.name.lower().replace("_", "-")


def one_of(kind: type[MemberT]) -> Callable[[str | MemberT], MemberT]:
    """Parser of an option whose enum has values of its own; of others typer takes the values as they are."""
    members = {spelled(member): member for member in kind}

    def parse(text: str | MemberT) -> MemberT:
        member = text if isinstance(text, kind) else members.get(str(text))
        if member is None:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, members))}")
        return member

    return parse


def parse_adapters(texts: Sequence[str]) -> tuple[WeightedAdapters, ...]:
    """`ink` or `ink=0.6` each. Raises BadParameter."""
    found = tuple(starmap(WeightedAdapters, _weighted(texts, "--adapters")))
    try:
        Settings(adapter_mix=found)
    except InvalidRequest:
        said = "up to 4, with weights of -4 to 4"
        raise typer.BadParameter(said, param_hint="--adapters") from None
    return found


def parse_controls(texts: Sequence[str]) -> tuple[WeightedControl, ...]:
    """`edges` or `edges=0.8` each. Raises BadParameter."""
    found = tuple(starmap(WeightedControl, _weighted(texts, "--control")))
    if not are_allowed(found):
        raise typer.BadParameter("up to 4, each once, with weights of 0 to 2", param_hint="--control")
    return found


def parse_control_videos(texts: Sequence[str]) -> Mapping[str, str]:
    """`pose=pose.mp4` each, as name to place. Raises BadParameter."""
    pairs = [text.partition("=")[::2] for text in texts]
    if not all(name and place for name, place in pairs) or len(dict(pairs)) < len(pairs):
        said = "write a control and its pictures, each control once: pose=pose.mp4"
        raise typer.BadParameter(said, param_hint="--control-video")
    return dict(pairs)


def with_sent(
    controls: tuple[WeightedControl, ...] | None, sent: Iterable[str]
) -> tuple[WeightedControl, ...] | None:
    """The controls, and at weight 1 those of which pictures are sent and that are not named. Raises
    BadParameter for too many.
    """
    known = {one.name for one in controls or ()}
    found = (*(controls or ()), *(WeightedControl(name) for name in sent if name not in known))
    if not are_allowed(found):
        raise typer.BadParameter("up to 4 controls in all", param_hint="--control-video")
    return found or controls


def parse_reference(text: str) -> tuple[ImageFile, float | None]:
    """`face.jpg` or `face.jpg=0.6`: the picture, and how much it is followed. Raises BadParameter."""
    from rearview.client.pictures import MediaError
    from rearview.client.references import read_reference

    name, equals, number = text.rpartition("=")
    if not equals or Path(text).is_file():
        name, number = text, ""
    try:
        scale = float(number) if number else None
        if scale is not None and not 0.0 <= scale <= MAX_REFERENCE_SCALE:
            raise typer.BadParameter(f"{number}: scales are 0 to 2", param_hint="--reference")
        return read_reference(Path(name)), scale
    except MediaError as error:
        raise typer.BadParameter(str(error), param_hint="--reference") from None
    except ValueError:
        raise typer.BadParameter(f"{number!r} is no scale", param_hint="--reference") from None


def parse_mask(path: Path) -> ImageFile:
    """Raises BadParameter."""
    from rearview.client.pictures import MediaError
    from rearview.client.references import read_reference_mask

    try:
        return read_reference_mask(path)
    except MediaError as error:
        raise typer.BadParameter(str(error), param_hint="--reference-mask") from None


def _weighted(texts: Sequence[str], option: str) -> Iterator[tuple[str, float]]:
    """Names with their weights, 1 where none is said."""
    for text in texts:
        name, equals, weight = text.partition("=")
        try:
            yield name, float(weight) if equals else 1.0
        except ValueError:
            raise typer.BadParameter(f"{weight!r} is no weight", param_hint=option) from None


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the pictures are translated under. Raises BadParameter for an option that would do nothing."""

    prompt: str | None
    """None: a score says it."""
    strength: float | None
    steps: int | None
    timesteps: tuple[int, ...] | None
    """Entries of the 50-step grid, instead of strength and steps."""
    seed: int | None
    guidance: Guidance | None
    guidance_scale: float | None
    delta: float | None
    negative_prompt: str | None
    adapters: tuple[WeightedAdapters, ...] | None
    blend_frames: int | None
    controls: tuple[WeightedControl, ...] | None
    reference: tuple[ImageFile, float | None] | None
    """With its scale."""
    reference_mask: ImageFile | None

    def __post_init__(self) -> None:
        if self.prompt is not None and not self.prompt.strip():
            raise typer.BadParameter("is empty", param_hint="--prompt")
        if self.timesteps is not None and (self.strength, self.steps) != (None, None):
            raise typer.BadParameter("say strength and steps already", param_hint="--timesteps")
        guides = self.guidance not in (None, Guidance.NONE)
        if self.guidance_scale is not None and not guides:
            raise typer.BadParameter("needs --guidance", param_hint="--guidance-scale")
        if self.delta is not None and self.guidance not in WITH_DELTA:
            raise typer.BadParameter(f"needs --guidance {_either(WITH_DELTA)}", param_hint="--delta")
        if self.negative_prompt is not None and self.guidance not in WITH_NEGATIVE_PROMPT:
            needed = f"needs --guidance {_either(WITH_NEGATIVE_PROMPT)}"
            raise typer.BadParameter(needed, param_hint="--negative-prompt")

    def over(self, options: OpenOptions) -> OpenOptions:
        """`options`, with what was chosen in place of what says the same there."""
        kept = options.copy()
        if self.prompt is not None:
            kept.pop("prompts", None)
        if self.adapters is not None:
            kept.pop("adapters", None)
            kept.pop("adapter_mix", None)
        if self.timesteps is not None:
            kept.pop("steps", None)
        if (self.strength, self.steps) != (None, None):
            kept.pop("timestep_indices", None)
        return {**kept, **self.options()}

    def options(self) -> OpenOptions:
        """For `Client.open`; what was not chosen is left out."""
        guidance, scale = self.guidance, self.guidance_scale
        if guidance not in (None, Guidance.NONE) and scale is None:
            scale = DEFAULT_GUIDANCE_SCALE
        picture, how_much = self.reference or (None, None)
        change = SettingsChange(
            prompt=self.prompt,
            strength=self.strength,
            steps=self.steps,
            timestep_indices=self.timesteps,
            seed=self.seed,
            guidance=guidance,
            guidance_scale=scale,
            delta=self.delta,
            negative_prompt=self.negative_prompt,
            blend_frames=self.blend_frames,
            controls=self.controls,
            reference=picture,
            reference_scale=how_much,
            reference_mask=self.reference_mask,
            adapter_mix=self.adapters,
        )
        return cast("OpenOptions", change.named())


@dataclass(frozen=True, kw_only=True)
class Past:
    """How frames relate to those before them. Raises BadParameter for an option that would do nothing."""

    method: Method | None
    bank_interval: int | None
    bank_policy: BankPolicy | None
    prompt_change: Rewarm | None
    scene_cut: Rewarm | None
    instant_start: bool
    skip_unchanged: bool
    skip_threshold: float | None

    def __post_init__(self) -> None:
        if self._sets_bank and self.method is Method.PER_FRAME:
            hint = "--bank-interval" if self.bank_interval is not None else "--bank-policy"
            raise typer.BadParameter("needs --method streamv2v or live2diff", param_hint=hint)
        if self._sets_cache and self.method is not Method.LIVE2DIFF:
            raise typer.BadParameter("needs --method live2diff", param_hint=self._cache_hint)

    @property
    def _sets_bank(self) -> bool:
        return self.bank_interval is not None or self.bank_policy is not None

    @property
    def _sets_cache(self) -> bool:
        return self.prompt_change is not None or self.scene_cut is not None or self.instant_start

    @property
    def _cache_hint(self) -> str:
        if self.prompt_change is not None:
            return "--prompt-change"
        return "--scene-cut" if self.scene_cut is not None else "--instant-start"

    def options(self) -> OpenOptions:
        """For `Client.open`; what was not chosen is left out. Options of the bank choose its method."""
        method = self.method or (Method.STREAMV2V if self._sets_bank else None)
        chosen: OpenOptions = {}
        if method is not None:
            chosen["method"] = method
        if self._sets_bank:
            chosen["feature_bank"] = BankOptions(policy=self.bank_policy, interval=self.bank_interval)
        if self._sets_cache:
            chosen["temporal_cache"] = CacheOptions(
                prompt_change=self.prompt_change,
                scene_cut=self.scene_cut,
                instant_start=self.instant_start or None,
            )
        if self.skip_unchanged or self.skip_threshold is not None:
            chosen["similarity_filter"] = SimilarityOptions(threshold=self.skip_threshold)
        return chosen


def check_started_here(server: str | None, model: str | None, device: str) -> None:
    """Raises BadParameter for what would say nothing to a service that runs already."""
    if server is not None and (model is not None or device != "auto"):
        hint = "--model" if model is not None else "--device"
        raise typer.BadParameter("is of a service that is started here", param_hint=hint)


def parse_size(text: str) -> tuple[int, int]:
    """ "256x192" as (256, 192). Raises BadParameter."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise typer.BadParameter(f"{text!r} is no size; write WIDTHxHEIGHT, such as 256x256")
    if int(width) % 8 or int(height) % 8:
        raise typer.BadParameter(f"{text}: width and height must be multiples of 8")
    return int(width), int(height)


def parse_timesteps(text: str) -> tuple[int, ...]:
    """ "15,32" as (15, 32). Raises BadParameter."""
    try:
        indices = tuple(map(int, text.split(",")))
        SettingsChange(timestep_indices=indices).apply(Settings())
    except (ValueError, InvalidRequest):
        said = f"{text!r}: write entries of the grid, 0 to {LCM_GRID - 1}, the lowest (noisiest) first: 15,32"
        raise typer.BadParameter(said, param_hint="--timesteps") from None
    return indices


def _either(choices: tuple[Guidance, ...]) -> str:
    return " or ".join(map(spelled, choices))
