"""What the tests of streams share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rearview.contract.chain import Span
from rearview.contract.cost import FrameCost
from rearview.engine.networks.model import Model, NullModel
from support.tiny import write_tiny_checkpoint

IMAGES = Path(__file__).parent / "images"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint."""
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def plant_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[Model], None]:
    """Make stages run a model of the test's own."""

    def plant(model: Model) -> None:
        monkeypatch.setattr("rearview.replica.build.load_model", lambda *_: model)

    return plant


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas have measured 10 ms for a denoising step, and nothing else: a session of 30 FPS and two steps
    takes 0.6 of one.
    """

    def frame_cost(costs: object, model: object, memory: object, span: Span, examples: object) -> FrameCost:
        return FrameCost(64 * 64, 0.0, 0.01, 0.01, span.steps)

    monkeypatch.setattr("rearview.replica.build._frame_cost", frame_cost)


@pytest.fixture
def image_checkpoint(tiny_checkpoint: Path, plant_model: Callable[[Model], None]) -> str:
    """A checkpoint of images whose networks do nothing: images are checked, decoded and encoded."""
    plant_model(NullModel())
    return str(tiny_checkpoint)


@pytest.fixture(scope="session")
def images() -> dict[str, bytes]:
    """Image files beside the tests, by name without suffix."""
    return {path.stem: path.read_bytes() for path in IMAGES.glob("*.jpg")}
