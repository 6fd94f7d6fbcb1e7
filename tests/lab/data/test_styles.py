"""The teachers' marks: no plain filter makes them, and they move with what the picture shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview_lab.data.photos import held_out_square
from rearview_lab.data.styles import FILTERS, STYLES
from rearview_lab.data.styles.marks import FAR, border_distance, grain, hatching, tone_labels
from rearview_lab.evaluation.clips import sample_clip
from rearview_lab.evaluation.explained import GOAL, explained_share
from rearview_lab.evaluation.metrics import gradient_magnitude, warp_error
from rearview_lab.evaluation.runner import as_picture

pytestmark = pytest.mark.unit

MARGIN = 48  # pixels from the border that a mark may look past
DRAWN = tuple(style for style in STYLES if style not in ("natural", "pixel-art"))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return held_out_square("astronaut")


@pytest.fixture(scope="module")
def frames() -> list[Tensor]:
    """Neighbours, so that a filter that was fitted to one of two knows the other's colours."""
    return [
        frame for name in ("sample-astronaut", "sample-coffee") for frame in sample_clip(name, 2, 256).frames
    ]


def taught(style: str, frame: Tensor) -> Tensor:
    return as_picture(torch.from_numpy(FILTERS[style](frame.numpy())))


@pytest.mark.parametrize(
    ("style", "most"),
    [
        ("pencil", 0.5), ("oil", 0.4), ("watercolor", GOAL), ("clay", GOAL), ("cartoon", 0.5),
        ("ukiyo-e", GOAL), ("cyberpunk", GOAL), ("blueprint", GOAL), ("pixel-art", 0.5),
    ],
)  # fmt: skip
def test_a_filter_explains_little_of_a_style(frames, style, most):
    """Of neon it explains a little more: tubes on a dark ground are what is left of the picture."""
    sources = [as_picture(frame) for frame in frames]
    assert explained_share(sources, [taught(style, frame) for frame in frames]) < most


@pytest.mark.parametrize("style", DRAWN)
def test_marks_move_with_the_picture_and_not_with_the_screen(photo, style):
    across, down = 5, 3
    first = FILTERS[style](np.ascontiguousarray(photo[:-down, :-across])).astype(float)
    second = FILTERS[style](np.ascontiguousarray(photo[down:, across:])).astype(float)
    seen = np.abs(first[down:, across:] - second[:-down, :-across])[MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert seen.mean() < 0.5, "levels"


@pytest.mark.parametrize("style", DRAWN)
def test_marks_keep_still_under_a_motion_of_parts_of_a_pixel(style):
    """Looking up between pixels costs a share of the contrast, in the clip itself too; marks add little."""
    clip = sample_clip("sample-astronaut", 2, 256)
    before, after = (taught(style, frame) for frame in clip.frames)
    error = warp_error(before, after, clip.motions[0])
    assert error < 0.28 * gradient_magnitude(after)


@pytest.mark.parametrize("style", STYLES)
def test_a_picture_without_an_edge_gets_no_mark(style):
    flat = np.full((64, 64, 3), (90, 120, 160), np.uint8)
    picture = FILTERS[style](flat)
    assert picture.std(axis=(0, 1)).max() < 1 or style == "pixel-art"


def test_hatching_is_as_strong_in_faint_detail_as_in_strong():
    rows, columns = np.mgrid[0:64, 0:64].astype(np.float32)
    wave = np.sin((rows + columns) * 2 * np.pi / (8 * np.sqrt(2))).astype(np.float32)
    for mark in (lambda field: hatching(field, -45, 8.0, 10.0), lambda field: grain(field, 10.0)):
        strong, faint = (mark(0.5 + strength * wave)[16:-16, 16:-16] for strength in (0.4, 0.04))
        assert np.abs(strong).max() > 0.8
        assert np.abs(strong - faint).max() < 0.15


def test_hatching_leaves_lines_of_another_direction_out():
    rows, columns = np.mgrid[0:64, 0:64].astype(np.float32)
    wave = np.sin((rows - columns) * 2 * np.pi / (8 * np.sqrt(2))).astype(np.float32)
    assert np.abs(hatching(0.5 + 0.1 * wave, -45, 8.0, 10.0)[24:-24, 24:-24]).max() < 0.2


def test_borders_lie_between_tones_and_far_is_the_most():
    step = np.repeat(np.linspace(0.2, 0.8, 2, dtype=np.float32), 64)[None].repeat(128, 0)
    distance = border_distance(tone_labels(step, 2))
    assert distance[64, 63] == pytest.approx(0.5, abs=0.5)
    assert distance[64, 83] == pytest.approx(20, abs=1)
    assert distance.max() == FAR
    assert (border_distance(tone_labels(np.full((8, 8), 0.5, np.float32), 2)) == FAR).all()
