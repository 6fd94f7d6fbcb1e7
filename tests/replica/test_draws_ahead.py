"""A replica whose engine draws ahead gives the pictures of one that does not."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rearview.config import ServiceConfig, load_config
from rearview.contract.frame import PICTURE
from rearview.contract.memories import BankSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import NoiseRule, Settings
from rearview.engine.player import Clip, Player, planes_of
from rearview.replica import build
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from torch import Tensor

pytestmark = pytest.mark.unit

DEADLINE_S = 10.0
SETTINGS = Settings("a", 0.6, 2, 5, NoiseRule.FRESH)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceConfig:
    monkeypatch.setenv("REARVIEW_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    model = {"checkpoint": str(checkpoint), "dtype": "float32", "width": SIZE, "height": SIZE}
    return load_config({"model": model, "bank": {}})


def pictures(config: ServiceConfig, *, alone: bool) -> Sequence[Tensor]:
    """Of frames that come one by one, in a session whose noise is fresh and whose bank always merges."""
    before = set(threading.enumerate())
    engine = build.build_engine(config, config.spans[0])
    spec = SessionSpec("s", SIZE, SIZE, 2, SETTINGS, bank=BankSettings(interval=1, fusion_threshold=0.5))
    frames = [{PICTURE: frame} for frame in random_frames(6)]
    left = Player(engine).play(Clip(spec, frames))["s"]
    drawing = set(threading.enumerate()) - before
    assert [each.name for each in drawing] == ([] if alone else ["ahead_0"])
    del engine
    gc.collect()
    for thread in drawing:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    return [planes_of(frame)[PICTURE] for frame in left]


def test_it_does_so_where_that_pays(config: ServiceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pictures(config, alone=True)
    monkeypatch.setattr(build, "draws_ahead", lambda device: True)
    found = pictures(config, alone=False)
    assert len(found) == len(expected) == 6
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
