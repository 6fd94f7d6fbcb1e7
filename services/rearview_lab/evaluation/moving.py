"""The README's moving picture: the bundled clip as it is, translated per frame, and with a memory.

    python -m rearview_lab.evaluation.moving --out docs/moving.webp       or: make picture

Both translations draw fresh noise for each frame, as diffusion does, and differ in nothing but the memory:
per frame the pictures boil, with it they are steadier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rearview.contract.card import ModelCard
from rearview.contract.settings import NoiseRule, Settings

from rearview_lab.evaluation.choices import MethodChoice
from rearview_lab.evaluation.clips import sample_clip
from rearview_lab.evaluation.options import MemoryOptions
from rearview_lab.evaluation.runner import PER_FRAME, Method, Translator

__all__ = ["Scene", "main", "strip", "write_moving"]

MAX_BYTES = 3_000_000
QUALITIES = (82, 74, 66, 58, 50, 40)
"""The first at which the file is small enough is taken."""
LABEL_PIXELS, GAP_PIXELS = 26, 4
BACKGROUND, INK, FAINT = (20, 20, 24), (238, 238, 238), (150, 150, 158)
WARM_UP = 16
"""Frames before those that are shown: a memory has seen something by then."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """A style on a run of the bundled clip."""

    clip: str
    """One of `clips.SAMPLES`."""
    style: str


SCENES = (
    Scene("sample-astronaut", "neon"),
    Scene("sample-coffee", "cartoon"),
    Scene("sample-astronaut", "blueprint"),
    Scene("sample-coffee", "pencil"),
)


def strip(panes: Sequence[Pixels], labels: Sequence[str], caption: str) -> Image.Image:
    """Pictures of one size beside each other, each under its label; the caption stands at the right."""
    height, width = panes[0].shape[:2]
    across = len(panes) * width + (len(panes) - 1) * GAP_PIXELS
    drawn = Image.new("RGB", (across, height + LABEL_PIXELS), BACKGROUND)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(15)
    for number, (pane, label) in enumerate(zip(panes, labels, strict=True)):
        left = number * (width + GAP_PIXELS)
        drawn.paste(Image.fromarray(pane), (left, LABEL_PIXELS))
        draw.text((left + 6, 4), label, INK, font=font)
    draw.text((across - 6, 4), caption, FAINT, font=font, anchor="ra")
    return drawn


def write_moving(path: Path, frames: Sequence[Image.Image], frame_rate: float) -> int:
    """Write an animated WebP of at most MAX_BYTES that repeats; returns its bytes. Raises ValueError if no
    quality makes it small enough.
    """
    for quality in QUALITIES:
        buffer = BytesIO()
        frames[0].save(
            buffer, "WEBP", save_all=True, append_images=frames[1:], duration=round(1e3 / frame_rate),
            loop=0, quality=quality, method=6,
        )  # fmt: skip
        if buffer.tell() <= MAX_BYTES:
            path.write_bytes(buffer.getvalue())
            return buffer.tell()
    raise ValueError(
        f"{len(frames)} frames take {buffer.tell()} bytes at quality {QUALITIES[-1]}: show fewer"
    )


def scene_frames(translator: Translator, scene: Scene, method: Method, num_frames: int) -> list[Image.Image]:
    """Input, per frame and with the method's memory, side by side."""
    card = ModelCard.read(translator.checkpoint)
    prompt = card.styles[scene.style]
    settings = Settings(prompt, card.strength, steps=card.steps, noise_rule=NoiseRule.FRESH)
    frames = sample_clip(scene.clip, WARM_UP + num_frames, translator.size).frames
    plain, kept = (
        [pictures[0] for pictures in translator.translate(one, [settings], frames)]
        for one in (PER_FRAME, method)
    )
    labels = ("input", "per frame", "with a memory")
    return [
        strip([frames[n].numpy(), _bytes(plain[n]), _bytes(kept[n])], labels, prompt)
        for n in range(WARM_UP, len(frames))
    ]


def _bytes(picture_CHW: torch.Tensor) -> Pixels:
    return (picture_CHW.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def main(
    out: Annotated[Path, typer.Option(help="The .webp to write.")],
    checkpoint: Annotated[str, typer.Option(help="Bundled name or folder.")] = "pocket",
    method: Annotated[MethodChoice, typer.Option(help="Whose memory is shown.")] = MethodChoice.STREAMV2V,
    frames: Annotated[int, typer.Option(help="Of each scene.", min=2, max=100)] = 20,
    frame_rate: Annotated[float, typer.Option(help="Frames a second that are shown.", min=1)] = 12.5,
    size: Annotated[int, typer.Option(help="Side of a picture, pixels.", min=64, max=512)] = 256,
    threads: Annotated[int, typer.Option(help="torch threads.", min=1)] = 1,
) -> None:
    """Make the README's moving picture."""
    torch.set_num_threads(threads)
    (shown,) = MemoryOptions().methods([method], checkpoint)
    steps = ModelCard.read(checkpoint).steps
    translator = Translator(checkpoint, size, steps, device=torch.device("cpu"), dtype=torch.float32)
    drawn: list[Image.Image] = []
    for scene in SCENES:
        typer.echo(f"{scene.clip}: {scene.style}", err=True)
        drawn += scene_frames(translator, scene, shown, frames)
    size_bytes = write_moving(out, drawn, frame_rate)
    typer.echo(f"wrote {out}: {len(drawn)} frames, {size_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    typer.run(main)
