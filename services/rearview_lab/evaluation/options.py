"""The options of `rearview eval`: what each says at the command line, and what they ask for together.

By what they are about: a group's declarations stand before the dataclass that takes them. torch is imported
only where a plan is made, so that `--help` is quick and what cannot be is refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rearview.contract.memories import BankPolicy

from rearview_lab.evaluation.choices import DtypeChoice, MethodChoice, NoiseChoice, Part

if TYPE_CHECKING:
    from rearview.contract.memories import BankSettings

    from rearview_lab.evaluation.evaluate import Plan
    from rearview_lab.evaluation.judges import Judges
    from rearview_lab.evaluation.runner import Method

QUICK_CLIPS = ("sample-coffee", "occlusion")
QUICK_STYLES = 3
QUICK_FRAMES = 12
QUICK_PARTS = (Part.WARP, Part.AUTOENCODER)
FRAMES = 24

FilesArgument = Annotated[
    list[Path] | None,
    typer.Argument(help="Videos or folders of them, besides the clips; their motion is estimated."),
]
ClipsOption = Annotated[
    str | None, typer.Option(help="Comma-separated bundled and generated clips; 'none': files only.")
]
FramesOption = Annotated[int | None, typer.Option(help="Frames of each clip; else 24.", min=3)]
SizeOption = Annotated[int, typer.Option(help="Side of the pictures, pixels.", min=32, max=1024)]


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Which pictures are translated. Raises BadParameter, and FileNotFoundError."""

    files: Sequence[Path] | None
    clips: str | None
    frames: int | None
    size: int

    def __post_init__(self) -> None:
        if self.size % 8:
            raise typer.BadParameter("must be a multiple of 8", param_hint="--size")
        for path in self.files or ():
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such video or folder")

    def names(self, *, quick: bool) -> tuple[str, ...]:
        """Of the clips that are there already. Raises BadParameter."""
        from rearview_lab.evaluation.clips import GENERATED, SAMPLES

        known = (*SAMPLES, *GENERATED)
        if self.clips is None:
            return QUICK_CLIPS if quick else known
        chosen = () if self.clips == "none" else _listed(self.clips)
        if unknown := [name for name in chosen if name not in known]:
            raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint="--clips")
        return chosen


CheckpointOption = Annotated[str, typer.Option(help="Bundled name, folder, single file or hub id.")]
StylesOption = Annotated[
    str, typer.Option(help="Comma-separated styles of the checkpoint, or prompts. Empty: all it knows.")
]
NoiseOption = Annotated[
    list[NoiseChoice] | None, typer.Option("--noise", help="Repeat to choose; else both.")
]
StepsOption = Annotated[int | None, typer.Option(help="Denoising steps; else the checkpoint's.", min=1)]
StrengthOption = Annotated[float | None, typer.Option(help="Else the checkpoint's.", min=0.01, max=1.0)]
SeedOption = Annotated[int, typer.Option(help="Of the noise.", min=0)]


@dataclass(frozen=True, kw_only=True)
class LookOptions:
    """What the pictures become."""

    checkpoint: str
    styles: str
    noise: Sequence[NoiseChoice] | None
    steps: int | None
    strength: float | None
    seed: int


MethodsOption = Annotated[
    list[MethodChoice] | None,
    typer.Option("--method", help="Repeat to choose; else all that the model has."),
]
IntervalOption = Annotated[
    int | None, typer.Option(help="Frames from one write of the bank to the next; else the checkpoint's.")
]
PolicyOption = Annotated[BankPolicy | None, typer.Option(help="Else the checkpoint's.")]
BankFramesOption = Annotated[
    int | None, typer.Option(help="Frames that a queue keeps; else the checkpoint's.")
]
FusionStrengthOption = Annotated[
    float | None, typer.Option(help="0: no feature fusion; else the checkpoint's.")
]
FusionThresholdOption = Annotated[
    float | None, typer.Option(help="Cosine from which features fuse; else the checkpoint's.")
]
MotionOption = Annotated[
    str, typer.Option(help="Motion modules, file or folder; empty: the checkpoint's own.")
]
MotionDepthOption = Annotated[str, typer.Option(help="Folder of the DPT model that they were trained with.")]
SinkFramesOption = Annotated[int, typer.Option(help="First frames that the cache keeps.", min=1)]
RingFramesOption = Annotated[int, typer.Option(help="Last frames that the cache keeps.", min=1)]


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """What is asked of bank and cache; None keeps the checkpoint's."""

    policy: BankPolicy | None = None
    interval: int | None = None
    max_frames: int | None = None
    fusion_strength: float | None = None
    fusion_threshold: float | None = None
    sink_frames: int = 8
    ring_frames: int = 8

    def bank(self, checkpoint: str) -> BankSettings:
        """The checkpoint's own settings under those asked for. Raises ConfigError, InvalidRequest."""
        from rearview.contract.card import ModelCard
        from rearview.contract.memories import BankSettings

        names = ("policy", "interval", "max_frames", "fusion_strength", "fusion_threshold")
        asked = {name: value for name in names if (value := getattr(self, name)) is not None}
        fields = {**ModelCard.read(checkpoint).bank, **asked}
        return BankSettings(**{**fields, "policy": BankPolicy(fields.get("policy", BankPolicy.MERGE))})

    def methods(self, chosen: Sequence[MethodChoice], checkpoint: str) -> tuple[Method, ...]:
        """In the order in which they are compared. Raises ConfigError, InvalidRequest."""
        from rearview.contract.memories import CacheSettings
        from rearview.engine.memory.cache.window import CacheWindow

        from rearview_lab.evaluation.runner import PER_FRAME, Method

        bank, cache = self.bank(checkpoint), CacheSettings()
        window = CacheWindow(self.sink_frames, self.ring_frames)
        known = {
            MethodChoice.PER_FRAME: PER_FRAME,
            MethodChoice.STREAMV2V: Method("streamv2v", bank),
            MethodChoice.LIVE2DIFF: Method("live2diff", cache=cache, window=window),
            MethodChoice.BOTH: Method("both", bank, cache, window),
        }
        return tuple(known[one] for one in known if one in chosen)


