"""The bundled sample clip and its exactly known motion.

The clip is a synthetic camera move over two photographs, free of copyright restrictions: the astronaut
Eileen Collins (NASA, public domain) and a coffee cup (Rachel Michetti, CC0), both as shipped with
scikit-image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["sample_clip_path", "sample_flow", "sample_flow_path"]

_FOLDER = Path(__file__).resolve().parent


def sample_clip_path() -> Path:
    """The clip: 256x256, 25 frames a second, H.264."""
    return _FOLDER / "pan.mp4"


def sample_flow_path() -> Path:
    """The file behind ``sample_flow``."""
    return _FOLDER / "pan_flow.npy"


def sample_flow() -> NDArray[np.float64]:
    """Camera motion ``(frames - 1, 2, 3)``: row i maps pixel centres (x, y) of frame i+1 into frame i."""
    flow: NDArray[np.float64] = np.load(sample_flow_path(), allow_pickle=False)
    return flow
