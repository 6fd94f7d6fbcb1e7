"""Training that begins with an earlier checkpoint: every part of it, and nothing lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview_lab.training.command import main
from rearview_lab.training.denoiser import new_students
from rearview_lab.training.export import load_pocket, random_pocket, write_checkpoint
from rearview_lab.training.motion import (
    load_motion,
    motion_of,
    motion_weights,
    new_motion,
    read_motion,
    weakened,
    write_motion,
)
from rearview_lab.training.options import Options
from rearview_lab.training.pocket import load_start, train_pocket

pytestmark = pytest.mark.unit


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    folder = tmp_path / "earlier"
    write_checkpoint(random_pocket(3), folder, training={})
    return folder


def test_the_denoiser_and_its_text_encoder_begin_as_the_earlier_ones(earlier: Path) -> None:
    start = load_pocket(earlier)
    students = new_students(random_pocket(4).vae, torch.device("cpu"), start)
    for part in ("unet", "text_encoder"):
        wanted = getattr(start, part).state_dict()
        found = getattr(students, part).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_motion_modules_come_back_as_strong_as_they_were_trained(tmp_path: Path) -> None:
    unet = random_pocket(1).unet
    modules = motion_of(new_motion(unet, seed=5))
    for value in modules.parameters():
        torch.nn.init.normal_(value, std=0.1)
    write_motion(weakened(motion_weights(modules)), unet.config, tmp_path)
    others = motion_of(new_motion(random_pocket(2).unet, seed=6))
    load_motion(others, read_motion(tmp_path))
    for name, value in modules.state_dict().items():
        torch.testing.assert_close(others.state_dict()[name], value, atol=2e-4, rtol=2e-3)


def test_a_checkpoint_with_other_words_is_refused_before_anything_is_made(
    earlier: Path, tmp_path: Path
) -> None:
    load_start(earlier)
    file = earlier / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    first, second = sorted(words, key=words.get)[:2]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(content), encoding="utf-8")
    work = tmp_path / "work"
    with pytest.raises(ValueError, match="another vocabulary"):
        train_pocket(Options(start_from=str(earlier), work=work, num_threads=torch.get_num_threads()))
    assert not work.exists()


def test_the_folder_that_training_replaces_is_no_start(earlier: Path) -> None:
    with pytest.raises(ValueError, match="start from a copy"):
        main(["--start-from", str(earlier), "--checkpoint", str(earlier)])
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        main(["--start-from", str(earlier / "unet")])
