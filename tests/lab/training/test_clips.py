"""Training clips move exactly as they say, and a clip's memory equals the product's bank, frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview.contract.memories import BankPolicy, BankSettings
from rearview.contract.settings import Settings
from rearview.engine.networks.attention.processors import install_processors
from rearview.engine.reference.bank import PlainBank
from rearview_lab.data.clips import WINDOW, draw_path, make_clips, unsteadiness
from rearview_lab.data.dataset import Dataset
from rearview_lab.data.scenes import SCENE_SIZE
from rearview_lab.data.styles import PIXEL_ART_TILE, STYLES
from rearview_lab.training.clip_memory import MAX_FRAMES, ClipMemory
from rearview_lab.training.denoiser import ClipNoise, match_keys, style_weights
from rearview_lab.training.model import LATENT_CHANNELS, TEXT_LENGTH, TEXT_WIDTH, build_unet

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
LENGTH = 5


@pytest.fixture(scope="module")
def data():
    """Smooth scenes, the same in every style."""
    places = np.linspace(0, 3 * np.pi, SCENE_SIZE)
    wave = 127 + 60 * np.sin(places)[:, None] + 60 * np.cos(1.3 * places)[None, :]
    scene = np.repeat(wave[..., None], 3, axis=2).astype(np.uint8)
    return Dataset(np.stack([np.stack([scene] * len(STYLES)), np.stack([255 - scene] * len(STYLES))]))


def test_what_moves_with_the_clip_is_steady_and_what_stays_on_the_screen_is_not(data):
    rng = np.random.default_rng(3)
    clips = make_clips(
        data, rng, num_clips=8, length=LENGTH, device=CPU, style_weights=style_weights()
    )  # fmt: skip
    assert clips.natural.shape == (8 * LENGTH, 3, WINDOW, WINDOW)
    assert clips.motion.shape == (8, LENGTH - 1, 2, 3)
    assert torch.equal(clips.natural, clips.styled)
    moving = (clips.motion - torch.eye(3)[:2]).abs().amax(dim=(1, 2, 3)) > 0.01
    assert moving.any()
    still = torch.eye(3)[:2].expand_as(clips.motion)
    assert unsteadiness(clips.natural, clips.motion) < 0.006
    assert unsteadiness(clips.natural, still, moving) > 4 * unsteadiness(clips.natural, clips.motion, moving)
    assert unsteadiness(clips.natural, clips.motion, torch.zeros(8, dtype=torch.bool)) == 0


def test_paths_stay_in_the_scene_and_tiles_move_whole():
    rng = np.random.default_rng(0)
    for _ in range(50):
        path = draw_path(rng, 16)
        reach = np.abs(path[:, :2, 2]) + np.abs(path[:, :2, :2]).sum(axis=2)
        assert reach.max() < 1.1, "a turned window may leave by a corner"
        tiled = draw_path(rng, 16, tiled=True)
        corner = tiled[:, :2, 2] * SCENE_SIZE / 2 + (SCENE_SIZE - WINDOW) / 2
        assert np.allclose(corner / PIXEL_ART_TILE, np.round(corner / PIXEL_ART_TILE))


def test_noise_is_fresh_in_some_clips_and_fixed_in_others():
    noise = ClipNoise(torch.tensor([True, False]), 3).like(torch.zeros(6, 2, 4, 4))
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[3], noise[4])
    assert torch.equal(noise[3], noise[5])
    assert not torch.equal(noise[0], noise[3])


@torch.no_grad()
def test_one_forward_over_a_clip_is_the_products_bank_frame_by_frame():
    torch.manual_seed(0)
    unet = build_unet().eval()
    layout = install_processors(unet)
    match_keys(unet)
    frames = torch.randn(LENGTH, LATENT_CHANNELS, 8, 8)
    text = torch.randn(1, TEXT_LENGTH, TEXT_WIDTH)
    settings = Settings(prompt="x", strength=0.4, steps=2)
    bank = PlainBank(
        BankSettings(policy=BankPolicy.QUEUE, interval=1, max_frames=MAX_FRAMES, fusion_strength=0), layout
    )
    one_by_one = []
    for ordinal, frame in enumerate(frames):
        view = bank.view(settings, ordinal, 0)
        one_by_one.append(unet(frame[None], 399, text, cross_attention_kwargs={"memory": view}).sample)
        view.commit()
    both = torch.cat([frames, frames])
    memory = ClipMemory(torch.tensor([True, False]), LENGTH)
    output = unet(
        both, 399, text.expand(len(both), -1, -1), cross_attention_kwargs={"memory": memory}
    ).sample  # fmt: skip
    plain = unet(frames, 399, text.expand(LENGTH, -1, -1)).sample
    assert torch.allclose(output[:LENGTH], torch.cat(one_by_one), atol=1e-4)
    assert torch.allclose(output[LENGTH:], plain, atol=1e-4)
    assert not torch.allclose(output[1:LENGTH], plain[1:], atol=1e-2)
