"""Folders that load, and folders that do not: each fault named by its file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from rearview.contract.chain import Operator, Span
from rearview.engine.networks.decode import decode
from rearview.engine.networks.encode import encode
from rearview.engine.networks.model import DiffusionModel, NullModel
from rearview.engine.weights.checkpoint import latent_shape, load_denoiser, load_model, load_vae
from rearview.errors import ConfigError
from support.tiny import LATENT_CHANNELS, SIZE, random_frames, whole_chain

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
DTYPE = torch.float32


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def load(folder: Path) -> object:
    return load_model(str(folder), whole_chain(), CPU, DTYPE)


def test_a_checkpoint_loads(folder: Path) -> None:
    assert isinstance(load(folder), DiffusionModel)
    assert latent_shape(str(folder), SIZE, 2 * SIZE) == (LATENT_CHANNELS, SIZE // 8, SIZE // 4)


def test_the_null_model_needs_no_folder() -> None:
    assert isinstance(load_model("null", whole_chain(), CPU, DTYPE), NullModel)
    assert latent_shape("null", 8, 16) == (3, 8, 16)


@pytest.mark.parametrize(
    ("operators", "unneeded"),
    [
        (["encode"], ["unet", "text_encoder", "tokenizer", "scheduler"]),
        (["decode"], ["unet", "text_encoder", "tokenizer", "scheduler"]),
        (["denoise-0", "denoise-1"], ["vae"]),
    ],
)
def test_a_span_loads_only_the_networks_that_it_needs(
    folder: Path, operators: list[str], unneeded: list[str]
) -> None:
    for part in unneeded:
        for file in (*(folder / part).glob("*.safetensors"), *(folder / part).glob("vocab.json")):
            file.unlink()
    load_model(str(folder), Span("s", tuple(map(Operator.parse, operators))), CPU, DTYPE)


def test_a_folder_that_is_not_there_is_refused_by_option() -> None:
    with pytest.raises(ConfigError, match=r"model\.checkpoint '/nonexistent'"):
        load_model("/nonexistent", whole_chain(), CPU, DTYPE)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_refused_by_name(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(ConfigError, match=rf"\b{part}\b"):
        load(folder)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_missing_weights_are_refused_by_name(folder: Path, part: str) -> None:
    for weights in (folder / part).glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ConfigError, match=rf"\b{part}\b"):
        load(folder)


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_an_unsupported_class_is_refused_by_name(folder: Path, part: str) -> None:
    change(folder / part / "config.json", _class_name="SomethingElse")
    with pytest.raises(ConfigError, match=f"checkpoint/{part}: SomethingElse is not supported"):
        load(folder)


def test_a_unet_without_the_weights_of_its_embedded_scale_is_refused_by_name(folder: Path) -> None:
    change(folder / "unet" / "config.json", time_cond_proj_dim=256)
    with pytest.raises(ConfigError, match="cond_proj"):
        load_denoiser(folder, CPU, DTYPE)


def test_an_unsupported_schedule_is_refused_by_name(folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", beta_schedule="squaredcos_cap_v2")
    with pytest.raises(ConfigError, match="beta_schedule"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_config_that_is_not_json_is_refused_by_path(folder: Path, text: str) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"scheduler_config\.json"):
        load(folder)


def test_autoencoder_kl_encodes_to_the_mode_and_decodes(tmp_path: Path) -> None:
    """No random number enters the path, and the scaling is the one of the folder."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    vae.save_pretrained(tmp_path / "vae")
    loaded = load_vae(tmp_path, CPU, DTYPE)
    image = random_frames(1)[0][None]
    with torch.inference_mode():
        first, second = (encode(loaded, image, DTYPE) for _ in range(2))
        pixels = image.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        expected = vae.eval().encode(pixels).latent_dist.mode() * 0.18215
        picture = decode(loaded, first, DTYPE)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    assert picture.shape == image.shape
    assert latent_shape(str(tmp_path), SIZE, SIZE) == tuple(first.shape[1:])
