"""`rearview eval` on a tiny checkpoint, whole."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from support.tiny import write_tiny_checkpoint
from support.tiny_motion_files import write_motion_adapter
from typer.testing import CliRunner

pytest.importorskip("cv2")
pytest.importorskip("skimage")
import rearview_lab.evaluation.evaluate as module
from rearview.cli.main import app
from rearview_lab.evaluation.classifier import train_classifier
from rearview_lab.evaluation.runner import PER_FRAME

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


def run(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", *options])
    return result.exit_code, result.output


def test_it_prints_and_writes_its_tables(checkpoint: Path, tmp_path: Path) -> None:
    files = {"--json": tmp_path / "eval.json", "--markdown": tmp_path / "eval.md"}
    code, output = run(
        *(
            "--checkpoint",
            str(checkpoint),
            "--styles",
            "pencil,a cat",
            "--clips",
            "occlusion",
            "--frames",
            "3",
        ),
        *("--size", "64", "--part", "warp", "--part", "autoencoder", "--part", "steps"),
        *(str(part) for option in files.items() for part in option),
    )
    assert code == 0, output
    assert "Floors" in output
    content = json.loads(files["--json"].read_text())
    lines = {(line["method"], line["noise"], line["style"]) for line in content["table"]}
    assert len(lines) == 2 * 2 * 3
    assert ("streamv2v", "fresh", "a cat") in lines
    assert content["steps"].keys() == {"pencil", "a cat"}
    assert content["steps"]["pencil"].keys() == {"1", "2", "4"}
    assert content["steps"]["a cat"]["1"]["psnr_db"] is None
    assert content["setting"]["bank"]["interval"] == 4
    assert "streamv2v" in files["--markdown"].read_text()


def test_methods_with_motion_modules_stand_beside_the_others(checkpoint: Path, tmp_path: Path) -> None:
    out, motion = tmp_path / "eval.json", write_motion_adapter(tmp_path / "motion")
    code, output = run(
        *("--checkpoint", str(checkpoint), "--motion", str(motion), "--styles", "pencil", "--clips", "pan"),
        *("--frames", "6", "--size", "64", "--sink-frames", "3", "--ring-frames", "2", "--noise", "fresh"),
        *("--part", "warp", "--json", str(out)),
    )
    assert code == 0, output
    table = json.loads(out.read_text())["table"]
    assert [line["method"] for line in table] == ["per frame", "streamv2v", "live2diff", "both"]
    assert len({line["scores"]["input_difference"] for line in table}) == 4


def test_without_motion_modules_their_methods_are_left_out(checkpoint: Path) -> None:
    options = ("--styles", "pencil", "--clips", "pan", "--frames", "3", "--size", "64", "--part", "warp")
    code, output = run("--checkpoint", str(checkpoint), *options)
    assert code == 0, output
    assert "live2diff is left out" in output


def test_quick_takes_few_clips_and_styles(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    options = (
        "--size",
        "64",
        "--frames",
        "3",
        "--method",
        "per-frame",
        "--noise",
        "fixed",
        "--json",
        str(out),
    )
    code, output = run("--checkpoint", str(checkpoint), "--quick", *options)
    assert code == 0, output
    content = json.loads(out.read_text())
    assert len({run["style"] for run in content["runs"]}) == 3
    assert {run["clip"] for run in content["runs"]} == {"sample-coffee", "occlusion"}
    assert content["drift"] == {}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--size", "70"), "multiple of 8"),
        (("--clips", "holiday"), "holiday"),
    ],
)
def test_wrong_options_are_named(options: tuple[str, ...], text: str) -> None:
    code, output = run(*options)
    assert code == 2
    assert text in output


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    code, output = run("--checkpoint", str(tmp_path / "none"))
    assert code == 1
    assert output.startswith("error: ")


def test_the_classifier_judges_the_styles_that_have_filters(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(train_classifier, num_scenes=8, num_steps=5)
    monkeypatch.setattr(module, "train_classifier", quick)
    plan = module.Plan(
        checkpoint=str(checkpoint), styles=("pencil", "a cat"), methods=(PER_FRAME,), size=64,
        parts=(module.Part.CLASSIFIER,),
    )  # fmt: skip
    found = module.evaluate(plan).classified
    assert found is not None
    assert found.accuracy.keys() == {"pencil"}
    assert 0 <= found.mean <= 1 >= found.on_filters >= 0
