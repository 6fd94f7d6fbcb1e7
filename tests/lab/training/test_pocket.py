"""The whole recipe in small: every stage, export, card, contact sheet; and again from where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview.contract.memories import CacheSettings
from rearview.contract.settings import Settings
from rearview_lab.evaluation.runner import Method, Translator
from rearview_lab.training.pocket import STAGES, Options, train_pocket

pytestmark = [pytest.mark.load, pytest.mark.timeout(900)]

MINUTES = 0.1


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_recipe_makes_a_checkpoint_the_product_runs_and_resumes(one_thread, tmp_path: Path) -> None:
    options = Options(
        work=tmp_path / "work",
        checkpoint=tmp_path / "checkpoint",
        docs=tmp_path / "docs",
        num_scenes=24,
        batch=2,
        vae_minutes=MINUTES,
        polish_minutes=MINUTES,
        unet_minutes=MINUTES,
        motion_minutes=MINUTES,
        device="cpu",
        num_threads=1,
    )
    folder = train_pocket(options)
    training = json.loads((folder / "rearview.json").read_text(encoding="utf-8"))["training"]
    assert set(training["steps"]) == set(STAGES)
    assert all(steps > 0 for steps in training["steps"].values())
    assert "24 generated scenes" in (folder / "README.md").read_text(encoding="utf-8")
    assert (options.docs / "styles.png").stat().st_size > 10_000

    translator = Translator(str(folder), 128, 2, device=torch.device("cpu"), dtype=torch.float32)
    frames = [torch.zeros(128, 128, 3, dtype=torch.uint8)] * 8
    method = Method("live2diff", cache=CacheSettings())
    pictures = list(translator.translate(method, [Settings(prompt="oil painting")], frames))
    assert len(pictures) == len(frames)

    weights = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    train_pocket(options)  # All budgets are spent: nothing moves any more.
    again = json.loads((folder / "rearview.json").read_text(encoding="utf-8"))["training"]
    assert again["steps"] == training["steps"]
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
