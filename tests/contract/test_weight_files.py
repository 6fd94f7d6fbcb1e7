"""What a model takes of memory, by its files alone: as the engine counts it once it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from rearview.config import load_config
from rearview.contract.card import checkpoint_folder
from rearview.contract.memory_plan import Budget
from rearview.contract.weight_files import UNetShapes, latent_scale_of, shapes_in, shapes_of
from rearview.engine.memory.bank.layers import KeptOutputs, read_layout
from rearview.engine.networks.model import DiffusionModel
from rearview.replica.build import examples, parts_of
from rearview.replica.needs import known_plan
from safetensors.torch import save_file
from support.tiny import write_tiny_checkpoint
from support.tiny_motion import plain_unet

pytestmark = pytest.mark.unit

NOWHERE = Budget("nowhere", 0, 0)
SECTIONS = {
    "merged": {"bank": {}},
    "outputs": {"bank": {"metric": "outputs"}},
    "queue": {"bank": {"policy": "queue", "max_frames": 3, "interval": 1}},
    "growing": {"bank": {"merge_ratio": 0.3}},
    "cache": {"cache": {"sink_frames": 4, "ring_frames": 6}},
    "both, in bytes": {"bank": {}, "cache": {"storage": "float8"}},
    "nothing": {},
}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("topology", ["fused", "pipeline"])
def test_what_is_known_ahead_is_what_the_bundled_model_takes(topology: str, section: str) -> None:
    config = load_config(
        {
            "model": {"device": "cpu", "dtype": "float32", "width": 160, "height": 96},
            "topology": topology,
            **SECTIONS[section],
        }
    )
    spans = config.spans if section == "both, in bytes" else config.spans[:2]
    for span in spans:
        known, parts = known_plan(config, span, "float32", NOWHERE), parts_of(config, span, 1)
        (example, *_) = examples(config, parts.memory)
        taken = {name: size for name, size in parts.memory.bytes_by_kind(example).items() if size}
        assert {name: size for name, size in known.slot.items() if size} == taken
        assert isinstance(parts.model, DiffusionModel)
        assert known.parts[0].num_bytes == pytest.approx(parts.model.weight_bytes, rel=0.005)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"layers_per_block": 2, "transformer_layers_per_block": 2},
        {
            "block_out_channels": (16, 16, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
        {"transformer_layers_per_block": (1, 12)},
        {"only_cross_attention": (True, False)},
        {"mid_block_type": None},
    ],
    ids=["as it is", "deeper", "three levels", "twelve blocks", "only the prompt", "no middle"],
)
@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_a_bank_of_any_unet_is_counted(
    size: tuple[int, int], changed: dict[str, object], tmp_path: Path
) -> None:
    plain_unet(**changed).save_pretrained(tmp_path / "unet")
    shapes = UNetShapes(shapes_in(tmp_path, "unet"), {})
    layout = read_layout(UNet2DConditionModel.from_pretrained(tmp_path / "unet"))
    for kept, keeps_all in ((KeptOutputs.FUSED, False), (KeptOutputs.ALL, True)):
        for frames in (1.0, 1.5, 4.0):
            expected = layout.bytes_per_row(*size, torch.uint8, size_frames=frames, kept_outputs=kept)
            assert shapes.bank_elements(*size, frames, keeps_all=keeps_all) == expected


def test_motion_modules_in_a_file_of_their_own_are_counted(tmp_path: Path) -> None:
    folder = checkpoint_folder("pocket")
    own = shapes_of("pocket", "motion_adapter")
    original = {
        name.replace(".transformer_blocks.", ".temporal_transformer.transformer_blocks.")
        .replace(".attn1.", ".attention_blocks.0.")
        .replace(".attn2.", ".attention_blocks.1."): torch.zeros(shape)
        for name, shape in own.items()
    }
    save_file(original, tmp_path / "mm.safetensors")
    unet = shapes_in(folder, "unet")
    apart = UNetShapes(unet, shapes_of("pocket", "motion_adapter", str(tmp_path / "mm.safetensors")))
    assert apart.cache_elements(32, 32, 16) == UNetShapes(unet, own).cache_elements(32, 32, 16) > 0


def test_of_two_precisions_the_full_one_is_counted(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    save_file({"a": torch.zeros(3), "b": torch.zeros(5)}, tmp_path / "model.fp16.safetensors")
    assert shapes_in(tmp_path, "text_encoder") == {"a": (3,)}
    (tmp_path / "model.safetensors").unlink()
    assert set(shapes_in(tmp_path, "text_encoder")) == {"a", "b"}


def test_tensors_that_are_in_no_block_claim_nothing() -> None:
    own = shapes_of("pocket", "motion_adapter")
    wrapped = {f"module.{name}": shape for name, shape in own.items()}
    shapes = UNetShapes({"up.attentions.0.transformer_blocks.0.attn1.to_k.weight": (8, 8)}, wrapped)
    assert shapes.cache_elements(32, 32, 16) == 0
    assert shapes.bank_elements(32, 32, 1.0, keeps_all=True) == 0


@pytest.mark.parametrize("checkpoint", ["owner/name", "null", "chain:5+1", "model.safetensors"])
def test_of_what_is_not_in_a_folder_here_nothing_is_claimed(checkpoint: str) -> None:
    for part in ("unet", "vae"):
        assert shapes_of(checkpoint, part) == {}
    assert shapes_of("pocket", "vae", "owner/name") == {}
    assert latent_scale_of(checkpoint) is None
    config = load_config({"model": {"checkpoint": checkpoint}, "bank": {}})
    plan = known_plan(config, config.spans[0], "float32", Budget("small", 1, 1))
    assert plan.num_bytes == 0


def test_a_single_autoencoder_has_the_size_that_its_settings_say(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    assert latent_scale_of(str(tmp_path)) == latent_scale_of("pocket") == 8
    assert latent_scale_of("pocket", str(tmp_path / "vae")) == 8
    assert latent_scale_of("pocket", str(tmp_path)) == 8
