"""The model card of the pocket checkpoint, with its measured figures filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rearview.training.export import DEFAULT_STEPS, DEFAULT_STRENGTH
from rearview.training.model import LATENT_CHANNELS, LATENT_STD
from rearview.training.photos import HELD_OUT, PHOTOS
from rearview.training.prompts import canonical_prompt
from rearview.training.styles import STYLES


@dataclass(frozen=True)
class Report:
    """What one run measured; tables are rows by photograph or style."""

    num_scenes: int
    seed: int
    vae_steps: int
    vae_minutes: float
    unet_steps: int
    unet_minutes: float
    machine: str
    size_bytes: int
    parameters: Mapping[str, int]
    reconstruction: Mapping[str, Mapping[str, float]]
    style_psnr: Mapping[str, Mapping[str, Mapping[str, float]]] = field(
        default_factory=dict
    )  # setting, photo, style
    distances: Mapping[str, float] = field(default_factory=dict)
    flicker: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # kind of noise, style

    def training(self) -> dict[str, object]:
        """The part that goes into ``rearview.json``."""
        return {
            "num_scenes": self.num_scenes,
            "seed": self.seed,
            "vae_steps": self.vae_steps,
            "unet_steps": self.unet_steps,
            "machine": self.machine,
        }


def model_card(report: Report) -> str:
    """Markdown for README.md of the checkpoint."""
    return "\n".join([_head(report), _data(report), _training(report), _figures(report), _limits()]) + "\n"


def _head(report: Report) -> str:
    parts = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in report.parameters.items())
    prompts = "\n".join(f"| {style} | `{canonical_prompt(style)}` |" for style in STYLES)
    return f"""# Pocket checkpoint

A small video stylist in the ordinary diffusers folder format, trained from scratch on generated pictures.
A phrase in the prompt picks one of {len(STYLES)} styles. It exists so that the whole service can be run,
tested and shown on a laptop without a download; it is not a general text-to-image model.

* {report.size_bytes / 1e6:.1f} MB in fp16; parameters: {parts}
* {LATENT_CHANNELS} latent channels at 1/8 of the picture's size, diffused at deviation {LATENT_STD:g}
* schedule of Stable Diffusion (scaled linear, 0.00085 to 0.012), epsilon prediction, step grid of latent
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
42 % crops of the photographs below, 28 % dead leaves, 30 % procedural portraits. The styles are classical
filters (`rearview/training/styles.py`), which the model imitates. Photographs come with scikit-image; only
those whose licence line allows free use were taken.

| photograph | licence as stated by scikit-image | use |
|---|---|---|
{used}
{held}
"""


def _training(report: Report) -> str:
    return f"""## Training

| stage | steps | minutes |
|---|---|---|
| autoencoder (AutoencoderTiny) | {report.vae_steps} of 12 crops | {report.vae_minutes:.0f} |
| denoiser, text encoder, then the decoder too | {report.unet_steps} of 12 rows | {report.unet_minutes:.0f} |

A row of the second stage is a roll-out of two or three predictions, each from the model's own last output.

Machine: {report.machine}. `python -m rearview.training.pocket` makes it again (extra `training`); it resumes
after an interruption. Schedules follow the time budget, so another machine gives other step counts and
slightly other weights.
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
    return "\n".join(lines + _flicker(report)) + "\n"


def _flicker(report: Report) -> list[str]:
    if not report.flicker:
        return []
    alone = ", ".join(f"{name} {value:.3f}" for name, value in report.flicker[""].items())
    kinds = {kind: row for kind, row in report.flicker.items() if kind}
    styles = list(next(iter(kinds.values())))
    lines = [
        "",
        "Warp error on the sample clip (mean difference 0..1 to the frame before, moved by the known",
    ]
    lines += [f"motion), default setting; {alone}:", "", *_table("noise", styles)]
    return lines + [
        f"| {kind} | " + " | ".join(f"{row[s]:.3f}" for s in styles) + " |" for kind, row in kinds.items()
    ]


def _table(first: str, columns: list[str]) -> list[str]:
    return [f"| {first} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]


def _limits() -> str:
    return """## Limits

* Only style phrases have an effect: "a cat" draws no cat. Unknown styles fall back to natural.
* It imitates deterministic filters. Fine lines and small faces come out softer than the filter's own.
* It saw few photographs and no video; portraits in the data are drawings.
* More than one or two steps gain nothing, and a strength above about 0.6 loses detail: a model that predicts
  the mean cannot invent what noise removed.
* Trained at 128 x 128, meant for 256 x 256; larger pictures work, with strokes of the same size in pixels.
* Trained without a feature bank, it gains next to nothing from one: on 40 frames of the sample clip the
  bank lowered the warp error by at most 2 % (natural 0 %, oil 1.7 %, neon 0.4 %; a write every frame).
"""
