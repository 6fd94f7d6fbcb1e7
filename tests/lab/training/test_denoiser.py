"""Draws of roll-outs, and self-attention that starts by looking for the same content."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview_lab.training.denoiser import draw_steps, match_keys
from rearview_lab.training.model import build_unet
from rearview_lab.training.sampling import GRID

pytestmark = pytest.mark.unit


def test_later_predictions_are_at_smaller_timesteps():
    first, last = draw_steps(np.random.default_rng(0), 500)
    assert (first < last).all()
    assert first.min() >= 10
    assert last.max() <= GRID - 2


@torch.no_grad()
def test_matched_keys_are_the_queries():
    unet = build_unet()
    match_keys(unet)
    attention = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1
    assert torch.equal(attention.to_q.weight, attention.to_k.weight)
