"""The still pictures of the methods' pages show flicker and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from rearview_lab.evaluation.clips import sample_clip
from rearview_lab.evaluation.flow import warp
from rearview_lab.evaluation.runner import as_picture
from rearview_lab.evaluation.stills import BRIGHTER, METHODS, Column, flicker, sheet

pytestmark = pytest.mark.unit

SIDE = 64
CLIP = sample_clip("sample-astronaut", 2, SIDE)
(MOTION,) = CLIP.motions


def column(*, boils_by: float = 0.0) -> Column:
    """A picture that moves as the clip does, and grows brighter meanwhile."""
    before = as_picture(CLIP.frames[0])
    return Column("a", before, warp(before, MOTION.backward) + boils_by)


def test_motion_is_no_flicker() -> None:
    moved = column()
    assert not torch.equal(moved.before, moved.after)
    assert flicker(moved, MOTION).abs().max() == 0


def test_a_picture_that_grows_brighter_flickers_by_as_much() -> None:
    seen = flicker(column(boils_by=0.05), MOTION)[:, MOTION.visible]
    assert torch.allclose(seen, torch.full_like(seen, 0.05 * BRIGHTER), atol=1e-5)


def test_what_came_in_over_the_border_is_no_flicker() -> None:
    hidden = ~MOTION.visible
    assert hidden.any()
    assert torch.equal(flicker(column(boils_by=1.0), MOTION)[:, hidden], torch.zeros(3, int(hidden.sum())))


def test_each_method_has_its_picture(root: Path) -> None:
    one = sheet([column(), column()], MOTION)
    assert one.width == 2 * SIDE + 4
    for method in METHODS:
        with Image.open(root / f"docs/pictures/{method.value}.webp") as picture:
            assert picture.height == one.height + 2 * (256 - SIDE)
