"""VAEs as files without settings: the pictures of the same weights in a folder of diffusers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from rearview.engine.networks.decode import decode
from rearview.engine.networks.encode import encode
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.weights.checkpoint import latent_shape, load_model, load_vae
from rearview.engine.weights.formats import Additions, find_checkpoint
from rearview.errors import ConfigError
from safetensors.torch import load_file, save_file
from support.original import _vae as original_vae
from support.tiny import random_frames, whole_chain
from support.tiny_turbo import write_tiny_turbo
from torch import Tensor

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_turbo(tmp_path_factory.mktemp("turbo"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TAESD of its real size, as a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("taesd")
    AutoencoderTiny().save_pretrained(folder)
    return folder


def write_pair(tiny: Path, folder: Path) -> Path:
    """As its authors publish it: two plain sequences of layers, the decoder's behind a clamp."""
    (file,) = tiny.glob("*.safetensors")
    encoder: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    for key, value in load_file(file).items():
        side, number, rest = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.*)", key).groups()  # type: ignore[union-attr]
        if side == "encoder":
            encoder[f"{number}.{rest}"] = value
        else:
            decoder[f"{int(number) + 1}.{rest}"] = value
    folder.mkdir()
    save_file(encoder, folder / "taesd_encoder.safetensors")
    save_file(decoder, folder / "taesd_decoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoencoderKL as a folder, with settings that a file does not hold."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("kl")
    AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
    ).save_pretrained(folder)
    return folder


def picture(checkpoint: Path, vae: str) -> Tensor:
    network = load_vae(find_checkpoint(str(checkpoint), (), Additions(vae=vae)), CPU, torch.float32)
    with torch.inference_mode():
        return decode(network, encode(network, random_frames(1)[0][None], torch.float32), torch.float32)


@pytest.mark.parametrize("named", ["folder", "taesd_encoder.safetensors", "taesd_decoder.safetensors"])
def test_taesd_is_taken_as_its_authors_publish_it(
    checkpoint: Path, tiny: Path, tmp_path: Path, named: str
) -> None:
    folder = write_pair(tiny, tmp_path / "pair")
    vae = folder if named == "folder" else folder / named
    assert torch.equal(picture(checkpoint, str(vae)), picture(checkpoint, str(tiny)))


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_vae_of_the_original_layout_is_taken(
    checkpoint: Path, wide: Path, tmp_path: Path, prefix: str
) -> None:
    (file,) = wide.glob("*.safetensors")
    original = {prefix + key: value.contiguous() for key, value in original_vae(load_file(file)).items()}
    save_file(original, tmp_path / "vae.safetensors")
    assert torch.equal(picture(checkpoint, str(tmp_path / "vae.safetensors")), picture(checkpoint, str(wide)))


def test_a_whole_model_runs_with_a_vae_of_a_file(checkpoint: Path, tiny: Path, tmp_path: Path) -> None:
    additions = Additions(vae=str(write_pair(tiny, tmp_path / "pair")))
    model = load_model(str(checkpoint), whole_chain(), CPU, torch.float32, additions)
    assert isinstance(model, DiffusionModel)
    assert latent_shape(str(checkpoint), 64, 128, additions) == (4, 8, 16)


def test_the_file_of_a_folder_is_that_folder(checkpoint: Path, wide: Path) -> None:
    (file,) = wide.glob("*.safetensors")
    with pytest.raises(ConfigError, match=r"model\.vae"):
        picture(checkpoint, str(file))


def test_half_of_taesd_is_refused_by_what_is_missing(checkpoint: Path, tiny: Path, tmp_path: Path) -> None:
    folder = write_pair(tiny, tmp_path / "pair")
    (folder / "taesd_encoder.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.vae: .*taesd_encoder\.safetensors is missing"):
        picture(checkpoint, str(folder))


@pytest.mark.parametrize("name", ["vae.safetensors", "taesd_decoder.safetensors"])
def test_files_of_something_else_are_refused_by_option(checkpoint: Path, tmp_path: Path, name: str) -> None:
    for file in {name, "taesd_encoder.safetensors"}:
        save_file({"lora.down.weight": torch.ones(1)}, tmp_path / file)
    with pytest.raises(ConfigError, match=r"^model\.vae: "):
        picture(checkpoint, str(tmp_path / name))
