"""`rearview eval`: figures of temporal quality, measured on this machine.

The command collects its options and refuses what cannot be before torch is imported; the work is in
`evaluate.py`.
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
    from rearview_lab.evaluation.runner import Method

__all__ = ["app"]

QUICK_CLIPS = ("sample-coffee", "occlusion")
QUICK_STYLES = 3
QUICK_FRAMES = 12
QUICK_PARTS = (Part.WARP, Part.AUTOENCODER)
FRAMES = 24

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """What is asked of bank and cache; None keeps the checkpoint's."""

    policy: BankPolicy | None
    interval: int | None
    max_frames: int | None
    fusion_strength: float | None
    fusion_threshold: float | None
    sink_frames: int
    ring_frames: int

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


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the whole command. Raises BadParameter, and OSError for a path that cannot be."""

    files: Sequence[Path]
    checkpoint: str
    styles: str
    methods: Sequence[MethodChoice]
    noise: Sequence[NoiseChoice]
    clips: str | None
    frames: int | None
    size: int
    steps: int | None
    strength: float | None
    seed: int
    memory: MemoryOptions
    motion: str
    motion_depth: str
    parts: Sequence[Part]
    drift_styles: int
    clip: Path | None
    depth: Path | None
    device: str
    dtype: DtypeChoice
    threads: int
    quick: bool
    json_file: Path | None
    markdown_file: Path | None

    def __post_init__(self) -> None:
        if self.size % 8:
            raise typer.BadParameter("must be a multiple of 8", param_hint="--size")
        for path in self.files:
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such video or folder")
        for path in filter(None, (self.json_file, self.markdown_file)):
            if not path.parent.is_dir():
                raise FileNotFoundError(f"{path}: there is no folder {path.parent}")

    def plan(self) -> Plan:
        """What they ask for. Raises BadParameter, ConfigError, InvalidRequest."""
        from rearview.contract.settings import NoiseRule
        from rearview.engine.weights.checkpoint import pick_device, pick_dtype
        from rearview.engine.weights.formats import Additions

        from rearview_lab.evaluation.evaluate import Plan, looks_of
        from rearview_lab.evaluation.judges import ClipJudge, DepthJudge, Judges

        device = pick_device(self.device)
        plan = Plan(
            checkpoint=self.checkpoint,
            styles=_listed(self.styles),
            methods=self.memory.methods(self.methods or list(MethodChoice), self.checkpoint),
            noises=tuple(NoiseRule[one.name] for one in self.noise or list(NoiseChoice)),
            clips=_clips(self.clips, quick=self.quick),
            files=tuple(self.files),
            frames=self.frames or (QUICK_FRAMES if self.quick else FRAMES),
            size=self.size,
            steps=self.steps,
            strength=self.strength,
            seed=self.seed,
            additions=Additions(motion=self.motion, depth=self.motion_depth),
            parts=tuple(self.parts or (QUICK_PARTS if self.quick else Part)),
            drift_styles=self.drift_styles,
            device=device,
            dtype=pick_dtype(self.dtype.value, device),
            judges=Judges(
                ClipJudge(self.clip) if self.clip else None, DepthJudge(self.depth) if self.depth else None
            ),
        )
        if self.quick and not plan.styles:
            plan = replace(plan, styles=tuple(look.style for look in looks_of(plan)[:QUICK_STYLES]))
        return plan


@app.command()
def evaluate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Videos or folders of them, besides the clips; their motion is estimated."),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Bundled name, folder, single file or hub id.")] = "pocket",
    styles: Annotated[
        str, typer.Option(help="Comma-separated styles of the checkpoint, or prompts. Empty: all it knows.")
    ] = "",
    methods: Annotated[
        list[MethodChoice] | None,
        typer.Option("--method", help="Repeat to choose; else all that the model has."),
    ] = None,
    noise: Annotated[
        list[NoiseChoice] | None, typer.Option("--noise", help="Repeat to choose; else both.")
    ] = None,
    clips: Annotated[
        str | None, typer.Option(help="Comma-separated bundled and generated clips; 'none': files only.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of each clip; else 24.", min=3)] = None,
    size: Annotated[int, typer.Option(help="Side of the pictures, pixels.", min=32, max=1024)] = 256,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; else the checkpoint's.", min=1)] = None,
    strength: Annotated[float | None, typer.Option(help="Else the checkpoint's.", min=0.01, max=1.0)] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    bank_interval: Annotated[
        int | None, typer.Option(help="Frames from one write of the bank to the next; else the checkpoint's.")
    ] = None,
    bank_policy: Annotated[BankPolicy | None, typer.Option(help="Else the checkpoint's.")] = None,
    bank_frames: Annotated[
        int | None, typer.Option(help="Frames that a queue keeps; else the checkpoint's.")
    ] = None,
    fusion_strength: Annotated[
        float | None, typer.Option(help="0: no feature fusion; else the checkpoint's.")
    ] = None,
    fusion_threshold: Annotated[
        float | None, typer.Option(help="Cosine from which features fuse; else the checkpoint's.")
    ] = None,
    motion: Annotated[
        str, typer.Option(help="Motion modules, file or folder; empty: the checkpoint's own.")
    ] = "",
    motion_depth: Annotated[
        str, typer.Option(help="Folder of the DPT model that they were trained with.")
    ] = "",
    sink_frames: Annotated[int, typer.Option(help="First frames that the cache keeps.", min=1)] = 8,
    ring_frames: Annotated[int, typer.Option(help="Last frames that the cache keeps.", min=1)] = 8,
    parts: Annotated[list[Part] | None, typer.Option("--part", help="Repeat to choose; else all.")] = None,
    drift_styles: Annotated[int, typer.Option(help="Styles that are followed over 1,000 frames.", min=1)] = 2,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of a CLIPModel: image consistency, text alignment.")
    ] = None,
    depth: Annotated[Path | None, typer.Option(help="Folder of a depth estimator: depth error.")] = None,
    device: Annotated[str, typer.Option(help="auto: CUDA if there is any, else the CPU.")] = "auto",
    dtype: Annotated[DtypeChoice, typer.Option(help="What the networks compute in.")] = DtypeChoice.FLOAT32,
    threads: Annotated[int, typer.Option(help="torch threads; more gain only on idle cores.", min=1)] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two clips of 12 frames, three styles, warp error, autoencoder.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables here.")] = None,
) -> None:
    """Measure flicker, looks, drift and the autoencoder on clips whose motion is known, and print tables."""
    memory = MemoryOptions(
        policy=bank_policy,
        interval=bank_interval,
        max_frames=bank_frames,
        fusion_strength=fusion_strength,
        fusion_threshold=fusion_threshold,
        sink_frames=sink_frames,
        ring_frames=ring_frames,
    )
    options = Options(
        files=files or (),
        checkpoint=checkpoint,
        styles=styles,
        methods=methods or (),
        noise=noise or (),
        clips=clips,
        frames=frames,
        size=size,
        steps=steps,
        strength=strength,
        seed=seed,
        memory=memory,
        motion=motion,
        motion_depth=motion_depth,
        parts=parts or (),
        drift_styles=drift_styles,
        clip=clip,
        depth=depth,
        device=device,
        dtype=dtype,
        threads=threads,
        quick=quick,
        json_file=json_file,
        markdown_file=markdown_file,
    )
    _run(options)


def _run(options: Options) -> None:
    import torch
    from rich.console import Console

    from rearview_lab.evaluation.evaluate import evaluate

    torch.set_num_threads(options.threads)
    console, progress = Console(), Console(stderr=True)
    found = evaluate(options.plan(), lambda text: progress.print(text, style="dim", highlight=False))
    found.show(console if console.is_terminal else Console(width=200))
    if options.json_file is not None:
        found.write_json(options.json_file)
    if options.markdown_file is not None:
        found.write_markdown(options.markdown_file)


def _clips(text: str | None, *, quick: bool) -> tuple[str, ...]:
    from rearview_lab.evaluation.clips import GENERATED, SAMPLES

    known = (*SAMPLES, *GENERATED)
    if text is None:
        return QUICK_CLIPS if quick else known
    chosen = () if text == "none" else _listed(text)
    if unknown := [name for name in chosen if name not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint="--clips")
    return chosen


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
