"""`rearview models check`: what is said of a model before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rearview.cli.main import app
from rearview.cli.model_choice import remember_costs
from rearview.config import load_config
from support.tiny_turbo import write_tiny_turbo
from support.tiny_xl import write_tiny_xl
from typer.testing import CliRunner, Result

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("REARVIEW_MODELS", str(folder))
    return folder


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", "check", *arguments])


def said(*arguments: str) -> Any:
    result = check(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def ways(found: Any) -> dict[str, Any]:
    return {way.pop("method"): way for way in found["ways"]}


def test_the_bundled_model_works_in_every_way() -> None:
    found = said()
    assert (found["model"], found["sampler"], found["steps"]) == ("pocket", "lcm", 2)
    assert (found["width"], found["height"], found["frames_per_s"]) == (256, 256, None)
    works = ways(found)
    assert {name: way["works"] for name, way in works.items()} == dict.fromkeys(works, True)
    assert works["per-frame"]["session_bytes"] == 0
    assert 0 < works["streamv2v"]["session_bytes"] < works["live2diff"]["session_bytes"]
    assert "live2diff   yes, " in check().output


def test_a_checkpoint_of_xl_has_a_bank_and_no_motion(tmp_path: Path) -> None:
    folder = write_tiny_xl(tmp_path / "xl")
    found = said("--model", str(folder), "--size", "64x64", "--device", "cpu")
    assert (found["family"], found["sampler"]) == ("Stable Diffusion XL", "euler_ancestral")
    works = ways(found)
    assert works["streamv2v"]["session_bytes"] > 0
    assert works["live2diff"] == {
        "works": False,
        "session_bytes": None,
        "note": "motion modules are of Stable Diffusion 1.x",
    }
    assert (
        "live2diff   no: motion modules are of Stable Diffusion 1.x" in check("--model", str(folder)).output
    )


def test_the_rate_is_what_the_model_took_when_it_ran_here(tmp_path: Path) -> None:
    folder = write_tiny_turbo(tmp_path / "turbo")
    assert "not known: it has not run here yet" in check("--model", str(folder), "--device", "cpu").output
    config = load_config({"model": {"checkpoint": str(folder), "device": "cpu"}})
    cost = {"pixels": 256 * 256, "once_s": 0.02, "step_s": 0.03, "cached_step_s": 0.04, "steps": [0]}
    remember_costs(config, [{"span": "fused", "cost": cost, "device": "cpu"}])
    found = said("--model", str(folder), "--device", "cpu", "--size", "256x256", "--steps", "1")
    assert found["frames_per_s"] == pytest.approx(20.0)
    found = said("--model", str(folder), "--device", "cpu", "--size", "512x256", "--steps", "1")
    assert found["frames_per_s"] == pytest.approx(10.0)


def test_what_does_not_work_is_refused_by_its_reason(tmp_path: Path) -> None:
    folder = write_tiny_turbo(tmp_path / "broken")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    result = check("--model", str(folder))
    assert result.exit_code == 1
    assert "an inpainting model" in result.output
    result = check("--model", "sd-turbo")
    assert result.exit_code == 1
    assert "`rearview models fetch sd-turbo` says its licence and bytes first" in result.output
