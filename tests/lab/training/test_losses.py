"""What each loss pays for: sharpness anywhere, and marks that are there, of their direction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview_lab.training.losses import contrast_loss, mark_loss

pytestmark = pytest.mark.unit


def hatches(shift: float = 0.0, *, across: float = 0.6, down: float = 0.8, strength: float = 0.5) -> Tensor:
    """Lines 8 pixels apart, (1, 3, 64, 64) in -1..1."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    wave = torch.sin(2 * torch.pi / 8 * (across * columns + down * rows + shift))
    return (strength * wave).expand(1, 3, -1, -1)


def test_blur_costs_contrast():
    sharp = torch.randn(1, 3, 32, 32)
    blurred = F.avg_pool2d(sharp, 3, stride=1, padding=1)
    assert contrast_loss(sharp, sharp) == 0
    assert contrast_loss(blurred, sharp) > 0.3


def test_marks_may_lie_aside_but_not_be_missing_or_turned():
    target = hatches()
    missing, turned = torch.zeros_like(target), hatches(across=0.8, down=-0.6)
    aside, faint = hatches(2.0), hatches(strength=0.25)
    assert mark_loss(target, target) == 0
    assert mark_loss(aside, target) < 0.1 * mark_loss(missing, target)
    assert mark_loss(turned, target) > mark_loss(missing, target)
    assert mark_loss(faint, target) == pytest.approx(float(mark_loss(missing, target)) / 2, rel=0.1)
    assert (aside - target).abs().mean() > (missing - target).abs().mean(), "pixels say the opposite"


def test_a_grey_answer_is_drawn_towards_the_marks():
    target, given = hatches(), (0.1 * hatches()).requires_grad_()
    mark_loss(given, target).backward()
    stepped = given.detach() - 20 * given.grad
    assert mark_loss(stepped, target) < mark_loss(given, target)
    assert torch.isfinite(given.grad).all()
    flat = torch.zeros_like(target).requires_grad_()
    mark_loss(flat, target).backward()
    assert torch.isfinite(flat.grad).all()