PartsOption = Annotated[list[Part] | None, typer.Option("--part", help="Repeat to choose; else all.")]
DriftStylesOption = Annotated[int, typer.Option(help="Styles that are followed over 1,000 frames.", min=1)]
ClipOption = Annotated[
    Path | None, typer.Option(help="Folder of a CLIPModel: image consistency, text alignment.")
]
DepthOption = Annotated[Path | None, typer.Option(help="Folder of a depth estimator: depth error.")]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Two clips of 12 frames, three styles, warp error, autoencoder.")
]


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """What is measured."""

    parts: Sequence[Part] | None
    drift_styles: int
    clip: Path | None
    depth: Path | None

    def judges(self) -> Judges:
        """The networks that look at pictures."""
        from rearview_lab.evaluation.judges import ClipJudge, DepthJudge, Judges

        return Judges(
            ClipJudge(self.clip) if self.clip else None, DepthJudge(self.depth) if self.depth else None
        )


DeviceOption = Annotated[str, typer.Option(help="auto: CUDA, MPS, XPU or CPU, the first there is.")]
DtypeOption = Annotated[DtypeChoice, typer.Option(help="What the networks compute in.")]
ThreadsOption = Annotated[int, typer.Option(help="torch threads; more gain only on idle cores.", min=1)]


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """What is computed on."""

    device: str
    dtype: DtypeChoice
    threads: int


JsonOption = Annotated[Path | None, typer.Option("--json", help="Write everything here.")]
MarkdownOption = Annotated[Path | None, typer.Option("--markdown", help="Write the tables here.")]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where it is written. Raises FileNotFoundError."""

    json_file: Path | None
    markdown_file: Path | None

    def __post_init__(self) -> None:
        for path in filter(None, (self.json_file, self.markdown_file)):
            if not path.parent.is_dir():
                raise FileNotFoundError(f"{path}: there is no folder {path.parent}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the whole command."""

    clips: ClipOptions
    look: LookOptions
    methods: Sequence[MethodChoice] | None
    memory: MemoryOptions
    motion: str
    motion_depth: str
    figures: FigureOptions
    machine: MachineOptions
    quick: bool

    def plan(self) -> Plan:
        """What they ask for. Raises BadParameter, ConfigError, InvalidRequest."""
        from rearview.contract.settings import NoiseRule
        from rearview.engine.devices import pick_device, pick_dtype
        from rearview.engine.weights.formats import Additions

        from rearview_lab.evaluation.evaluate import Plan, looks_of

        clips, look, figures, quick = self.clips, self.look, self.figures, self.quick
        device = pick_device(self.machine.device)
        plan = Plan(
            checkpoint=look.checkpoint,
            styles=_listed(look.styles),
            methods=self.memory.methods(self.methods or list(MethodChoice), look.checkpoint),
            noises=tuple(NoiseRule[one.name] for one in look.noise or NoiseChoice),
            clips=clips.names(quick=quick),
            files=tuple(clips.files or ()),
            frames=clips.frames or (QUICK_FRAMES if quick else FRAMES),
            size=clips.size,
            steps=look.steps,
            strength=look.strength,
            seed=look.seed,
            additions=Additions(motion=self.motion, depth=self.motion_depth),
            parts=tuple(figures.parts or (QUICK_PARTS if quick else Part)),
            drift_styles=figures.drift_styles,
            device=device,
            dtype=pick_dtype(self.machine.dtype.value, device),
            judges=figures.judges(),
        )
        if quick and not plan.styles:
            plan = replace(plan, styles=tuple(one.style for one in looks_of(plan)[:QUICK_STYLES]))
        return plan


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
