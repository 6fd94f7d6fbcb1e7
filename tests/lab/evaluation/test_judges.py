"""CLIP and depth figures by tiny random models, in the folders that real ones come in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rearview.errors import ConfigError
from support.tiny import write_tiny_checkpoint
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    DPTConfig,
    DPTForDepthEstimation,
)

pytest.importorskip("cv2")
from rearview_lab.evaluation.judges import ClipJudge, DepthJudge, Judges

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("clip")
    folder = write_tiny_checkpoint(root / "checkpoint") / "tokenizer"
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=300, max_position_embeddings=12, bos_token_id=0, eos_token_id=1, **shape)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **shape)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("depth")
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, image_size=32,
        patch_size=8, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(folder)
    return folder


def picture(seed: int) -> torch.Tensor:
    return torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(seed))


def test_equal_neighbours_are_consistent_and_others_less(clip_folder: Path) -> None:
    judge = Judges(clip=ClipJudge(clip_folder)).panel("pencil sketch")
    first, same, other = (judge(picture(9), picture(seed)) for seed in (1, 1, 2))
    assert first.keys() == {"text_alignment"}
    assert same["clip_consistency"] == pytest.approx(1.0, abs=1e-5)
    assert other["clip_consistency"] < 0.9999
    assert same["text_alignment"] == pytest.approx(first["text_alignment"], abs=1e-6)


def test_panels_share_no_past(clip_folder: Path) -> None:
    judges = Judges(clip=ClipJudge(clip_folder))
    left, right = judges.panel("a"), judges.panel("a")
    left(picture(9), picture(1))
    assert "clip_consistency" not in right(picture(9), picture(2))


def test_text_alignment_depends_on_the_prompt(clip_folder: Path) -> None:
    clip = ClipJudge(clip_folder)
    found = [
        Judges(clip=clip).panel(text)(picture(9), picture(1))["text_alignment"] for text in ("a", "zz z")
    ]
    assert found[0] != pytest.approx(found[1], abs=1e-6)
    assert len(clip.text("a much longer prompt than there are tokens " * 5)) == 8


def test_depth_of_equal_pictures_agrees(depth_folder: Path) -> None:
    judge = Judges(depth=DepthJudge(depth_folder)).panel("")
    assert judge(picture(1), picture(1)) == {"depth_error": 0.0}
    assert judge(picture(1), picture(2))["depth_error"] > 0


def test_without_weights_there_are_no_figures() -> None:
    assert Judges().panel("a")(picture(1), picture(2)) == {}


@pytest.mark.parametrize("judge", [ClipJudge, DepthJudge])
def test_a_folder_of_something_else_is_refused(judge: type, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        judge(tmp_path)
