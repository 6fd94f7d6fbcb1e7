"""The model card of the pocket checkpoint, with its measured figures filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rearview_lab.data.photos import HELD_OUT, PHOTOS
from rearview_lab.data.prompts import canonical_prompt
from rearview_lab.data.styles import STYLES
from rearview_lab.training.clip_memory import MAX_FRAMES
from rearview_lab.training.denoiser import LONG, SHORT
from rearview_lab.training.export import BANK, DEFAULT_STEPS, DEFAULT_STRENGTH
from rearview_lab.training.model import LATENT_CHANNELS, LATENT_STD


@dataclass(frozen=True)
class Stage:
    """One stage of the training, as its state file tells."""

    steps: int
    minutes: float


@dataclass(frozen=True)
class Report:
    """What one run measured; tables are rows by photograph or style."""

    num_scenes: int
    batch: int
    """Times the pictures of a step that the stages' rows name."""
    seed: int
    stages: Mapping[str, Stage]
    warm_start: bool
    machine: str
    notes: str
    """Markdown about this one run, put at the end."""
    size_bytes: int
    parameters: Mapping[str, int]
    reconstruction: Mapping[str, Mapping[str, float]]
    style_psnr: Mapping[str, Mapping[str, Mapping[str, float]]] = field(
        default_factory=dict
    )  # setting, photo, style
    distances: Mapping[str, float] = field(default_factory=dict)

    def training(self) -> dict[str, object]:
        """The part that goes into ``rearview.json``."""
        return {
            "num_scenes": self.num_scenes,
            "batch": self.batch,
            "seed": self.seed,
            "steps": {name: stage.steps for name, stage in self.stages.items()},
            "minutes": {name: round(stage.minutes) for name, stage in self.stages.items()},
            "warm_start": self.warm_start,
            "machine": self.machine,
        }


def model_card(report: Report) -> str:
    """Markdown for README.md of the checkpoint."""
    parts = [_head(report), _data(report), _training(report), _figures(report), _limits(), report.notes]
    return "\n".join(part for part in parts if part) + "\n"


def _head(report: Report) -> str:
    parts = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in report.parameters.items())
    prompts = "\n".join(f"| {style} | `{canonical_prompt(style)}` |" for style in STYLES)
    return f"""# Pocket checkpoint

A small video stylist in the ordinary diffusers folder format, trained from scratch on generated pictures.
A phrase in the prompt picks one of {len(STYLES)} styles. It exists so that the whole service can be run,
tested and shown on a laptop without a download; it is not a general text-to-image model.

* {report.size_bytes / 1e6:.1f} MB in fp16; parameters: {parts}
* {LATENT_CHANNELS} latent channels at 1/8 of the picture's size, diffused at deviation {LATENT_STD:g}
* schedule of Stable Diffusion (scaled linear, 0.00085 to 0.012), velocity prediction, step grid of latent
  consistency models
* use it at strength {DEFAULT_STRENGTH:g} with {DEFAULT_STEPS} denoising steps, without guidance

| style | prompt |
|---|---|
{prompts}

An empty prompt, or one without a style phrase, means natural. `rearview.json` lists every trained phrase.

![every style on two held-out photographs](../../../../docs/pocket/styles.png)
"""


def _data(report: Report) -> str:
    used = "\n".join(f"| {photo.name} | {photo.licence} | training |" for photo in PHOTOS)
    held = "\n".join(f"| {photo.name} | {photo.licence} | held out |" for photo in HELD_OUT)
    return f"""## Data

{report.num_scenes} generated scenes of 128 x 128 pixels (seed {report.seed}), each in every style:
42 % crops of the photographs below, 28 % dead leaves, 30 % procedural portraits. The model imitates
deterministic functions of the picture (`rearview_lab/data/styles/`), one per style
([sheet](../../../../docs/pocket/teachers.png)). Photographs come with scikit-image; only those whose licence
line allows free use were taken.

| photograph | licence as stated by scikit-image | use |
|---|---|---|
{used}
{held}
"""


