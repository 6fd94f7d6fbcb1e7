"""Two replicas say that they have the same model iff they have."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rearview.config import ModelConfig
from rearview.replica.fingerprint import origin_of

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "one"
    (found / "unet").mkdir(parents=True)
    (found / "unet" / "weights.safetensors").write_bytes(bytes(3_000_000))
    (found / "unet" / "config.json").write_text("{}")
    (found / "rearview.json").write_text("{}")
    (found / "README.md").write_text("a model")
    return found


def model(folder: Path, **fields: object) -> str:
    return origin_of(ModelConfig.model_validate({"checkpoint": str(folder), **fields})).model


def test_the_same_files_elsewhere_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "README.md").write_text("the same model")
    (other / "rearview.json").write_text('{"styles": {}}')
    assert model(folder) == model(other)


@pytest.mark.parametrize("at", [0, 1_500_000, 2_999_999])
def test_a_file_that_differs_around_any_place_is_another_model(folder: Path, at: int) -> None:
    before = model(folder)
    with (folder / "unet" / "weights.safetensors").open("r+b") as file:
        file.seek(max(0, at - 30_000))
        file.write(bytes([1]) * 60_000)
        file.truncate(3_000_000)
    assert model(folder) != before


def test_what_is_added_to_a_checkpoint_makes_it_another_model(folder: Path, tmp_path: Path) -> None:
    lora = tmp_path / "ink.safetensors"
    lora.write_bytes(b"ink")
    found = [
        model(folder),
        model(folder, vae="owner/vae"),
        model(folder, beta_schedule="linear"),
        model(folder, clip_skip=1),
        model(folder, lcm_lora="owner/vae"),
        model(folder, adapters={"ink": [{"path": str(lora)}]}),
        model(folder, adapters={"ink": [{"path": str(lora), "scale": 0.5}]}),
        model(folder, adapters={"pen": [{"path": str(lora)}]}),
        model(folder, controls={"edges": {"path": "owner/it", "picture": "canny"}}),
        model(folder, controls={"edges": {"path": "owner/it", "picture": "soft_edges"}}),
        model(folder, controls={"lines": {"path": "owner/it", "picture": "canny"}}),
        model(folder, reference={"path": str(lora), "image_encoder": "owner/it"}),
        model(folder, reference={"path": str(lora), "image_encoder": "owner/other"}),
        model(folder, reference={"path": "owner/it/file.bin", "image_encoder": "owner/it"}),
    ]
    assert len(set(found)) == len(found)
    lora.write_bytes(b"blue")
    assert model(folder, adapters={"ink": [{"path": str(lora)}]}) not in found


def test_the_precision_is_that_of_the_networks() -> None:
    assert origin_of(ModelConfig(checkpoint="null", dtype="float64", device="cpu")).dtype == "torch.float64"
    assert (
        origin_of(ModelConfig(checkpoint="pocket")).model != origin_of(ModelConfig(checkpoint="null")).model
    )
