"""A tiny checkpoint and motion modules for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from rearview.engine.weights.formats import Additions
from support.tiny import write_tiny_checkpoint
from support.tiny_motion_files import write_motion_adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def additions(tmp_path_factory: pytest.TempPathFactory) -> Additions:
    return Additions(motion=str(write_motion_adapter(tmp_path_factory.mktemp("motion"))))
