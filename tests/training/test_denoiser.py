"""Draws of roll-outs, and self-attention that is made to look for the same content."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview.training.denoiser import draw_steps, match_keys, sharpen_attention
from rearview.training.model import LATENT_CHANNELS, TEXT_LENGTH, TEXT_WIDTH, build_unet
from rearview.training.sampling import GRID

pytestmark = pytest.mark.unit


def test_later_predictions_are_at_smaller_timesteps():
    first, last = draw_steps(np.random.default_rng(0), 500)
    assert (first < last).all()
    assert first.min() >= 10
    assert last.max() <= GRID - 2


@torch.no_grad()
def test_sharpened_queries_and_keys_are_equal_in_both_models():
    torch.manual_seed(0)
    unet = build_unet().eval()
    other = copy.deepcopy(unet)
    before = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.clone()
    latent, text = torch.randn(2, LATENT_CHANNELS, 8, 8), torch.randn(2, TEXT_LENGTH, TEXT_WIDTH)
    sharpen_attention(unet, other, lambda: unet(latent, 399, text))
    for model in (unet, other):
        last = model.up_blocks[2].attentions[1].transformer_blocks[0].attn1
        assert torch.equal(last.to_q.weight, last.to_k.weight)
        early = model.down_blocks[0].attentions[0].transformer_blocks[0].attn1
        half = len(early.to_q.weight) // early.heads
        assert torch.equal(early.to_q.weight[:half], early.to_k.weight[:half])
        assert not torch.equal(early.to_q.weight[half:], early.to_k.weight[half:])
    assert torch.equal(unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight, before)
    assert torch.equal(
        unet.up_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q.weight,
        other.up_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q.weight,
    )


@torch.no_grad()
def test_matched_keys_are_the_queries():
    unet = build_unet()
    match_keys(unet)
    attention = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1
    assert torch.equal(attention.to_q.weight, attention.to_k.weight)
