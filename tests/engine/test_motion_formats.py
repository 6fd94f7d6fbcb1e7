"""Motion modules from files as they are published: what is read, and what is refused by option and file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotionAdapter
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from rearview.contract.card import has_motion, own_motion, size_multiple
from rearview.engine.weights.formats import find_motion
from rearview.engine.weights.motion_formats import is_table, read_motion
from rearview.errors import ConfigError
from safetensors.torch import load_file, save_file
from support.tiny import write_tiny_checkpoint
from support.tiny_motion_files import (
    SD15,
    Weights,
    depth_branch,
    expected_name,
    original_motion,
    write_motion_adapter,
    write_motion_file,
)

pytestmark = pytest.mark.unit

V1 = original_motion()
LIVE2DIFF = {**V1, **depth_branch()}
KEY = "up_blocks.1.motion_modules.0.temporal_transformer.proj_out.bias"
TABLE = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    ".attention_blocks.1.pos_encoder.pe"
)


def expected(weights: Weights) -> Weights:
    return {expected_name(key): value for key, value in weights.items() if "pos_encoder" not in key}


def assert_same(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    assert [key for key, value in left.items() if not torch.equal(value, right[key])] == []


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_l14_the_released_layout_is_read_under_the_names_of_diffusers(
    tmp_path: Path, suffix: str, bare: bool, prefix: str
) -> None:
    grid = {f"{TABLE.removesuffix('.pe')}.grid": torch.zeros(3)}
    path = tmp_path / f"live2diff{suffix}"
    motion = read_motion(write_motion_file(path, {**LIVE2DIFF, **grid}, bare=bare, prefix=prefix))
    assert_same(motion.tensors, expected(LIVE2DIFF))
    assert (motion.heads, motion.max_frames, motion.norm_groups, motion.has_depth) == (8, 24, None, True)


def test_l14_the_layout_for_stable_diffusion_has_576_entries_of_which_536_are_weights() -> None:
    motion = original_motion(SD15, layers=2, device="meta")
    depth = depth_branch(SD15[0], 4, device="meta")
    assert (len(motion), len(depth), len({**motion, **depth})) == (20 * 28, 16, 576)
    assert len(expected({**motion, **depth})) == 20 * 26 + 16


@pytest.mark.parametrize(("frames", "suffix"), [(24, ".ckpt"), (32, ".ckpt"), (32, ".safetensors")])
def test_animatediff_files_are_read_as_diffusers_converts_them(
    tmp_path: Path, frames: int, suffix: str
) -> None:
    """Version 1 has a table of 24 positions, version 3 of 32."""
    weights = original_motion(frames=frames, seed=3)
    motion = read_motion(write_motion_file(tmp_path / f"mm{suffix}", weights))
    converted = convert_animatediff_checkpoint_to_diffusers(dict(weights))
    assert_same(motion.tensors, {key: value for key, value in converted.items() if not is_table(key)})
    assert (motion.max_frames, motion.has_depth) == (frames, False)


def test_a_folder_of_diffusers_is_read_with_its_own_sizes(tmp_path: Path) -> None:
    folder = write_motion_adapter(tmp_path / "motion", frames=20, heads=4)
    motion = read_motion(folder)
    saved = MotionAdapter.from_pretrained(folder).state_dict()
    assert_same(motion.tensors, {key: value for key, value in saved.items() if not key.endswith(".pe")})
    assert (motion.heads, motion.max_frames, motion.norm_groups) == (4, 20, 4)
    half = folder / "diffusion_pytorch_model.fp16.safetensors"
    (folder / "diffusion_pytorch_model.safetensors").rename(half)
    assert_same(read_motion(folder).tensors, motion.tensors)


def damaged(weights: Weights, change: str) -> Weights:
    weights = {key: value.clone() for key, value in weights.items()}
    if change == "table":
        weights[TABLE] = weights[TABLE][:, :16].contiguous()
    elif change == "content":
        weights[TABLE][0, 5] += 0.5
    elif change == "shape":
        weights[TABLE] = weights[TABLE][0]
    elif change == "none":
        weights = {key: value for key, value in weights.items() if "pos_encoder" not in key}
    elif change == "other":
        weights["conv_in.weight"] = torch.zeros(1)
    return weights


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("table", "tables of 24 or 32 positions are supported, it has 16, 24"),
        ("none", "tables of 24 or 32 positions are supported, it has none"),
        ("content", "sinusoidal"),
        ("shape", "sinusoidal"),
        ("other", r"conv_in\.weight is not of a motion module"),
    ],
)
def test_l14_other_tables_and_other_weights_are_refused_by_option_and_file(
    tmp_path: Path, change: str, complaint: str
) -> None:
    path = write_motion_file(tmp_path / "odd.ckpt", damaged(LIVE2DIFF, change))
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_motion(path)
    assert str(caught.value).startswith(f"model.motion: {path}")


def test_l14_a_table_of_another_length_is_refused(tmp_path: Path) -> None:
    path = write_motion_file(tmp_path / "odd.ckpt", original_motion(frames=16))
    with pytest.raises(ConfigError, match=r"^model\.motion: .*odd\.ckpt: tables of 24 or 32 .*, it has 16"):
        read_motion(path)


def test_l14_a_module_in_the_middle_block_is_refused(tmp_path: Path) -> None:
    path = write_motion_file(tmp_path / "v2.ckpt", original_motion(frames=32, mid_block=True))
    with pytest.raises(ConfigError, match=r"^model\.motion: .*v2\.ckpt has a motion module in the middle"):
        read_motion(path)
    folder = write_motion_adapter(tmp_path / "v2", use_motion_mid_block=True)
    with pytest.raises(ConfigError, match=r"^model\.motion: .*use_motion_mid_block: AnimateDiff v2"):
        read_motion(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"_class_name": "UNetMotionModel"}, "UNetMotionModel is not supported"),
        ({"conv_in_channels": 9}, "conv_in_channels"),
        ({"motion_transformer_layers_per_block": 2}, "motion_transformer_layers_per_block"),
        ({"motion_num_attention_heads": 0}, "motion_num_attention_heads"),
        ({"motion_num_attention_heads": [2, 2]}, "motion_num_attention_heads"),
        ({"motion_max_seq_length": 8}, "motion_max_seq_length 8 is not"),
        ({"motion_norm_num_groups": None}, "motion_norm_num_groups"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_setting(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    folder = write_motion_adapter(tmp_path / "motion")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_motion(folder)
    assert str(caught.value).startswith(f"model.motion: {path}")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, b"not weights", b"PK\x03\x04 truncated", b"\x80\x02}q\x00.", b"\x80\x02K\x01."],
)
def test_files_of_something_else_are_refused_by_option_and_file(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^model\.motion: .*bad\{suffix}"):
        read_motion(path)


@pytest.mark.parametrize("content", [[V1], {"state_dict": V1[KEY]}, {"state_dict": {}}, {0: 1}])
def test_pickles_without_named_weights_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(ConfigError, match=r"^model\.motion: .*odd\.ckpt holds no weights"):
        read_motion(tmp_path / "odd.ckpt")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    for suffix in (".ckpt", ".safetensors"):
        path = write_motion_file(tmp_path / f"cut{suffix}", V1)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ConfigError, match=rf"^model\.motion: .*cut\{suffix}"):
            read_motion(path)


def test_a_pickle_that_could_run_code_is_never_read(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (tmp_path / "ran",)

    torch.save({"state_dict": V1, "callbacks": Code()}, tmp_path / "bad.ckpt")
    with pytest.raises(ConfigError, match=r"^model\.motion: .*holds more than weights"):
        read_motion(tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()


def test_an_adapter_without_weights_is_refused(tmp_path: Path) -> None:
    folder = write_motion_adapter(tmp_path / "motion")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"^model\.motion: .*motion has no diffusion_pytorch_model"):
        read_motion(folder)


def test_motion_modules_are_found_by_file_folder_and_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    file = write_motion_file(tmp_path / "mm.ckpt", V1)
    folder = write_motion_adapter(tmp_path / "motion")
    checkpoint.mkdir()
    assert find_motion(str(checkpoint), "") is None
    assert find_motion(str(checkpoint), str(file)) == file
    assert find_motion(str(checkpoint), str(folder)) == folder
    own = write_motion_adapter(checkpoint / "motion_adapter")
    assert find_motion(str(checkpoint), "") == own
    assert find_motion(str(checkpoint), str(file)) == file
    assert find_motion("null", str(checkpoint)) == own  # As of a whole pipeline on the hub.
    for missing in ("missing", "/missing/folder", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"^model\.motion"):
            find_motion(str(checkpoint), missing)


def test_motion_modules_on_the_hub_are_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--owner--motion"
    snapshot = place / "snapshots" / ("a" * 40)
    write_motion_adapter(snapshot)
    write_motion_file(snapshot / "mm.ckpt", V1)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    assert find_motion("null", "owner/motion") == snapshot
    assert find_motion("null", "owner/motion/mm.ckpt") == snapshot / "mm.ckpt"
    for name in ("owner/motion/other.ckpt", "owner/elsewhere"):
        with pytest.raises(ConfigError, match=r"^model\.motion"):
            find_motion("null", name)


def test_the_edge_knows_whether_there_are_motion_modules_and_which_sizes_fit(tmp_path: Path) -> None:
    checkpoint = str(write_tiny_checkpoint(tmp_path / "tiny"))
    assert not has_motion(checkpoint)
    assert has_motion(checkpoint, "anything")
    assert size_multiple(checkpoint) == 16  # The VAE halves three times, the UNet once.
    write_motion_adapter(tmp_path / "tiny" / "motion_adapter")
    assert has_motion(checkpoint)
    for other in ("null", "owner/name", "one.safetensors"):
        assert own_motion(other) is None
        assert not has_motion(other)
        assert size_multiple(other) == 64
    assert has_motion("owner/name", "owner/motion")
    assert not has_motion("null", "owner/motion")
    (tmp_path / "tiny" / "unet" / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"unet/config\.json"):
        size_multiple(checkpoint)


def test_extra_weights_in_a_folder_are_read_so_that_they_can_be_refused(tmp_path: Path) -> None:
    folder = write_motion_adapter(tmp_path / "motion")
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "other.weight": torch.zeros(1)}, path)
    assert "other.weight" in read_motion(folder).tensors