_STAGES = {
    "vae": "autoencoder (AutoencoderTiny), 10 crops a step",
    "vae-polished": "autoencoder again, for fidelity and steadiness",
    "unet": "denoiser and text encoder on clips, later the decoder too, 25 frames a step",
    "motion": "motion modules on clips of 16 frames, all else frozen",
}


def _training(report: Report) -> str:
    rows = "\n".join(
        f"| {_STAGES[name]} | {stage.steps} | {stage.minutes:.0f} |" for name, stage in report.stages.items()
    )
    times = "" if report.batch == 1 else f"Steps had {report.batch} times the pictures named here.\n"
    start = _WARM_START if report.warm_start else "Every part started from random weights.\n"
    return f"""## Training

| stage | steps | minutes |
|---|---|---|
{rows}

A step of the denoiser takes clips of {SHORT}, later {LONG} frames: a window of 96 pixels moving over a scene
and, on the same path, over its styled version, so the motion is known exactly. It rolls out two to four
predictions, each from the model's own last output. Three clips in four run with a feature bank (queue of
{MAX_FRAMES} frames, written after every frame, no fusion; served with {BANK["max_frames"]}); for those the
loss also counts how far the error of a frame differs from the error of the frame before, moved by the
known motion. Clips have fresh noise in every frame or the same noise in all. Self-attention starts as
attention to what looks alike (keys equal queries, enlarged), and is taught where each token was in the
frames before: cross-entropy to the four tokens around the place that the known motion names, all frames
alike, tokens of other clips as wrong answers (`rearview_lab/training/correspondence.py`).

A step of the motion modules takes clips of 16 frames under the mask of the paper; after the first 8 often
some time passes, or they show another scene, as in a long stream.

{times}{start}
Machine: {report.machine}.
`rearview train pocket` makes it again (extra `lab`); it resumes after an interruption. Schedules
follow the time budget, so another machine gives other step counts and slightly other weights.
"""


_WARM_START = """No part started from random weights, which is the recipe's default: all began as those of an
earlier checkpoint (`--start-from`), and the table counts from there.
"""


def _figures(report: Report) -> str:
    columns = list(next(iter(report.reconstruction.values())))
    lines = [
        "## Figures",
        "",
        "Held-out photographs at 256 x 256. Autoencoder alone, PSNR in dB to its input:",
        "",
    ]
    lines += _table("photograph", columns)
    for name, row in report.reconstruction.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[column]:.1f}" for column in columns) + " |")
    lines += [
        "",
        "Whole model, PSNR in dB to what the filter makes of the photograph (astronaut / coffee):",
        "",
    ]
    lines += _table("setting", list(STYLES))
    for setting, rows in report.style_psnr.items():
        cells = [" / ".join(f"{row[style]:.1f}" for row in rows.values()) for style in STYLES]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    distances = ", ".join(f"{style} {value:.2f}" for style, value in report.distances.items())
    lines += ["", f"Mean absolute difference of a style to natural (0..1), default setting: {distances}."]
    lines += [
        "",
        "How steady it is, alone and with each memory, how far more steps change it, and whether its styles",
        "are told apart: `rearview eval`, with the figures of this checkpoint in",
        "[docs/pocket/evaluation.md](../../../../docs/pocket/evaluation.md).",
    ]
    return "\n".join(lines) + "\n"


def _table(first: str, columns: list[str]) -> list[str]:
    return [f"| {first} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]


def _limits() -> str:
    return """## Limits

* Only style phrases have an effect: "a cat" draws no cat. Unknown styles fall back to natural.
* It imitates deterministic filters. Fine lines and small faces come out softer than the filter's own.
* It saw few photographs and no video; portraits in the data are drawings.
* A strength above about 0.6 loses detail: a model that predicts the mean cannot invent what noise removed,
  and for the same reason more steps gain nothing.
* Trained at 128 x 128, meant for 256 x 256; larger pictures work, with strokes of the same size in pixels.
"""
