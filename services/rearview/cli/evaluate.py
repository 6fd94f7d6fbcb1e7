"""`rearview eval`: figures of temporal quality, measured on this machine; the work is in
`rearview_lab.evaluation`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rearview.cli.failure import fails_in_one_line
from rearview.contract.memories import BankPolicy

if TYPE_CHECKING:
    from rearview_lab.evaluation.evaluate import Plan
    from rearview_lab.evaluation.runner import Method

    from rearview.contract.memories import BankSettings
    from rearview.engine.memory.cache.window import CacheWindow

__all__ = ["evaluate"]

QUICK_CLIPS = ("sample-coffee", "occlusion")
QUICK_STYLES = 3
QUICK_FRAMES = 12


class EvaluatedMethod(StrEnum):
    """`--method`."""

    PER_FRAME = "per-frame"
    STREAMV2V = "streamv2v"
    LIVE2DIFF = "live2diff"
    BOTH = "both"


class NoiseChoice(StrEnum):
    """`--noise`."""

    FIXED = "fixed"
    FRESH = "fresh"


class PartChoice(StrEnum):
    """`--part`."""

    WARP = "warp"
    AUTOENCODER = "autoencoder"
    STEPS = "steps"
    CLASSIFIER = "classifier"
    DRIFT = "drift"


class DtypeChoice(StrEnum):
    """`--dtype`."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@fails_in_one_line
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
        list[EvaluatedMethod] | None,
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
    parts: Annotated[
        list[PartChoice] | None, typer.Option("--part", help="Repeat to choose; else all.")
    ] = None,
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
    try:
        from rearview_lab.evaluation.evaluate import Part, Plan, looks_of
        from rearview_lab.evaluation.evaluate import evaluate as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("rearview"):
            raise
        typer.secho(f"error: {error.name} is missing: pip install 'rearview[training]'", fg="red", err=True)
        raise typer.Exit(1) from None
    import torch
    from rearview_lab.evaluation.clips import GENERATED, SAMPLES
    from rearview_lab.evaluation.judges import ClipJudge, DepthJudge, Judges
    from rich.console import Console

    from rearview.contract.card import ModelCard
    from rearview.contract.memories import BankSettings
    from rearview.contract.settings import NoiseRule
    from rearview.engine.memory.cache.window import CacheWindow
    from rearview.engine.weights.checkpoint import pick_device, pick_dtype
    from rearview.engine.weights.formats import Additions

    if size % 8:
        raise typer.BadParameter("must be a multiple of 8", param_hint="--size")
    torch.set_num_threads(threads)
    given = {
        "policy": bank_policy and bank_policy.value,
        "interval": bank_interval,
        "max_frames": bank_frames,
        "fusion_strength": fusion_strength,
        "fusion_threshold": fusion_threshold,
    }
    fields = {**ModelCard.read(checkpoint).bank, **{k: v for k, v in given.items() if v is not None}}
    bank = BankSettings(**{**fields, "policy": BankPolicy(fields.get("policy", "merge"))})
    chosen_parts = parts or ([PartChoice.WARP, PartChoice.AUTOENCODER] if quick else list(PartChoice))
    place = pick_device(device)
    plan = Plan(
        checkpoint=checkpoint,
        styles=_listed(styles),
        methods=_methods(methods or list(EvaluatedMethod), bank, CacheWindow(sink_frames, ring_frames)),
        noises=tuple(NoiseRule[one.name] for one in noise or list(NoiseChoice)),
        clips=_clips(clips, QUICK_CLIPS if quick else (*SAMPLES, *GENERATED), (*SAMPLES, *GENERATED)),
        files=tuple(files or ()),
        frames=frames or (QUICK_FRAMES if quick else 24),
        size=size,
        steps=steps,
        strength=strength,
        seed=seed,
        additions=Additions(motion=motion, depth=motion_depth),
        parts=tuple(Part(one.value) for one in chosen_parts),
        drift_styles=drift_styles,
        device=place,
        dtype=pick_dtype(dtype.value, place),
        judges=Judges(ClipJudge(clip) if clip else None, DepthJudge(depth) if depth else None),
    )
    if quick and not plan.styles:
        plan = _with_styles(plan, [look.style for look in looks_of(plan)][:QUICK_STYLES])
    console = Console()
    progress = Console(stderr=True)
    found = run(plan, lambda text: progress.print(text, style="dim", highlight=False))
    found.show(console if console.is_terminal else Console(width=200))
    if json_file is not None:
        found.write_json(json_file)
    if markdown_file is not None:
        found.write_markdown(markdown_file)


def _methods(chosen: list[EvaluatedMethod], bank: BankSettings, window: CacheWindow) -> tuple[Method, ...]:
    from rearview_lab.evaluation.runner import PER_FRAME, Method

    from rearview.contract.memories import CacheSettings

    known = {
        EvaluatedMethod.PER_FRAME: PER_FRAME,
        EvaluatedMethod.STREAMV2V: Method("streamv2v", bank),
        EvaluatedMethod.LIVE2DIFF: Method("live2diff", cache=CacheSettings(), window=window),
        EvaluatedMethod.BOTH: Method("both", bank, CacheSettings(), window),
    }
    return tuple(known[one] for one in known if one in chosen)


def _with_styles(plan: Plan, styles: list[str]) -> Plan:
    from dataclasses import replace

    return replace(plan, styles=tuple(styles))


def _clips(text: str | None, default: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return default
    chosen = () if text == "none" else _listed(text)
    if unknown := [name for name in chosen if name not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint="--clips")
    return chosen


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
