"""What can be asked of the command line without a service: its version, and the styles of a model."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from rearview.cli.main import app
from rearview.contract.card import ModelCard
from typer.testing import CliRunner, Result

pytestmark = pytest.mark.unit


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_the_version_is_that_of_the_package() -> None:
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"rearview {version('rearview')}\n")


def test_every_style_of_the_bundled_model_is_listed_with_its_prompt() -> None:
    lines = [line.split(maxsplit=1) for line in run("models", "styles").output.splitlines()]
    assert dict(lines) == dict(ModelCard.read("pocket").styles)


def test_the_phrases_of_a_style_are_shown_where_that_is_asked_for() -> None:
    assert "gouache" not in run("models", "styles").output
    assert "gouache" in run("models", "styles", "pocket", "--phrases").output


def test_a_model_without_a_card_takes_any_prompt(tmp_path: Path) -> None:
    assert "it takes any prompt" in run("models", "styles", str(tmp_path)).output


def test_a_model_that_is_not_there_is_named() -> None:
    result = run("models", "styles", "no-such-model")
    assert (result.exit_code, "no-such-model" in result.output) == (1, True)
