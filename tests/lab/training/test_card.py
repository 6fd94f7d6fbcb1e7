"""The model card says what made the checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview_lab.training.card import Report, Stage, model_card

pytestmark = pytest.mark.unit

REPORT = Report(
    num_scenes=24,
    batch=1,
    seed=1,
    stages={"unet": Stage(steps=100, minutes=2.0)},
    warm_start=False,
    machine="two cores",
    notes="",
    size_bytes=1_000_000,
    parameters={"denoiser": 1_000_000},
    reconstruction={"astronaut": {"natural": 25.0}},
    style_psnr={},
    distances={},
)


def test_card_and_manifest_tell_of_larger_steps():
    assert "times the pictures" not in model_card(REPORT)
    larger = replace(REPORT, batch=4)
    assert "Steps had 4 times the pictures named here." in model_card(larger)
    assert larger.training()["batch"] == 4
