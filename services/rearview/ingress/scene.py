"""Where a video cuts to another scene. Pure, on the thumbnails of `similarity.py`.

Two frames in a row are of different scenes if they differ much, if what differs is more than brightness
and contrast (a flash or a fade keeps its correlation with the frame before), and if they differ much more
than the frames before them did (a fast pan differs all the time). The numbers were set on the two sample
clips, on generated pans, flashes, noise and cuts, and on cuts between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rearview.ingress.similarity import PackedThumbnail, Thumbnail

__all__ = ["SceneDetector", "SceneState"]

MIN_DIFFERENCE = 0.1
"""Mean absolute difference of two thumbnails, in full scales (black to white is 1), from which they can be
of two scenes."""
MAX_CORRELATION = 0.5
"""Pearson correlation of two thumbnails above which they are one scene in another light."""
MIN_RATIO = 3.0
"""How many times the usual difference a cut's is."""
MEMORY = 0.8
"""Share of the usual difference that stays per frame: about five frames count."""


@dataclass(frozen=True, slots=True)
class SceneState:
    """What a detector goes on with."""

    scene: int = 0
    last: PackedThumbnail | None = None
    """Of the frame before."""
    usual: float = 0.0
    """How much frames have differed."""


FIRST_SCENE = SceneState()


class SceneDetector:
    """The scenes of one session, numbered from 0."""

    def __init__(self, state: SceneState = FIRST_SCENE) -> None:
        self.scene = state.scene
        self._last = None if state.last is None else state.last.unpack()
        self._usual = state.usual
        self._before = (self.scene, self._last, self._usual)
        """As it was before the last frame."""

    @property
    def state(self) -> SceneState:
        """With which another detector goes on as this one would."""
        last = None if self._last is None else PackedThumbnail.of(self._last)
        return SceneState(self.scene, last, self._usual)

    def see(self, seen: Thumbnail) -> int:
        """The scene of the next frame, (h, w, 3) in [-1, 1]. Every frame with a picture is to be seen."""
        self._before = (self.scene, self._last, self._usual)
        last, self._last = self._last, seen
        if last is None:
            return self.scene
        if last.shape != seen.shape:  # Of another size: what differed before says nothing of these.
            self._usual = 0.0
            return self.scene
        apart = difference(last, seen)
        stands_out = apart >= max(MIN_DIFFERENCE, MIN_RATIO * self._usual)
        self._usual = MEMORY * self._usual + (1.0 - MEMORY) * apart
        if stands_out and correlation(last, seen) <= MAX_CORRELATION:
            self.scene += 1
        return self.scene

    def forget(self) -> None:
        """The frame that was seen last has no picture: as if it had not been seen."""
        self.scene, self._last, self._usual = self._before


def difference(left: Thumbnail, right: Thumbnail) -> float:
    """Mean absolute difference in full scales, 0 to 1."""
    return float(np.abs(left - right).mean()) / 2.0


def correlation(left: Thumbnail, right: Thumbnail) -> float:
    """Pearson correlation over all cells and channels; 1 where one of them is all of one value, since then
    only brightness can be compared: a fade through black is no cut.
    """
    a, b = left.ravel().astype(np.float64), right.ravel().astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    norms = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norms if norms > 1e-6 * a.size else 1.0
