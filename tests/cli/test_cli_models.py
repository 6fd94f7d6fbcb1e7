"""`rearview models verify` on a checkpoint that is there, one that is not, and one that makes no pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rearview.cli.main import app
from rearview.cli.models import Figures, problems
from support.shapes import shaped
from support.tiny import SIZE, write_tiny_checkpoint
from support.tiny_depth import write_tiny_depth
from support.tiny_motion_files import depth_branch, original_motion, write_motion_file
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
    options += ["--frames", "3", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, ["models", "verify", *options])
    assert result.exit_code == 1, result.output
    assert "problem: the VAE gives inputs back" in result.stderr
    assert (out / "models.png").stat().st_size > 0
    report = json.loads((out / "models.json").read_text())
    assert shaped("models verify", json.loads(result.stdout)) == report
    assert report["figures"].keys() == {"per frame", "feature bank"}
    assert all(figures["fps"] > 0 for figures in report["figures"].values())
    assert report["problems"]


def test_it_runs_motion_modules_with_their_depth(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    motion = write_motion_file(tmp_path / "live2diff.ckpt", {**original_motion(), **depth_branch()})
    depth = write_tiny_depth(tmp_path / "depth")
    options = ["--checkpoint", str(checkpoint), "--lcm-lora", "", "--vae", "", "--size", str(SIZE)]
    options += ["--motion", str(motion), "--depth", str(depth), "--beta-schedule", "linear"]
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["models", "verify", *options, "--out", str(out)])
    assert result.exit_code == 1, result.output
    report = json.loads((out / "models.json").read_text())
    assert report["figures"].keys() == {"per frame", "feature bank", "motion modules"}
    assert all(figures["fps"] > 0 for figures in report["figures"].values())
    assert (report["motion"], report["depth"]) == (str(motion), str(depth))


def test_a_wrong_motion_file_is_one_line_with_its_option(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    motion = write_motion_file(tmp_path / "v2.ckpt", original_motion(mid_block=True))
    options = ["--checkpoint", str(checkpoint), "--lcm-lora", "", "--vae", "", "--motion", str(motion)]
    result = CliRunner().invoke(app, ["models", "verify", *options, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith(f"error: model.motion: {motion} has a motion module")


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
    grey = np.full((8, 8, 3), 9, np.uint8)
    steps = np.linspace(0, 255, 192).reshape(8, 8, 3).astype(np.uint8)
    assert problems(25.0, {"a": GOOD}, [steps, steps]) == []
    assert problems(25.0, {"a": GOOD}, [grey, grey]) == ["depth maps are flat, contrast 0.0"]


def test_a_file_where_the_folder_should_be_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("", encoding="utf-8")
    result = CliRunner().invoke(app, ["models", "verify", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.output == f"error: {tmp_path / 'out'} is not a folder\n"
