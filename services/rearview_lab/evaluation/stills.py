"""The still pictures of the documentation: one of each method, with what flickers in it; and a mix of styles.

    python -m rearview_lab.evaluation.stills --out docs/pictures       or: make picture

The flicker is what warp error measures: a picture less the one before, moved as the clip's motion is known to
have moved, made brighter. Noise is fresh for each frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rearview.contract.card import ModelCard
from rearview.contract.settings import NoiseRule, Settings, WeightedPrompt
from torch import Tensor

from rearview_lab.evaluation.choices import MethodChoice
from rearview_lab.evaluation.clips import sample_clip
from rearview_lab.evaluation.flow import Motion, warp
from rearview_lab.evaluation.moving import WARM_UP, Pixels, strip
from rearview_lab.evaluation.options import MemoryOptions
from rearview_lab.evaluation.runner import PER_FRAME, Method, Translator, as_picture

__all__ = ["Column", "flicker", "main", "mixture", "sheet"]

BRIGHTER = 5
"""What flicker is multiplied by, to be seen."""
QUALITY = 75
SHOWN_CLIP, SHOWN_STYLE = "sample-astronaut", "neon"
MIXED = ("cartoon", "cyberpunk")
"""Styles of which docs/first-style.md mixes one of its own."""
METHODS = (MethodChoice.PER_FRAME, MethodChoice.STREAMV2V, MethodChoice.LIVE2DIFF)


@dataclass(frozen=True)
class Column:
    """Two neighbouring pictures, (3, H, W) in [0, 1]."""

    label: str
    before: Tensor
    after: Tensor


def flicker(column: Column, motion: Motion) -> Tensor:
    """(3, H, W) in [0, 1]: BRIGHTER times what `motion` does not explain; 0 where nothing was visible."""
    apart = (column.after - warp(column.before, motion.backward)).abs()
    return (apart * BRIGHTER).clamp(max=1.0) * motion.visible


def sheet(columns: Sequence[Column], motion: Motion) -> Image.Image:
    """A row of pictures, and below each its flicker."""
    labels = [column.label for column in columns]
    above = strip([_bytes(column.after) for column in columns], labels, "")
    flickers = [_bytes(flicker(column, motion)) for column in columns]
    below = strip(flickers, [f"what flickers x {BRIGHTER}"] * len(columns), "")
    drawn = Image.new("RGB", (above.width, above.height + below.height))
    drawn.paste(above, (0, 0))
    drawn.paste(below, (0, above.height))
    return drawn


def mixture(translator: Translator, card: ModelCard) -> Image.Image:
    """A frame, two styles, and half of each."""
    (frame,) = sample_clip(SHOWN_CLIP, 1, translator.size).frames
    prompts = [card.styles[name] for name in MIXED]
    half = tuple(WeightedPrompt(prompt, 0.5) for prompt in prompts)
    looks = [Settings(prompt, card.strength, steps=card.steps) for prompt in prompts]
    looks.append(Settings(strength=card.strength, steps=card.steps, prompts=half))
    (pictures,) = translator.translate(PER_FRAME, looks, [frame])
    panes = [frame.numpy(), *(_bytes(one) for one in pictures)]
    return strip(panes, ["the input", *prompts, "half of each"], "")


def _save(drawn: Image.Image, path: Path) -> None:
    drawn.save(path, "WEBP", quality=QUALITY, method=6)
    typer.echo(f"wrote {path}: {path.stat().st_size / 1e3:.0f} kB")


def _bytes(picture_CHW: Tensor) -> Pixels:
    return (picture_CHW.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the .webp files.")],
    checkpoint: Annotated[str, typer.Option(help="Bundled name or folder.")] = "pocket",
    size: Annotated[int, typer.Option(help="Side of a picture, pixels.", min=64, max=512)] = 256,
    threads: Annotated[int, typer.Option(help="torch threads.", min=1)] = 1,
) -> None:
    """Make the still pictures of the documentation."""
    torch.set_num_threads(threads)
    card = ModelCard.read(checkpoint)
    settings = Settings(card.styles[SHOWN_STYLE], card.strength, steps=card.steps, noise_rule=NoiseRule.FRESH)
    clip = sample_clip(SHOWN_CLIP, WARM_UP + 2, size)
    translator = Translator(checkpoint, size, card.steps, device=torch.device("cpu"), dtype=torch.float32)
    motion = clip.motions[WARM_UP]

    def column(method: Method) -> Column:
        pictures = [one[0] for one in translator.translate(method, [settings], clip.frames)]
        return Column(method.name, *pictures[WARM_UP:])

    per_frame, *others = MemoryOptions().methods(METHODS, checkpoint)
    shown = [Column("the input", *(as_picture(one) for one in clip.frames[WARM_UP:])), column(per_frame)]
    out.mkdir(parents=True, exist_ok=True)
    for name, more in [("per-frame", []), *((one.name, [column(one)]) for one in others)]:
        _save(sheet([*shown, *more], motion), out / f"{name}.webp")
    _save(mixture(translator, card), out / "own-style.webp")


if __name__ == "__main__":
    typer.run(main)
