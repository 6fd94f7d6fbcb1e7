"""What a checkpoint is, from its settings and headers: each family that cannot be is refused by its name."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.contract.family import check_checkpoint, check_folder, tensor_shapes
from rearview.engine.weights.checkpoint import load_model
from rearview.errors import ConfigError
from safetensors.torch import save_file
from support.tiny import whole_chain, write_tiny_checkpoint

pytestmark = pytest.mark.unit

ORIGINAL_UNET = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


def write(path: Path, **values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **values}))


def refused(folder: Path) -> str:
    """By the check before anything starts, and by the loader with the same words."""
    began_s = time.monotonic()
    with pytest.raises(ConfigError) as early:
        check_checkpoint(str(folder))
    assert time.monotonic() - began_s < 2.0
    with pytest.raises(ConfigError) as late:
        load_model(str(folder), whole_chain(), torch.device("cpu"), torch.float32)
    assert str(late.value) == str(early.value)
    return str(early.value)


def test_supported_checkpoints_pass(folder: Path) -> None:
    check_checkpoint(str(folder))
    for name in ("pocket", "null", "chain:5+1", "owner/on-the-hub"):
        check_checkpoint(name)
    for pipeline in ("StableDiffusionPipeline", "LatentConsistencyModelPipeline"):
        write(folder / "model_index.json", _class_name=pipeline)
        check_folder(folder)


@pytest.mark.parametrize(
    ("file", "values", "name"),
    [
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "Stable Diffusion 3"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "Flux"),
        ("model_index.json", {"_class_name": "StableVideoDiffusionPipeline"}, "Stable Video Diffusion"),
        ("transformer/config.json", {"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel"),
        ("transformer/config.json", {"_class_name": "FluxTransformer2DModel"}, "Flux"),
        ("unet/config.json", {"addition_embed_type": "image"}, "embeddings of its own (image)"),
        ("unet/config.json", {"class_embed_type": "projection"}, "projection"),
        ("unet/config.json", {"in_channels": 9}, "an inpainting model (9 channels into the UNet)"),
        ("unet/config.json", {"in_channels": 8}, "InstructPix2Pix"),
        ("unet/config.json", {"in_channels": 5}, "a depth-to-image model"),
    ],
)
def test_a_folder_of_another_family_is_refused_by_name(
    folder: Path, file: str, values: dict[str, Any], name: str
) -> None:
    write(folder / file, **values)
    text = refused(folder)
    assert name in text
    assert "take a Stable Diffusion 1.5" in text


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({ORIGINAL_UNET: (320, 9, 3, 3)}, "an inpainting model"),
        (
            {ORIGINAL_UNET: (320, 9, 3, 3), "conditioner.embedders.1.model.x": (1,)},
            "an inpainting model",
        ),
        ({ORIGINAL_UNET: (384, 4, 3, 3), "conditioner.embedders.0.model.x": (1,)}, "the refiner"),
        ({ORIGINAL_UNET: (320, 4, 3, 3), "model.diffusion_model.label_emb.0.0.weight": (1,)}, "label_emb"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "Flux"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (1,)}, "holds no unet but a LoRA"),
        ({"down_blocks.0.motion_modules.0.x": (1,)}, "holds no unet but motion modules"),
        ({"decoder.conv_in.weight": (1,)}, "holds no unet but a VAE: name it in model.vae"),
        ({"something": (1,)}, "holds no unet"),
    ],
)
def test_a_single_file_of_something_else_is_refused_by_name(
    tiny: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], name: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in tensors.items()}, path)
    with pytest.raises(ConfigError, match=name.replace("(", "\\(")):
        check_checkpoint(str(path))
    assert tensor_shapes(path) == tensors


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("kept", [0, 5, 50, 0.5, -1])
def test_a_file_that_is_cut_short_is_refused_as_such(folder: Path, part: str, kept: float) -> None:
    (file,) = (folder / part).glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    text = refused(folder)
    assert part in text
    assert "is cut short" in text
    assert "fetch it again" in text


def test_the_refiner_is_refused_by_name(folder: Path) -> None:
    write(folder / "unet" / "config.json", addition_embed_type="text_time")
    write(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
    check_checkpoint(str(folder))
    write(folder / "model_index.json", requires_aesthetics_score=True)
    assert "the refiner of Stable Diffusion XL" in refused(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.fp16.safetensors", "model.bin"])
def test_what_git_leaves_without_lfs_is_refused_as_such(folder: Path, part: str, name: str) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 5135149760\n"
    (folder / part).mkdir(exist_ok=True)
    (folder / part / name).write_text(text)
    assert "is a Git LFS pointer" in refused(folder)
    for suffix in (".safetensors", ".ckpt"):
        (folder / f"whole{suffix}").write_text(text)
        with pytest.raises(ConfigError, match="is a Git LFS pointer"):
            check_checkpoint(str(folder / f"whole{suffix}"))


@pytest.mark.parametrize("kept", [50, 0.5, -1])
def test_a_pickle_that_is_cut_short_is_refused_as_such(folder: Path, kept: float) -> None:
    for place in (folder / "unet" / "diffusion_pytorch_model.bin", folder / "whole.ckpt"):
        torch.save({"weight": torch.zeros(100)}, place)
        check_checkpoint(str(folder if place.suffix == ".bin" else place))
        whole = place.read_bytes()
        place.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
        with pytest.raises(ConfigError, match="is cut short: its end is missing"):
            check_checkpoint(str(folder if place.suffix == ".bin" else place))
        place.unlink()


def test_a_file_of_something_else_is_refused_as_such(folder: Path) -> None:
    (file,) = (folder / "unet").glob("*.safetensors")
    for content in (b"\0" * 100, b"PK" + b"\xff" * 100, (9).to_bytes(8, "little") + b"[1, 2, 3]" + b"\0" * 9):
        file.write_bytes(content)
        assert "is no .safetensors file" in refused(folder)
