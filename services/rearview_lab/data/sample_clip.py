"""Makes the bundled sample clip: a camera moving over two photographs, with exactly known motion.

The two held-out photographs stand side by side on one wide canvas; the camera pans from the first to the
second while it zooms and turns a little. Every frame is an affine view of the canvas, so the motion between
frames is an affine map that is stored beside the clip. Run ``python -m rearview_lab.data.sample_clip`` to
make both files again.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from rearview.samples import sample_clip_path, sample_flow_path

from rearview_lab.data.photos import Image, load_photo

SIZE = 256  # pixels, both sides
NUM_FRAMES = 200
FRAMES_PER_SECOND = 25
_CANVAS_HEIGHT = 512
_SEAM = 96  # pixels over which the photographs fade into each other
_SUPERSAMPLING = 2
_QUALITY = "17"  # constant rate factor of the encoder; lower is better

Affine = NDArray[np.float64]  # (2, 3)


def canvas() -> Image:
    """Both photographs at one height, the second fading in at the right of the first."""
    left, right = load_photo("astronaut"), load_photo("coffee")
    width = right.shape[1] * _CANVAS_HEIGHT // right.shape[0]
    right = np.asarray(
        cv2.resize(right, (width, _CANVAS_HEIGHT), interpolation=cv2.INTER_CUBIC), dtype=np.uint8
    )
    ramp = (0.5 - 0.5 * np.cos(np.linspace(0, np.pi, _SEAM)))[None, :, None]
    seam = left[:, -_SEAM:] * (1 - ramp) + right[:, :_SEAM] * ramp
    return np.concatenate([left[:, :-_SEAM], seam.astype(np.uint8), right[:, _SEAM:]], axis=1)


def camera(index: int, num_frames: int = NUM_FRAMES) -> Affine:
    """The map from pixel coordinates of one frame to the canvas."""
    progress = index / (num_frames - 1)
    eased = progress * progress * (3 - 2 * progress)
    zoom = (
        1.32 + 0.2 * np.sin(np.pi * progress) + 0.08 * np.sin(5 * np.pi * progress)
    )  # canvas pixels per pixel
    angle = np.deg2rad(3.5 * np.sin(2 * np.pi * progress * 1.5))
    centre = np.array([214 + 590 * eased, 182 + 92 * eased + 8 * np.sin(4 * np.pi * progress)])
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = centre - turn @ np.full(2, (SIZE - 1) / 2)
    return np.concatenate([turn, shift[:, None]], axis=1)


def compose(first: Affine, second: Affine) -> Affine:
    """``first`` after ``second``."""
    square = np.vstack([first, [0, 0, 1]]) @ np.vstack([second, [0, 0, 1]])
    return np.asarray(square[:2], dtype=np.float64)


def invert(affine: Affine) -> Affine:
    return np.asarray(np.linalg.inv(np.vstack([affine, [0, 0, 1]]))[:2], dtype=np.float64)


def flow(num_frames: int = NUM_FRAMES) -> NDArray[np.float64]:
    """Per frame pair the map from pixels (x, y) of frame i+1 to those of frame i, ``(frames - 1, 2, 3)``."""
    views = [camera(index, num_frames) for index in range(num_frames)]
    return np.stack([compose(invert(views[i]), views[i + 1]) for i in range(num_frames - 1)])


def render(picture: Image, view: Affine, size: int = SIZE) -> Image:
    """One square frame, drawn finer than needed and area-reduced. Coordinates refer to pixel centres."""
    fine = 1 / _SUPERSAMPLING
    to_frame = np.array([[fine, 0, (fine - 1) / 2], [0, fine, (fine - 1) / 2]])
    side = size * _SUPERSAMPLING
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    large = cv2.warpAffine(
        picture, compose(view, to_frame), (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def write_clip(path: Path, frames: list[Image]) -> None:
    """Encode as H.264; one thread, so that the same frames give the same file."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        stream.options = {"crf": _QUALITY, "preset": "slow", "threads": "1"}
        for index, frame in enumerate(frames):
            packetised = av.VideoFrame.from_ndarray(frame, format="rgb24")
            packetised.pts = index
            container.mux(stream.encode(packetised))
        container.mux(stream.encode(None))


def main() -> None:
    """Write the clip and its flow into ``rearview.samples``."""
    wide = canvas()
    write_clip(sample_clip_path(), [render(wide, camera(index)) for index in range(NUM_FRAMES)])
    np.save(sample_flow_path(), flow())
    print(f"wrote {sample_clip_path().name}, {sample_clip_path().stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
