"""`rearview models verify` on a checkpoint that is there, one that is not, and one that makes no pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rearview.cli.main import app
from rearview.cli.models import Figures, problems
from support.tiny import SIZE, write_tiny_checkpoint
from typer.testing import CliRunner

pytestmark = pytest.mark.unit

GOOD = Figures(fps=1.0, latency_p50_ms=1.0, contrast=40.0, distance=20.0, flicker=2.0)


def test_without_a_hub_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    result = CliRunner().invoke(app, ["models", "verify", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("error: model.")
    assert "hub did not give it" in line
    assert not (tmp_path / "out").exists()


def test_it_runs_both_ways_and_finds_random_weights_wanting(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    options = ["--checkpoint", str(checkpoint), "--lcm-lora", "", "--vae", "", "--size", str(SIZE)]
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["models", "verify", *options, "--frames", "3", "--out", str(out)])
    assert result.exit_code == 1, result.output
    assert "problem: the VAE gives inputs back" in result.output
    assert (out / "models.png").stat().st_size > 0
    report = json.loads((out / "models.json").read_text())
    assert report["figures"].keys() == {"per frame", "feature bank"}
    assert all(figures["fps"] > 0 for figures in report["figures"].values())
    assert report["problems"]


def test_bundled_weights_pass(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    options = ["--checkpoint", "pocket", "--lcm-lora", "", "--vae", "", "--size", "128", "--frames", "2"]
    result = CliRunner().invoke(app, ["models", "verify", *options, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "models.json").read_text())["problems"] == []


def test_flat_and_broken_pictures_are_problems() -> None:
    assert problems(25.0, {"a": GOOD}) == []
    flat = Figures(1.0, 1.0, contrast=0.5, distance=20.0, flicker=0.0)
    broken = Figures(1.0, 1.0, contrast=float("nan"), distance=20.0, flicker=0.0)
    assert len(problems(float("nan"), {"a": flat, "b": broken, "c": GOOD})) == 3
