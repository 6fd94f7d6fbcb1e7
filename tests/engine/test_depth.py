"""Depth: a network of transformers' from a folder, and what encode makes of its maps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.engine.networks.depth import DepthEstimator
from rearview.engine.networks.encode import encode, encode_with_depth
from rearview.engine.weights.checkpoint import load_depth, load_vae
from rearview.errors import ConfigError
from safetensors.torch import load_file, save_file
from support.tiny import random_frames
from support.tiny_depth import DEPTH_SIZE, write_tiny_depth
from torch.nn import functional as F
from transformers import DPTForDepthEstimation

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
UNREACHED = "neck.fusion_stage.layers.0.residual_layer1."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_depth(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="module")
def estimator(folder: Path) -> DepthEstimator:
    return load_depth(str(folder), CPU, torch.float32)


@pytest.fixture(scope="module")
def vae(checkpoint: Path) -> Any:
    return load_vae(checkpoint, CPU, torch.float32)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """Of the depth model, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def unknown(count: int) -> torch.Tensor:
    """Ranges of sessions that have had no frame."""
    return torch.tensor([[float("inf"), float("-inf")]] * count)


@torch.inference_mode()
def encoded(vae: Any, estimator: DepthEstimator, images: torch.Tensor, ranges: torch.Tensor) -> Any:
    """Latents of frame and depth, one beside the other (B, 2, C, h, w), and the ranges after it."""
    latent, depth, after = encode_with_depth(vae, estimator, images, ranges, torch.float32)
    return torch.stack([latent, depth], dim=1), after


def test_the_network_sees_frames_at_its_own_size(estimator: DepthEstimator) -> None:
    assert estimator.size == (DEPTH_SIZE, DEPTH_SIZE)
    with torch.inference_mode():
        assert estimator(torch.rand(2, 3, 64, 96)).shape == (2, DEPTH_SIZE, DEPTH_SIZE)


