"""What a checkpoint says of itself, and what it says wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rearview.contract.card import BUNDLED_CHECKPOINTS, NULL_CHECKPOINT, ModelCard, checkpoint_folder
from rearview.errors import ConfigError

pytestmark = pytest.mark.unit

GOOD = {
    "default_strength": 0.6,
    "default_steps": 2,
    "styles": {
        "pencil": {"prompt": "a pencil drawing", "phrases": ["pencil", "Graphite"]},
        "ink": {"prompt": "an ink drawing", "phrases": ["ink"]},
    },
}


def read(folder: Path, content: Any) -> ModelCard:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "rearview.json").write_text(text, encoding="utf-8")
    return ModelCard.read(str(folder))


def test_a_card_is_read(tmp_path: Path) -> None:
    card = read(tmp_path, GOOD)
    assert (card.strength, card.steps) == (0.6, 2)
    assert card.styles == {"pencil": "a pencil drawing", "ink": "an ink drawing"}


def test_no_card_and_the_null_model_have_the_defaults(tmp_path: Path) -> None:
    assert ModelCard.read(str(tmp_path)) == ModelCard.read(NULL_CHECKPOINT) == ModelCard()
    assert ModelCard().advice("anything") == ""


@pytest.mark.parametrize("prompt", ["a PENCIL sketch", "graphite on paper", "GRAPHITE", "ink wash"])
def test_a_prompt_with_a_known_phrase_needs_no_advice_whatever_its_case(tmp_path: Path, prompt: str) -> None:
    assert read(tmp_path, GOOD).advice(prompt) == ""


@pytest.mark.parametrize(
    ("prompt", "is_known"), [("oil", True), ("thick oils", True), ("in tin foil", False)]
)
def test_a_style_is_known_by_its_name_as_a_word(tmp_path: Path, prompt: str, is_known: bool) -> None:
    styles = {"oil": {"prompt": "oil painting", "phrases": ["oil painting"]}}
    assert (read(tmp_path, {**GOOD, "styles": styles}).advice(prompt) == "") is is_known


def test_a_prompt_without_one_is_answered_with_the_styles(tmp_path: Path) -> None:
    advice = read(tmp_path, GOOD).advice("a watercolour of a cat")
    assert advice == "no known style in the prompt; known: ink, pencil"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '"text"',
        {},
        {**GOOD, "styles": []},
        {**GOOD, "styles": {"pencil": {"prompt": "a"}}},
        {**GOOD, "styles": {"pencil": {"phrases": []}}},
        {**GOOD, "styles": {"pencil": {"prompt": "a", "phrases": "pencil"}}},
        {**GOOD, "styles": {"pencil": "a pencil drawing"}},
        {**GOOD, "default_strength": "strong"},
        {**GOOD, "default_strength": 0},
        {**GOOD, "default_strength": 1.1},
        {**GOOD, "default_strength": float("nan")},
        {**GOOD, "default_steps": 0},
        {**GOOD, "default_steps": None},
    ],
)
def test_a_bad_card_is_refused_with_its_path(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ConfigError, match=r"rearview\.json"):
        read(tmp_path, content)


def test_a_card_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rearview.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"rearview\.json"):
        ModelCard.read(str(tmp_path))


@pytest.mark.parametrize("name", ["no-such-model", "/nonexistent/model", "pocket/..no", ""])
def test_a_checkpoint_that_is_not_there_is_refused_by_option(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.checkpoint"):
        checkpoint_folder(name)


def test_a_path_is_a_checkpoint(tmp_path: Path) -> None:
    assert checkpoint_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "folder", [f for f in BUNDLED_CHECKPOINTS.glob("*") if f.is_dir()], ids=lambda f: f.name
)
def test_bundled_cards_know_their_own_styles(folder: Path) -> None:
    card = ModelCard.read(folder.name)
    assert card.styles
    for prompt in (*card.styles, *card.styles.values()):
        assert card.advice(prompt) == ""
