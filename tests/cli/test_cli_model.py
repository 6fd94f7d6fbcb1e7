"""`translate --model` from nothing: a checkpoint of a hub on loopback is fetched, served and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
from client.clips import write_clip
from support.hub import serve_hub
from support.tiny_turbo import write_tiny_turbo

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

HUB_ID = "studio/tiny-turbo"


def translate(tmp_path: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = {"HF_HOME": str(tmp_path / "hf"), "REARVIEW_MODELS": str(tmp_path / "models")}
    files = [str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4")]
    return subprocess.run(
        [sys.executable, "-m", "rearview.cli.main", "translate", *files, "--prompt", "a boat", *arguments],
        env={**os.environ, **paths, "HF_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_model_of_the_hub_is_fetched_served_and_used(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mp4", count=4, width=128, height=64)
    options = ["--model", HUB_ID, "--size", "128x64", "--steps", "2"]
    with serve_hub({HUB_ID: write_tiny_turbo(tmp_path / "hub")}) as hub:
        done = translate(tmp_path, hub.endpoint, *options)
    assert done.stderr.index(f"huggingface.co/{HUB_ID}") < done.stderr.index("translating"), done.stderr
    # Weights at random paint one colour, which is kept but not called a result.
    assert "every picture is of one colour" in done.stderr, done.stderr
    with av.open(str(tmp_path / "out.partial.mp4")) as film:
        sizes = {(frame.width, frame.height) for frame in film.decode(video=0)}
    assert sizes == {(128, 64)}
    costs = json.loads((tmp_path / "models" / "costs.json").read_text())
    ((key, spans),) = costs.items()
    assert key == f"{tmp_path / 'models' / 'studio--tiny-turbo'} on cpu"
    assert [span["steps"] for span in spans] == [[0, 1]]


def test_a_model_that_is_nowhere_is_told_before_anything_starts(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mp4", count=4)
    for arguments in (["--model", "./nowhere"], ["--model", "x", "--server", "localhost:1"]):
        done = translate(tmp_path, "http://127.0.0.1:9", *arguments)
        assert done.returncode != 0
        assert "Ray" not in done.stderr
        assert "--model" in done.stderr