def test_a_depth_latent_is_that_of_the_scaled_map(folder: Path, vae: Any, estimator: DepthEstimator) -> None:
    """Written out by hand for one frame, from methods 3.9."""
    images = torch.stack(random_frames(1))
    network = DPTForDepthEstimation.from_pretrained(folder).eval()
    with torch.inference_mode():
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        small = F.interpolate(pixels, (DEPTH_SIZE, DEPTH_SIZE), mode="bilinear", align_corners=False)
        depth = network(small).predicted_depth[0]
        grey = (depth - depth.min()) / (depth.max() - depth.min()) * 2.0 - 1.0
        picture = F.interpolate(grey[None, None], images.shape[1:3], mode="bilinear", align_corners=False)
        expected = vae.encode(picture.repeat(1, 3, 1, 1)).latents * vae.config.scaling_factor
        assert float(depth.std()) > 1.0
    latents, ranges = encoded(vae, estimator, images, unknown(1))
    assert latents.shape == (1, 2, *expected.shape[1:])
    torch.testing.assert_close(latents[:, 1], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(ranges[0], torch.stack([depth.min(), depth.max()]))


def test_the_frames_own_latent_is_the_one_without_depth(vae: Any, estimator: DepthEstimator) -> None:
    images = torch.stack(random_frames(3))
    latents, _ = encoded(vae, estimator, images, unknown(3))
    with torch.inference_mode():
        plain = encode(vae, images, torch.float32)
    torch.testing.assert_close(latents[:, 0], plain, rtol=1e-5, atol=1e-5)


def test_sessions_in_one_batch_have_the_depth_that_they_have_alone(
    vae: Any, estimator: DepthEstimator
) -> None:
    images = torch.stack(random_frames(4))
    ranges = torch.tensor([[0.0, 100.0], [50.0, 60.0], [-10.0, 900.0], [float("inf"), float("-inf")]])
    together, after = encoded(vae, estimator, images, ranges)
    for i in range(4):
        alone, range_alone = encoded(vae, estimator, images[i : i + 1], ranges[i : i + 1])
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(after[i], range_alone[0], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_l25_a_constant_image_gives_a_finite_depth_latent(
    vae: Any, estimator: DepthEstimator, level: int
) -> None:
    images = torch.full((2, 64, 64, 3), level, dtype=torch.uint8)
    latents, ranges = encoded(vae, estimator, images, unknown(2))
    assert latents.isfinite().all()
    assert ranges.isfinite().all()


def test_l25_a_network_that_says_the_same_everywhere_gives_a_finite_depth_latent(
    vae: Any, copy: Path
) -> None:
    (file,) = copy.glob("*.safetensors")
    flat = {key: torch.zeros_like(value) for key, value in load_file(file).items()}
    save_file(flat, file, metadata={"format": "pt"})
    latents, ranges = encoded(
        vae, load_depth(str(copy), CPU, torch.float32), torch.stack(random_frames(2)), unknown(2)
    )
    assert latents.isfinite().all()
    assert torch.equal(ranges, torch.zeros(2, 2))


def test_l25_what_is_not_a_number_leaves_a_finite_depth_latent(vae: Any, folder: Path) -> None:
    estimator = load_depth(str(folder), CPU, torch.float32)
    estimator.network.get_parameter("head.head.4.weight").fill_(float("inf"))
    latents, ranges = encoded(vae, estimator, torch.stack(random_frames(1)), unknown(1))
    assert latents.isfinite().all()
    assert ranges.isfinite().all()


def test_half_precision_gives_nearly_the_same_depth(folder: Path, estimator: DepthEstimator) -> None:
    half = load_depth(str(folder), CPU, torch.bfloat16)
    frames = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        exact, rounded = estimator(frames), half(frames)
    assert rounded.dtype is torch.float32
    assert float((exact - rounded).abs().mean()) < 0.05 * float(exact.mean())


def test_weights_that_the_network_never_reaches_may_be_missing(folder: Path, copy: Path) -> None:
    """As in the published DPT files."""
    (file,) = copy.glob("*.safetensors")
    kept = {key: value for key, value in load_file(file).items() if not key.startswith(UNREACHED)}
    assert len(kept) < len(load_file(file))
    save_file(kept, file, metadata={"format": "pt"})
    frames = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        pair = [load_depth(str(place), CPU, torch.float32)(frames) for place in (folder, copy)]
    assert torch.equal(*pair)


def test_other_missing_weights_are_refused(copy: Path) -> None:
    (file,) = copy.glob("*.safetensors")
    weights = load_file(file)
    del weights["head.head.4.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"model\.depth: .*copy lacks 1 weights, .*head\.head\.4\.weight"):
        load_depth(str(copy), CPU, torch.float32)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "clip"}'),
        ("config.json", b'{"model_type": "dpt", "is_hybrid": true, "readout_type": "add"}'),
        ("config.json", b'{"model_type": "dpt", "hidden_size": "wide"}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"not weights at all"),
    ],
)
def test_a_broken_depth_model_is_refused_by_option_and_place(copy: Path, file: str, content: bytes) -> None:
    (copy / file).write_bytes(content)
    with pytest.raises(ConfigError, match=r"^model\.depth: .*copy"):
        load_depth(str(copy), CPU, torch.float32)


def test_a_depth_model_of_other_shapes_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "fusion_hidden_size": 16}))
    with pytest.raises(ConfigError, match=r"^model\.depth: .*copy"):
        load_depth(str(copy), CPU, torch.float32)


@pytest.mark.parametrize("name", ["missing", "/missing/folder", ""])
def test_a_depth_model_that_is_not_there_is_refused_by_option(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.depth"):
        load_depth(name, CPU, torch.float32)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_depth_model_on_the_hub_is_taken_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--owner--dpt"
    snapshot = Path(shutil.copytree(folder, place / "snapshots" / ("a" * 40)))
    if weights.endswith(".bin"):
        torch.save(load_file(snapshot / "model.safetensors"), snapshot / weights)
        (snapshot / "model.safetensors").unlink()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    assert load_depth("owner/dpt", CPU, torch.float32).size == (DEPTH_SIZE, DEPTH_SIZE)
    with pytest.raises(ConfigError, match=r"^model\.depth 'owner/other'"):
        load_depth("owner/other", CPU, torch.float32)
