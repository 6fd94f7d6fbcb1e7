"""Which files are reference adapters, and what is said of those that are none or do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from rearview.engine.networks.reference_image import ReferenceEncoder, References
from rearview.engine.weights.formats import ReferenceFile
from rearview.engine.weights.reference_images import load_references
from rearview.errors import ConfigError
from support.tiny import write_tiny_checkpoint
from support.tiny_reference import (
    PROJECTED,
    TOKENS,
    pixels,
    png,
    tensors_of,
    write_adapter,
    write_image_encoder,
)
from support.tiny_turbo import write_tiny_turbo
from torch import Tensor

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 44642768\n"
Parts = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "it")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_encoder(tmp_path_factory.mktemp("encoder") / "image_encoder")


def load(checkpoint: Path, path: Path, encoder: Path, dtype: torch.dtype = torch.float32) -> References:
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet", torch_dtype=dtype).eval()
    return load_references(ReferenceFile(str(path), str(encoder)), unet, CPU, dtype)[0]


def tokens(references: References) -> Tensor:
    network, projection = references.networks
    reads_layer = hasattr(projection, "latents")
    made = ReferenceEncoder(network, projection, torch.float32, reads_layer=reads_layer)
    return made.tokens(png(pixels(1)))


@pytest.mark.parametrize("kind", TOKENS)
def test_both_endings_hold_the_same(tmp_path: Path, checkpoint: Path, encoder: Path, kind: str) -> None:
    parts = tensors_of(checkpoint, kind)
    found = [
        tokens(load(checkpoint, write_adapter(tmp_path / name, parts), encoder))
        for name in ("a.safetensors", "a.bin")
    ]
    assert found[0].shape == (TOKENS[kind], 24)
    assert torch.equal(*found)


def test_half_precision_files_are_taken(tmp_path: Path, checkpoint: Path, encoder: Path) -> None:
    parts = {
        part: {name: each.half() for name, each in of.items()}
        for part, of in tensors_of(checkpoint, "plus").items()
    }
    references = load(checkpoint, write_adapter(tmp_path / "a.bin", parts), encoder, torch.bfloat16)
    assert {each.dtype for network in references.networks for each in network.parameters()} == {
        torch.bfloat16
    }


def renamed(parts: Parts, kind: str) -> Parts:
    """What another kind of adapter looks like, by its names."""
    proj, weight = dict(parts["image_proj"]), torch.ones(2, 2)
    if kind == "FaceID":
        return {
            **parts,
            "image_proj": {"proj.0.weight": weight, "proj.2.weight": weight, "norm.weight": weight},
        }
    if kind == "FaceID plus":
        return {
            **parts,
            "image_proj": {"proj.0.weight": weight, "perceiver_resampler.proj_in.weight": weight},
        }
    if kind == "FaceID's LoRA":
        return {**parts, "ip_adapter": {**parts["ip_adapter"], "0.to_q_lora.down.weight": weight}}
    if kind == "full face":
        return {**parts, "image_proj": {"proj.0.weight": weight, "proj.3.weight": weight}}
    if kind == "unknown":
        return {**parts, "image_proj": {"mapper.weight": weight}}
    if kind == "half a resampler":
        return {**parts, "image_proj": {name: each for name, each in proj.items() if name != "proj_in.bias"}}
    if kind == "fewer attentions":
        rest = {name: each for name, each in parts["ip_adapter"].items() if not name.startswith("1.")}
        return {**parts, "ip_adapter": rest}
    if kind == "not finite":
        return {
            **parts,
            "image_proj": {**proj, "proj_in.bias": torch.full_like(proj["proj_in.bias"], torch.inf)},
        }
    return {part: of for part, of in parts.items() if part != kind}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("FaceID", "is a FaceID adapter"),
        ("FaceID plus", "is a FaceID adapter"),
        ("FaceID's LoRA", "is a FaceID adapter"),
        ("full face", "full-face adapter of 257 tokens"),
        ("unknown", "of no known kind, with mapper.weight"),
        ("half a resampler", "cannot be read: .*proj_in.bias"),
        ("fewer attentions", "is for 3 cross-attentions, the UNet has 4.*of another base model"),
        ("not finite", "of proj_in.bias are not finite"),
        ("image_proj", "lacks image_proj or ip_adapter"),
        ("ip_adapter", "lacks image_proj or ip_adapter"),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_other_files_are_refused_by_their_kind(
    tmp_path: Path, checkpoint: Path, encoder: Path, kind: str, text: str, ending: str
) -> None:
    path = write_adapter(tmp_path / f"adapter.{ending}", renamed(tensors_of(checkpoint, "plus"), kind))
    with pytest.raises(ConfigError, match=text) as refused:
        load(checkpoint, path, encoder)
    assert str(refused.value).startswith(f"model.reference.path: {path}")


def test_an_adapter_of_another_base_model_is_refused(tmp_path: Path, checkpoint: Path, encoder: Path) -> None:
    path = write_adapter(tmp_path / "adapter.bin", tensors_of(checkpoint, "plain", width=32))
    with pytest.raises(ConfigError, match=r"attn2 takes \d+x24, the file has \d+x32 \(cross_attention_dim\)"):
        load(checkpoint, path, encoder)
    turbo = write_tiny_turbo(tmp_path / "turbo")
    with pytest.raises(ConfigError, match="is it of another base model"):
        load(checkpoint, write_adapter(tmp_path / "other.bin", tensors_of(turbo, "plain")), encoder)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_broken_files_are_refused_by_their_reason(
    tmp_path: Path, checkpoint: Path, encoder: Path, ending: str
) -> None:
    path = write_adapter(tmp_path / f"adapter.{ending}", tensors_of(checkpoint, "plain"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match="cut short"):
        load(checkpoint, path, encoder)
    path.write_bytes(POINTER)
    with pytest.raises(ConfigError, match="is a Git LFS pointer"):
        load(checkpoint, path, encoder)
    path.unlink()
    with pytest.raises(ConfigError, match=r"model\.reference\.path .* is neither a file"):
        load(checkpoint, path, encoder)


def test_the_encoder_must_be_the_one_that_the_adapter_was_trained_with(
    tmp_path: Path, checkpoint: Path, encoder: Path
) -> None:
    parts = tensors_of(checkpoint, "plain")
    wide = {**parts["image_proj"], "proj.weight": torch.ones(96, PROJECTED + 8)}
    path = write_adapter(tmp_path / "adapter.bin", {**parts, "image_proj": wide})
    with pytest.raises(ConfigError, match="gives 40 channels, the adapter takes 48"):
        load(checkpoint, path, encoder)


def test_other_encoders_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    path = write_adapter(tmp_path / "adapter.bin", tensors_of(checkpoint, "plain"))
    with pytest.raises(ConfigError, match=r"model\.reference\.image_encoder .* is neither a folder with"):
        load(checkpoint, path, tmp_path / "nowhere")
    folder = write_image_encoder(tmp_path / "encoder")
    (folder / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(ConfigError, match=r"model\.reference\.image_encoder: .*Git LFS pointer"):
        load(checkpoint, path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["SiglipVisionModel"]}))
    with pytest.raises(
        ConfigError, match="SiglipVisionModel is not supported; use a CLIPVisionModelWithProj"
    ):
        load(checkpoint, path, folder)
