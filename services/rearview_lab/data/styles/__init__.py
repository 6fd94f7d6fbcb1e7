"""The teachers: one deterministic function of the picture per style.

No teacher draws random texture, because a mean-seeking loss erases it; every one changes the palette or
the line structure strongly, so that styles stay apart after training. All lengths are in pixels of the
picture given.
"""

from __future__ import annotations

from collections.abc import Callable

from rearview_lab.data.photos import Image
from rearview_lab.data.styles.drawn import blueprint, cartoon, pencil, ukiyo_e
from rearview_lab.data.styles.lit import PIXEL_ART_TILE, cyberpunk, neon, pixel_art
from rearview_lab.data.styles.painted import clay, oil, watercolor

__all__ = ["FILTERS", "PIXEL_ART_TILE", "SHARES", "STYLES"]


def natural(picture: Image) -> Image:
    """The picture itself."""
    return picture.copy()


FILTERS: dict[str, Callable[[Image], Image]] = {
    "natural": natural,
    "pencil": pencil,
    "oil": oil,
    "watercolor": watercolor,
    "clay": clay,
    "neon": neon,
    "cartoon": cartoon,
    "ukiyo-e": ukiyo_e,
    "cyberpunk": cyberpunk,
    "blueprint": blueprint,
    "pixel-art": pixel_art,
}
STYLES = tuple(FILTERS)
# How often training draws a style, where not once: lines and relief are learned last, and in the natural
# style and in washes every lost detail shows.
SHARES = {
    "natural": 2.5,
    **dict.fromkeys(("oil", "watercolor"), 2.0),
    "cartoon": 1.8,
    **dict.fromkeys(("pencil", "clay", "neon", "ukiyo-e", "blueprint", "cyberpunk"), 1.4),
}
