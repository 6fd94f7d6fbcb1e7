"""What controls are shown, and which ControlNets are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from rearview.contract.chain import Span
from rearview.contract.controls import ControlPicture, WeightedControl
from rearview.contract.frame import control_plane
from rearview.contract.settings import Settings
from rearview.engine.networks.control_pictures import MOST_ROUNDS, ControlPictures, canny, soft_edges
from rearview.engine.weights.checkpoint import load_model
from rearview.engine.weights.controls import check_control
from rearview.engine.weights.formats import Additions, ControlFile
from rearview.errors import ConfigError, InvalidRequest
from support.tiny import random_frames
from support.tiny_control import write_tiny_control
from support.tiny_depth import write_tiny_depth

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
ENCODE, DENOISE = Span.parse("encode", ["encode"]), Span.parse("denoise", ["denoise-0"])


def scene(height: int, width: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth shapes, lines and grain: strong, weak and broken edges in every direction."""
    draw = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 90, np.uint8)
    for _ in range(12):
        at = tuple(int(each) for each in draw.integers(0, max(height, width), 2))
        colour = tuple(int(each) for each in draw.integers(0, 256, 3))
        cv2.circle(picture, at, int(draw.integers(4, 40)), colour, int(draw.choice([-1, 1, 3])))
    smooth = cv2.GaussianBlur(picture, (0, 0), 1.2).astype(np.float64)
    return (smooth + draw.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("thresholds", [(100, 200), (20, 60), (0, 0)])
@pytest.mark.parametrize("size", [(64, 64), (120, 72), (8, 200)])
def test_canny_finds_the_edges_of_opencv_pixel_by_pixel(
    size: tuple[int, int], thresholds: tuple[int, int]
) -> None:
    pictures = [scene(*size, seed) for seed in range(3)]
    found = canny(torch.from_numpy(np.stack(pictures)), *thresholds)
    expected = np.stack([cv2.Canny(picture, *thresholds) for picture in pictures])
    assert expected.any()
    assert found.shape == (3, *size, 3)
    assert all(np.array_equal(found[..., channel].numpy(), expected) for channel in range(3))


def test_edges_grow_so_far_and_no_further() -> None:
    """A weak line of a thousand pixels with a strong end: no frame holds up others."""
    picture = np.zeros((40, 1000, 3), np.uint8)
    picture[20:] = 30
    picture[20:, :20] = 255
    assert np.count_nonzero(cv2.Canny(picture, 100, 200)[19:21, 900:]) > 0, "OpenCV goes on"
    found = canny(torch.from_numpy(picture[None]))[0, :, :, 0].any(0)
    assert found[: MOST_ROUNDS // 2].all()
    assert not found[2 * MOST_ROUNDS :].any()


def test_soft_edges_are_steep_places_alone() -> None:
    picture = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    picture[:, :, 16:] = 255
    found = soft_edges(picture)[0, :, :, 0]
    assert found[:, 15:17].min() > 200
    assert not found[:, :12].any()
    assert not found[:, 20:].any()
    assert torch.equal(found, found[:1].expand_as(found))


def test_depth_is_drawn_from_black_to_white(tmp_path: Path, checkpoint: Path) -> None:
    """By the DPT of the control, which is that of the motion modules where both name the same."""
    depth = str(write_tiny_depth(tmp_path / "depth"))
    files = {name: ControlFile("nowhere", ControlPicture.DEPTH, depth) for name in ("a", "b")}
    model: Any = load_model(str(checkpoint), ENCODE, CPU, torch.float32, Additions(controls=files))
    pictures: ControlPictures = model._drawing
    assert pictures.depths["a"] is pictures.depths["b"]
    assert model.depth is None
    under = Settings(controls=(WeightedControl("a"),))
    (drawn,) = pictures.draw(random_frames(1)[0][None], [under], [{}])
    shown = drawn[control_plane("a")]
    assert shown.shape == (64, 64, 3)
    assert int(shown.min()) < 10
    assert int(shown.max()) > 245
    assert torch.equal(shown[..., 0], shown[..., 2])


def test_frames_of_one_batch_are_shown_what_each_is_alone() -> None:
    kinds = {"c": ControlPicture.CANNY, "s": ControlPicture.SOFT_EDGES, "t": ControlPicture.TILE}
    pictures = ControlPictures(kinds, {}, torch.float32)
    images = torch.from_numpy(np.stack([scene(64, 64, seed) for seed in range(4)]))
    asked = [("t", "c"), (), ("s",), ("c", "s", "t")]
    under = [Settings(controls=tuple(WeightedControl(name) for name in names)) for names in asked]
    together = pictures.draw(images, under, [{}] * 4)
    for image, settings, shown, names in zip(images, under, together, asked, strict=True):
        (alone,) = pictures.draw(image[None], [settings], [{}])
        assert alone.keys() == shown.keys() == {control_plane(name) for name in names}
        assert all(torch.equal(shown[plane], alone[plane]) for plane in shown)


def test_what_was_sent_is_shown_and_what_nobody_has_is_left_out() -> None:
    kinds = {"c": ControlPicture.CANNY, "p": ControlPicture.SENT}
    pictures = ControlPictures(kinds, {}, torch.float32)
    images, sent = torch.from_numpy(np.stack([scene(64, 64, 0)] * 4)), random_frames(4, 1)
    under = [
        Settings(controls=tuple(WeightedControl(name) for name in names)) for names in ("cp", "cp", "c", "")
    ]
    came = [{}, {control_plane("p"): sent[1]}, {control_plane(name): sent[2] for name in "cp"}, {}]
    came[3] = {control_plane("p"): sent[3], "picture": sent[0]}
    drawn = canny(images[:1])[0]
    expected = [{"c": drawn}, {"c": drawn, "p": sent[1]}, {"c": sent[2]}, {}]
    for shown, wanted in zip(pictures.draw(images, under, came), expected, strict=True):
        assert shown.keys() == {control_plane(name) for name in wanted}
        assert all(torch.equal(shown[control_plane(name)], each) for name, each in wanted.items())


def test_a_span_that_only_encodes_refuses_a_control_that_is_not_there(checkpoint: Path) -> None:
    """Where settings come, not where a frame does."""
    files = {"edges": ControlFile("nowhere", ControlPicture.CANNY)}
    model = load_model(str(checkpoint), ENCODE, CPU, torch.float32, Additions(controls=files))
    model.prepare(Settings(controls=(WeightedControl("edges"),)))
    with pytest.raises(InvalidRequest, match="there are: edges"):
        model.prepare(Settings(controls=(WeightedControl("pose"),)))


@pytest.fixture(scope="module")
def control(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_control(tmp_path_factory.mktemp("control") / "edges", checkpoint)


def refused(checkpoint: Path, folder: Path) -> str:
    files = {"edges": ControlFile(str(folder), ControlPicture.CANNY)}
    with pytest.raises(ConfigError) as raised:
        load_model(str(checkpoint), DENOISE, CPU, torch.float32, Additions(controls=files))
    assert str(raised.value).startswith("model.controls.edges")
    return str(raised.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"_class_name": "ControlNetUnionModel"}, "ControlNetUnionModel is not supported"),
        ({"cross_attention_dim": 1024}, "cross_attention_dim is 1024, the UNet's 24: is it of another base"),
        ({"block_out_channels": [16, 64]}, "block_out_channels is 16, 64, the UNet's 16, 32"),
        ({"in_channels": 9}, "in_channels is 9, the UNet's 6"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type is text_time, the UNet's None"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "its blocks are SkipDownBlock2D"),
        ({"down_block_types": ["DownBlock2D"] * 3}, "down_block_types has 3 entries for 2 blocks"),
        ({"num_attention_heads": [1, 2, 3]}, "num_attention_heads has 3 entries for 2 blocks"),
        ({"mid_block_type": "UNetMidBlockFlat"}, "its middle block is UNetMidBlockFlat"),
        ({"global_pool_conditions": True}, "is shown a style, not a shape"),
        ({"controlnet_conditioning_channel_order": "bgr"}, "another order of colours"),
        ({"conditioning_embedding_out_channels": [16, 32]}, "latent cell of 2 pixels, the VAE of 8"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_with_the_reason(
    checkpoint: Path, control: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    folder = tmp_path / "edges"
    shutil.copytree(control, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    assert reason in refused(checkpoint, folder)


def test_what_is_missing_or_broken_is_refused(checkpoint: Path, control: Path, tmp_path: Path) -> None:
    assert "nowhere" in refused(checkpoint, tmp_path / "nowhere")
    broken = ControlNetModel.from_pretrained(control)
    with torch.no_grad():
        broken.controlnet_mid_block.weight[0, 0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    assert "are not finite" in refused(checkpoint, tmp_path / "broken")
    shutil.copytree(control, tmp_path / "empty")
    (tmp_path / "empty" / "diffusion_pytorch_model.safetensors").unlink()
    assert "cannot be loaded" in refused(checkpoint, tmp_path / "empty")


def test_a_config_without_defaults_is_that_of_stable_diffusion() -> None:
    """Old files leave out what has its default."""
    check_control(
        {"_class_name": "ControlNetModel", "cross_attention_dim": 768}, {"cross_attention_dim": 768}, 8
    )
