"""`rearview models list` and `models fetch` in a process of their own, with HF_ENDPOINT on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub import serve_hub
from support.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.integration

HUB_ID = "studio/tiny"


def rearview(tmp_path: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = {"HF_HOME": str(tmp_path / "hf"), "REARVIEW_MODELS": str(tmp_path / "models")}
    return subprocess.run(
        [sys.executable, "-m", "rearview.cli.main", *arguments],
        env={**os.environ, **paths, "HF_ENDPOINT": endpoint},
        input="n\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_checkpoint_is_fetched_with_its_licence_shown_first(tmp_path: Path) -> None:
    with serve_hub({HUB_ID: write_tiny_checkpoint(tmp_path / "hub")}) as hub:
        refused = rearview(tmp_path, hub.endpoint, "models", "fetch", HUB_ID)
        assert refused.returncode == 1
        assert not (tmp_path / "models" / "studio--tiny").exists()
        assert "the repository says mit" in refused.stderr
        done = rearview(tmp_path, hub.endpoint, "models", "fetch", HUB_ID, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stderr.index("https://huggingface.co/studio/tiny") < done.stderr.index("fetching studio/tiny")
    assert f"--model {HUB_ID}" in done.stdout
    assert (tmp_path / "models" / "studio--tiny" / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    again = rearview(tmp_path, "http://127.0.0.1:9", "models", "fetch", HUB_ID, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == {"id": HUB_ID, "folder": str(tmp_path / "models" / "studio--tiny")}


def test_known_models_are_listed_without_a_hub(tmp_path: Path) -> None:
    done = rearview(tmp_path, "http://127.0.0.1:9", "models", "list")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pocket           bundled ")
    assert "sd-turbo         not fetched  SD-Turbo" in done.stdout
    assert "Stability AI Community License" in done.stdout
    assert str(tmp_path / "models") in done.stdout


@pytest.mark.parametrize(("name", "said"), [("sd-turbi", "known are sd-turbo"), ("studio/none", "OFFLINE")])
def test_what_cannot_be_fetched_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    done = rearview(tmp_path, "http://127.0.0.1:9", "models", "fetch", name, "--yes")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
