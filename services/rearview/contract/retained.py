"""How much is kept of what a session's lane has made, until whoever is next has acknowledged it."""

from __future__ import annotations

__all__ = ["PIXEL_BYTES", "RETAINED_BYTES"]

RETAINED_BYTES = 8 * 2**20
"""Outputs that a replica keeps per session: 250 latents, ten pictures of 512 x 512 or more than a hundred as
JPEG."""
PIXEL_BYTES = RETAINED_BYTES // 2
"""Of these, pictures that the last span keeps as pixels although their ingress has encoded them: as many as a
client lacks that acknowledges soon. Of more it gets the encoded ones, which take their place."""
