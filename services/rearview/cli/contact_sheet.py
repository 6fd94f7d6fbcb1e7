"""A labelled sheet of samples: a row per style, inputs and outputs in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from rearview.client.answers import Image

__all__ = ["Row", "write_contact_sheet"]

LABEL_PIXELS = 30
MARGIN_PIXELS = 8
BACKGROUND, INK = (24, 24, 27), (235, 235, 235)


@dataclass(frozen=True)
class Row:
    """One style."""

    label: str
    pairs: list[tuple[Image, Image]] = field(default_factory=list)
    """Input and output, (height, width, 3) uint8."""


def write_contact_sheet(path: Path, rows: Sequence[Row]) -> None:
    """Write `rows` that have pairs as PNG. Raises OSError; ValueError if there is none."""
    rows = [row for row in rows if row.pairs]
    if not rows:
        raise ValueError("no pictures for a contact sheet")
    height, width = rows[0].pairs[0][0].shape[:2]
    columns = max(len(row.pairs) for row in rows)
    pair_width, row_height = 2 * width + MARGIN_PIXELS, height + LABEL_PIXELS + MARGIN_PIXELS
    sheet = PilImage.new(
        "RGB", (columns * pair_width + MARGIN_PIXELS, len(rows) * row_height + MARGIN_PIXELS), BACKGROUND
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for number, row in enumerate(rows):
        top = MARGIN_PIXELS + number * row_height
        draw.text((MARGIN_PIXELS, top + 3), row.label, INK, font=font)
        for column, (source, result) in enumerate(row.pairs):
            left = MARGIN_PIXELS + column * pair_width
            sheet.paste(PilImage.fromarray(source), (left, top + LABEL_PIXELS))
            sheet.paste(PilImage.fromarray(result), (left + width, top + LABEL_PIXELS))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
