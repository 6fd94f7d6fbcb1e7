"""`rearview plan`: an answer, and what is refused before anything is computed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import pytest
from rearview.cli.main import app
from rearview.planning.sizing import spark
from support.shapes import shaped
from typer.testing import CliRunner, Result

pytestmark = pytest.mark.unit

SHORT = ("--hours", "1", "--minutes", "10")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words])


def test_it_says_how_many_gpus_and_why() -> None:
    result = run("60", *SHORT, "--json")
    assert result.exit_code == 0, result.output
    said = shaped("plan", json.loads(result.output))
    assert said["is_met"] is True
    assert said["streams_per_gpu"] in (9, 10)
    assert 6 <= said["gpus"] <= 11
    assert said["slo_attainment"] >= 0.99
    assert said["continuous_play_ratio"] >= 0.995
    assert said["fewer_gpu_hours_than_one_replica_a_stream"] > 0.8
    assert [point["streams"] for point in said["curve"]][:3] == [1, 2, 3]


def test_a_deployment_says_what_its_replicas_take(root: Path) -> None:
    """Of the file: four steps, and eight slots."""
    result = run("12", "-c", str(root / "deploy/sd15-h100-fused.yaml"), *SHORT)
    assert result.exit_code == 0, result.output
    assert "15 FPS, 4 steps, 512x512; steady, 1 h" in result.output.replace("\n", " ")
    assert "█" in result.output
    assert "pictures within 200 ms" in result.output


def test_fewer_gpus_than_are_needed_are_told_by_the_exit_code() -> None:
    result = run("60", *SHORT, "--gpus", "2")
    assert result.exit_code == 1
    assert "The SLO is not kept." in result.output


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("0",), 2, "greater than or equal to 1"),
        (("ten",), 2, "valid integer"),
        (("5", "--fps", "0"), 2, "greater than or equal to 1"),
        (("5", "--size", "wide"), 2, "is no size"),
        (("5", "--trace", "weekend"), 2, "'weekend' is not one of"),
        (("5", "-c", "nowhere.yaml"), 1, "nowhere.yaml"),
        (("5", "--costs", "nowhere.json"), 1, "nowhere.json: No such file"),
        (("5", "--costs", "pyproject.toml"), 1, "is not JSON"),
        (("5", "-c", "deploy/sd15-4xh100-pipeline.yaml"), 1, "only a deployment of one span"),
        (("5", "-c", "deploy/sd15-h100-fused.yaml", "--steps", "9"), 1, "has room for 4"),
    ],
)
def test_a_wrong_question_is_refused_in_a_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.chdir(root)
    begun_s = time.process_time()
    result = run(*words)
    assert time.process_time() - begun_s < 2.0
    assert result.exit_code == code
    assert says in " ".join(click.unstyle(result.output).replace("│", " ").split())


def test_streams_that_no_gpu_takes_are_refused_with_what_they_would_take() -> None:
    result = run("5", "--steps", "50", "--size", "1024x1024", *SHORT)
    assert result.exit_code == 1
    assert "no GPU takes even one of these streams" in " ".join(result.output.split())


def test_a_line_of_bars_has_its_highest_at_the_most() -> None:
    assert spark([0, 1, 2, 4], 4) == "▁▃▅█"
    assert spark(list(range(600))).endswith("█")
    assert len(spark(list(range(600)))) == 60
    assert spark([0.0]) == spark([]) == ""
