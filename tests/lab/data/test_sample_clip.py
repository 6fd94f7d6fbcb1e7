"""The bundled clip: its size, and that its flow maps each frame onto the one before."""

from __future__ import annotations

import av
import numpy as np
import pytest
from rearview.samples import sample_clip_path, sample_flow

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def frames():
    with av.open(str(sample_clip_path())) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def sample_at(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear lookup of colours at pixel-centre coordinates that lie inside the picture."""
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    across, down = (x - left)[..., None], (y - top)[..., None]
    upper = picture[top, left] * (1 - across) + picture[top, left + 1] * across
    lower = picture[top + 1, left] * (1 - across) + picture[top + 1, left + 1] * across
    return upper * (1 - down) + lower * down


def photometric_error(before: np.ndarray, after: np.ndarray, affine: np.ndarray, margin: int = 12) -> float:
    """Mean absolute difference (0..1) of ``after`` to ``before`` looked up through ``affine``."""
    rows, columns = np.mgrid[margin : after.shape[0] - margin, margin : after.shape[1] - margin].astype(float)
    x = affine[0, 0] * columns + affine[0, 1] * rows + affine[0, 2]
    y = affine[1, 0] * columns + affine[1, 1] * rows + affine[1, 2]
    seen = after[margin:-margin, margin:-margin]
    return float(np.abs(sample_at(before.astype(float), x, y) - seen).mean() / 255)


def test_clip_has_the_promised_size_and_rate(frames):
    assert sample_clip_path().stat().st_size < 1_500_000
    assert len(frames) >= 120
    assert frames[0].shape == (256, 256, 3)
    with av.open(str(sample_clip_path())) as container:
        assert container.streams.video[0].average_rate == 25


def test_flow_maps_each_frame_onto_the_one_before(frames):
    flow = sample_flow()
    assert flow.shape == (len(frames) - 1, 2, 3)
    still = np.array([[1.0, 0, 0], [0, 1, 0]])
    for index in range(0, len(flow), 20):
        error = photometric_error(frames[index], frames[index + 1], flow[index])
        assert error < 0.015, f"frame {index}"
    middle = len(flow) // 2
    moved = photometric_error(frames[middle], frames[middle + 1], flow[middle])
    assert moved < 0.5 * photometric_error(frames[middle], frames[middle + 1], still)


def test_motion_is_a_few_pixels_per_frame():
    centre = np.array([127.5, 127.5, 1.0])
    travel = np.linalg.norm(sample_flow() @ centre - centre[:2], axis=1)
    assert 0.5 < travel.mean() < 5
    assert travel.max() < 8


def test_clip_is_what_its_maker_draws(frames):
    pytest.importorskip("cv2")
    pytest.importorskip("skimage")
    from rearview_lab.data.sample_clip import camera, canvas, flow, render

    assert np.allclose(flow(), sample_flow())
    drawn = render(canvas(), camera(60)).astype(float)
    assert np.abs(drawn - frames[60]).mean() < 4
