"""Fresh motion modules change nothing, and their export is a MotionAdapter that the engine reads."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview.engine.networks.attention.temporal import ClipAttention
from rearview.engine.weights.motion_formats import read_motion
from rearview_lab.training.model import LATENT_CHANNELS, TEXT_LENGTH, TEXT_WIDTH, build_unet
from rearview_lab.training.motion import (
    FRAMES,
    HEADS,
    NORM_GROUPS,
    OUTPUT_GAIN,
    POSITIONS,
    SINK,
    motion_of,
    motion_weights,
    new_motion,
    weakened,
    write_motion,
)

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def streaming():
    torch.manual_seed(0)
    return new_motion(build_unet(), seed=1).eval()


@torch.no_grad()
def test_new_modules_add_nothing(streaming):
    frames = torch.randn(FRAMES, LATENT_CHANNELS, 4, 4)
    text = torch.randn(1, TEXT_LENGTH, TEXT_WIDTH).expand(FRAMES, -1, -1)
    alone = streaming(frames, 399, text)[0]
    assert torch.equal(streaming(frames, 399, text, attend=ClipAttention(FRAMES, SINK).attend)[0], alone)


def test_only_the_modules_are_trained(streaming):
    trained = {name for name, parameter in streaming.named_parameters() if parameter.requires_grad}
    assert trained == set(motion_weights(motion_of(streaming)))
    assert all(".motion_modules." in name for name in trained)


def test_export_is_read_back_by_the_engine(streaming, tmp_path):
    weights = motion_weights(motion_of(streaming))
    write_motion(weights, streaming.config, tmp_path / "motion_adapter")
    read = read_motion(tmp_path / "motion_adapter")
    assert (read.heads, read.norm_groups, read.max_frames) == (HEADS, NORM_GROUPS, POSITIONS)
    assert set(read.tensors) == set(weights)
    assert all(torch.equal(read.tensors[name].half(), weights[name].half()) for name in weights)
    assert sum(file.stat().st_size for file in (tmp_path / "motion_adapter").iterdir()) < 20_000_000


def test_weakened_modules_differ_in_their_last_layers_alone(streaming):
    weights = {name: torch.ones_like(value) for name, value in motion_weights(motion_of(streaming)).items()}
    weak = weakened(weights)
    changed = {name for name in weights if not torch.equal(weak[name], weights[name])}
    assert len(changed) == len(list(streaming.temporal_layers())), "weight and bias; two layers a module"
    assert all("motion_modules" in name and ".proj_out." in name for name in changed)
    assert all(bool((weak[name] == OUTPUT_GAIN).all()) for name in changed)
