"""Motions: what maps where, what is hidden, and that masks are those of the later frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")
from rearview_lab.evaluation.flow import (
    affine_motion,
    estimated_motion,
    layered_motion,
    returns,
    scaled,
    warp,
)

pytestmark = pytest.mark.unit

SIDE = 48
STILL = np.array([[1.0, 0, 0], [0, 1, 0]])


def shift(right: float, down: float) -> np.ndarray:
    """The map of a picture that moves right and down: its pixels came from the left and above."""
    return np.array([[1.0, 0, -right], [0, 1, -down]])


def square_alpha(left: int, top: int, side: int = 12) -> torch.Tensor:
    alpha = torch.zeros(SIDE, SIDE)
    alpha[top : top + side, left : left + side] = 1
    return alpha


def textured(seed: int, size: int = 96) -> np.ndarray:
    import cv2

    noise = np.random.default_rng(seed).uniform(0, 255, (size, size, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 2.0)
    stretched = (blurred - blurred.min()) / (blurred.max() - blurred.min()) * 255
    return stretched.astype(np.uint8)


def test_warp_looks_up_to_a_fraction_of_a_pixel() -> None:
    ramp = torch.arange(SIDE, dtype=torch.float32).expand(1, SIDE, SIDE)
    motion = affine_motion(shift(2.013, 0), SIDE, SIDE)
    moved = warp(ramp, motion.backward)[0]
    assert torch.allclose(moved[motion.visible], (ramp[0] - 2.013)[motion.visible], atol=1e-4)


def test_pixels_that_come_in_over_the_border_are_not_visible() -> None:
    visible = affine_motion(shift(3, -2), SIDE, SIDE).visible
    assert not visible[:, :3].any()
    assert not visible[-2:].any()
    assert visible[:-2, 3:].all()
    assert affine_motion(STILL, SIDE, SIDE).visible.all()


def test_a_map_is_the_same_at_another_size() -> None:
    turn = np.array([[0.99, -0.05, 3.0], [0.05, 0.99, -2.0]])
    large = scaled(turn, 2.0)
    # The centre of a small pixel (x, y) lies at (2x + 0.5, 2y + 0.5) of the picture twice as large.
    small_point = np.array([10.0, 7.0, 1.0])
    large_point = np.array([20.5, 14.5, 1.0])
    assert np.allclose(large @ large_point, 2 * (turn @ small_point) + 0.5)


def test_what_a_moving_square_uncovers_is_hidden_in_the_later_frame() -> None:
    before, after = square_alpha(10, 20), square_alpha(15, 20)  # It moves 5 pixels to the right.
    motion = layered_motion(STILL, shift(5, 0), before, after)
    hidden = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    hidden[20:32, 10:15] = True  # Uncovered behind it: ground now, square before.
    assert torch.equal(~motion.visible, hidden)
    # What it covers now is its own and was seen before; the earlier frame's mask would hide it.
    assert motion.visible[20:32, 22:27].all()
    assert torch.equal(motion.backward[:, 25, 20], torch.tensor([-5.0, 0.0]))
    assert torch.equal(motion.backward[:, 5, 5], torch.zeros(2))


def test_mixed_pixels_of_an_edge_are_left_out() -> None:
    alpha = square_alpha(10, 20)
    alpha[19, 10:22] = 0.5
    motion = layered_motion(STILL, STILL, alpha, alpha)
    assert not motion.visible[19, 10:22].any()
    assert motion.visible[17].all()
    assert motion.visible[25].all()


def test_estimated_motion_finds_a_shift() -> None:
    picture = textured(1)
    before, after = picture[:64, 3:67], picture[:64, :64]  # Moves 3 pixels to the right.
    motion = estimated_motion(before, after)
    inner = motion.backward[:, 16:48, 16:48]
    assert torch.allclose(inner[0].mean(), torch.tensor(-3.0), atol=0.1)
    assert torch.allclose(inner[1].mean(), torch.tensor(0.0), atol=0.1)
    assert motion.visible[16:48, 16:48].float().mean() > 0.98


def test_estimated_motion_hides_what_an_object_uncovers() -> None:
    ground, figure = textured(2), textured(3)
    before, after = ground.copy(), ground.copy()
    before[32:72, 20:60] = figure[:40, :40]
    after[32:72, 26:66] = figure[:40, :40]
    visible = estimated_motion(before, after).visible
    assert visible[36:68, 21:25].float().mean() < 0.4  # Uncovered.
    assert visible[40:64, 36:58].float().mean() > 0.9  # The object itself.
    assert visible[5:25, 5:90].float().mean() > 0.95


def test_going_back_and_forth_must_lead_to_where_it_started() -> None:
    backward = torch.zeros(2, SIDE, SIDE)
    backward[0] = -4.0
    forward = -backward
    assert returns(backward, forward).all()
    forward[0, :, 20:30] = 0.0  # What is there stays: it was not seen to move.
    agreed = returns(backward, forward)
    assert not agreed[:, 24:34].any()
    assert agreed[:, 36:].all()
