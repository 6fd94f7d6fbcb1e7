"""Each figure against what must come out, and against what it must not be fooled by."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("cv2")
from rearview_lab.evaluation.flow import Motion, affine_motion
from rearview_lab.evaluation.metrics import (
    Drift,
    Meter,
    Scores,
    gradient_magnitude,
    mean_scores,
    psnr,
    warp_error,
)

pytestmark = pytest.mark.unit

SIDE = 48
STILL = np.array([[1.0, 0, 0], [0, 1, 0]])
RIGHT_3 = np.array([[1.0, 0, -3], [0, 1, 0]])


def wide_picture(seed: int = 0) -> torch.Tensor:
    """(3, SIDE, 2 SIDE) with detail everywhere."""
    return torch.rand(3, SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(seed))


def moving(count: int, speed: int = 3) -> list[torch.Tensor]:
    """Windows of one picture that moves right by `speed` pixels a frame."""
    wide = wide_picture()
    return [wide[:, :, SIDE - speed * i : 2 * SIDE - speed * i] for i in range(count)]


def measured(pictures: list[torch.Tensor], motion: Motion) -> Scores:
    meter = Meter()
    for index, picture in enumerate(pictures):
        meter.add(picture, picture, motion if index else None)
    return meter.scores()


def test_perfectly_moved_pictures_have_no_warp_error() -> None:
    before, after = moving(2)
    assert warp_error(before, after, affine_motion(RIGHT_3, SIDE, SIDE)) < 1e-6


def test_smooth_pictures_moved_by_a_fraction_have_almost_none() -> None:
    rows = torch.linspace(0, 3, SIDE)[None, :, None]
    columns = torch.arange(SIDE, dtype=torch.float32)[None, None]
    before = (torch.sin(columns / 9 + rows) * 0.4 + 0.5).expand(3, SIDE, SIDE)
    after = (torch.sin((columns - 1.37) / 9 + rows) * 0.4 + 0.5).expand(3, SIDE, SIDE)
    shift = np.array([[1.0, 0, -1.37], [0, 1, 0]])
    assert warp_error(before, after, affine_motion(shift, SIDE, SIDE)) < 1e-3


def test_planted_flicker_is_found_with_its_size() -> None:
    before, after = moving(2)
    flicker = torch.where(
        torch.rand(after.shape, generator=torch.Generator().manual_seed(3)) < 0.5, 0.03, -0.03
    )
    found = warp_error(before, after + flicker, affine_motion(RIGHT_3, SIDE, SIDE))
    assert found == pytest.approx(0.03, abs=1e-5)


def test_darker_and_brighter_count_alike() -> None:
    # The published scripts subtract bytes, where -1 is 255: darker pixels would count 100 times as much.
    picture = torch.full((3, SIDE, SIDE), 0.5)
    motion = affine_motion(STILL, SIDE, SIDE)
    assert warp_error(picture, picture - 1 / 255, motion) == pytest.approx(1 / 255, rel=1e-4)
    assert warp_error(picture, picture + 1 / 255, motion) == pytest.approx(1 / 255, rel=1e-4)


def test_differences_below_one_level_are_seen() -> None:
    picture = torch.full((3, SIDE, SIDE), 0.5)
    assert warp_error(picture, picture + 1e-4, affine_motion(STILL, SIDE, SIDE)) == pytest.approx(
        1e-4, rel=1e-2
    )


def test_ignoring_motion_would_cost_much() -> None:
    before, after = moving(2)
    right = warp_error(before, after, affine_motion(RIGHT_3, SIDE, SIDE))
    assert warp_error(before, after, affine_motion(STILL, SIDE, SIDE)) > 0.2 > 1000 * right


def test_the_wrong_direction_costs_as_much() -> None:
    before, after = moving(2)
    back = np.array([[1.0, 0, 3], [0, 1, 0]])
    assert warp_error(before, after, affine_motion(back, SIDE, SIDE)) > 0.2


def test_hidden_pixels_do_not_count() -> None:
    before, after = moving(2)
    motion = affine_motion(RIGHT_3, SIDE, SIDE)
    spoilt = after.clone()
    spoilt[:, 10:20, 10:20] = 0
    visible = motion.visible.clone()
    visible[10:20, 10:20] = False
    assert warp_error(before, spoilt, motion) > 0.01
    assert warp_error(before, spoilt, Motion(motion.backward, visible)) < 1e-6


def test_a_cut_is_no_flicker() -> None:
    first, second = wide_picture(1)[:, :, :SIDE], wide_picture(2)[:, :, :SIDE]
    gone = Motion(torch.zeros(2, SIDE, SIDE), torch.zeros(SIDE, SIDE, dtype=torch.bool))
    assert math.isnan(warp_error(first, second, gone))
    meter = Meter()
    still = affine_motion(STILL, SIDE, SIDE)
    for picture, motion in ((first, None), (first, still), (second, gone), (second, still)):
        meter.add(picture, picture, motion)
    assert meter.scores().warp_error < 1e-6


def test_blur_lowers_the_warp_error_and_the_gradient_tells() -> None:
    """What the gradient guard is for: the worse picture has the better warp error."""
    generator = torch.Generator().manual_seed(0)
    noisy = [frame + 0.05 * torch.randn(frame.shape, generator=generator) for frame in moving(4)]
    blurred = [
        torch.from_numpy(cv2.GaussianBlur(one.permute(1, 2, 0).numpy().copy(), (0, 0), 1.5)).permute(2, 0, 1)
        for one in noisy
    ]
    motion = affine_motion(RIGHT_3, SIDE, SIDE)
    sharp, soft = measured(noisy, motion), measured(blurred, motion)
    assert soft.warp_error < 0.7 * sharp.warp_error
    assert soft.gradient < 0.95 * sharp.gradient


def test_gradient_of_a_ramp_is_its_slope() -> None:
    ramp = (torch.arange(SIDE) * 0.01).expand(3, SIDE, SIDE)
    assert gradient_magnitude(ramp) == pytest.approx(0.01, rel=1e-4)


def test_meter_reports_differences_and_colours() -> None:
    source = torch.full((3, SIDE, SIDE), 0.5)
    picture = source.clone()
    picture[0] = 0.8
    meter = Meter()
    meter.add(source, picture, None, depth_error=0.2)
    meter.add(source, picture - 0.1, affine_motion(STILL, SIDE, SIDE), depth_error=0.4)
    scores = meter.scores()
    assert scores.input_difference == pytest.approx((0.1 + (0.2 + 0.1 + 0.1) / 3) / 2)
    assert scores.colour_mean == pytest.approx((0.75, 0.45, 0.45))
    assert scores.colour_std == pytest.approx((0, 0, 0), abs=1e-6)
    assert scores.consistency == pytest.approx(0.9)
    assert scores.warp_error == pytest.approx(0.1)
    assert scores.depth_error == pytest.approx(0.3)
    assert scores.clip_consistency is None


def test_means_over_clips_leave_out_what_was_not_measured() -> None:
    def scores(error: float, depth: float | None = None) -> Scores:
        return Scores(error, 0.2, 0.1, 0.9, (0.1, 0.2, 0.3), (0.0, 0.0, 0.0), depth_error=depth)

    found = mean_scores([scores(0.1), scores(math.nan), scores(0.3)])
    assert found.warp_error == pytest.approx(0.2)
    assert found.colour_mean == pytest.approx((0.1, 0.2, 0.3))
    assert found.depth_error is None
    assert mean_scores([scores(0.1, 0.5), scores(0.1, 0.7)]).depth_error == pytest.approx(0.6)


def test_peak_signal_to_noise() -> None:
    picture = torch.full((3, 8, 8), 0.5)
    assert psnr(picture, picture + 0.1) == pytest.approx(20.0, abs=1e-3)


def drift(late: dict[str, object]) -> Drift:
    early = {
        "warp_error": 0.02,
        "input_difference": 0.1,
        "gradient": 0.05,
        "consistency": 0.9,
        "colour_mean": (0.5, 0.4, 0.3),
        "colour_std": (0.2, 0.2, 0.2),
    }
    return Drift(Scores(**early), Scores(**{**early, **late}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "late",
    [
        {"warp_error": 0.0211},
        {"warp_error": 0.0189},  # Less flicker is drift too: the picture changes.
        {"colour_mean": (0.5, 0.37, 0.3)},
        {"colour_std": (0.2, 0.2, 0.215)},
    ],
)
def test_planted_drift_is_found(late: dict[str, object]) -> None:
    assert not drift(late).holds


def test_small_changes_and_a_still_clip_do_not_drift() -> None:
    assert drift({}).holds
    assert drift({"warp_error": 0.0208, "colour_mean": (0.51, 0.4, 0.3)}).holds
    still = Scores(0.0, 0.1, 0.05, 1.0, (0.5, 0.4, 0.0), (0.2, 0.2, 0.0))
    assert Drift(still, still).worst == 0.0
    flickers = Scores(0.01, 0.1, 0.05, 1.0, (0.5, 0.4, 0.0), (0.2, 0.2, 0.0))
    assert not Drift(still, flickers).holds
